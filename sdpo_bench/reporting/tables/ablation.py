"""Tables in which one setting varies and everything else is equal, and the summary over several rewards.

An ablation answers one question only if exactly one key differs between its rows; the runs of a results folder are
searched for such families, so that no suite has to declare its tables beforehand.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdpo_bench.errors import UsageError, nearest
from sdpo_bench.hashing import canonical_json
from sdpo_bench.reporting.tables.method_tables import (
    board_cautions,
    interval_notes,
    panel_notes,
    score_digits,
    step_columns,
)
from sdpo_bench.results.comparability import DEFAULT, Arm, Setting, is_setting_key, shown
from sdpo_bench.results.endpoints import metric_grid
from sdpo_bench.results.scoreboard import Board, Line, base_spread, difference_to_base
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.aggregates import RESAMPLES, probability_of_improvement, stratified_bootstrap
from sdpo_bench.statistics.contrasts import listed
from sdpo_bench.statistics.eval_table import only_seeds, reduced
from sdpo_bench.statistics.intervals import Estimate, crossed_interval
from sdpo_bench.statistics.matrices import Endpoint, ScoreGrid, paired
from sdpo_bench.statistics.ranking import holm

ABLATIONS = {
    "advantage.normalisation": "what a return is compared with",
    "update.order": "order of gradient updates",
    "method.reward": "dense or sparse rewards",
    "method.temporal_discount": "lambda, the weight of later steps",
    "advantage.gamma": "gamma, the discount of later rewards",
    "update.step_weight": "weight of each step's log-ratio",
}
FALLBACK = "normalisation_fallback"
"""In the training log: share of samples whose prompt had too few for statistics of its own."""
FALLBACK_KEYS = ("advantage.normalisation", "advantage.min_count", "advantage.buffer_size")
BOOTSTRAP_SEED = 0


@dataclass(frozen=True, eq=False)
class Variant:
    """One value of the varied key: its arm, judged in one panel."""

    value: Any
    arm: Arm
    board: Board
    line: Line

    @property
    def grid(self) -> ScoreGrid:
        return self.board.panel.arms[self.arm.label]


@dataclass(frozen=True, eq=False)
class Family:
    """Variants that differ in one key alone, judged in the same way, the reference first."""

    key: str
    variants: tuple[Variant, ...]


def families(boards: Iterable[Board], key: str) -> list[Family]:
    """All families of ``key`` among the trained-reward boards of a report."""
    groups: dict[str, list[Variant]] = {}
    for board in boards:
        panel = board.panel
        lines = {line.label: line for line in board.lines}
        for arm in panel.setting.arms:
            everything = {**panel.setting.settings, **arm.settings}
            if arm.label not in lines:
                continue
            value = everything.pop(key, DEFAULT)
            place = canonical_json([everything, list(panel.key), list(panel.prompts)])
            groups.setdefault(place, []).append(Variant(value, arm, board, lines[arm.label]))
    result = [Family(key, _ordered(key, members)) for members in groups.values() if len(members) > 1]
    return sorted(result, key=lambda f: (f.variants[0].arm.method, f.variants[0].board.panel.setting.title))


def _ordered(key: str, variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """Numbers by size, words by alphabet; the default value comes first, as the reference."""
    given = [v for v in variants if v.value != DEFAULT]
    numeric = all(isinstance(v.value, int | float) and not isinstance(v.value, bool) for v in given)
    ordered = sorted(given, key=lambda v: v.value if numeric else shown(v.value))
    ordered = [*(v for v in variants if v.value == DEFAULT), *ordered]
    defaults = [v for v in ordered if any(_is_default(run.record, key) for run in v.arm.runs)]
    first = (defaults or ordered)[0]
    return (first, *(v for v in ordered if v is not first))


def _is_default(record: Mapping[str, Any], key: str) -> bool:
    sources = record.get("sources")
    return isinstance(sources, dict) and sources.get(key) != "you"


def check_group_keys(keys: Iterable[str], settings: Iterable[Setting]) -> None:
    """Raises UsageError for a key that no run has, or that already defines every table."""
    settings = list(settings)
    valid = set()
    for setting in settings:
        valid |= {*setting.settings, *(key for arm in setting.arms for key in arm.settings)}
    for key in keys:
        if key in ("method", "method.name"):
            raise UsageError("--group-by method is what the leaderboard does. Give a setting, e.g. update.lr")
        if key not in valid:
            raise UsageError(f"--group-by: no run has a setting '{key}'.{nearest(key, valid - {'method.name'})}")


def ablation_table(family: Family, name: str) -> t.Table:
    """One row a value of the key; paired differences to the reference value where both share seeds."""
    reference, board = family.variants[0], family.variants[0].board
    digits, endpoint = score_digits(board), board.endpoint
    steps = sorted({k for v in family.variants for k in v.board.panel.steps})
    summary = [] if endpoint in steps else [endpoint]
    fallback = {v: _fallback(v.arm) for v in family.variants} if family.key in FALLBACK_KEYS else {}
    counted = any(share is not None for share in fallback.values())
    columns = (
        t.Column("value", family.key, numeric=isinstance(reference.value, int | float)),
        t.Column("seeds", "seeds"),
        *step_columns(steps),
        *(t.Column(str(key), str(key)) for key in summary),
        *(
            [t.Column("fallback", "fallback", help="Samples whose prompt had too few, of all epochs")]
            if counted
            else []
        ),
        t.Column("difference", f"difference to {shown(reference.value)}"),
        t.Column("adjusted_p", "p (Holm)"),
    )
    differences = {v: _difference(v, reference, endpoint) for v in family.variants[1:]}
    p_values = _adjusted(differences)
    rows = []
    for v in family.variants:
        difference = differences.get(v)
        cells = (
            t.Cell(shown(v.value), v.value if isinstance(v.value, int | float | str) else shown(v.value)),
            t.seeds(len(v.line.seeds), v.board.panel.counts[v.arm.label].total),
            *(t.estimate(v.line.scores.get(k), digits) for k in (*steps, *summary)),
            *([_percent(fallback[v])] if counted else []),
            t.estimate(difference[0] if difference else None, digits, signed=True),
            t.p_value(p_values.get(v)),
        )
        rows.append(t.Row(cells, base=v is reference))
    return t.Table(
        name,
        _title(family),
        columns,
        (t.Group("", tuple(rows)),),
        (*_notes(family), *([FALLBACK_NOTE] if counted else [])),
        _cautions(family),
        board.panel.prompts,
    )


FALLBACK_NOTE = (
    "fallback: share of an arm's training samples that were compared with their whole batch instead of their prompt, "
    "which had fewer than advantage.min_count samples; mean over epochs and runs. '-': the mode has no such rule, or "
    "the runs did not count it."
)


def _fallback(arm: Arm) -> float | None:
    """Mean share over the epochs of an arm's finished runs; None where no run has counted it."""
    counted = [share for run in arm.done for (share,) in run.log().points(FALLBACK).tolist()]
    return sum(counted) / len(counted) if counted else None


