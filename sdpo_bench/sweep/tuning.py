"""The same small search for every method: tuning runs are ordinary jobs, and their cost stands beside the choice.

A comparison is as fair as the tuning behind it. Every method gets the same grid (plus keys that only it has), the
same budget for each candidate and one tuning seed that is never reported; the candidate with the highest mean score
wins. What that cost is recorded, not hidden.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdpo_bench.results.read_results import clean_bill, last_line
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.sweep.suite import Group, Search

BILL = ("images", "denoiser_calls", "reward_calls", "optimiser_steps")
"""Axes of a training bill; also attributes of ``Work`` and keys of JSON."""


@dataclass(frozen=True)
class Candidate:
    """One choice of settings and what became of its tuning run."""

    run_id: str
    settings: Mapping[str, Any]
    state: str
    score: float | None
    """Mean over prompts, images and step counts; None while there is none, and for a run that failed."""


@dataclass(frozen=True)
class Choice:
    """The search of one method, reward, model and variant."""

    group: Group
    candidates: tuple[Candidate, ...]
    cost: Mapping[str, float]
    """Bill of all tuning runs so far."""

    @property
    def settled(self) -> bool:
        """Whether no tuning run is still to come."""
        return all(candidate.state in ("done", "failed") for candidate in self.candidates)

    @property
    def chosen(self) -> Candidate | None:
        """The best candidate, the first of equals; None before all are settled or where all failed."""
        scored = [c for c in self.candidates if c.score is not None]
        return max(scored, key=lambda c: c.score or 0.0) if self.settled and scored else None


def tuning_overrides(search: Search) -> dict[str, Any]:
    """Settings of every tuning run besides its candidate: its budget, and an evaluation of just what decides."""
    s = search.settings
    judged = {
        "eval.unseen": "",
        "eval.rewards": (),
        "eval.steps": s.steps,
        "eval.images_per_prompt": s.images_per_prompt,
    }
    if s.by == "validation":
        judged |= {"eval.train": "", "eval.validation": s.prompts}
    return {**search.budget, **judged, "checkpoint.choose": "last"}


def make_choice(
    group: Group, runs: Sequence[tuple[RunFolder, Mapping[str, Any]]], filed_as: str, search: Search
) -> Choice:
    """Read the tuning runs of one group from disk.

    Args:
        filed_as: name of the trained reward in results, which is not the one asked for where a service computes it.
    """
    candidates = []
    cost = dict.fromkeys(BILL, 0.0)
    for folder, settings in runs:
        state = folder.known_state
        score = tuning_score(folder, filed_as, search) if state == "done" else None
        candidates.append(Candidate(folder.run_id, settings, state, score))
        bill = clean_bill((last_line(folder.path / "train.jsonl") or {}).get("bill"))
        cost = {key: cost[key] + float(bill.get(key, 0)) for key in BILL}
    return Choice(group, tuple(candidates), cost)


def tuning_score(folder: RunFolder, reward: str, search: Search) -> float | None:
    """Mean score of a finished tuning run at the search's step counts; None if it has none that is finite."""
    import numpy as np

    from sdpo_bench.statistics.eval_table import read_scores

    split = "validation" if search.settings.by == "validation" else "train"
    for key, block in read_scores(folder.evaluation, pictures=False).blocks.items():
        if key.reward == reward and key.split == split and set(search.settings.steps) <= set(block.steps):
            images = range(search.settings.images_per_prompt)
            if not set(images) <= set(block.images):
                continue
            scores = block.restrict(search.settings.steps, tuple(images)).scores
            return float(scores.mean()) if np.isfinite(scores).all() else None
    return None


def choice_data(choice: Choice) -> dict[str, Any]:
    """A choice as plain data, with every candidate and what became of it."""
    chosen = choice.chosen
    candidates = [
        {"run": c.run_id, "settings": dict(c.settings), "state": c.state, "score": c.score} for c in choice.candidates
    ]
    return {
        **choice.group._asdict(),
        "candidates": candidates,
        "chosen": dict(chosen.settings) if chosen else None,
        "score": chosen.score if chosen else None,
        "cost": dict(choice.cost),
    }
