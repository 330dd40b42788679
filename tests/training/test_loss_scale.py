"""Loss scaling: fp16 learns what float32 learns, skipped steps change nothing, and a resumed run is the same run."""

from dataclasses import replace

import pytest
import torch

from factories import make_method, make_resolved, make_trainer, make_updater, random_experience, sample_groups
from sdpo_bench.advantages.experience import UpdateLog
from sdpo_bench.errors import RunFailed, UsageError
from sdpo_bench.models.base_model import load_policy
from sdpo_bench.models.policy import Policy
from sdpo_bench.rollout.sampling import Trajectories
from sdpo_bench.rollout.schedule import make_schedule
from sdpo_bench.settings import ModelSettings
from sdpo_bench.training import checkpoint
from sdpo_bench.training import updater as update
from sdpo_bench.training.loss_scale import Fp16Scale, LossScale
from sdpo_bench.training.update_order import Order, Task

CPU = torch.device("cpu")


def flat(tensors):
    return torch.cat([value.detach().double().flatten() for value in tensors])


def cosine(a, b):
    a, b = flat(a), flat(b)
    return float(a @ b / (a.norm() * b.norm()).clamp_min(1e-300))


def warm(policy):
    """Make B non-zero, so that A has a gradient too."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in sorted(policy.lora_parameters().items()):
        if "lora_B" in name:
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    return policy


def tiny(tiny_pipe, precision):
    return warm(load_policy(ModelSettings(name=str(tiny_pipe), precision=precision), lora_seed=1))


# -- gradients at the latent size of SD-Turbo ------------------------------------------------------------------


def wide_policy(tiny_pipe, precision):
    """A narrow UNet with random weights at SD-Turbo's 64 x 64 latents, attention at 32 x 32 and below (for speed)."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    pipeline = StableDiffusionPipeline.from_pretrained(str(tiny_pipe), safety_checker=None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline.unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(8, 16, 16, 16),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=32,
            attention_head_dim=2,
            use_linear_projection=True,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        )
    policy = Policy(pipeline, precision=precision)
    policy.add_lora(4, 4.0, ("to_q", "to_k", "to_v", "to_out.0"), seed=0)
    return warm(policy)


@pytest.fixture(scope="module")
def one_step(tiny_pipe):
    """Schedule of 50 steps and two members' states around the first one, drawn by the float32 policy."""
    policy = wide_policy(tiny_pipe, "fp32")
    schedule = make_schedule(dict(policy.pipeline.scheduler.config), 50)
    generator = torch.Generator().manual_seed(0)
    before, *noise = torch.randn(3, 4, 64, 64, generator=generator)
    conditioning, first = policy.encode(["cat"]), torch.tensor([0])
    with torch.no_grad():
        output = policy.predict(before[None], schedule.timesteps[first], conditioning)
    step = schedule.denoise(output, before[None], first)
    latents = torch.zeros(1, 2, 51, 4, 64, 64)
    latents[0, :, 0], latents[0, :, 1] = before, step.mean + step.std * torch.stack(noise)
    states = Trajectories(("cat",), conditioning, latents, torch.zeros(1, 2, 50, 1, 1, 1), torch.zeros(1, 2, 50), True)
    return schedule, states


def one_gradient(tiny_pipe, one_step, precision, scale=None):
    """SDPO's gradient of one pair out of the 128 of an optimiser step in the preset paper-hpsv2 (4 x 32)."""
    schedule, states = one_step
    policy, first = wide_policy(tiny_pipe, precision), torch.tensor([0])
    updater = make_updater(policy, schedule, make_method("sdpo"))
    updater.scale = scale or updater.scale
    with torch.no_grad():
        log_probs = updater._pass(states, first, first).log_probs  # sampled in the same precision: the ratio is 1
    sampled = replace(states, log_probs=log_probs[..., None].expand(1, 2, 50), conditioning=policy.encode(["cat"]))
    updater._accumulate(random_experience(sampled), [Task(first, first[None], 1 / 128)], UpdateLog(50), True)
    updater.scale.unscale(updater.optimiser)
    return [p.grad for _, p in sorted(updater.parameters.items())]