def _percent(share: float | None) -> t.Cell:
    return t.Cell(t.DASH) if share is None else t.Cell(f"{100 * share:.3g} %", share)


def _title(family: Family) -> str:
    first = family.variants[0]
    what = ABLATIONS.get(family.key, "")
    words = f"{family.key} ({what})" if what else family.key
    return f"{first.arm.method} by {words}: {first.board.panel.key.reward}, {first.board.panel.key.split} prompts"


def _cautions(family: Family) -> tuple[str, ...]:
    boards = {id(v.board): v.board for v in family.variants}
    labels = [v.arm.label for v in family.variants]
    return tuple(dict.fromkeys(note for board in boards.values() for note in board_cautions(board, labels)))


def _notes(family: Family) -> list[str]:
    first = family.variants[0]
    notes = [f"Rows differ in {family.key} alone; the reference is {shown(first.value)}."]
    if is_setting_key(family.key):
        notes.append(f"{family.key} differs, so these rows are shown side by side but must not be ranked.")
    notes += [note for note in panel_notes(first.board.panel) if not note.startswith("Training seeds")]
    return notes + interval_notes(first.board)


def _difference(v: Variant, reference: Variant, endpoint: Endpoint) -> tuple[Estimate, float | None] | None:
    """Variant minus reference over the seeds, step counts and images that both have, with its unadjusted p."""
    a, b = (metric_grid(x.grid, x.board.panel, endpoint) for x in (v, reference))
    if a is None or b is None or a.steps != b.steps or a.images != b.images:
        return None
    shared = sorted(set(a.seeds) & set(b.seeds))
    if not shared:
        return None
    matrix = paired(reduced(only_seeds(a, shared), endpoint), reduced(only_seeds(b, shared), endpoint))
    estimate = crossed_interval(matrix, v.board.level)
    return estimate, estimate.p_value()


