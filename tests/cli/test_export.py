"""What export writes gives the outputs of the trained policy: merged, and under kohya's names; and what is uploaded."""

import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from factories import make_resolved
from sdpo_bench.cli.commands.export import export_command
from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.evaluation.evaluate import evaluation_schedule
from sdpo_bench.library.model_card import licence_warning
from sdpo_bench.models.adapter_file import AdapterFile
from sdpo_bench.models.kohya import kohya_bytes
from sdpo_bench.rollout.sampling import replay
from sdpo_bench.running.finished_run import load_tuned, open_finished_run
from sdpo_bench.running.run_one import run_job
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.runs.saved_adapter import load_adapter
from sdpo_bench.settings import Runtime

LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
TIMES = torch.tensor([999, 499])
PROMPTS = ["cat", "dog"]


@pytest.fixture(scope="module")
def trained(tiny_pipe, tmp_path_factory):
    """A finished run whose adapter has a strength other than 1 (alpha 2, rank 8)."""
    out = tmp_path_factory.mktemp("trained")
    settings = {"model.lora_rank": 8, "model.lora_alpha": 2.0, "update.lr": 0.05, "budget.images": 8}
    return run_job(make_resolved(tiny_pipe, **settings), Runtime(out, "cpu")).run


@pytest.fixture
def run(trained, tmp_path):
    return RunFolder(shutil.copytree(trained.path.parent.parent, tmp_path / "out") / "runs" / trained.run_id)


def export(run, target, **options):
    export_command(run.run_id, target, False, run.path.parent.parent, **options)


@torch.no_grad()
def own_outputs(run):
    policy = open_finished_run(run).load_policy("cpu")
    load_adapter(policy, run.lora)
    tuned = policy.predict(LATENTS, TIMES, policy.encode(PROMPTS))
    with policy.reference():
        base = policy.predict(LATENTS, TIMES, policy.encode(PROMPTS))
    assert (tuned - base).abs().max() > 0.01
    return tuned


@torch.no_grad()
def stock_outputs(folder, lora=None):
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    if lora:
        pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
    texts, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
    return pipeline.unet(LATENTS, TIMES, texts).sample


def test_the_merged_pipeline_gives_the_outputs_of_the_policy(run, tmp_path):
    export(run, tmp_path / "merged", merge=True)
    assert (tmp_path / "merged" / "model_index.json").is_file()
    assert not [
        name for name in load_file(next((tmp_path / "merged" / "unet").glob("*.safetensors"))) if "lora" in name
    ]
    # W + BA is rounded once to float32: as near as float32 is
    assert torch.allclose(stock_outputs(tmp_path / "merged"), own_outputs(run), atol=1e-5)
    with pytest.raises(UsageError, match="already there"):
        export(run, tmp_path / "merged", merge=True)


def printed_code(text):
    """The Python code that export prints."""
    lines = text.partition("In Python:\n")[2].splitlines()
    return "\n".join(line[2:] for line in lines if line.startswith("  "))


@pytest.mark.parametrize("merge", [False, True])
def test_the_printed_python_draws_the_pictures_of_the_run(tiny_pipe, tmp_path, capsys, merge):
    """Stock DDIM with the run's noise; the folder's own scheduler, Euler's, draws other pictures."""
    settings = {"schedule.steps": 4, "eval.guidance_scale": 2.0, "update.lr": 0.02, "budget.images": 8}
    run = run_job(make_resolved(tiny_pipe, **settings), Runtime(tmp_path / "out", "cpu")).run
    finished = open_finished_run(run)
    policy, _ = load_tuned(finished, "cpu")
    capsys.readouterr()
    export(run, tmp_path / "exported", merge=merge)
    printed: dict = {}
    exec(printed_code(capsys.readouterr().out), printed)
    pipeline, sampling = printed["pipeline"], printed["sampling"]

    random = torch.Generator().manual_seed(3)
    start = torch.randn(2, *policy.latent_shape, generator=random)
    state = random.get_state()
    noise = torch.stack([torch.randn(start.shape, generator=random) for _ in range(4)], dim=1)
    schedule = evaluation_schedule(policy, finished.evaluation, 4)
    with torch.no_grad():
        ours = replay(policy, schedule, PROMPTS, start[:, None], noise[:, None], shared_start=False).latents[:, 0, -1]
    random.set_state(state)
    theirs = pipeline(PROMPTS, **sampling, latents=start, generator=random, output_type="latent").images
    assert (ours - theirs).abs().max() < 1e-5 * ours.abs().max()
    for other in ({"eta": 0.5}, {"guidance_scale": 1.0}, {"num_inference_steps": 5}):
        random.set_state(state)
        latents = pipeline(PROMPTS, **sampling | other, latents=start, generator=random, output_type="latent").images
        assert (latents - theirs).abs().max() > 1e-2, other


