"""Flow-GRPO-Fast is GRPO with three random steps among the first five: a preset, for flow-matching models alone."""

import pytest

from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import UsageError
from sdpo_bench.estimates.time_estimate import cost_of_group, epoch_work


def chosen(**request):
    return resolve(Request(preset="flow-grpo-fast", reward="pickscore", **request))


def test_the_preset_has_the_numbers_of_the_official_configuration():
    """github.com/yifan123/flow_grpo 74db691, config/grpo.py, pickscore_sd3_fast_nocfg: 10 steps (40 in evaluation), CPS
    at noise level .8 with the log-probability of its code, a window of 3 in range (0, 10 // 2), no guidance, 512
    pixels, groups of 18, clip 1e-5, no KL, global_std. Its 32 processes of 9 images sample int(64 / (32 * 9 / 18)) = 4
    batches, which are 32 * 9 * 4 = 1152 images, and step after two. config/base.py: lr 3e-4, advantages up to 5."""
    config = chosen().config
    assert (config.method.name, config.model.name) == ("grpo", "sd3.5-medium")
    schedule, method, model = config.schedule, config.method.settings, config.model
    assert (schedule.steps, schedule.sde, schedule.eta, schedule.sde_steps) == (10, "cps", 0.8, "random:3:5")
    assert (schedule.cps_log_prob, schedule.spacing) == ("official", "linspace")
    assert (model.guidance_scale, model.resolution, model.lora_rank, model.lora_alpha) == (1.0, 512, 32, 64.0)
    assert (method["group_size"], method["clip_range"], method["kl_weight"]) == (18, 1e-5, 0.0)
    assert (model.precision, model.text_tokens) == ("fp16", 128)  # base.py; max_sequence_length of the script
    assert config.ema.decay == pytest.approx(0.81 ** (1 / 8), abs=1e-3)  # 0.9 twice after every eighth step
    assert not method["shared_noise"]
    assert (config.advantage.normalisation, config.advantage.std, config.advantage.clip) == ("group", "batch", 5.0)
    assert (config.update.lr, config.sample.images_per_epoch) == (3e-4, 32 * 9 * 4)
    assert (config.eval.guidance_scale, max(config.eval.steps)) == (1.0, 40)


def test_three_steps_are_trained_and_an_epoch_has_two_updates():
    """18 images of 10 calls each (no guidance: one call a step), 3 of them once more with a gradient."""
    resolved = chosen()
    for epoch in range(5):
        cost = cost_of_group(resolved, epoch)
        assert (cost.images, cost.backward, cost.forward) == (18, 18 * 3, 18 * (10 + 3))
    assert epoch_work(resolved)["optimiser_steps"] == 2


def test_other_models_are_refused():
    with pytest.raises(UsageError, match="flow"):
        chosen(model="emoji-turbo")
