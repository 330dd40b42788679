"""Means and standard deviations of a weighted sum's parts, measured on the base model before training.

The pictures come from seeds of their own and from nothing of the method or the training seed, so every run of a
comparison gets the same numbers; they are kept in ``<out>/references`` for the next run and in each run's ``run.json``
for itself. Like the evaluation of the base model they are outside the training budget, and shown.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdpo_bench import seeds
from sdpo_bench.advantages.epoch_metrics import correlation
from sdpo_bench.config.training_schedule import schedule_options
from sdpo_bench.errors import UsageError
from sdpo_bench.models.base_model import scheduler_config
from sdpo_bench.models.policy import Policy
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.rollout.sampling import Noise, sample
from sdpo_bench.rollout.schedule import make_schedule
from sdpo_bench.scoring.scorer import CompositeScorer, Parts, Scorer
from sdpo_bench.scoring.weighted_sum import Basis, Composite
from sdpo_bench.system.files import atomic_write
from sdpo_bench.system.json_toml import parse_json

AXIS = "reward-reference"


def calibrate(
    scorers: Sequence[Scorer],
    policy: Policy,
    out: Path,
    recorded: Mapping[str, Any],
    *,
    micro_batch: int = 64,
    progress: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> dict[str, Any]:
    """Give every weighted sum among ``scorers`` its statistics; returns what was used, by name.

    Args:
        out: results folder.
        recorded: what an earlier start of the same run used (``run.json``'s ``reward_reference``); it is used again.

    Raises:
        UsageError: a part that gives every picture the same score.
    """
    used = {}
    for scorer in _standardised(scorers):
        reward = scorer.reward
        path = out / "references" / f"{reward.reference_id}.json"
        found = recorded.get(scorer.name) or _read(path, reward)
        if found is None or found["id"] != reward.reference_id:
            found = _measure(scorer, policy, micro_batch, progress)
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, json.dumps(found, indent=1, sort_keys=True) + "\n")
        used[scorer.name] = found
    apply(scorers, used)
    return used


def apply(scorers: Sequence[Scorer], used: Mapping[str, Any]) -> None:
    """Give weighted sums the statistics that :func:`calibrate` returned."""
    for scorer in _standardised(scorers):
        parts = used[scorer.name]["parts"]
        scorer.reward.statistics = {name: (part["mean"], part["std"]) for name, part in parts.items()}


def _standardised(scorers: Sequence[Scorer]) -> list[CompositeScorer]:
    return [s for s in scorers if isinstance(s, CompositeScorer) and s.reward.standardised]


def _read(path: Path, reward: Composite) -> dict[str, Any] | None:
    """Statistics of an earlier run; ``None`` where there are none that can be used."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = parse_json(path.read_text(encoding="utf-8"))
        numbers = [float(found["parts"][name][key]) for name in reward.parts for key in ("mean", "std")]
        if all(math.isfinite(number) for number in numbers) and "id" in found:
            return dict(found)
    return None


def _measure(
    scorer: CompositeScorer, policy: Policy, micro_batch: int, progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    reward, basis = scorer.reward, scorer.reward.basis
    asker = CompositeScorer(scorer.name, reward, timeout=scorer.deadline.seconds)  # charges and remembers nothing
    assert basis is not None  # reference_id has refused a sum without one
    pairs = _pairs(basis, reward.settings.reference_images)
    scores: dict[str, list[Tensor]] = {name: [] for name in reward.parts}
    calls = 0

    def count(latents: int) -> None:
        nonlocal calls
        calls += latents

    before, policy.on_call = policy.on_call, count
    try:
        for at in range(0, len(pairs), micro_batch):
            progress(f"the base model for {scorer.name}", at, len(pairs))
            for name, values in _score(asker, policy, basis, pairs[at : at + micro_batch], micro_batch).items():
                scores[name].append(values)
    finally:
        policy.on_call = before
    columns = {name: torch.cat(values).double() for name, values in scores.items()}
    return {
        "id": reward.reference_id,
        "images": len(pairs),
        "denoiser_calls": calls,
        "reward_calls": {name: len(pairs) for name in reward.parts},
        "parts": {name: _statistics(name, values) for name, values in columns.items()},
        "correlation": {
            f"{a}|{b}": correlation(columns[a], columns[b]) for a, b in itertools.combinations(sorted(columns), 2)
        },
    }


def _pairs(basis: Basis, count: int) -> list[tuple[str, int]]:
    """(prompt, picture number): every prompt once before any twice, in an order of its own."""
    prompts = load_prompts(basis.prompts)
    order = seeds.permutation(len(prompts), AXIS, "prompts").tolist()
    return [(prompts[order[k % len(prompts)]], k // len(prompts)) for k in range(count)]


@torch.no_grad()
def _score(
    scorer: CompositeScorer, policy: Policy, basis: Basis, pairs: Sequence[tuple[str, int]], micro_batch: int
) -> Parts:
    s = basis.schedule
    schedule = make_schedule(scheduler_config(policy), s.steps, sampler=s.sampler, **schedule_options(s))
    prompts = [prompt for prompt, _ in pairs]
    names = [f"{prompt}\n{number}" for prompt, number in pairs]
    with policy.reference() if policy.lora_parameters() else nullcontext():
        final, _ = sample(policy, schedule, prompts, Noise((AXIS,)), groups=names, micro_batch=micro_batch)
    return scorer.score_parts(policy.decode(final), prompts)


def _statistics(name: str, values: Tensor) -> dict[str, float]:
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        raise UsageError(
            f"part '{name}' gives all {len(values)} pictures of the base model the score {low:g}, so it cannot be "
            "standardised. Leave it out, or use --set reward.standardise=none."
        )
    return {"mean": float(values.mean()), "std": float(values.std(correction=0)), "min": low, "max": high}
