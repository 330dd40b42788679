"""Every LoRA setting survives saving, loading and exporting: the denoiser gives the outputs of the trained one."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from factories import make_resolved
from sdpo_bench.cli.commands.export import export_command
from sdpo_bench.models.adapter_file import METADATA
from sdpo_bench.models.base_model import load_policy
from sdpo_bench.models.policy import ADAPTER, Policy
from sdpo_bench.running import run_one
from sdpo_bench.running.run_one import run_job
from sdpo_bench.runs.adapter import LORA_FILE, LORA_SEAL
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.runs.saved_adapter import load_adapter, read_adapter, save_adapter
from sdpo_bench.settings import ModelSettings, Runtime
from sdpo_bench.training import checkpoint

OFFICIAL_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
MODULES = (*OFFICIAL_TARGETS, "ff.net.0.proj", "ff.net.2", "proj_in", "conv1", "time_emb_proj", "linear_1", "conv_in")
PROMPTS = ["cat", "dog"]
LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
TIMES = torch.tensor([999, 499])


def trained(folder, *, precision="fp32", rank=4, alpha=4.0, targets=OFFICIAL_TARGETS) -> Policy:
    """A policy whose adapter is not zero."""
    wanted = ModelSettings(
        name=str(folder), precision=precision, lora_rank=rank, lora_alpha=alpha, lora_targets=tuple(targets)
    )
    policy = load_policy(wanted, lora_seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in policy.lora_parameters().items():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return policy


@torch.no_grad()
def outputs(policy: Policy) -> torch.Tensor:
    return policy.predict(LATENTS, TIMES, policy.encode(PROMPTS))


@torch.no_grad()
def stock_outputs(folder, lora, dtype=torch.float32) -> torch.Tensor:
    """Of stock diffusers, with the prompts as it encodes them."""
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=dtype, safety_checker=None)
    pipeline.load_lora_weights(str(lora), weight_name=LORA_FILE)
    texts, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
    return pipeline.unet(LATENTS.to(dtype), TIMES, texts).sample.float()


def forget_settings(lora: Path) -> None:
    """The file as earlier versions wrote it: weights alone, and diffusers' own conversion of their names."""
    convert = {name: name for name in load_file(lora / LORA_FILE)}
    for name in convert:
        if name.startswith("unet.conv_in."):
            convert[name] = name.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")
    weights = {convert[name]: value for name, value in load_file(lora / LORA_FILE).items()}
    save_file(weights, lora / LORA_FILE, metadata={"format": "pt"})
    (lora / LORA_SEAL).unlink()


@pytest.mark.slow
@settings(max_examples=2, deadline=None)
@given(
    rank=st.integers(1, 12),
    alpha=st.floats(0.05, 64),
    targets=st.lists(st.sampled_from(MODULES), min_size=1, max_size=4, unique=True),
    precision=st.sampled_from(["fp32", "bf16", "fp16"]),
)
@example(rank=8, alpha=4.0, targets=OFFICIAL_TARGETS, precision="fp32")
@example(rank=4, alpha=16.0, targets=OFFICIAL_TARGETS, precision="bf16")
@example(rank=3, alpha=0.7, targets=MODULES, precision="fp16")
def test_every_lora_setting_survives_saving_and_loading(tiny_pipe, rank, alpha, targets, precision):
    policy = trained(tiny_pipe, precision=precision, rank=rank, alpha=alpha, targets=targets)
    with tempfile.TemporaryDirectory() as place:
        lora = Path(place)
        save_adapter(policy, lora)
        other = load_policy(ModelSettings(name=str(tiny_pipe), precision=precision), lora_seed=9)
        load_adapter(other, lora)
        assert torch.equal(outputs(other), outputs(policy))
        before, after = policy.lora_parameters(), other.lora_parameters()
        assert before.keys() == after.keys()
        for name, parameter in after.items():
            assert parameter.dtype == torch.float32 and parameter.requires_grad
            assert torch.equal(parameter, before[name])
        save_adapter(other, lora / "again")
        assert (lora / "again" / LORA_FILE).read_bytes() == (lora / LORA_FILE).read_bytes()
        whole = load_policy(ModelSettings(name=str(tiny_pipe)), lora_seed=9)
        load_adapter(whole, lora)
        assert torch.equal(stock_outputs(tiny_pipe, lora), outputs(whole))
        assert other.denoiser.peft_config[ADAPTER].target_modules == set(targets)