def test_gradients_at_64_x_64_latents_are_those_of_float32(tiny_pipe, one_step):
    expected = one_gradient(tiny_pipe, one_step, "fp32")
    for precision in ("fp16", "bf16"):
        found = one_gradient(tiny_pipe, one_step, precision)
        assert cosine(found, expected) > 0.99, precision
        assert float(flat(found).norm() / flat(expected).norm()) == pytest.approx(1, abs=0.05), precision
    # The fault itself: without scaling the same gradients round to zero.
    lost = one_gradient(tiny_pipe, one_step, "fp16", Fp16Scale(CPU, 1.0))
    assert cosine(lost, expected) < 0.9


# -- the three ways a gradient is made -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sdpo", "sparse_dpo", "tdpo"])
def test_every_gradient_and_its_log_are_unscaled(tiny_pipe, name):
    found = {}
    for precision in ("fp32", "fp16"):
        policy = tiny(tiny_pipe, precision)
        schedule, trajectories = sample_groups(policy, groups=2)
        updater = make_updater(policy, schedule, make_method(name))
        experience = random_experience(trajectories, reference=trajectories.log_probs)
        log = UpdateLog(3)
        task = Task(torch.arange(2), torch.tensor([[0, 1, 2], [2, 1, 0]]), 1.0)
        if updater.method.granularity == "step":
            for slot in range(3):
                updater._accumulate(experience, [replace(task, steps=task.steps[:, slot : slot + 1])], log, True)
        else:
            updater._accumulate(experience, [task], log, True)
        updater.scale.unscale(updater.optimiser)
        found[precision] = [p.grad for _, p in sorted(updater.parameters.items())], log
    (expected, log32), (ours, log16) = found["fp32"], found["fp16"]
    assert cosine(ours, expected) > 0.99
    assert float(flat(ours).norm() / flat(expected).norm()) == pytest.approx(1, abs=0.05)
    assert torch.allclose(log16.grad_square, log32.grad_square, rtol=0.05, atol=1e-9)


def test_the_rewards_own_gradient_is_unscaled(tiny_pipe, tmp_path):
    logs = []
    for precision in ("fp32", "fp16"):
        trainer = make_trainer(make_resolved(tiny_pipe, "draft", **{"model.precision": precision}), tmp_path)
        trainer.train()
        logs.append(trainer.run.log()[0])
    assert logs[1]["grad_norm"] == pytest.approx(logs[0]["grad_norm"], rel=0.05)
    assert logs[1]["gradient_share_by_step"] == pytest.approx(logs[0]["gradient_share_by_step"], abs=0.02)
    assert "loss_scale" not in logs[0] and logs[1]["loss_scale"] == 65536


# -- skipped steps ---------------------------------------------------------------------------------------------


def state_of(updater):
    moments = [m for p in updater.parameters.values() for m in updater.optimiser.state.get(p, {}).values()]
    return [value.detach().clone() for value in (*updater.parameters.values(), *moments)]


def one_epoch(updater, trajectories, log):
    """One optimiser step: two groups, a window of one minibatch of whole trajectories."""
    order = Order(torch.arange(2), torch.arange(3).expand(2, -1))
    updater.inner_epoch(random_experience(trajectories), order, log)


@pytest.mark.parametrize("name", ["sdpo", "tdpo"])
def test_a_skipped_step_changes_nothing_but_the_scale(tiny_pipe, name):
    policy = tiny(tiny_pipe, "fp16")
    schedule, trajectories = sample_groups(policy, groups=2)
    updater = make_updater(policy, schedule, make_method(name))
    one_epoch(updater, trajectories, UpdateLog(3))  # fills the optimiser's moments
    assert len(state_of(updater)) > len(updater.parameters)
    steps, before, log = updater.ledger.optimiser_steps, state_of(updater), UpdateLog(3)
    updater.scale = Fp16Scale(CPU, 2.0**34)
    one_epoch(updater, trajectories, log)
    skipped = log.skipped_steps
    assert skipped == updater.ledger.optimiser_steps - steps > 0
    assert all(torch.equal(a, b) for a, b in zip(state_of(updater), before))
    assert all(p.grad is None for p in updater.parameters.values())
    found = log.summary()
    assert found["loss_scale"] == updater.scale.factor == 2.0 ** (34 - skipped)
    assert found["grad_norm"] == 0 and found["gradient_share_by_step"] == [0, 0, 0]
    # With a scale at which the gradients fit, weights move.
    updater.scale = Fp16Scale(CPU)
    one_epoch(updater, trajectories, log)
    assert not all(torch.equal(a, b) for a, b in zip(state_of(updater), before))
    assert 0 < log.summary()["grad_norm"] < 1e3 and sum(log.summary()["gradient_share_by_step"]) > 0.99


