"""GRPO's losses against official numbers (tests/fixtures/flow; tables and commits in its README).

Flow-GRPO: yifan123/flow_grpo ac4c86e; GRPO-Guard and Flow-DPPO: verl-project/verl-omni a1139ba, GRPO-Guard also
X-GenGroup/Flow-Factory a0b2bc5. Another set of the same layout can be named by SDPO_BENCH_FLOW_FIXTURES.
"""

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from sdpo_bench.advantages.normalise import Normaliser
from sdpo_bench.api import Minibatch
from sdpo_bench.methods.grpo import GRPO, GRPOSettings

FOLDER = Path(os.environ.get("SDPO_BENCH_FLOW_FIXTURES", Path(__file__).parents[1] / "fixtures" / "flow"))
DTYPES = {"f32": torch.float32, "f64": torch.float64}
TOLERANCE = {"f32": 1e-6, "f64": 1e-12}
LOSS, GUARD = "k_flow_grpo_loss", "l_guard_dppo"


@cache
def data(name: str):
    return np.load(FOLDER / f"{name}.npz")


def tensor(name: str, key: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(data(name)[key]).to(dtype)


def cases(name: str, start: str) -> list[str]:
    keys = [key.removesuffix("/loss") for key in data(name).files if key.startswith(start) and key.endswith("/loss")]
    return [key for key in keys if not key.endswith("/isw")]


def number(part: str) -> float:
    return float(part.lstrip("abcdefghijklmnopqrstuvwxyz"))


def minibatch(log_probs, old, advantages, **others):
    """Each row a group of one member at one step."""
    column = lambda values: values.view(-1, 1, 1)  # noqa: E731
    n = len(log_probs)
    steps, others = torch.zeros(n, 1, dtype=torch.int64), {name: column(value) for name, value in others.items()}
    if "stds" in others:
        others["stds"] = others["stds"][..., 0]
    final = advantages[:, None]
    return Minibatch(
        column(log_probs), column(old), None, column(advantages), column(advantages), final, steps, 1, **others
    )


def near(value, expected, tolerance):
    scale = max(1.0, float(expected.abs().max()))
    assert torch.allclose(value.double(), expected.double(), rtol=0, atol=tolerance * scale), (value, expected)


@pytest.mark.parametrize("case", cases(LOSS, "loss/"))
def test_flow_grpo_has_the_official_loss_and_gradient(case):
    """KL of the official code: |mu - mu_ref|^2 / (2 a^2), a = std / sqrt(-dt). Here the minibatch has any KL."""
    _, kind, scale, clip, beta = case.split("/")
    dtype = DTYPES[kind]
    get = lambda key: tensor(LOSS, key, dtype)  # noqa: E731
    log_probs = get(f"in/log_prob/{scale}").requires_grad_()
    mean, reference, std = get("in/prev_sample_mean"), get("in/prev_sample_mean_ref"), get("in/std_dev_t")
    advantages = tensor(LOSS, "in/advantages").clamp(-5, 5)
    others = {}
    if number(beta) > 0:
        others["kl"] = ((mean - reference) ** 2).flatten(1).mean(1) / (2 * std.flatten() ** 2)
    batch = minibatch(log_probs, get("in/old_log_prob"), advantages, **others)
    loss = GRPO(GRPOSettings(clip_range=number(clip), kl_weight=number(beta))).loss(batch)
    near(loss.value, tensor(LOSS, f"{case}/loss"), TOLERANCE[kind])
    (slope,) = torch.autograd.grad(loss.value, log_probs)
    near(slope, tensor(LOSS, f"{case}/dloss_dlogp"), TOLERANCE[kind])


def drifted(batch: str, size: str, dtype: torch.dtype, *, clip: bool):
    """Minibatch of a stored drift, and what it was computed from; std is std_dev_t sqrt(-dt)."""
    get = lambda key: tensor(GUARD, f"in/{batch}/{key}", dtype)  # noqa: E731
    log_probs = get(f"{size}/log_prob").requires_grad_()
    mean = get(f"{size}/prev_sample_mean").requires_grad_()
    std = get("std_dev_t").flatten() * get("sqrt_dt")
    drift = ((mean - get("old_prev_sample_mean")) ** 2).flatten(1).mean(1) / (2 * std**2)
    advantages = tensor(GUARD, "in/advantages", dtype)
    advantages = advantages.clamp(-5, 5) if clip else advantages
    return minibatch(log_probs, get("old_log_prob"), advantages, drift=drift, stds=std), log_probs, mean


@pytest.mark.parametrize("case", [case for case in cases(GUARD, "guard/") if "/uniform/" in case])
def test_grpo_guard_has_the_official_loss_and_gradients(case):
    """verl-omni divides by mean(sqrt(-dt))^2, which is one number where all steps are of one size; Flow-Factory does
    not. verl-omni's width is a mean over the minibatch where steps differ, here each step has its own."""
    _, kind, batch, size, clip = case.split("/")
    minibatch, log_probs, mean = drifted(batch, size, DTYPES[kind], clip=True)
    loss = GRPO(GRPOSettings(ratio="guard", clip_range=number(clip))).loss(minibatch)
    dt = tensor(GUARD, f"in/{batch}/sqrt_dt", DTYPES[kind]).mean() ** 2
    near(loss.value, tensor(GUARD, f"{case}/flow_factory_policy_loss"), TOLERANCE[kind])
    near(loss.value / dt, tensor(GUARD, f"{case}/loss"), TOLERANCE[kind])
    slopes = torch.autograd.grad(loss.value / dt, (log_probs, mean))
    near(slopes[0], tensor(GUARD, f"{case}/dloss_dlogp"), TOLERANCE[kind])
    if f"{case}/dloss_dmean" in data(GUARD).files:
        near(slopes[1], tensor(GUARD, f"{case}/dloss_dmean"), TOLERANCE[kind])


@pytest.mark.parametrize("case", [case for case in cases(GUARD, "dppo/") if case.endswith("/coef1")])
def test_flow_dppo_has_the_official_mask_loss_and_gradient(case):
    """Steps of one size and of several; the official code does not clip advantages."""
    _, kind, batch, size, threshold, _ = case.split("/")
    minibatch, log_probs, _ = drifted(batch, size, DTYPES[kind], clip=False)
    loss = GRPO(GRPOSettings(clip_range=0.0, divergence_mask=number(threshold))).loss(minibatch)
    near(loss.value, tensor(GUARD, f"{case}/loss"), TOLERANCE[kind])
    near(loss.metrics["masked_fraction"], tensor(GUARD, f"{case}/masked_fraction"), TOLERANCE[kind])
    (slope,) = torch.autograd.grad(loss.value, log_probs)
    near(slope, tensor(GUARD, f"{case}/dloss_dlogp"), TOLERANCE[kind])


def test_both_ends_of_the_mask_are_in_the_official_numbers():
    fractions = [float(data(GUARD)[f"{case}/masked_fraction"]) for case in cases(GUARD, "dppo/")]
    assert min(fractions) == 0 and max(fractions) > 0


ADVANTAGES = ["even", "uneven", "ties", "one_group", "singles"]


def group_advantages(name: str, rewards: torch.Tensor, std: str) -> torch.Tensor:
    normaliser = Normaliser("group", std=std)
    return normaliser(rewards, [str(prompt) for prompt in data(LOSS)[f"adv/{name}/prompts"]])


@pytest.mark.parametrize("name", ADVANTAGES)
def test_groups_over_the_std_of_the_batch_have_the_official_advantages(name):
    """Flow-GRPO's and DiffusionNFT's global_std; one reward an image, or the same at three steps."""
    rewards = tensor(LOSS, f"adv/{name}/rewards")
    found = group_advantages(name, rewards[:, None], "batch")
    near(found[:, 0], tensor(LOSS, f"adv/{name}/global_std_True"), 1e-12)
    by_step = group_advantages(name, rewards[:, None].expand(-1, 3), "batch")
    near(by_step, tensor(LOSS, f"adv/{name}/global_std_True_2d"), 1e-12)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_groups_over_their_own_std_are_the_official_ones_but_for_epsilon(name):
    """1e-4 in the official code, 1e-6 here, as in SDPO's trackers."""
    rewards, prompts = tensor(LOSS, f"adv/{name}/rewards"), data(LOSS)[f"adv/{name}/prompts"]
    std = torch.stack([rewards[torch.from_numpy(prompts == prompt)].std(correction=0) for prompt in prompts])
    found = group_advantages(name, rewards[:, None], "group")[:, 0] * (std + 1e-6) / (std + 1e-4)
    near(found, tensor(LOSS, f"adv/{name}/global_std_False"), 1e-12)
