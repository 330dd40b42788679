"""MixGRPO is GRPO with a moving window of random steps: a preset, for flow-matching models alone."""

import pytest

from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import UsageError
from sdpo_bench.estimates.time_estimate import cost_of_group
from sdpo_bench.rollout.flow import scheduler_sigmas


def chosen(**request):
    return resolve(Request(preset="mixgrpo", reward="jpeg-compressibility", **request))


def test_the_preset_has_the_numbers_of_the_official_script():
    """github.com/Tencent-Hunyuan/MixGRPO e5cdd6a: 25 steps, eta .7, window 4 that moves by 1 every 25 iterations, 12
    images from one initial noise, clip 1e-4 and 5, no KL (learning rate: 1e-5 for all weights); --flow_grpo_sampling,
    whose sigmas are linspace(1, 0, 26) with a shift of 3: the last one before 0 is 3 (1/25) / (1 + 2 (1/25)) = 1/9."""
    config = chosen().config
    assert config.method.name == "grpo" and config.model.name == "sd3.5-medium"
    schedule, method = config.schedule, config.method.settings
    assert (schedule.steps, schedule.sde, schedule.eta, schedule.sde_steps) == (25, "flow", 0.7, "window:4:25")
    _, sigmas = scheduler_sigmas({"shift": 3.0}, schedule.steps, schedule)
    assert (float(sigmas[0]), float(sigmas[-2])) == (1.0, pytest.approx(1 / 9))
    assert (method["group_size"], method["clip_range"], method["kl_weight"]) == (12, 1e-4, 0.0)
    assert method["shared_noise"] and (config.update.lr, config.advantage.clip) == (3e-4, 5.0)


def test_only_the_window_is_trained_and_completed():
    """12 images, guided (two calls each): 4 of 25 steps are trained, the first from one
    shared state, and gains need the completions of 4 states."""
    assert cost_of_group(chosen()).backward == 2 * (1 + 12 * 3)
    plain, dense = cost_of_group(chosen()), cost_of_group(chosen(method="dense_grpo"))
    assert dense.forward - plain.forward == 2 * (24 + 12 * (23 + 22 + 21))
    assert (plain.rewards, dense.rewards) == (12, 1 + 12 * 3 + 12)


def test_other_models_are_refused():
    with pytest.raises(UsageError, match="flow"):
        chosen(model="emoji-turbo")
