"""Small experiments for tests: resolved configurations, trainers and experiences on the tiny pipeline."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from policies import fresh_policy

from sdpo_bench.advantages.experience import Experience
from sdpo_bench.advantages.run_context import RunContext
from sdpo_bench.config.resolve import Request, Resolved, resolve
from sdpo_bench.ledger import Ledger
from sdpo_bench.plugins.parse_settings import validate
from sdpo_bench.plugins.registry import find, plugins
from sdpo_bench.rollout.sampling import Noise, Trajectories, rollout
from sdpo_bench.rollout.schedule import make_schedule
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.scoring.make_scorers import make_scorer
from sdpo_bench.scoring.scorer import supervise
from sdpo_bench.seeds import seed_for
from sdpo_bench.settings import Runtime, UpdateSettings
from sdpo_bench.system.distributed import ALONE
from sdpo_bench.system.memory_retry import MicroBatch
from sdpo_bench.training.loop import Trainer, run_context
from sdpo_bench.training.updater import Updater

METHODS = tuple(plugins("methods"))
"""Every method that is found."""
LOADED = {name: find("methods", name).load() for name in METHODS}
LIKELIHOOD_FREE = tuple(n for n, m in LOADED.items() if m.granularity in ("noised", "sample"))
"""Methods whose loss sees samples, noised or as they are."""
LOSS_METHODS = tuple(
    n
    for n, m in LOADED.items()
    if not m.variant_of and m.signal in ("advantage", "preference") and n not in LIKELIHOOD_FREE
)
"""Methods with a loss of log-probabilities of their own."""
GRADIENT_METHODS = tuple(n for n, m in LOADED.items() if m.signal == "gradient")
"""Methods that follow the reward's own gradient."""
SEARCH_METHODS = tuple(n for n, m in LOADED.items() if m.signal == "none")
"""Methods that train nothing."""
TRAINED = tuple(n for n in METHODS if n not in SEARCH_METHODS)
SMALL = {
    **{name: {"method.group_size": 4} for name in ("grpo", "dense_grpo", "nft", "awm", "dgpo")},
    "drpo": {"method.group_size": 4, "method.anchors": 2},
}
"""Settings that make a method fit into the small experiments here."""
PROMPTS = ["cat", "dog", "butterfly", "horse", "bee"]


def mostly_slow(cases: Sequence[tuple[Any, ...]], quick: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Parameters of a test that says the same of many methods: ``slow``, all but the ``quick`` cases."""
    assert all(case in cases for case in quick)
    return [pytest.param(*case, marks=[] if case in quick else pytest.mark.slow) for case in cases]


def make_method(name: str, **settings: Any) -> Any:
    plugin = find("methods", name).load()
    return plugin(validate(plugin.Settings, settings, "method"))


def make_resolved(tiny_pipe: Path, method: str = "sdpo", **overrides: Any) -> Resolved:
    """A run of three denoising steps, eight images an epoch, sixteen images in all."""
    settings = {
        "schedule.steps": 3,
        "sample.images_per_epoch": 8,
        "update.minibatch": 2,
        "update.accumulation": 1,
        "update.lr": 1e-3,
        "budget.images": 16,
        "eval.steps": "1,2",
        "eval.images_per_prompt": 1,
    }
    if not any(key.startswith("budget.") for key in overrides):
        overrides = {"budget.images": settings["budget.images"]} | overrides
    reward = overrides.pop("reward.name", "emoji-align" if method in GRADIENT_METHODS else "jpeg-incompressibility")
    if method in SEARCH_METHODS:
        settings = {k: v for k, v in settings.items() if not k.startswith(("update.", "sample."))}
    settings = {k: v for k, v in settings.items() if not k.startswith("budget.")} | SMALL.get(method, {}) | overrides
    return resolve(Request(method=method, model=str(tiny_pipe), reward=reward, overrides=settings))


def make_trainer(resolved: Resolved, out: Path, **runtime: Any) -> Trainer:
    """A trainer with a fresh policy and a run folder below ``out``."""
    config = resolved.config
    run = RunFolder(out / "runs" / resolved.run_id)
    run.create(resolved.record)
    policy = fresh_policy(config.model, seed_for(config.seed, "lora"))
    method = make_method(config.method.name, **config.method.settings)
    reward = make_scorer(config.reward.name, config.reward.settings, "cpu").reward
    processes = runtime.pop("processes", ALONE)
    chosen = replace(Runtime(out=out, device="cpu"), **runtime)
    context = run_context(config, chosen, policy, method, processes)
    scorer = supervise(config.reward.name, reward, context.ledger, timeout=chosen.reward_timeout)
    return Trainer(context, config, run, scorer)


def sample_groups(
    policy: Any, steps: int = 3, groups: int = 4, members: int = 2, **options: Any
) -> tuple[Any, Trajectories]:
    """A schedule and trajectories of it."""
    schedule = make_schedule(dict(policy.pipeline.scheduler.config), steps)
    prompts = (PROMPTS * groups)[:groups]
    trajectories = rollout(
        policy,
        schedule,
        prompts,
        Noise((0, "test")),
        groups=range(groups),
        members=members,
        shared_noise=options.pop("shared_noise", True),
        **options,
    )
    return schedule, trajectories


def random_experience(trajectories: Trajectories, reference: torch.Tensor | None = None, seed: int = 0) -> Experience:
    """Random learning signals for given trajectories."""
    generator = torch.Generator().manual_seed(seed)
    shape = trajectories.log_probs.shape
    advantages = torch.randn(shape, generator=generator)
    final = torch.randn(shape[:2], generator=generator)
    values = torch.randn(shape, generator=generator)
    return Experience(trajectories, advantages, final, advantages, reference, values)


def make_updater(
    policy: Any, schedule: Any, method: Any, weights: torch.Tensor | None = None, **settings: Any
) -> Updater:
    """An updater with its own ledger."""
    runtime = Runtime(out=Path(), device="cpu", micro_batch=settings.pop("micro_batch", 64))
    update = UpdateSettings(**{"minibatch": 2, "accumulation": 1, "order": "accumulated", **settings})
    weights = torch.ones(schedule.num_steps) if weights is None else weights
    context = RunContext(policy, schedule, method, Ledger(), ALONE, runtime, MicroBatch(runtime.micro_batch))
    policy.on_call = context.ledger.charge_call
    return Updater(context, update, weights)
