"""Conformance checks of methods: their loss alone, on a bandit with a known optimum, and in small runs of the engine.

The bandit has no denoiser: a Gaussian policy over vectors whose best action is known. A method whose sign, weight or
normalisation is wrong does not move towards it.
"""

from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdpo_bench.api import Loss, Method, Minibatch, Reward
from sdpo_bench.config import Request, Resolved, build_method, resolve, validate
from sdpo_bench.conformance import require, untouched_randomness
from sdpo_bench.cost import group_cost, probe_cost
from sdpo_bench.models import load_policy
from sdpo_bench.policy import Policy
from sdpo_bench.progress import Tick
from sdpo_bench.registry import Plugin
from sdpo_bench.schedule import gaussian_kl, gaussian_log_prob
from sdpo_bench.seeds import seed_for
from sdpo_bench.settings import ModelSettings, Runtime
from sdpo_bench.store import RunFolder
from sdpo_bench.train import Trainer

GROUPS, STEPS, WIDTH = 64, 2, 16
RUN_GROUPS = 2
RATIO_TOLERANCE = 1e-4
DUE = 0.05


# -- the loss alone ------------------------------------------------------------------------------------------


def make(loaded: Any) -> Method:
    """The method with its default settings."""
    method: Method = loaded(validate(loaded.Settings, {}, "method"))
    return method


class Bandit:
    """Policy N(mean, 1) over vectors ``[WIDTH]``; the reward of a step is minus the squared distance to ``target``.

    The first policy is the reference and sits one standard deviation beside the target in every coordinate.
    """

    def __init__(self, method: Method, seed: int = 0):
        self.method = method
        self.generator = torch.Generator().manual_seed(seed)
        self.start = torch.zeros(WIDTH)
        self.target = torch.ones(WIDTH)
        self.mean = self.start.clone().requires_grad_()

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
        """Minibatches as the engine makes them: single steps, or whole trajectories."""
        rewards, final = self.rewards(actions)
        signal = final[..., None].expand_as(rewards) if self.method.reward_mode == "sparse" else rewards
        advantages = (signal - signal.mean((0, 1))) / (signal.std((0, 1)) + 1e-6)
        now, old, reference = (self.log_prob(actions, m) for m in (self.mean, old_mean, self.start))
        flat = self.mean.expand(actions.shape[:3].numel(), -1)
        kl = gaussian_kl(flat, self.start.expand_as(flat), torch.ones(len(flat), 1)).view(rewards.shape)
        chosen = (
            [torch.arange(STEPS)] if self.method.granularity == "trajectory" else list(torch.arange(STEPS)[:, None])
        )
        return [
            Minibatch(
                log_probs=now[..., k], old_log_probs=old[..., k].detach(),
                ref_log_probs=reference[..., k].detach() if self.method.needs_reference else None,
                advantages=advantages[..., k] if self.method.signal == "advantage" else None,
                rewards=rewards[..., k], final_rewards=final, steps=k.expand(GROUPS, -1), num_steps=STEPS,
                kl=kl[..., k] if self.method.needs_kl else None,
            )
            for k in chosen
        ]  # fmt: skip

    def loss(self, actions: Tensor, old_mean: Tensor) -> Tensor:
        return torch.stack([self.method.loss(b).value for b in self.batches(actions, old_mean)]).mean()


def _rows(batch: Minibatch, rows: slice) -> Minibatch:
    cut: dict[str, Any] = {k: v[rows] for k, v in vars(batch).items() if isinstance(v, Tensor)}
    return replace(batch, **cut)


def _moved(bandit: Bandit) -> tuple[Tensor, list[Minibatch]]:
    """Minibatches of a policy that has moved a little away from the one that sampled."""
    actions = bandit.actions()
    old = bandit.mean.detach().clone()
    with torch.no_grad():
        bandit.mean += 0.01 * torch.randn(WIDTH, generator=bandit.generator)
    return old, bandit.batches(actions, old)


