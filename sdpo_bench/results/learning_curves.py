"""The learning curves of a setting's arms: read from ``curve.jsonl``, and put beside each other where they may be.

Curves share a panel if they have one evaluation sampler, split, reward and version, and the same prompts and image
numbers. The curve of a run begins at the base model, so what is shown is the rise over it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sdpo_bench.ledger import AXES
from sdpo_bench.results.comparability import Arm, Setting
from sdpo_bench.results.panels import SPLITS
from sdpo_bench.results.read_results import Notice, Run
from sdpo_bench.results.training_log import last_line
from sdpo_bench.runs.run_folder import CURVE
from sdpo_bench.statistics.curves import SeedCurve, final_rise

MEAN = 0
"""Stands for the mean over step counts, where a step count is expected."""


class CurveKey(NamedTuple):
    """Curves under different keys never share a table."""

    sampler: str
    split: str
    reward: str
    version: str
    pictures: str
    """Digest of the prompts and image numbers."""
    images: int


@dataclass(frozen=True, eq=False)
class RunCurve:
    """All curves of one run, at the points that it has."""

    seed: int
    cost: Mapping[str, np.ndarray]
    """By axis ``[n]``."""
    scores: Mapping[CurveKey, Mapping[int, np.ndarray]]
    """By key and step count ``[n]``."""


@dataclass(frozen=True, eq=False)
class CurvePanel:
    """The curves of a setting's arms by one key."""

    key: CurveKey
    trained: bool
    """Whether the reward is the one that was trained on."""
    steps: tuple[int, ...]
    """Step counts that every curve has."""
    arms: Mapping[str, Mapping[int, tuple[SeedCurve, ...]]]
    """By label and step count (:data:`MEAN`: their mean), one curve a seed; sorted by label."""
    base: Mapping[int, float]
    """Mean score of the base model by step count, over the curves."""
    started: Mapping[str, int]
    """Runs that were started, by label of every arm of the setting."""

    @property
    def without_curve(self) -> dict[str, int]:
        """Runs of each arm that are not in the panel, of arms that have any such."""
        have = {label: len(curves[MEAN]) for label, curves in self.arms.items()}
        missing = {label: count - have.get(label, 0) for label, count in self.started.items()}
        return {label: count for label, count in missing.items() if count}


@dataclass(frozen=True)
class Level:
    """A rise over the base model that methods are timed to."""

    rise: float
    source: str
    """Where it comes from, in words."""


def curve_panels(setting: Setting) -> tuple[list[CurvePanel], list[Notice]]:
    """Panels of all finished runs that measured a curve, and a notice for each curve that cannot be used."""
    by_key: dict[CurveKey, dict[str, list[RunCurve]]] = {}
    notices = []
    for arm in setting.arms:
        for run in arm.done:
            curve, problem = read_curve(run)
            if problem:
                notices.append(Notice(run.id, problem))
            for key in curve.scores if curve else ():
                assert curve is not None
                by_key.setdefault(key, {}).setdefault(arm.label, []).append(curve)
    panels = [_panel(setting, key, rows) for key, rows in by_key.items()]
    return sorted((panel for panel in panels if panel), key=_order), notices


def _order(panel: CurvePanel) -> tuple[Any, ...]:
    """As the panels of the evaluation: splits from train to unseen, the trained reward before held-out ones."""
    return (panel.key.sampler, SPLITS.index(panel.key.split), not panel.trained, panel.key)


def read_curve(run: Run) -> tuple[RunCurve | None, str]:
    """A run's curve and what is wrong with it; neither where it measured none.

    How a curve is measured is no part of a run's id, so a training may be resumed with other settings of its curve.
    """
    points = run.folder.log(CURVE)
    if not points:
        return None, ""
    try:
        curve = _curve(run.seed, points)
    except (KeyError, TypeError, ValueError):
        return None, f"no learning curve: its {CURVE} is damaged"
    first, last = points[0]["epoch"], points[-1]["epoch"]
    if first != 0:
        return None, f"no learning curve: it begins at epoch {first}, without the base model"
    trained = (last_line(run.folder.path / "train.jsonl") or {}).get("epoch", last)
    if last < trained:  # its last point would be taken for the end of the training
        return None, f"no learning curve: it ends at epoch {last} of {trained}, since a resumed training measured none"
    if not curve.scores:
        changed = "eval.curve_steps, eval.curve_prompts or the like was changed before the training was resumed"
        return None, f"no learning curve: no score stands at all of its points, since {changed}"
    return curve, ""


def _curve(seed: int, points: Sequence[Mapping[str, Any]]) -> RunCurve:
    """Curves by key and step count of those that every point has."""
    tables: list[dict[tuple[CurveKey, int], float]] = []
    for point in points:
        table = {}
        for entry in point["scores"]:
            key = CurveKey(*(entry[name] for name in CurveKey._fields))
            table[key, int(entry["steps"])] = float(entry["mean"])
        tables.append(table)
    scores: dict[CurveKey, dict[int, np.ndarray]] = {}
    for key, steps in sorted(set.intersection(*(set(table) for table in tables))):
        scores.setdefault(key, {})[steps] = np.array([table[key, steps] for table in tables])
    return RunCurve(seed, {axis: np.array([float(p[axis]) for p in points]) for axis in AXES}, scores)


def _panel(setting: Setting, key: CurveKey, rows: Mapping[str, Sequence[RunCurve]]) -> CurvePanel | None:
    every = [curve for curves in rows.values() for curve in curves]
    steps = tuple(sorted(set.intersection(*(set(curve.scores[key]) for curve in every))))
    if not steps:
        return None
    arms = {label: _by_steps(rows[label], key, steps) for label in sorted(rows)}
    base = {k: float(np.mean([curve.scores[key][k][0] for curve in every])) for k in steps}
    base[MEAN] = float(np.mean(list(base.values())))
    started = {arm.label: len(arm.runs) for arm in setting.arms if _trains(arm)}
    trained = setting.trains_on(key.reward, key.version)
    return CurvePanel(key, trained, steps, arms, base, started)


def _by_steps(curves: Sequence[RunCurve], key: CurveKey, steps: Sequence[int]) -> dict[int, tuple[SeedCurve, ...]]:
    """One curve a seed for each step count and for their mean."""
    found: dict[int, tuple[SeedCurve, ...]] = {}
    for k in (MEAN, *steps):
        chosen = list(steps) if k == MEAN else [k]
        heights = [np.mean([curve.scores[key][one] for one in chosen], axis=0) for curve in curves]
        found[k] = tuple(SeedCurve(c.seed, c.cost, y - y[0]) for c, y in zip(curves, heights))
    return found


def _trains(arm: Arm) -> bool:
    """A method that only searches at inference has no training to measure."""
    return not any(run.search_bill for run in arm.runs)


def level_of(panel: CurvePanel, steps: int, stated: float | None, level: float) -> Level | None:
    """The stated rise, or half of the largest final mean rise of the panel; None where no arm has risen."""
    if stated is not None:
        return Level(stated, "as stated")
    rises = {label: final_rise(curves[steps], level).value for label, curves in panel.arms.items()}
    best = max(rises, key=lambda label: rises[label])
    return Level(rises[best] / 2, f"half of {best}'s final rise") if rises[best] > 0 else None
