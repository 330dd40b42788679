"""A merged pipeline of a flow-matching model: stock diffusers draws the run's own pictures with the printed Python."""

import pytest
import torch
from diffusers import DiffusionPipeline
from stock_pipelines import arguments

from factories import make_resolved
from sdpo_bench.cli.commands.export import _noise_levels, export_command
from sdpo_bench.models.base_model import scheduler_config
from sdpo_bench.rollout.sampling import replay
from sdpo_bench.rollout.schedule import make_schedule
from sdpo_bench.running.finished_run import load_tuned, open_finished_run
from sdpo_bench.running.run_one import run_job
from sdpo_bench.settings import EvaluationSettings, Runtime
from tools.random_pipeline import SMALL_FLOW, write_pipeline

PROMPTS = ["a cat", "a zebra"]
SMALL = {"model.lora_rank": 8, "update.lr": 0.02, "budget.images": 8, "schedule.steps": 4}
SIGMAS = (1.0, 0.7, 0.2)
CASES = {
    # No zeros in the place of the missing T5, and sigmas 1 to 1/T, where the stock defaults are 256 and other sigmas.
    "emoji-flow": {"model.text_tokens": 0, "eval.spacing": "trailing"},
    "sd3": {
        "model.text_tokens": 16,
        "model.resolution": 16,
        "model.guidance_scale": 2.0,
        "eval.guidance_scale": 2.0,
        "eval.steps": (1, 3),
        "eval.sigmas": SIGMAS,
    },
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_printed_python_draws_the_pictures_of_the_run(name, tmp_path, capsys):
    model = name if name == "emoji-flow" else write_pipeline(SMALL_FLOW[name], tmp_path / name)
    run = run_job(make_resolved(model, **SMALL, **CASES[name]), Runtime(tmp_path / "out", "cpu")).run
    finished = open_finished_run(run)
    policy, _ = load_tuned(finished, "cpu")
    capsys.readouterr()
    export_command(run.run_id, tmp_path / "merged", False, tmp_path / "out", merge=True)
    lines = capsys.readouterr().out.partition("In Python:\n")[2].splitlines()
    code = "\n".join(line[2:] for line in lines if line.startswith("  "))
    printed: dict = {}
    exec(code, printed)
    pipeline, sampling = printed["pipeline"], printed["sampling"]
    assert printed["picture"].size == ((16, 16) if name == "sd3" else (32, 32))

    side = policy.latent_shape[-1]
    start = torch.randn(2, policy.latent_shape[0], side, side, generator=torch.Generator().manual_seed(3))
    evaluation, steps = finished.evaluation, 4 if name == "emoji-flow" else len(SIGMAS)
    schedule = make_schedule(
        scheduler_config(policy),
        steps,
        sampler="flow",
        eta=0.0,
        spacing=evaluation.spacing,
        sigmas=evaluation.sigmas,
    )
    still = torch.zeros(2, 1, steps, *start.shape[1:])
    with torch.no_grad():
        ours = replay(policy, schedule, PROMPTS, start[:, None], still, shared_start=False).latents[:, 0, -1]
        tuned = policy.decode(ours)
    theirs = pipeline(PROMPTS, **sampling, latents=start, output_type="latent").images
    assert (ours - theirs).abs().max() < 1e-5 * ours.abs().max()
    pictures = pipeline(PROMPTS, **sampling, latents=start, output_type="pt").images
    assert (tuned - pictures).abs().max() < 1e-5

    for left_out in ({"max_sequence_length"}, {"sigmas"}):
        others = {key: value for key, value in sampling.items() if key not in left_out}
        others |= {"num_inference_steps": steps} if "sigmas" in left_out else {}
        plain = pipeline(PROMPTS, **others, latents=start, output_type="pt").images
        assert (plain - pictures).abs().max() > 1e-3, left_out  # the stock default is another picture


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("shape", ["sd3", "flux-schnell", "flux-dev", "qwenimage", "zimage"])
def test_a_pipeline_that_is_given_the_printed_noise_levels_takes_those_of_the_evaluation(shape, spacing, tmp_path):
    """Given only their number, the pipeline of SD3 spaces them as linspace does, and the others as trailing does."""
    scheduler = SMALL_FLOW[shape]["scheduler"]
    given = _noise_levels(EvaluationSettings(sampler="flow", spacing=spacing), 4, scheduler)
    pipeline = DiffusionPipeline.from_pretrained(write_pipeline(SMALL_FLOW[shape], tmp_path / shape))
    pipeline(["a cat"], height=16, width=16, output_type="latent", **arguments(shape, 1.0, 1), **given)
    patches = 4 * 4  # latents of 8 x 8
    ours = make_schedule(scheduler | {"image_seq_len": patches}, 4, sampler="flow", eta=0.0, spacing=spacing)
    assert (pipeline.scheduler.sigmas - ours.sigmas).abs().max() < 1e-6
