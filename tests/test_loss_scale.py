"""Loss scaling: fp16 learns what float32 learns, skipped steps change nothing, and a resumed run is the same run."""

from dataclasses import replace

import pytest
import torch

from factories import make_method, make_resolved, make_trainer, make_updater, random_experience, sample_groups
from sdpo_bench import checkpoint, update
from sdpo_bench.errors import RunFailed, UsageError
from sdpo_bench.experience import UpdateLog
from sdpo_bench.loss_scale import Fp16Scale, LossScale
from sdpo_bench.models import load_policy
from sdpo_bench.order import Order, Task
from sdpo_bench.policy import Policy
from sdpo_bench.rollout import Trajectories
from sdpo_bench.schedule import make_schedule
from sdpo_bench.settings import ModelSettings

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
            sample_size=64, block_out_channels=(8, 16, 16, 16), layers_per_block=1, norm_num_groups=4,
            cross_attention_dim=32, attention_head_dim=2, use_linear_projection=True,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
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
    updater._backward(random_experience(sampled), Task(first, first[None], 1 / 128), UpdateLog(50), True)
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
                updater._backward(experience, replace(task, steps=task.steps[:, slot : slot + 1]), log, True)
        else:
            updater._backward(experience, task, log, True)
        updater.scale.unscale(updater.optimiser)
        found[precision] = [p.grad for _, p in sorted(updater.parameters.items())], log
    (expected, log32), (ours, log16) = found["fp32"], found["fp16"]
    assert cosine(ours, expected) > 0.99
    assert float(flat(ours).norm() / flat(expected).norm()) == pytest.approx(1, abs=0.05)
    assert torch.allclose(log16.grad_square, log32.grad_square, rtol=0.05, atol=1e-9)
