"""Losses and whole training epochs equal the official implementations'.

Numbers: fixtures d and f, computed by running SDPO fcee34d, DDPO 1958463 and D3PO 40d3175 (tests/fixtures/README.md).
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from sdpo_bench.advantages.experience import Experience, UpdateLog
from sdpo_bench.advantages.run_context import RunContext
from sdpo_bench.api import Minibatch
from sdpo_bench.ledger import Ledger
from sdpo_bench.models.base_model import load_policy
from sdpo_bench.models.policy import Conditioning
from sdpo_bench.plugins.registry import find
from sdpo_bench.rollout.base_log_probs import base_statistics
from sdpo_bench.rollout.sampling import Trajectories
from sdpo_bench.rollout.schedule import make_schedule
from sdpo_bench.settings import ModelSettings, Runtime, UpdateSettings
from sdpo_bench.system.distributed import ALONE
from sdpo_bench.system.memory_retry import MicroBatch
from sdpo_bench.training.update_order import Order
from sdpo_bench.training.updater import Updater


def method(name, **settings):
    plugin = find("methods", name).load()
    return plugin(plugin.Settings(**settings))


def number(text):
    """``clip0.0001`` -> 0.0001."""
    return float(re.sub(r"^[a-zA-Z]+", "", text))


def minibatch(file, scale, steps, *, advantages=True, reference=False):
    """64 groups of two members at one step each, in double precision."""
    read = lambda name: torch.from_numpy(file[f"sdpo/{scale}/{name}"]).double()  # noqa: E731
    pair = lambda name: torch.stack([read(f"{name}1"), read(f"{name}2")], 1)[..., None]  # noqa: E731
    return Minibatch(
        log_probs=pair("logp").requires_grad_(),
        old_log_probs=pair("old"),
        ref_log_probs=pair("old") if reference else None,
        advantages=pair("adv").clamp(-5, 5) if advantages else None,
        rewards=pair("adv"),
        final_rewards=pair("adv")[..., 0],
        steps=steps,
        num_steps=1000,
    )


def cases(file, prefix):
    """(case path, its parts) of every double-precision loss below ``prefix``."""
    return [
        (key.removesuffix("/loss"), key.split("/"))
        for key in file.files
        if key.startswith(prefix + "/") and key.endswith("/f64/loss")
    ]


def test_sdpo_loss_and_gradient(official):
    file = np.load(official / "d_losses.npz")
    found = cases(file, "sdpo")
    assert len(found) >= 10
    for at, (_, scale, clip, log_scale, _, _) in found:
        lam = torch.from_numpy(file[f"sdpo/{scale}/lam"]).double()
        # The fixture's weights are given directly; a discount of 1 with the weight moved into the log-ratios is exact
        # for the unclipped branch only, so the weight goes through the step: lambda ** step = lam.
        base = 0.99
        steps = (lam.log() / np.log(base))[:, None]
        batch = minibatch(file, scale, steps)
        loss = method("sdpo", clip_range=number(clip), log_scale=number(log_scale), temporal_discount=base).loss(batch)
        assert abs(loss.value.item() - file[f"{at}/loss"]) <= 1e-6 * (1 + abs(file[f"{at}/loss"])), at
        (slope,) = torch.autograd.grad(loss.value, batch.log_probs)
        for j in (1, 2):
            theirs = torch.from_numpy(file[f"{at}/dloss_dlogp{j}"])
            assert torch.allclose(slope[:, j - 1, 0], theirs, rtol=1e-6, atol=1e-6), at
        if f"{at}/clipfrac" in file.files:
            assert loss.metrics["clip_fraction"].item() == pytest.approx(float(file[f"{at}/clipfrac"]), abs=1e-6)


def test_ddpo_loss_and_gradient(official):
    file = np.load(official / "d_losses.npz")
    found = cases(file, "ddpo")
    assert found
    for at, (_, scale, clip, _, _) in found:
        pair = minibatch(file, scale, torch.zeros(64, 1))
        first = {name: getattr(pair, name)[:, :1] for name in ("old_log_probs", "advantages", "rewards")}
        leaf = pair.log_probs[:, :1].detach().clone().requires_grad_()
        batch = Minibatch(
            log_probs=leaf,
            ref_log_probs=None,
            final_rewards=pair.final_rewards[:, :1],
            steps=pair.steps,
            num_steps=1000,
            **first,
        )
        loss = method("ddpo", clip_range=number(clip)).loss(batch)
        assert abs(loss.value.item() - file[f"{at}/loss"]) <= 1e-6, at
        (slope,) = torch.autograd.grad(loss.value, leaf)
        theirs = torch.from_numpy(file[f"{at}/dloss_dlogp"])
        assert torch.allclose(slope[:, 0, 0], theirs, rtol=1e-6, atol=1e-6), at
        if f"{at}/clipfrac" in file.files:
            assert loss.metrics["clip_fraction"].item() == pytest.approx(float(file[f"{at}/clipfrac"]), abs=1e-6)


def test_d3po_loss_and_gradient(official):
    file = np.load(official / "d_losses.npz")
    found = cases(file, "d3po")
    assert found
    for at, (_, scale, beta, eps, _, _) in found:
        batch = minibatch(file, scale, torch.zeros(64, 1), advantages=False, reference=True)
        loss = method("d3po", beta=number(beta), clip_range=number(eps)).loss(batch)
        assert abs(loss.value.item() - file[f"{at}/loss"]) <= 1e-6, at
        (slope,) = torch.autograd.grad(loss.value, batch.log_probs)
        for j in (0, 1):
            theirs = torch.from_numpy(file[f"{at}/dloss_dlogp{j}"])
            assert torch.allclose(slope[:, j, 0], theirs, rtol=1e-6, atol=1e-6), at


# -- whole epochs ------------------------------------------------------------------------------------------------

MODULES = {"down": "lora_A", "up": "lora_B"}


@dataclass
class Golden:
    """Two official epochs and our replay of them."""

    file: dict
    policy: object
    updater: Updater
    losses: list = field(default_factory=list)
    grad_norms: list = field(default_factory=list)

    def lora(self, prefix):
        """(our parameter, official value) pairs of one set of weights or gradients."""
        modules = dict(entry.split("=") for entry in self.file["mapping"])
        parameters = self.policy.lora_parameters()
        for key in [k for k in self.file.files if k.startswith(prefix)]:
            number, rest = key.removeprefix(prefix).split(".to_")
            projection, which, _ = rest.split(".")
            projection = "to_" + projection.removesuffix("_lora")
            projection = "to_out.0" if projection == "to_out" else projection
            module = modules[number].removesuffix(".processor")
            yield parameters[f"{module}.{projection}.{MODULES[which]}.default.weight"], torch.from_numpy(self.file[key])


def flag(file, name, default):
    """A setting of the official run, from its command line."""
    found = [f.split("=")[1] for f in file["flags"] if f.startswith(f"--config.train.{name}=")]
    return type(default)(found[0]) if found else default


OFFICIAL_DEFAULTS = {
    "sdpo": {"batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-4, "guidance": 1.0},
    "ddpo": {"batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 3e-4, "guidance": 5.0},
    "d3po": {"batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 3e-5, "guidance": 5.0},
}


def make_golden(official, tiny_pipe, name):
    file = np.load(official / f"f_golden_{name}.npz")
    defaults = OFFICIAL_DEFAULTS[name]
    settings = ModelSettings(name=str(tiny_pipe), guidance_scale=defaults["guidance"])
    policy = load_policy(settings)
    if name == "d3po":  # the official script loads half-precision weights whatever the setting
        for part in (policy.denoiser, policy.pipeline.text_encoder):
            for parameter in part.parameters():
                parameter.data = parameter.data.half().float()
    policy.add_lora(4, 4, settings.lora_targets, seed=0)
    schedule = make_schedule(dict(policy.pipeline.scheduler.config), 4, prev_timestep="official")
    update = UpdateSettings(
        order="step-shuffled" if name == "sdpo" else "accumulated",
        minibatch=flag(file, "batch_size", defaults["batch_size"]),
        accumulation=flag(file, "gradient_accumulation_steps", defaults["gradient_accumulation_steps"]),
        lr=flag(file, "learning_rate", defaults["learning_rate"]),
    )
    runtime = Runtime(out=Path(), device="cpu")
    context = RunContext(policy, schedule, method(name), Ledger(), ALONE, runtime, MicroBatch(64))
    updater = Updater(context, update, torch.ones(4))
    golden = Golden(file, policy, updater)
    for parameter, value in golden.lora("ep0.0/lora_before/"):
        parameter.data = value.clone()
    return golden


def golden_experience(golden, name, epoch, negative):
    """The official samples of an epoch in step order, and the official order of updates."""
    file = golden.file
    read = lambda key: torch.from_numpy(file[f"ep{epoch}.0/{key}"])  # noqa: E731
    if name == "d3po":
        members = lambda key: read(f"samples/{key}")  # noqa: E731
        times, embeds, rewards = (
            read("samples/timesteps")[:, 0],
            read("samples/prompt_embeds")[:, 0],
            read("samples/rewards"),
        )
    else:
        suffixes = ("1", "2") if name == "sdpo" else ("",)
        members = lambda key: torch.stack([read(f"batched/{key}{s}").flatten(0, 1) for s in suffixes], 1)  # noqa: E731
        times, embeds = read("batched/timesteps").flatten(0, 1), read("batched/prompt_embeds").flatten(0, 1)
        rewards = torch.zeros(len(times), len(suffixes))
    slots = (golden.updater.schedule.timesteps == times[..., None]).int().argmax(-1)
    back = slots.argsort(1)

    def in_order(values):
        index = back[:, None].view(len(back), 1, -1, *[1] * (values.ndim - 3))
        return values.gather(2, index.expand_as(values))

    latents, following = in_order(members("latents")), in_order(members("next_latents"))
    states = torch.cat([latents, following[:, :, -1:]], 2)
    assert torch.equal(states[:, :, 1:], following)
    advantages = None
    if name == "sdpo":
        advantages = in_order(members("advantages"))
    elif name == "ddpo":
        advantages = read("batched/advantages").flatten(0, 1)[:, None, None].expand(-1, 1, 4)
    guided = None
    if golden.policy.guidance_scale > 1:
        guided = {"encoder_hidden_states": negative[:1].expand(len(embeds), -1, -1)}
    trajectories = Trajectories(
        ("",) * len(states),
        Conditioning({"encoder_hidden_states": embeds}, guided),
        states,
        following,
        in_order(members("log_probs")),
        shared_start=name != "ddpo",
    )
    reference = None
    if name == "d3po":
        with golden.policy.reference():
            reference, _ = base_statistics(golden.policy, golden.updater.schedule, trajectories, range(len(states)), 64)
    experience = Experience(trajectories, torch.zeros_like(trajectories.log_probs), rewards, advantages, reference)
    return experience, Order(torch.arange(len(states)), slots)


@pytest.mark.parametrize("name", ["sdpo", "ddpo", "d3po"])
def test_two_official_epochs(official, tiny_pipe, name, monkeypatch):
    golden = make_golden(official, tiny_pipe, name)
    loss_of = golden.updater.method.loss

    def watched(batch):
        loss = loss_of(batch)
        golden.losses.append(loss.value.item())
        return loss

    monkeypatch.setattr(golden.updater.method, "loss", watched)
    negative = torch.from_numpy(np.load(official / "e_trajectory_pair.npz")["neg_embeds"])
    if name == "d3po":
        negative = golden.policy.encode([""]).negative["encoder_hidden_states"]
    for epoch in range(2):
        experience, order = golden_experience(golden, name, epoch, negative)
        log = UpdateLog(4)
        golden.updater.inner_epoch(experience, order, log)
        golden.grad_norms += log.grad_norms
        assert log.zero_gap < 1e-5, "the ratio before the first update of an epoch is 1"
    theirs = golden.file
    assert np.abs(np.array(golden.losses) - theirs["trace/loss"]).max() <= 1e-4
    norms = np.array(golden.grad_norms)
    assert np.abs(norms / theirs["trace/grad_norm_before_clip"] - 1).max() <= 1e-3
    assert golden.updater.ledger.optimiser_steps == len(theirs["trace/grad_norm_before_clip"])
    final = list(golden.lora("lora_final/"))
    assert len(final) == len(golden.policy.lora_parameters())
    worst = max((parameter.detach() - value).abs().max().item() for parameter, value in final)
    before = [value for _, value in golden.lora("ep0.0/lora_before/")]
    moved = max((value - old).abs().max().item() for (_, value), old in zip(final, before))
    assert moved > 10 * 1e-5, "the fixture itself moves by more than the tolerance"
    assert worst <= 1e-5
