"""Denoisers that are transformers: latents and pictures of stock diffusers, adapters that it loads, refusals.

The pipelines are small, with random weights, in the architecture of the published ones. Every comparison is with the
stock pipeline of the installed diffusers; the Euler steps stand here, so that nothing but the model is compared.
"""

import json
import shutil
import warnings

import huggingface_hub
import pytest
import torch
from diffusers import DiffusionPipeline
from stock_pipelines import arguments, call

from sdpo_bench.cli.commands.fetch import fetch_command
from sdpo_bench.errors import UsageError
from sdpo_bench.models.adapter_file import METADATA
from sdpo_bench.models.base_model import load_policy, scheduler_config
from sdpo_bench.models.conditioning import Conditioning
from sdpo_bench.models.cut_prompts import read_by, read_from_files
from sdpo_bench.models.families import FAMILIES
from sdpo_bench.models.families.sd3 import StableDiffusion3
from sdpo_bench.models.known_models import KNOWN, known_model
from sdpo_bench.models.pipeline_files import read_folder
from sdpo_bench.runs.adapter import LORA_FILE
from sdpo_bench.runs.saved_adapter import load_adapter, read_adapter, save_adapter
from sdpo_bench.settings import ModelSettings
from tools.random_pipeline import SMALL_FLOW

PROMPTS = ["a cat", "the other dog, and a third one that is longer"]
SIDE = 16
STEPS = 3


@pytest.fixture(params=sorted(SMALL_FLOW))
def shape(request):
    return request.param


def settings(folder, **changes):
    return ModelSettings(name=str(folder), **({"resolution": SIDE} | changes))


def stock(folder, dtype=torch.float32):
    absent = {"text_encoder_3": None, "tokenizer_3": None} if "without-t5" in str(folder) else {}
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_latents(pipeline, shape, start, guidance, side=SIDE):
    """Latents ``[n, C, h, w]`` that the stock pipeline returns."""
    return call(pipeline, shape, start, PROMPTS, guidance, steps=STEPS, side=side, output="latent")


@torch.no_grad()
def euler(policy, scheduler, start):
    """``x' = x + v (s' - s)`` over the noise levels that the stock pipeline has set."""
    conditioning = policy.encode(PROMPTS)
    x = start
    for i, time in enumerate(scheduler.timesteps):
        v = policy.predict(x, time.expand(len(x)), conditioning)
        x = x + v * (scheduler.sigmas[i + 1] - scheduler.sigmas[i])
    return x