@pytest.mark.parametrize(("rank", "alpha"), [(8, 4.0), (4, 16.0), (1, 4.0)])
def test_strength_one_would_be_another_policy(tiny_pipe, tmp_path, rank, alpha):
    """What the test above would miss if the adapter did too little: without its settings the file is another's."""
    policy = trained(tiny_pipe, rank=rank, alpha=alpha)
    save_adapter(policy, tmp_path)
    forget_settings(tmp_path)
    assert (stock_outputs(tiny_pipe, tmp_path) - outputs(policy)).abs().max() > 0.05


@pytest.mark.parametrize(("rank", "alpha"), [(2, 16.0), (8, 2.0)])
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_stock_diffusers_in_half_precision_gives_the_same_outputs(tiny_pipe, tmp_path, precision, dtype, rank, alpha):
    policy = trained(tiny_pipe, precision=precision, rank=rank, alpha=alpha)
    save_adapter(policy, tmp_path)
    assert torch.equal(stock_outputs(tiny_pipe, tmp_path, dtype), outputs(policy))


def test_the_same_adapter_gives_the_same_bytes(tiny_policy, tmp_path):
    """safetensors writes several entries of a header in random order."""
    contents = {save_adapter(tiny_policy, tmp_path / str(i)).read_bytes() for i in range(20)}
    assert len(contents) == 1


def old_run(tiny_pipe, out: Path, policy: Policy, **model) -> RunFolder:
    """A finished run whose adapter is as earlier versions saved it."""
    resolved = make_resolved(tiny_pipe, **{f"model.{key}": value for key, value in model.items()})
    run = RunFolder(out / "runs" / resolved.run_id)
    run.create(resolved.record)
    run.set_status("done")
    for folder in (run.lora, run.path / "candidates" / "epoch-000001"):
        save_adapter(policy, folder)
        forget_settings(folder)
    return run


@pytest.mark.parametrize(("rank", "targets"), [(8, OFFICIAL_TARGETS), (1, ("to_q", "conv_in"))])
def test_an_adapter_of_an_earlier_version_has_its_recorded_strength(tiny_pipe, tmp_path, capsys, rank, targets):
    policy = trained(tiny_pipe, rank=rank, targets=targets)
    run = old_run(tiny_pipe, tmp_path, policy, lora_rank=rank)
    for folder in (run.lora, run.path / "candidates" / "epoch-000001"):
        other = load_policy(ModelSettings(name=str(tiny_pipe)), lora_seed=9)
        load_adapter(other, folder)
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"recorded strength, 4/{rank}" in said and "eval.parquet" in said
        assert torch.equal(outputs(other), outputs(policy))
    export_command(run.run_id, tmp_path / "exported", False, tmp_path)
    assert f"recorded strength, 4/{rank}" in capsys.readouterr().err
    assert torch.equal(stock_outputs(tiny_pipe, tmp_path / "exported"), outputs(policy))
    save_adapter(other, tmp_path / "new")
    load_adapter(other, tmp_path / "new")
    assert not capsys.readouterr().err
    assert torch.equal(outputs(other), outputs(policy))