def test_gradients_that_overflow_at_every_scale_end_the_run(tiny_pipe):
    policy = tiny(tiny_pipe, "fp16")
    schedule, trajectories = sample_groups(policy, groups=2)
    updater = make_updater(policy, schedule, make_method("sdpo"))
    updater.scale = Fp16Scale(CPU, 4.0)
    before, log = state_of(updater), UpdateLog(3)
    next(iter(updater.parameters.values())).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(RunFailed, match=r"norm is nan at optimiser step 2 at loss scale 1: .*model.precision=bf16"):
        for _ in range(9):
            one_epoch(updater, trajectories, log)
    assert log.skipped_steps == 2, "at scales 4 and 2"
    assert all(torch.equal(a, b) for a, b in zip(state_of(updater), before))


def test_a_norm_that_only_float32_cannot_hold_ends_the_run_at_once(tiny_pipe):
    """Halving the scale would not help: the gradients themselves are finite."""
    policy = tiny(tiny_pipe, "fp16")
    schedule, trajectories = sample_groups(policy, groups=2)
    updater = make_updater(policy, schedule, make_method("sdpo"))
    next(iter(updater.parameters.values())).register_hook(lambda gradient: torch.full_like(gradient, 1e30))
    with pytest.raises(RunFailed, match="norm is inf at optimiser step 0"):
        one_epoch(updater, trajectories, UpdateLog(3))


def test_steps_without_any_gradient_leave_the_scale_alone(tiny_pipe):
    """The last step has weight 0 here, so whole windows of the shuffled order have no gradient."""
    policy = tiny(tiny_pipe, "fp16")
    schedule, trajectories = sample_groups(policy, groups=2)
    updater = make_updater(policy, schedule, make_method("sdpo"), torch.tensor([1.0, 1.0, 0.0]), order="step-shuffled")
    one_epoch(updater, trajectories, log := UpdateLog(3))
    assert updater.ledger.optimiser_steps == 3 and log.skipped_steps == 0
    assert updater.scale.state()["_growth_tracker"] == 2


def test_a_scaler_interrupted_between_unscale_and_update_starts_over(tiny_policy):
    """As where the optimiser's first step runs out of memory and the epoch is done again."""
    scale, parameter = Fp16Scale(CPU), torch.nn.Parameter(torch.ones(2))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    state = scale.state()
    for _ in range(2):
        scale.load(state)
        scale.apply(parameter.sum()).backward()
        scale.unscale(optimiser)
        assert torch.equal(parameter.grad, torch.ones(2))
        parameter.grad = None


# -- whole runs ------------------------------------------------------------------------------------------------


def weights_of(trainer):
    return {name: p.detach().clone() for name, p in sorted(trainer.updater.parameters.items())}


# The tiny model has 8 x 8 latents. log_scale divides the log-ratio, and so the gradient, by 64 for SD-Turbo's 64 times
# as many elements, and by 64 for an optimiser step over 128 pairs as in paper-hpsv2 (here 2). AdamW's
# epsilon far above the gradients makes its steps proportional to them: with a small one every element moves by about
# the learning rate in the direction of its sign, and those that are all rounding count as much as the others.
SMALL_GRADIENTS = {
    "method.log_scale": 64 * 64,
    "update.epsilon": 1e-3,
    "update.lr": 20.0,
    "update.weight_decay": 1e-9,
    "budget.images": 32,
    "reward.name": "emoji-align",
}


