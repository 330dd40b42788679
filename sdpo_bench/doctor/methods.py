"""Conformance checks of methods in small runs of the engine, on the embedded model.

What a method's loss does alone is checked on a bandit (``doctor.bandit``).
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

from sdpo_bench.api import SINGLE_STEP_MODES, Reward
from sdpo_bench.config.resolve import Request, Resolved, build_method, resolve
from sdpo_bench.doctor import bandit
from sdpo_bench.doctor.bandit import make
from sdpo_bench.doctor.contract import require
from sdpo_bench.models.base_model import load_policy
from sdpo_bench.models.policy import Policy
from sdpo_bench.plugins.registry import Plugin
from sdpo_bench.rollout.group_cost import group_cost, probe_cost
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.runs.saved_adapter import load_adapter, save_adapter
from sdpo_bench.scoring.scorer import supervise
from sdpo_bench.seeds import seed_for
from sdpo_bench.settings import ModelSettings, Runtime
from sdpo_bench.system.progress import Tick
from sdpo_bench.training.loop import Trainer, run_context

RUN_GROUPS = 2
RATIO_TOLERANCE = 1e-4


class Brightness(Reward):
    """Mean brightness: cheap, smooth, and different for every picture."""

    differentiable = True
    version, scale, source, native_model = "1", "mean of all pixels", "sdpo_bench.doctor.checks", "emoji-turbo"
    calls = 0

    def __call__(self, images: Tensor, prompts: Any) -> Tensor:
        self.calls += len(images)
        return images.mean((1, 2, 3)).float().cpu()


def small_run(plugin: Plugin, loaded: Any, epochs: int = 2, **overrides: Any) -> Resolved:
    """Epochs of :data:`RUN_GROUPS` groups and three steps on the embedded model.

    Args:
        overrides: further settings.
    """
    images = RUN_GROUPS * make(loaded).members
    settings = {
        "schedule.steps": 3,
        "sample.images_per_epoch": images,
        "update.minibatch": 1,
        "update.accumulation": 1,
        "budget.images": epochs * images,
        "update.lr": 1e-3,
    }
    return resolve(Request(method=plugin.name, overrides=settings | overrides))


@lru_cache(maxsize=1)
def fresh_policy(model: ModelSettings, seed: int) -> Policy:
    """Loading takes as long as training an epoch of the embedded model; a copy of it takes no time."""
    return load_policy(model, lora_seed=seed)


def make_trainer(
    resolved: Resolved,
    folder: Path,
    watch: Any = lambda tick: None,
    *,
    policy: Policy | None = None,
    reward: Reward | None = None,
    runtime: Runtime | None = None,
) -> Trainer:
    """A run folder, a fresh policy and :class:`Brightness` on the CPU; an existing folder is gone on with.

    Args:
        policy, reward, runtime: others than these; the policy is trained, not a copy of it.
    """
    config = resolved.config
    run = RunFolder(folder / resolved.run_id)
    run.create(resolved.record)
    policy = policy or deepcopy(fresh_policy(config.model, seed_for(config.seed, "lora")))
    method = build_method(config, resolved.method)
    runtime = runtime or replace(Runtime(out=folder, device="cpu"), checkpoint_every=1)
    context = run_context(config, runtime, policy, method)
    scorer = supervise(config.reward.name, reward or Brightness(None), context.ledger, timeout=runtime.reward_timeout)
    return Trainer(context, config, run, scorer, watch)


def adapter(policy: Policy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.lora_parameters().items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def check_epoch(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """An epoch changes the LoRA weights and nothing else, starts at ratio 1, and its bill is complete and predicted."""
    _conforming_epoch(make_trainer(small_run(plugin, loaded, epochs=1), folder))


def check_reward_modes(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """The same with each of the other rewards of steps that the method takes (``method.reward``)."""
    method = make(loaded)
    if "method.reward" in loaded.fixed:
        return
    for mode in method.reward_modes:
        if mode != method.reward_mode:
            alone = {"advantage.gamma": 0.0} if mode in SINGLE_STEP_MODES and method.signal == "advantage" else {}
            resolved = small_run(plugin, loaded, epochs=1, **{"method.reward": mode}, **alone)
            _conforming_epoch(make_trainer(resolved, folder / mode), f"{mode}: ")


def _conforming_epoch(trainer: Trainer, what: str = "") -> None:
    denoiser = trainer.policy.denoiser
    frozen = {name: p.detach().clone() for name, p in denoiser.named_parameters() if "lora_" not in name}
    before = adapter(trainer.policy)
    rows: list[int] = []
    hook = denoiser.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        trainer.train()
    finally:
        hook.remove()
    changed = [name for name, p in denoiser.named_parameters() if name in frozen and not torch.equal(p, frozen[name])]
    require(not changed, f"{what}frozen weights changed: {', '.join(changed[:3])}.")
    require(not same(before, adapter(trainer.policy)), f"{what}no LoRA weight changed in a whole epoch.")
    finite = all(bool(torch.isfinite(value).all()) for value in adapter(trainer.policy).values())
    require(finite, f"{what}LoRA weights are not finite.")
    (row,) = trainer.run.log()
    gap = row["ratio_at_zero_update"]
    require(gap < RATIO_TOLERANCE, f"{what}the importance ratio is off 1 by {gap:.2g} before the first update.")
    _check_bill(trainer, row["bill"], sum(rows), what)


def _check_bill(trainer: Trainer, bill: Mapping[str, Any], denoised: int, what: str) -> None:
    reward = trainer.scorer.reward
    assert isinstance(reward, Brightness)
    method, inner = trainer.method, trainer.config.update.inner_epochs
    drawing = trainer.schedule.decision_steps().tolist()
    cost = group_cost(method, trainer.weights.tolist(), inner_epochs=inner, guided=False, drawing=drawing)
    probe = probe_cost(method, 3, RUN_GROUPS, guided=False)
    pairs = {
        "denoiser calls": (sum(bill["forward"].values()), denoised, RUN_GROUPS * cost.forward + probe),
        "backward calls": (bill["backward"], bill["backward"], RUN_GROUPS * cost.backward),
        "reward calls": (bill["reward_calls"], reward.calls + bill["reward_backward"], RUN_GROUPS * cost.rewards),
        "images": (bill["images"], RUN_GROUPS * method.members, RUN_GROUPS * cost.images),
    }
    for name, (charged, real, predicted) in pairs.items():
        require(charged == real == predicted, f"{what}{name}: {charged} charged, {real} made, {predicted} predicted.")


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
    require(len(whole.run.log()) == 2, f"{len(whole.run.log())} epochs were run; expected 2.")
    require(whole.run.log() == resumed.run.log(), "a resumed run logs other numbers than one never stopped.")
    require(
        same(adapter(whole.policy), adapter(resumed.policy)),
        "a resumed run ends with other weights than one never stopped.",
    )
    save_adapter(whole.policy, whole.run.lora)
    for parameter in resumed.policy.lora_parameters().values():
        parameter.data.zero_()
    load_adapter(resumed.policy, whole.run.lora)
    require(same(adapter(whole.policy), adapter(resumed.policy)), "the saved adapter does not come back as it was.")


CHECKS = {
    **bandit.CHECKS,
    "only LoRA changes, ratio 1, ledger": check_epoch,
    "the same with every reward mode": check_reward_modes,
    "determinism, resume, save and load": check_resume,
}