def noise(policy, seed=3):
    return torch.randn(len(PROMPTS), *policy.latent_shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_exported_python_guides_the_stock_pipeline_so(folders, shape, guidance):
    files = read_folder(folders(shape))
    given = files.family(shape).stock_guidance(files.configs, guidance)
    official = {key: value for key, value in arguments(shape, guidance, 1).items() if key != "max_sequence_length"}
    assert given == {key: value[0] if key == "negative_prompt" else value for key, value in official.items()}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_latents_are_stock_diffusers(folders, shape, guidance):
    """Encoders, packing, positions, pooled embeddings, guidance, masks of prompts of different lengths."""
    pipeline = stock(folders(shape))
    policy = load_policy(settings(folders(shape), guidance_scale=guidance))
    assert policy.branches == (2 if guidance > 1 and shape != "flux-dev" else 1)
    start = noise(policy)
    theirs = stock_latents(pipeline, shape, start, guidance)
    ours = euler(policy, pipeline.scheduler, start)
    assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()
    other = load_policy(settings(folders(shape), guidance_scale=5.0))
    assert (euler(other, pipeline.scheduler, start) - theirs).abs().max() > 1e-3, "guidance is heard"


def test_pictures_are_stock_diffusers(folders, shape):
    """Scaling and shift of the autoencoder."""
    pipeline = stock(folders(shape))
    policy = load_policy(settings(folders(shape)))
    start = noise(policy)
    latents = stock_latents(pipeline, shape, start, 1.0)
    theirs = call(pipeline, shape, start, PROMPTS, 1.0, steps=STEPS, side=SIDE, output="pt")
    ours = policy.decode(latents)
    assert ours.shape == (2, 3, SIDE, SIDE) and ours.std() > 0.01
    assert (ours - theirs).abs().max() < 1e-5


def test_a_row_does_not_depend_on_the_others(folders, shape):
    """Prompts of other lengths in the batch change nothing but the rounding."""
    policy = load_policy(settings(folders(shape), guidance_scale=3.0))
    start, times = noise(policy), torch.tensor([900.0, 300.0])
    with torch.no_grad():
        together = policy.predict(start, times, policy.encode(PROMPTS))
        swapped = policy.predict(start.flip(0), times.flip(0), policy.encode(PROMPTS)[torch.tensor([1, 0])]).flip(0)
        alone = [policy.predict(start[[i]], times[[i]], policy.encode([PROMPTS[i]])) for i in range(2)]
    assert (together - torch.cat(alone)).abs().max() < 1e-5
    assert (together - swapped).abs().max() < 1e-5
    assert together.dtype == torch.float32


def trained(folder, **changes):
    """A policy whose adapter is not zero, at the family's own targets."""
    policy = load_policy(settings(folder, **changes))
    policy.add_lora(4, 8.0, policy.family.lora_targets, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in policy.lora_parameters().items():
        if "lora_B" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return policy


def test_one_branch_can_be_a_constant_of_the_gradient(folders, shape):
    """Beside two calls of which one has no graph. Where the scale is an input, there is one branch."""
    policy = trained(folders(shape), guidance_scale=3.0)
    conditioning, start, times = policy.encode(PROMPTS), noise(policy), torch.tensor([900.0, 300.0])
    slopes, lora = noise(policy, seed=4), list(policy.lora_parameters().values())

    def gradient(output):
        found = torch.autograd.grad((output * slopes).sum(), lora, allow_unused=True)
        return torch.cat([value.flatten() for value in found if value is not None])

    both = gradient(policy.predict(start, times, conditioning))
    policy.guidance_gradient = "conditional"
    ours = gradient(policy.predict(start, times, conditioning))
    if policy.branches == 1:
        assert torch.equal(ours, both)
        return
    with torch.no_grad():
        u = policy.predict(start, times, Conditioning(conditioning.negative))
    c = policy.predict(start, times, Conditioning(conditioning.positive))
    expected = gradient(policy.family.guided(u, c, 3.0))
    assert torch.allclose(ours, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert (both - expected).norm() > 0.1 * expected.norm()


def test_stock_diffusers_loads_the_adapter_and_gives_the_same_latents(folders, shape, tmp_path):
    policy = trained(folders(shape))
    save_adapter(policy, tmp_path)
    pipeline = stock(folders(shape))
    start = noise(policy)
    base = stock_latents(pipeline, shape, start, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of keys that are left over
        pipeline.load_lora_weights(str(tmp_path), weight_name=LORA_FILE)
    theirs = stock_latents(pipeline, shape, start, 1.0)
    ours = euler(policy, pipeline.scheduler, start)
    assert (theirs - base).abs().max() > 1e-2, "the adapter does something"
    assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()
    with policy.reference():
        assert (euler(policy, pipeline.scheduler, start) - base).abs().max() < 2e-5 * base.abs().max()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_adapter_survives_saving_and_loading(folders, shape, tmp_path, precision):
    policy = trained(folders(shape), precision=precision)
    save_adapter(policy, tmp_path)
    file = read_adapter(tmp_path)
    assert file.part == "transformer" and file.config["lora_alpha"] == 8.0
    other = load_policy(settings(folders(shape), precision=precision), lora_seed=9)
    load_adapter(other, tmp_path)
    before, after = policy.lora_parameters(), other.lora_parameters()
    assert before.keys() == after.keys()
    assert all(torch.equal(p, before[name]) and p.dtype == torch.float32 for name, p in after.items())
    start, times = noise(policy), torch.tensor([900.0, 300.0])
    with torch.no_grad():
        ours = [p.predict(start, times, p.encode(PROMPTS)) for p in (policy, other)]
    assert torch.equal(*ours)
    save_adapter(other, tmp_path / "again")
    assert (tmp_path / "again" / LORA_FILE).read_bytes() == (tmp_path / LORA_FILE).read_bytes()


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"precision": "bf16"}], ids=str)
def test_every_lora_matrix_is_trained(folders, shape, changes):
    policy = trained(folders(shape), **changes)
    output = policy.predict(noise(policy), torch.tensor([900.0, 300.0]), policy.encode(PROMPTS))
    output.square().mean().backward()
    silent = [name for name, p in policy.lora_parameters().items() if p.grad is None or not p.grad.any()]
    # Nothing reads the text side of the last joint block of SD3 and Qwen-Image.
    last = f"transformer_blocks.{SMALL_FLOW[shape]['transformer'].get('num_layers', 1) - 1}."
    unread = tuple(last + module for module in ("attn.add_q_proj", "attn.to_add_out", "txt_mlp"))
    assert [name for name in silent if not name.startswith(unread)] == []


def test_memory_savings_change_no_number(folders, shape):
    plain, lean = (
        trained(folders(shape), **changes) for changes in ({}, {"gradient_checkpointing": True, "cpu_offload": True})
    )
    outputs = [p.predict(noise(p), torch.tensor([900.0, 300.0]), p.encode(PROMPTS)) for p in (plain, lean)]
    assert torch.equal(*outputs)


def test_the_scheduler_settings_name_their_class_and_the_tokens_of_a_picture(folders, shape):
    """Latents of 8 x 8 in patches of 2 x 2 are 16 tokens; the shift from them is the stock pipeline's."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = scheduler_config(load_policy(settings(folders(shape))))
    assert config["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    assert config["image_seq_len"] == 16
    larger = load_policy(settings(folders(shape), resolution=32))
    assert (scheduler_config(larger)["image_seq_len"], larger.latent_shape) == (64, (4, 16, 16))
    if shape == "flux-dev":
        pipeline = stock(folders(shape))
        stock_latents(pipeline, shape, noise(larger), 1.0, side=32)
        theirs = pipeline.scheduler.sigmas.clone()
        mu = calculate_shift(64, 256, 4096, 0.5, 1.15)
        pipeline.scheduler.set_timesteps(sigmas=[1, 2 / 3, 1 / 3], mu=mu)
        assert torch.equal(theirs, pipeline.scheduler.sigmas)


def test_a_resolution_between_the_patches_is_refused(folders, shape):
    with pytest.raises(UsageError, match=r"model.resolution = 18 is not a multiple of 4. Use 16"):
        load_policy(settings(folders(shape), resolution=18))


def test_a_picture_larger_than_the_positions_is_refused(folders):
    """16 x 16 positions of patches of 4 pixels."""
    with pytest.raises(UsageError, match=r"model.resolution = 68 is more than this model's 64"):
        load_policy(settings(folders("sd3"), resolution=68))


def edited(folder, target, path, **changes):
    copy = shutil.copytree(folder, target / "pipe")
    file = copy / path
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return copy


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        ("transformer/config.json", {"_class_name": "PixArtTransformer2DModel"}, "Supported: Stable Diffusion"),
        ("transformer/config.json", {"in_channels": 32}, "takes 8 channels for latents of 4"),
        ("model_index.json", {"_class_name": "FluxFillPipeline"}, "a FluxFillPipeline; of FLUX.1, FluxPipeline is"),
    ],
)
def test_pipelines_of_other_tasks_are_refused_in_one_line(folders, tmp_path, path, change, said):
    folder = edited(folders("flux-dev"), tmp_path, path, **change)
    with pytest.raises(UsageError) as error:
        load_policy(settings(folder))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_every_family_is_named_in_the_refusal(folders, tmp_path):
    folder = edited(folders("zimage"), tmp_path, "transformer/config.json", _class_name="Other")
    with pytest.raises(UsageError) as error:
        load_policy(settings(folder))
    assert all(family.name in str(error.value) and family.network in str(error.value) for family in FAMILIES)


def test_prompts_are_cut_where_the_longest_tokenizer_cuts_them(folders, shape):
    """The tiny tokenizers spell in letters; CLIP's 32 tokens do not cut what T5 reads."""
    limits = {
        "qwenimage": 512 + 34,
        "sd3": 256,
        "sd3-without-t5": 32,
        "flux-schnell": 256,
        "flux-dev": 512,
        "zimage": 512,
    }
    prompts = ["a cat", "z" * 300, "z" * 600]
    folder = folders(shape)
    reading = read_by(load_policy(settings(folder)), prompts)
    assert reading == read_from_files(settings(folder), prompts)
    assert reading.limit == limits[shape]
    assert reading.cut == tuple(p for p in prompts if len(p) > min(limits[shape], 512))


def test_the_header_names_the_part_as_diffusers_does(folders, tmp_path):
    from safetensors import safe_open

    save_adapter(trained(folders("flux-dev")), tmp_path)
    with safe_open(str(tmp_path / LORA_FILE), framework="pt") as file:
        assert json.loads(file.metadata()[METADATA])["transformer.r"] == 4
        assert all(name.startswith("transformer.") and ".lora_" in name for name in file.keys())  # noqa: SIM118


def test_a_memory_order_of_pictures_is_refused_for_a_video_autoencoder(folders):
    with pytest.raises(UsageError, match=r"model.channels_last does not fit Qwen-Image"):
        load_policy(settings(folders("qwenimage"), channels_last=True))
    assert load_policy(settings(folders("zimage"), channels_last=True)).branches == 1


def test_fetch_names_licence_size_and_login(capsys):
    """Sizes of half-precision weights: 16.86 G parameters of FLUX.1 schnell; Z-Image's transformer is float32."""
    fetch_command(("flux.1-schnell", "z-image-turbo"), dry_run=True)
    printed = capsys.readouterr().out
    assert "black-forest-labs/FLUX.1-schnell, licence Apache-2.0, gated (33.72 GB)" in printed
    assert "Tongyi-MAI/Z-Image-Turbo, licence Apache-2.0 (32.83 GB)" in printed
    hint = KNOWN["flux.1-schnell"].fetch_hint
    assert "https://huggingface.co/black-forest-labs/FLUX.1-schnell" in hint and "hf auth login" in hint
    assert "hf auth login" not in KNOWN["z-image-turbo"].fetch_hint


def test_a_guidance_embedding_is_given_its_pipelines_default(folders):
    """Stock FluxPipeline: 3.5. Its value is an input, so that 1 would be a picture of another condition."""
    dev, schnell = (known_model(str(folders(shape))).defaults for shape in ("flux-dev", "flux-schnell"))
    assert (dev["model.guidance_scale"], dev["eval.guidance_scale"]) == (3.5, 3.5)
    assert "model.guidance_scale" not in schnell


def test_a_hub_pipeline_in_the_cache_gets_its_familys_adapter(folders, monkeypatch):
    config = folders("sd3") / "transformer" / "config.json"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name, revision: str(config))
    assert known_model("somebody/sd3").defaults["model.lora_targets"] == StableDiffusion3.lora_targets
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name, revision: None)
    assert "model.lora_targets" not in known_model("somebody/sd3").defaults
