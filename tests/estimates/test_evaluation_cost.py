"""What an evaluation is said to cost before it runs."""

import pytest

from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.estimates.time_estimate import evaluation_work


@pytest.mark.parametrize(("model", "branches"), [("lcm-dreamshaper-v7", 1), ("sd-turbo", 2)])
def test_guidance_doubles_the_calls_unless_it_is_an_input_of_the_denoiser(model, branches):
    """45 prompts with two images at three steps; a latent consistency model takes the guidance as an embedding."""
    own = {"eval.guidance_scale": 8, "eval.steps": [1, 2], "eval.images_per_prompt": 2, "eval.unseen": ""}
    overrides = {**own, "eval.train": "simple-animals"}
    chosen = resolve(Request(model=model, reward="jpeg-compressibility", overrides=overrides))
    assert evaluation_work(chosen).outside_forward == branches * 45 * 2 * 3