@pytest.mark.slow
def test_an_fp16_run_moves_the_weights_as_a_float32_run(tiny_pipe, tmp_path, monkeypatch):
    """emoji-align is a smooth reward: rounding of a picture moves it little, unlike a file size."""

    def change(precision):
        trainer = make_trainer(
            make_resolved(tiny_pipe, **SMALL_GRADIENTS, **{"model.precision": precision}), tmp_path / precision
        )
        before = weights_of(trainer)
        trainer.train()
        assert sum(row.get("skipped_steps", 0) for row in trainer.run.log()) == 0
        return [value - before[name] for name, value in weights_of(trainer).items()]

    expected = change("fp32")
    found = change("fp16")
    monkeypatch.setattr(update, "loss_scale", lambda dtype, device: LossScale())
    (tmp_path / "fp16").rename(tmp_path / "scaled")
    lost = change("fp16")
    assert cosine(found, expected) > 0.95
    assert float(flat(found).norm() / flat(expected).norm()) == pytest.approx(1, abs=0.05)
    assert cosine(lost, expected) < 0.9, "without scaling"


class Stop(Exception):
    """A stand-in for a killed process."""


def test_a_resumed_fp16_run_equals_one_never_stopped(tiny_pipe, tmp_path, monkeypatch):
    """Stopped while the scale is still falling, so that a run that forgot it would skip other steps."""
    monkeypatch.setattr(update, "loss_scale", lambda dtype, device: Fp16Scale(device, 2.0**34))
    resolved = make_resolved(tiny_pipe, **{"model.precision": "fp16", "budget.images": 24})
    whole = make_trainer(resolved, tmp_path / "whole")
    whole.train()
    rows = whole.run.log()
    assert rows[0]["skipped_steps"] > 0 and rows[1]["skipped_steps"] + rows[2]["skipped_steps"] > 0
    assert rows[0]["loss_scale"] > rows[1]["loss_scale"]
    assert rows[-1]["grad_norm"] > 0, "the scale has fallen far enough"
    stopped = make_trainer(resolved, tmp_path / "stopped")

    def watch(tick):
        if tick.epoch == 1 and tick.phase == "updating":
            raise Stop

    stopped.watch = watch
    with pytest.raises(Stop):
        stopped.train()
    resumed = make_trainer(resolved, tmp_path / "stopped")
    resumed.train()
    assert (resumed.run.path / "train.jsonl").read_bytes() == (whole.run.path / "train.jsonl").read_bytes()
    assert all(torch.equal(p, weights_of(whole)[n]) for n, p in weights_of(resumed).items())
    assert resumed.updater.scale.state() == whole.updater.scale.state()


def test_only_fp16_checkpoints_hold_a_scale(tiny_pipe, tmp_path):
    header = {}
    for precision in ("fp32", "bf16", "fp16"):
        trainer = make_trainer(make_resolved(tiny_pipe, **{"model.precision": precision}), tmp_path / precision)
        path = checkpoint.write(trainer.run, *trainer.state._snapshot())
        header[precision] = checkpoint.read(path)[0]
    assert "loss_scale" not in header["fp32"] and header["fp32"].keys() == header["bf16"].keys()
    assert header["fp16"].keys() - header["fp32"].keys() == {"loss_scale"}
    assert header["fp16"]["loss_scale"]["scale"] == 65536


def test_an_fp16_checkpoint_without_a_scale_is_refused(tiny_pipe, tmp_path):
    """Its adapter was trained on gradients that were mostly zero; going on would make a run of two halves."""
    trainer = make_trainer(make_resolved(tiny_pipe, **{"model.precision": "fp16"}), tmp_path)
    trainer.updater.scale = LossScale()
    path = checkpoint.write(trainer.run, *trainer.state._snapshot())
    again = make_trainer(make_resolved(tiny_pipe, **{"model.precision": "fp16"}), tmp_path)
    with pytest.raises(UsageError, match=f"earlier version.*Delete '{trainer.run.path}'"):
        checkpoint.restore(path, again.updater, again.normaliser, again.scorer.cache)