def test_no_call_is_printed_where_stock_ddim_draws_other_pictures(run, tmp_path, capsys):
    """At 3 steps, 1000 // 3 leaves the list of timesteps."""
    export(run, tmp_path / "lora")
    assert run.record()["config"]["schedule"]["steps"] == 3 and "sampling = " not in capsys.readouterr().out


def test_kohyas_names_are_read_by_diffusers_own_converter_to_the_same_outputs(run, tiny_pipe, tmp_path):
    export(run, tmp_path / "kohya", form="kohya")
    file = tmp_path / "kohya" / f"{run.run_id}.safetensors"
    tensors = load_file(file)
    assert all(name.startswith("lora_unet_") for name in tensors)
    assert {name.split(".", 1)[1] for name in tensors} == {"lora_down.weight", "lora_up.weight", "alpha"}
    down = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight"
    assert len(tensors[down]) == 8 and tensors[down.replace("lora_down.weight", "alpha")] == 2.0
    assert torch.allclose(stock_outputs(tiny_pipe, file), own_outputs(run), atol=1e-6)


def test_kohyas_names_are_refused_for_transformers_and_with_merge(run, tmp_path):
    with pytest.raises(UsageError, match="of a transformer"):
        kohya_bytes(AdapterFile({}, {"lora_alpha": 1.0}, "transformer"))
    with pytest.raises(UsageError, match="leave out --format kohya"):
        export(run, tmp_path / "x", form="kohya", merge=True)


class Hub:
    """The hub's interface, which records what it is asked."""

    calls: list = []

    def create_repo(self, repo, **options):
        self.calls.append(("create", repo))

    def upload_folder(self, **options):
        self.calls.append(("upload", options["repo_id"], sorted(options["allow_patterns"])))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    return Hub


def test_a_push_is_shown_first_and_uploads_with_yes_alone(run, tmp_path, hub, capsys):
    target = tmp_path / "shared"
    export(run, target, repo="me/mine")
    told = capsys.readouterr()
    assert not hub.calls and "nothing was uploaded" in told.out and "README.md (" in told.out
    assert "licence that is not known here" in told.err and "That decision is yours" in told.err
    card = (target / "README.md").read_text()
    for words in ("method **sdpo**", "jpeg-incompressibility", "license: other", "sdpo-bench run --config run.json"):
        assert words in card, words
    assert "| split | reward | steps | base | tuned | difference | images |" in card and "| train | jpeg-inc" in card
    assert "images" in card.split("## Cost")[1].split("## Settings")[0] and "`model.lora_alpha` | 2" in card
    (target / "other.txt").write_text("stays here")
    export_command(run.run_id, target, True, run.path.parent.parent, repo="me/mine", yes=True)
    files = ["README.md", "pytorch_lora_weights.safetensors", "run.json"]
    assert hub.calls == [("create", "me/mine"), ("upload", "me/mine", files)]


def test_a_hub_that_refuses_is_named_in_one_line(run, tmp_path, hub, monkeypatch):
    def refuse(*_, **__):
        raise OSError("401 Unauthorized\nmore")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(MissingError, match="'me/mine' was not uploaded: 401 Unauthorized Log in with: hf auth login"):
        export(run, tmp_path / "x", repo="me/mine", yes=True)
    with pytest.raises(UsageError, match="--push-to-hub"):
        export(run, tmp_path / "y", yes=True)


def test_a_licence_that_restricts_is_said_and_a_free_one_is_not():
    assert licence_warning("emoji-turbo", False) == licence_warning("flux.1-schnell", True) == ""
    assert "'Stability AI Community', which restricts use" in licence_warning("sd3.5-medium", False)
    assert "merged weights, which contain the base model" in licence_warning("sd3.5-medium", True)
