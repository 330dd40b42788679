"""Conformance checks of a method's loss alone, on a bandit with a known optimum.

The bandit has no denoiser: a Gaussian policy over vectors whose best action is known. A method whose sign, weight or
normalisation is wrong does not move towards it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdpo_bench.api import Loss, Method, Minibatch, Noised
from sdpo_bench.doctor.contract import require, untouched_process, untouched_randomness
from sdpo_bench.plugins.parse_settings import validate
from sdpo_bench.plugins.registry import Plugin
from sdpo_bench.rollout.schedule import gaussian_kl, gaussian_log_prob

GROUPS, STEPS, WIDTH = 64, 2, 16
LEAST_PROGRESS = 0.05


def make(loaded: Any) -> Method:
    """The method with its default settings."""
    method: Method = loaded(validate(loaded.Settings, {}, "method"))
    return method


class Bandit:
    """Policy N(mean, 1) over vectors ``[WIDTH]``; the reward of a step is minus the squared distance to ``target``.

    The first policy is the reference and sits one standard deviation beside the target in every coordinate. A method
    that follows the reward's own gradient gets it through the actions: they move with the mean. A critic says 0.
    """

    def __init__(self, method: Method):
        self.method = method
        self.generator = torch.Generator().manual_seed(0)
        self.start = torch.zeros(WIDTH)
        self.target = torch.ones(WIDTH)
        self.mean = self.start.clone().requires_grad_()
        self.has_critic = method.critic((4, 8, 8), STEPS) is not None

    def actions(self) -> Tensor:
        """``[GROUPS, G, STEPS, WIDTH]`` drawn from the present policy."""
        shape = (GROUPS, self.method.members, STEPS, WIDTH)
        return self.mean.detach() + torch.randn(shape, generator=self.generator)

    def log_prob(self, actions: Tensor, mean: Tensor) -> Tensor:
        flat = actions.flatten(0, 2)
        return gaussian_log_prob(flat, mean.expand_as(flat), torch.ones(len(flat), 1)).view(actions.shape[:3])

    def rewards(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards of each step as the method asked for, and of the whole trajectory."""
        by_step = -((actions - self.target) ** 2).mean(-1)
        final = by_step.mean(-1)
        if self.method.reward_mode != "sparse":
            return by_step, final
        return torch.cat([torch.zeros_like(by_step[..., :-1]), final[..., None]], -1), final

    def batches(self, actions: Tensor, old_mean: Tensor) -> list[Minibatch]:
        """Minibatches as the engine makes them: single steps, whole trajectories, or rewards with their gradient."""
        if self.method.signal == "gradient":
            return [self._differentiable(actions + (self.mean - old_mean))]
        if self.method.granularity in ("noised", "sample"):
            return self._without_likelihood(actions, old_mean)
        rewards, final = self.rewards(actions)
        signal = final[..., None].expand_as(rewards) if self.method.reward_mode == "sparse" else rewards
        advantages = (signal - signal.mean((0, 1))) / (signal.std((0, 1)) + 1e-6)
        now, old, reference = (self.log_prob(actions, m) for m in (self.mean, old_mean, self.start))
        flat = self.mean.expand(actions.shape[:3].numel(), -1)
        kl = gaussian_kl(flat, self.start.expand_as(flat), torch.ones(len(flat), 1)).view(rewards.shape)
        drift = gaussian_kl(flat, old_mean.detach().expand_as(flat), torch.ones(len(flat), 1)).view(rewards.shape)
        all_steps = torch.arange(STEPS)
        batches = []
        for k in [all_steps] if self.method.granularity == "trajectory" else all_steps[:, None]:
            batch = Minibatch(
                log_probs=now[..., k],
                old_log_probs=old[..., k].detach(),
                ref_log_probs=reference[..., k].detach() if self.method.needs_reference else None,
                advantages=advantages[..., k] if self.method.signal == "advantage" else None,
                rewards=rewards[..., k],
                final_rewards=final,
                steps=k.expand(GROUPS, -1),
                num_steps=STEPS,
                kl=kl[..., k] if self.method.needs_kl else None,
                drift=drift[..., k] if self.method.needs_drift else None,
                stds=torch.ones(GROUPS, len(k)) if self.method.needs_drift else None,
                values=torch.zeros_like(rewards[..., k]) if self.has_critic else None,
                old_values=torch.zeros_like(rewards[..., k]) if self.has_critic else None,
            )
            batches.append(batch)
        return batches

    def _differentiable(self, actions: Tensor) -> Minibatch:
        none = torch.zeros(*actions.shape[:2], 0)
        return Minibatch(
            none, none, None, None, none, self.rewards(actions)[1], torch.zeros(GROUPS, 0, dtype=torch.int64), STEPS
        )

    def _without_likelihood(self, actions: Tensor, old_mean: Tensor) -> list[Minibatch]:
        """Final samples are the last actions; the model takes each for its mean, whatever the noise."""
        method = self.method
        final = -((actions[:, :, -1] - self.target) ** 2).mean(-1)
        advantages = (final - final.mean()) / (final.std() + 1e-6)
        clean = actions[:, :, -1, :, None, None]
        none, steps = final.new_zeros(*final.shape, 0), torch.zeros(GROUPS, 1, dtype=torch.int64)
        batch = Minibatch(none, none, None, None, final[..., None], final, steps, STEPS)
        if method.signal == "advantage":
            batch = replace(batch, advantages=advantages[..., None])
        if method.granularity == "sample":
            moved = clean + (self.mean - old_mean)[:, None, None]
            return [replace(batch, samples=moved, ref_samples=clean - old_mean[:, None, None])]
        seen = lambda mean: mean[:, None, None].expand_as(clean)  # noqa: E731
        noised = Noised(
            clean,
            seen(self.mean),
            torch.full((GROUPS, 1, 1, 1, 1), 0.5),
            seen(old_mean.detach()) if method.needs_old else None,
            seen(self.start) if method.needs_reference else None,
        )
        return [replace(batch, noised=noised)]

    def loss(self, actions: Tensor, old_mean: Tensor) -> Tensor:
        return torch.stack([self.method.loss(b).value for b in self.batches(actions, old_mean)]).mean()