def check_loss(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """A finite scalar that carries gradients, the same when asked again, leaving its input and randomness alone."""
    method = make(loaded)
    bandit = Bandit(method)
    _, batches = _moved(bandit)
    for batch in batches:
        kept = {k: v.detach().clone() for k, v in vars(batch).items() if isinstance(v, Tensor)}
        with untouched_randomness():
            first = method.loss(batch)
        _check_shape(first)
        require(torch.equal(first.value, method.loss(batch).value), "the same minibatch has two losses.")
        changed = [k for k, v in kept.items() if not torch.equal(v, getattr(batch, k))]
        require(not changed, f"it changes the minibatch: {', '.join(changed)}.")


def _check_shape(loss: Loss) -> None:
    require(isinstance(loss, Loss), f"loss() returned {type(loss).__name__}, sdpo_bench.api.Loss is due.")
    require(loss.value.shape == (), f"the loss has shape {tuple(loss.value.shape)}, a scalar is due.")
    require(bool(torch.isfinite(loss.value)), f"the loss is {loss.value.item()}.")
    require(loss.value.requires_grad, "the loss carries no gradient to the log-probabilities.")
    for name, value in loss.metrics.items():
        require(isinstance(value, Tensor) and value.shape == (), f"metric '{name}' is no scalar tensor.")
        require(not value.requires_grad, f"metric '{name}' is not detached: it keeps every graph alive.")


def check_batch_size(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """The loss is a mean over groups: one minibatch equals the average of its parts, in value and in gradient."""
    method = make(loaded)
    bandit = Bandit(method)
    for batch in _moved(bandit)[1]:
        whole = method.loss(batch).value
        parts = [(size, _rows(batch, slice(at, at + size))) for at, size in ((0, 1), (1, 15), (16, 48))]
        split = torch.stack([size / GROUPS * method.loss(part).value for size, part in parts]).sum()
        require(torch.allclose(whole, split, rtol=1e-4, atol=1e-6), f"{whole.item()} whole, {split.item()} in parts.")
        one, two = (torch.autograd.grad(v, bandit.mean, retain_graph=True)[0] for v in (whole, split))
        require(torch.allclose(one, two, rtol=1e-3, atol=1e-6), "gradients depend on the size of the minibatch.")


def check_bandit_loss(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """On one fixed set of actions, gradient steps make the loss fall."""
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

    Methods with a trust region stop well before it, so the part of the way that is due is small.
    """
    bandit = Bandit(make(loaded))
    optimiser = torch.optim.Adam([bandit.mean], lr=0.02)
    for _ in range(80):
        loss = bandit.loss(bandit.actions(), bandit.mean.detach().clone())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    away = lambda mean: float((mean.detach() - bandit.target).norm())  # noqa: E731
    progress = 1 - away(bandit.mean) / away(bandit.start)
    require(progress > DUE, f"the policy came {progress:.0%} of the way to the best action, {DUE:.0%} is due.")


# -- small runs of the engine --------------------------------------------------------------------------------


class Brightness(Reward):
    """Mean brightness: cheap, smooth, and different for every picture."""

    version, scale, source, native_model = "1", "mean of all pixels", "sdpo_bench.conformance", "emoji-turbo"
    calls = 0

    def __call__(self, images: Tensor, prompts: Any) -> Tensor:
        self.calls += len(images)
        return images.mean((1, 2, 3)).float().cpu()


def small_run(plugin: Plugin, loaded: Any, epochs: int = 2) -> Resolved:
    """Epochs of :data:`RUN_GROUPS` groups and three steps on the embedded model."""
    images = RUN_GROUPS * make(loaded).members
    settings = {
        "schedule.steps": 3, "sample.images_per_epoch": images, "update.minibatch": 1, "update.accumulation": 1,
        "budget.images": epochs * images, "update.lr": 1e-3,
    }  # fmt: skip
    return resolve(Request(method=plugin.name, overrides=settings))


@lru_cache(maxsize=1)
def _fresh_policy(model: ModelSettings, seed: int) -> Policy:
    """Loading takes as long as training an epoch of the embedded model; a copy of it takes no time."""
    return load_policy(model, lora_seed=seed)


def make_trainer(resolved: Resolved, folder: Path, watch: Any = lambda tick: None) -> Trainer:
    """A fresh policy, a run folder and :class:`Brightness`; an existing folder is gone on with."""
    config = resolved.config
    run = RunFolder(folder / resolved.run_id)
    run.create({"kind": "run", "config": resolved.data})
    policy = deepcopy(_fresh_policy(config.model, seed_for(config.seed, "lora")))
    method = build_method(config, resolved.method)
    runtime = replace(Runtime(out=folder, device="cpu"), checkpoint_every=1)
    return Trainer(config, runtime, run, policy, method, Brightness(None), watch)


def adapter(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.policy.lora_parameters().items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def check_epoch(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """An epoch changes the LoRA weights and nothing else, starts at ratio 1, and its bill is complete and predicted."""
    trainer = make_trainer(small_run(plugin, loaded, epochs=1), folder)
    unet = trainer.policy.unet
    frozen = {name: p.detach().clone() for name, p in unet.named_parameters() if "lora_" not in name}
    before = adapter(trainer)
    rows: list[int] = []
    hook = unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        trainer.train()
    finally:
        hook.remove()
    changed = [name for name, p in unet.named_parameters() if name in frozen and not torch.equal(p, frozen[name])]
    require(not changed, f"frozen weights changed: {', '.join(changed[:3])}.")
    require(not same(before, adapter(trainer)), "no LoRA weight changed in a whole epoch.")
    finite = all(bool(torch.isfinite(value).all()) for value in adapter(trainer).values())
    require(finite, "LoRA weights are not finite.")
    (row,) = trainer.run.log()
    gap = row["ratio_at_zero_update"]
    require(gap < RATIO_TOLERANCE, f"the importance ratio is off 1 by {gap:.2g} before the first update.")
    _check_bill(trainer, row["bill"], sum(rows))


def _check_bill(trainer: Trainer, bill: Mapping[str, Any], denoised: int) -> None:
    reward = trainer.scorer.reward
    assert isinstance(reward, Brightness)
    method, inner = trainer.method, trainer.config.update.inner_epochs
    cost = group_cost(method, trainer.weights.tolist(), inner_epochs=inner, guided=False)
    probe = probe_cost(method, 3, RUN_GROUPS, guided=False)
    pairs = {
        "denoiser calls": (sum(bill["forward"].values()), denoised, RUN_GROUPS * cost.forward + probe),
        "backward calls": (bill["backward"], bill["backward"], RUN_GROUPS * cost.backward),
        "reward calls": (bill["reward_calls"], reward.calls, RUN_GROUPS * cost.rewards),
        "images": (bill["images"], RUN_GROUPS * method.members, RUN_GROUPS * cost.images),
    }
    for name, (charged, real, predicted) in pairs.items():
        require(charged == real == predicted, f"{name}: {charged} charged, {real} made, {predicted} predicted.")


def check_resume(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """Same run, same numbers; stopped after an epoch and resumed, the same again; the saved adapter gives them back."""
    resolved = small_run(plugin, loaded)
    whole = make_trainer(resolved, folder / "a")
    whole.train()

    def stop(tick: Tick) -> None:
        if tick.phase == "epoch":
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        make_trainer(resolved, folder / "b", stop).train()
    resumed = make_trainer(resolved, folder / "b")
    resumed.train()
    require(len(whole.run.log()) == 2, f"{len(whole.run.log())} epochs were run, 2 are due.")
    require(whole.run.log() == resumed.run.log(), "a resumed run logs other numbers than one never stopped.")
    require(same(adapter(whole), adapter(resumed)), "a resumed run ends with other weights than one never stopped.")
    whole.policy.save(whole.run.lora)
    for parameter in resumed.policy.lora_parameters().values():
        parameter.data.zero_()
    resumed.policy.load(whole.run.lora)
    require(same(adapter(whole), adapter(resumed)), "the saved adapter does not come back as it was.")


CHECKS = {
    "loss of a minibatch": check_loss,
    "batch-size invariance": check_batch_size,
    "loss falls on a bandit": check_bandit_loss,
    "bandit moves to its optimum": check_bandit_optimum,
    "only LoRA changes, ratio 1, ledger": check_epoch,
    "determinism, resume, save and load": check_resume,
}