def test_an_adapter_of_an_earlier_version_at_strength_one_is_loaded_as_before(tiny_pipe, tmp_path, capsys):
    policy = trained(tiny_pipe)
    run = old_run(tiny_pipe, tmp_path, policy)
    save_adapter(policy, tmp_path / "alone")
    forget_settings(tmp_path / "alone")  # no run.json says anything
    for folder in (run.lora, tmp_path / "alone"):
        other = load_policy(ModelSettings(name=str(tiny_pipe), lora_rank=2), lora_seed=9)
        load_adapter(other, folder)
        assert torch.equal(outputs(other), outputs(policy))
    assert not capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [False, True], ids=["last", "best"])
def test_a_run_of_another_strength_is_judged_and_exported_as_it_was_trained(tiny_pipe, tmp_path, monkeypatch, chosen):
    """Its training state is the only witness: what is judged and exported went through a file, the best one twice."""
    judged = []
    evaluate = run_one.ev.evaluate
    monkeypatch.setattr(
        run_one.ev, "evaluate", lambda policy, *a, **k: (judged.append(outputs(policy)), evaluate(policy, *a, **k))[1]
    )
    more = (
        {"checkpoint.choose": "validation", "checkpoint.prompts": "emoji-validation", "checkpoint.images_per_prompt": 1}
        if chosen
        else {}
    )
    wanted = {"model.lora_rank": 8, "model.lora_alpha": 2.0, "update.lr": 0.05, "budget.images": 8}
    run = run_job(make_resolved(tiny_pipe, **wanted, **more), Runtime(tmp_path, "cpu")).run
    assert run.log("validation.jsonl") or not chosen
    policy = trained(tiny_pipe, rank=8, alpha=2.0)
    state = checkpoint.read(checkpoint.latest(run)[0])[1]
    for name, parameter in policy.lora_parameters().items():
        parameter.data = state[f"lora/{name}"]
    export_command(run.run_id, tmp_path / "exported", False, tmp_path)
    with torch.no_grad(), policy.reference():
        assert (outputs(policy) - judged[0]).abs().max() > 0.01
    assert torch.equal(judged[0], outputs(policy))
    assert torch.equal(stock_outputs(tiny_pipe, tmp_path / "exported"), outputs(policy))


def test_the_settings_are_where_diffusers_looks_for_them(tiny_pipe, tmp_path):
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from safetensors import safe_open

    save_adapter(trained(tiny_pipe, rank=8, alpha=2.0, targets=("to_q",)), tmp_path)
    assert METADATA == LORA_ADAPTER_METADATA_KEY
    with safe_open(str(tmp_path / LORA_FILE), framework="pt") as file:
        stored = json.loads(file.metadata()[METADATA])
    assert stored == {"unet.r": 8, "unet.lora_alpha": 2.0, "unet.target_modules": ["to_q"]}
    assert read_adapter(tmp_path).config == {"r": 8, "lora_alpha": 2.0, "target_modules": ["to_q"]}


def test_switching_the_adapter_off_leaves_its_parameters_as_they_are(tiny_pipe, monkeypatch):
    """The base model's outputs inside, the policy's outside, and the same trainable parameters throughout; parameters
    of a new adapter are found anew."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    policy = trained(tiny_pipe)
    before, own = outputs(policy), policy.lora_parameters()
    with policy.reference():
        base = outputs(policy)
        assert all(parameter.requires_grad for parameter in own.values())
    assert torch.equal(base, outputs(load_policy(ModelSettings(name=str(tiny_pipe)), lora_seed=1)))  # B = 0
    assert torch.equal(outputs(policy), before) and not torch.equal(base, before)
    policy.set_adapter(trained(tiny_pipe, rank=8).adapter())
    renewed = policy.lora_parameters()
    assert renewed.keys() == own.keys() and all(renewed[name] is not own[name] for name in own)
    assert all(parameter.requires_grad for parameter in renewed.values())
    monkeypatch.setattr(BaseTunerLayer, "disable_adapters", property(lambda layer: False))
    with pytest.raises(RuntimeError, match="switches adapters otherwise"), policy.reference():
        pass
