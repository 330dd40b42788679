"""The embedded flow model: a stock pipeline that is good at few steps, and trains as easily as the default."""

import pytest
import torch

from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.config.sampler_id import sampler_id
from sdpo_bench.errors import UsageError
from sdpo_bench.evaluation.base_scores import base_folder
from sdpo_bench.models.base_model import load_policy, scheduler_config
from sdpo_bench.models.known_models import asset_folder
from sdpo_bench.prompts.emoji_grammar import ANIMALS
from sdpo_bench.results.read_results import MODEL_KEYS
from sdpo_bench.rollout.sampling import Noise, replay, sample
from sdpo_bench.rollout.schedule import make_schedule
from sdpo_bench.scoring.emoji_scorer import correctness, load_scorer
from sdpo_bench.settings import EvaluationSettings, ModelSettings, Runtime

NAME = "emoji-flow"


@pytest.fixture(scope="module")
def policy():
    return load_policy(ModelSettings(name=NAME, text_tokens=0))


def test_its_pictures_are_those_of_the_stock_pipeline(policy):
    """Four Euler steps from given latents, told to put no zeros in the place of the missing T5."""
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(
        asset_folder("emoji_flow"), torch_dtype=torch.float32, text_encoder_3=None, tokenizer_3=None
    )
    pipeline.set_progress_bar_config(disable=True)
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    theirs = pipeline(
        ["a cat", "zebra"],
        sigmas=[1.0, 0.75, 0.5, 0.25],
        guidance_scale=0.0,
        max_sequence_length=0,
        latents=start,
        output_type="pt",
    ).images
    schedule = make_schedule(scheduler_config(policy), 4, sampler="flow", eta=0.0)
    noise = torch.zeros(2, 1, 4, 4, 8, 8)
    ours = replay(policy, schedule, ["a cat", "zebra"], start[:, None], noise, shared_start=False)
    assert (policy.decode(ours.latents[:, 0, -1]) - theirs).abs().max() < 1e-4


@pytest.mark.parametrize(("steps", "least"), [(1, 0.75), (2, 0.85), (4, 0.85), (8, 0.85)])
def test_its_pictures_are_recognised_at_few_steps(policy, steps, least):
    """Two pictures of each animal, by a network that no reward is trained with; a standard error is .03."""
    prompts = list(ANIMALS) * 2
    schedule = make_schedule(scheduler_config(policy), steps, sampler="flow", eta=0.0)
    latents, _ = sample(policy, schedule, prompts, Noise((0, "quality")), groups=range(len(prompts)))
    with torch.no_grad():
        hits = correctness(load_scorer("accuracy"), policy.decode(latents), prompts)
    assert hits.float().mean() >= least


def test_the_undistilled_model_differs_in_its_denoiser_alone_and_needs_more_steps(policy):
    """The card's measurement: -2.77 at one step and -1.51 at eight, where the distilled model has -1.67 and -1.51."""
    from sdpo_bench.scoring.make_scorers import make_scorer

    own, other = (asset_folder(name) for name in ("emoji_flow", "emoji_flow_base"))
    files = {path.relative_to(own) for path in own.rglob("*") if path.is_file() and path.name != "README.md"}
    assert {str(f) for f in files if (own / f).read_bytes() != (other / f).read_bytes()} == {
        "transformer/diffusion_pytorch_model.safetensors"
    }
    base, prompts = load_policy(ModelSettings(name=f"{NAME}-base", text_tokens=0)), list(ANIMALS)
    scorer, align = make_scorer("emoji-align", {}, "cpu"), {}
    for name, model, steps in (("one", base, 1), ("eight", base, 8), ("distilled", policy, 1)):
        schedule = make_schedule(scheduler_config(model), steps, sampler="flow", eta=0.0)
        latents, _ = sample(model, schedule, prompts, Noise((0, "quality")), groups=range(len(prompts)))
        with torch.no_grad():
            align[name] = float(scorer(model.decode(latents), prompts).mean())
    assert align["one"] < align["distilled"] - 0.5 < align["eight"] - 0.5


def test_a_run_takes_the_model_s_own_sampler_and_text_length():
    config = resolve(Request(method="sdpo", model=NAME)).config
    assert (config.schedule.sampler, config.schedule.sde, config.schedule.spacing) == ("flow", "cps", "trailing")
    assert (config.eval.sampler, config.eval.eta, config.reward.name) == ("flow", 0.0, "emoji-align")
    assert config.model.text_tokens == 0 and config.schedule.steps == 4
    assert sampler_id(config.eval).startswith("flow ode")


def test_a_number_of_text_tokens_is_refused_where_it_is_fixed():
    with pytest.raises(UsageError, match=r"model\.text_tokens = 64: Stable Diffusion reads prompts of a fixed length"):
        load_policy(ModelSettings(text_tokens=64))


def test_base_scores_belong_to_their_number_of_text_tokens(tmp_path):
    """0 tokens are another number than the stock pipeline's; without the setting the folder is that of earlier runs."""
    folders = {
        number: base_folder(ModelSettings(name=NAME, text_tokens=number), EvaluationSettings(), Runtime(out=tmp_path))
        for number in (None, 0, 64)
    }
    assert len({folder.run_id for folder in folders.values()}) == 3
    assert "model.text_tokens" in MODEL_KEYS  # runs of several numbers share no panel


def test_a_number_of_text_tokens_is_part_of_a_run_s_name_and_its_absence_is_not():
    """Ids of runs that were made before there was such a setting stay."""
    from sdpo_bench.config.run_id import training_id

    plain = resolve(Request(method="sdpo", model="emoji-turbo"))
    before = {**plain.data, "model": {k: v for k, v in plain.data["model"].items() if k != "text_tokens"}}
    assert training_id(before, plain.versions) == plain.run_id
    asked = resolve(Request(method="sdpo", model="emoji-turbo", overrides={"model.text_tokens": 64}))
    assert asked.run_id != plain.run_id