def _rows(batch: Minibatch, rows: slice) -> Minibatch:
    cut: dict[str, Any] = {k: v[rows] for k, v in vars(batch).items() if isinstance(v, Tensor)}
    if batch.noised is not None:
        cut["noised"] = replace(
            batch.noised, **{k: v[rows] for k, v in vars(batch.noised).items() if isinstance(v, Tensor)}
        )
    return replace(batch, **cut)


def _moved(bandit: Bandit) -> list[Minibatch]:
    """Minibatches of a policy that has moved a little away from the one that sampled."""
    actions = bandit.actions()
    old = bandit.mean.detach().clone()
    with torch.no_grad():
        bandit.mean += 0.01 * torch.randn(WIDTH, generator=bandit.generator)
    return bandit.batches(actions, old)


def check_loss(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """A finite scalar that carries gradients, the same when asked again, leaving its input and randomness alone."""
    method = make(loaded)
    bandit = Bandit(method)
    for batch in _moved(bandit):
        originals = {k: v.detach().clone() for k, v in vars(batch).items() if isinstance(v, Tensor)}
        with untouched_process(), untouched_randomness():
            first = method.loss(batch)
        _check_shape(first)
        require(torch.equal(first.value, method.loss(batch).value), "the same minibatch has two losses.")
        changed = [k for k, v in originals.items() if not torch.equal(v, getattr(batch, k))]
        require(not changed, f"it changes the minibatch: {', '.join(changed)}.")


def _check_shape(loss: Loss) -> None:
    require(isinstance(loss, Loss), f"loss() returned {type(loss).__name__}; expected sdpo_bench.api.Loss.")
    require(loss.value.shape == (), f"the loss has shape {tuple(loss.value.shape)}; expected a scalar.")
    require(bool(torch.isfinite(loss.value)), f"the loss is {loss.value.item()}.")
    require(loss.value.requires_grad, "the loss carries no gradient to what the policy did.")
    for name, value in loss.metrics.items():
        require(isinstance(value, Tensor) and value.shape == (), f"metric '{name}' is no scalar tensor.")
        require(not value.requires_grad, f"metric '{name}' is not detached: it keeps every graph alive.")


def check_batch_size(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """The loss is a mean over groups: one minibatch equals the average of its parts, in value and in gradient."""
    method = make(loaded)
    bandit = Bandit(method)
    for batch in _moved(bandit):
        whole = method.loss(batch).value
        parts = [(size, _rows(batch, slice(at, at + size))) for at, size in ((0, 1), (1, 15), (16, 48))]
        split = torch.stack([size / GROUPS * method.loss(part).value for size, part in parts]).sum()
        require(torch.allclose(whole, split, rtol=1e-4, atol=1e-6), f"{whole.item()} whole, {split.item()} in parts.")
        one, two = (torch.autograd.grad(v, bandit.mean, retain_graph=True)[0] for v in (whole, split))
        require(torch.allclose(one, two, rtol=1e-3, atol=1e-6), "gradients depend on the size of the minibatch.")


def check_bandit_loss(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """On one fixed set of actions, gradient steps make the loss fall.

    Losses without likelihood have targets and weights without gradient that move with the policy, so their value says
    nothing: for them the optimum alone is looked at.
    """
    if loaded.granularity in ("noised", "sample"):
        return
    bandit = Bandit(make(loaded))
    actions, old = bandit.actions(), bandit.mean.detach().clone()
    before = bandit.loss(actions, old)
    for _ in range(20):
        (slope,) = torch.autograd.grad(bandit.loss(actions, old), bandit.mean)
        require(bool(torch.isfinite(slope).all()), "the gradient is not finite.")
        with torch.no_grad():
            bandit.mean -= 1e-4 * slope / (slope.norm() + 1e-12)
    after = bandit.loss(actions, old)
    require(after < before, f"the loss went from {before.item():.6g} to {after.item():.6g} in 20 descent steps.")


def check_bandit_optimum(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """With fresh actions after every step, the policy moves towards the best action.

    Methods with a trust region stop well before it, so a small part of the way is enough.
    """
    bandit = Bandit(make(loaded))
    optimiser = torch.optim.Adam([bandit.mean], lr=0.02)
    for _ in range(80):
        loss = bandit.loss(bandit.actions(), bandit.mean.detach().clone())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    remaining = (bandit.mean.detach() - bandit.target).norm()
    progress = 1 - float(remaining) / float((bandit.start - bandit.target).norm())
    require(
        progress > LEAST_PROGRESS,
        f"the policy came {progress:.0%} of the way to the best action; expected at least {LEAST_PROGRESS:.0%}.",
    )


CHECKS = {
    "loss of a minibatch": check_loss,
    "batch-size invariance": check_batch_size,
    "loss falls on a bandit": check_bandit_loss,
    "bandit moves to its optimum": check_bandit_optimum,
}