def _adjusted(differences: Mapping[Variant, tuple[Estimate, float | None] | None]) -> dict[Variant, float | None]:
    """Holm's p of the differences that have one."""
    p_values = {variant: difference[1] for variant, difference in differences.items() if difference is not None}
    adjusted = holm([1.0 if p is None else p for p in p_values.values()])
    return {v: None if p is None else float(new) for (v, p), new in zip(p_values.items(), adjusted)}


# -- across rewards ------------------------------------------------------------------------------------------


def across_rewards(boards: Sequence[Board], name: str) -> t.Table | None:
    """Methods over several trained rewards, in the base model's standard deviations; None for fewer than two rewards.

    Args:
        boards: of trained rewards, one a reward, same model, sampler, split and endpoint.
    """
    gains = {board.panel.key.reward: _standardised(board) for board in boards}
    if len(gains) < 2:
        return None
    usable, cautions = dict[str, np.ndarray](), list[str]()
    for method in sorted(set.intersection(*(set(by_method) for by_method in gains.values()))):
        own, caution = _equal_seeds(method, {reward: by_method[method] for reward, by_method in gains.items()})
        usable |= {method: own} if own.size else {}
        cautions += [caution] if caution else []
    rows = [_across_row(method, usable) for method in usable]
    if not rows and not cautions:
        return None
    columns = (
        t.Column("method", "method", numeric=False),
        t.Column("seeds", "seeds"),
        t.Column("iqm", "IQM of standardised gains"),
        t.Column("improvement", "chance of a higher gain than a run of another method"),
    )
    notes = (
        f"Rewards: {', '.join(sorted(gains))}. Gains over the base model in its own standard deviations over images.",
        "IQM: interquartile mean over runs with its percentile bootstrap interval, seeds drawn within each reward "
        f"({RESAMPLES:,} resamples), a description rather than a test below 10 seeds.",
    )
    return t.Table(name, "Across rewards", columns, (t.Group("", tuple(rows)),), notes, tuple(cautions))


def _standardised(board: Board) -> dict[str, dict[int, float]]:
    """Gain in the base model's standard deviations, by arm and seed; empty where the base model is missing."""
    panel = board.panel
    spread = base_spread(panel, board.endpoint)
    by_arm: dict[str, dict[int, float]] = {}
    if spread is None:
        return by_arm
    for label, grid in panel.arms.items():
        gain = difference_to_base(panel, grid, board.endpoint)
        if gain is not None:
            by_arm[label] = dict(zip(gain.seeds, (gain.seed_means / spread).tolist()))
    return by_arm


def _equal_seeds(method: str, gains: Mapping[str, Mapping[int, float]]) -> tuple[np.ndarray, str]:
    """A method's gains ``[R, S]`` with as many seeds under every reward, and a caution where that leaves some out.

    Args:
        gains: by reward and seed. Seeds of unlike rewards need no pairing, so equal numbers are used as they are.
    """
    if len({len(by_seed) for by_seed in gains.values()}) == 1:
        return np.array([list(by_seed.values()) for by_seed in gains.values()]), ""
    shared = sorted(set.intersection(*(set(by_seed) for by_seed in gains.values())))
    counts = listed([f"{len(gains[reward])} under {reward}" for reward in sorted(gains)])
    if shared:
        text = f"used: {listed(shared)}, which all rewards have."
    else:
        text = "left out, since its rewards share no seed."
    return np.array([[by_seed[s] for s in shared] for by_seed in gains.values()]), f"{method}: seeds {counts}; {text}"


def _across_row(method: str, gains: Mapping[str, np.ndarray]) -> t.Row:
    """A method's row; ``gains`` ``[R, S]`` are those of all methods."""
    own, chances = gains[method], list[float]()
    for other in gains:
        if other != method:
            chances += [probability_of_improvement(mine, theirs) for mine, theirs in zip(own, gains[other])]
    interval = stratified_bootstrap(own, seed=BOOTSTRAP_SEED)
    chance = t.Cell(f"{100 * np.mean(chances):.0f} %", float(np.mean(chances))) if chances else t.Cell(t.DASH)
    seeds = own.shape[1]
    return t.Row((t.word(method), t.seeds(seeds, seeds), t.interval(interval, 2), chance))
