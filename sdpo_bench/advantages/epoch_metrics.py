"""The numbers of one epoch that a person needs: rewards, their parts, advantages, and where the time went."""

import itertools
import time
from typing import Any

import torch
from torch import Tensor

from sdpo_bench.scoring.dense_rewards import final_rewards
from sdpo_bench.scoring.scorer import Parts


class Stopwatch:
    """Seconds of consecutive stages."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 4)
        self._last = now


def spread(name: str, values: Tensor) -> dict[str, float]:
    """Mean, standard deviation and largest magnitude of ``values``, by ``NAME_mean`` and so on."""
    flat = values.double()
    return {
        f"{name}_mean": float(flat.mean()),
        f"{name}_std": float(flat.std(correction=0)),
        f"{name}_max_abs": float(flat.abs().max()),
    }


def reward_metrics(queried: Tensor, rewards: Tensor, mode: str) -> dict[str, Any]:
    """Mean and spread of the final reward, of each queried step, and the range of the dense rewards."""
    final = final_rewards(queried, rewards, mode).double()
    names = ["first", "last", "anchor"] if queried.shape[-1] == 3 and mode == "predicted" else None
    by_query = {}
    for q in range(queried.shape[-1]):
        label = names[q] if names else f"query_{q}"
        column = queried[..., q].double()
        by_query[label] = {"mean": float(column.mean()), "std": float(column.std(correction=0))}
    return {
        "reward_mean": float(final.mean()),
        "reward_std": float(final.std(correction=0)),
        "reward_by_query": by_query,
        "dense_reward_min": float(rewards.min()),
        "dense_reward_max": float(rewards.max()),
    }


def update_rewards(rewards: list[Tensor]) -> dict[str, float]:
    """Mean and spread of the rewards that were asked for during the updates; nothing where none were."""
    if not rewards:
        return {}
    flat = torch.cat(rewards).double()
    return {"reward_mean": float(flat.mean()), "reward_std": float(flat.std(correction=0))}


def part_metrics(parts: Parts) -> dict[str, Any]:
    """Mean and spread of each part of a weighted sum on its own scale, and whether the parts agree.

    The correlation is Pearson's over the final images of the epoch, by ``first|second``; ``None`` where a part gave
    every image the same score.
    """
    if not parts:
        return {}
    columns = {name: values.double().flatten() for name, values in parts.items()}
    spread = {n: {"mean": float(c.mean()), "std": float(c.std(correction=0))} for n, c in columns.items()}
    pairs = {f"{a}|{b}": correlation(columns[a], columns[b]) for a, b in itertools.combinations(sorted(columns), 2)}
    return {"reward_parts": spread, "reward_part_correlation": pairs}


def correlation(a: Tensor, b: Tensor) -> float | None:
    """Pearson's correlation of two ``[n]``; ``None`` where one of them does not vary."""
    if bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return None
    return float(torch.corrcoef(torch.stack([a, b]).double())[0, 1].clamp(-1, 1))
