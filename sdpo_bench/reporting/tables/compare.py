"""``sdpo-bench compare A B``: is A better than B, where, by how much, how sure, and at what price.

Two sides (``sides``) meet in every panel that both were judged in, on the seeds that both have. Whatever differs in
their settings is what is being compared, and is listed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from sdpo_bench.errors import UsageError
from sdpo_bench.reporting.tables.cost_tables import bill_table
from sdpo_bench.reporting.tables.method_tables import has_few
from sdpo_bench.results.comparability import Arm, differences
from sdpo_bench.results.compare_names import Side
from sdpo_bench.results.endpoints import endpoint_words, metric_grid
from sdpo_bench.results.panels import Panel, base_scores, panels_of, panels_of_splits
from sdpo_bench.results.read_results import Results
from sdpo_bench.results.read_scores import read_all_scores
from sdpo_bench.results.scoreboard import base_spread, grid_win_rate
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.eval_table import BASE, Scores, only_seeds, reduced
from sdpo_bench.statistics.intervals import Estimate, crossed_interval, effect_size, image_standard_error, seed_interval
from sdpo_bench.statistics.matrices import Endpoint, ScoreGrid, paired
from sdpo_bench.statistics.ranking import endpoint_p_values, verdict


@dataclass(frozen=True, eq=False)
class Outcome:
    """A against B at one endpoint."""

    endpoint: Endpoint
    a: float
    b: float
    difference: Estimate
    win_rate: Estimate
    p: float | None
    """Of the crossed interval; None with one seed."""
    adjusted_p: float | None = None
    """What table, sentence and verdict show: of the primary endpoint, one test declared beforehand, ``p`` itself; of
    the others, corrected by Benjamini-Hochberg over these."""


@dataclass(frozen=True, eq=False)
class Duel:
    """A against B in one panel."""

    panel: Panel
    outcomes: tuple[Outcome, ...]
    """Step counts ascending, the few-step mean, then the primary endpoint if it is a summary."""
    primary: Outcome
    seed_level: Estimate
    """The primary difference on this prompt set: interval over seed means."""
    effect: Estimate | None
    """The primary difference in the base model's standard deviations."""
    image_error: float | None
    """Standard error over images where there is one seed only."""
    verdict: str
    seeds_left_out: str = ""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything ``compare`` shows."""

    a: Side
    b: Side
    differing: tuple[tuple[str, str, str], ...]
    """Settings that differ: keys with the values of A and B."""
    duels: tuple[Duel, ...]
    """The trained reward on training prompts first."""
    bill: t.Table | None
    notices: tuple[str, ...] = ()


def compare_sides(
    results: Results, a: Side, b: Side, endpoint: Endpoint, *, level: float = 0.95, splits: Sequence[str] = ()
) -> Comparison:
    """Read the scores of both sides and compare them in every panel that both have.

    Raises:
        UsageError: nothing evaluated, no scores of these splits, or no panel, seed or step count in common; the message
            names what differs.
    """
    setting = a.setting or b.setting
    assert setting is not None
    arms = tuple(side.arm for side in (a, b) if side.arm is not None)
    runs = [run for arm in arms for run in arm.done]
    _check_done(arms)
    scores, problems = read_all_scores((*runs, *results.bases))
    both = replace(setting, arms=arms)
    panels = panels_of(both, scores, base_scores(both, results.bases, scores).blocks)
    if splits and panels:
        panels = panels_of_splits(panels, splits)
    shared = [p for p in panels if all(_grid_of(p, side) is not None for side in (a, b))]
    if not shared:
        raise UsageError(_no_panel(a, b, arms, panels, scores))
    duels = [_duel(panel, a, b, endpoint, level) for panel in shared]
    differing = differences(a.arm.settings, b.arm.settings) if a.arm and b.arm else []
    bill = bill_table(both, "bill")
    return Comparison(a, b, tuple(differing), tuple(duels), bill, tuple(f"{n.where}: {n.text}" for n in problems))


def _check_done(arms: Iterable[Arm]) -> None:
    for arm in arms:
        if not arm.done:
            states = ", ".join(f"{run.id} is {run.state}" for run in arm.runs[:3])
            raise UsageError(f"{arm.label} has no finished run ({states}). Finish one first: sdpo-bench list runs")


def _grid_of(panel: Panel, side: Side) -> ScoreGrid | None:
    return panel.base if side.arm is None else panel.arms.get(side.arm.label)


def _no_panel(a: Side, b: Side, arms: Sequence[Arm], panels: Sequence[Panel], scores: Mapping[str, Scores]) -> str:
    """Reason for an empty comparison, the likeliest first."""
    for arm in arms:
        usable = [run.id for run in arm.done if run.id in scores]
        if not usable:
            return f"{arm.label} has no usable evaluation. Score it first: sdpo-bench eval {arm.done[0].id}"
        if all(scores[run].bad for run in usable):
            return f"{arm.label} has no finite scores: all of its runs diverged."
    both = f"{a.name} and {b.name} cannot be compared"
    panels_a, panels_b = ([p for p in panels if _grid_of(p, side) is not None] for side in (a, b))
    for x, y in product(panels_a, panels_b):
        for key, one, other in zip(x.key._fields, x.key, y.key):
            if one != other:
                return f"{both}: the evaluation's {key} is '{one}' for the first and '{other}' for the second."
        if x.prompts != y.prompts:
            counts = f"{len(x.prompts)} and {len(y.prompts)} {x.key.split} prompts"
            return f"{both}: the evaluation's prompts differ ({counts}). Score both on the same: sdpo-bench eval"
    return f"{both}: they share no scores. Score both: sdpo-bench eval"


def _duel(panel: Panel, a: Side, b: Side, endpoint: Endpoint, level: float) -> Duel:
    grid_a, grid_b = _grid_of(panel, a), _grid_of(panel, b)
    assert grid_a is not None and grid_b is not None
    grid_a, grid_b, left_out = _common_seeds(grid_a, grid_b)
    steps: list[Endpoint] = [k for k in grid_a.steps if k in grid_b.steps]
    if not steps or metric_grid(grid_a, panel, endpoint) is None or metric_grid(grid_b, panel, endpoint) is None:
        raise UsageError(
            f"{a.name} and {b.name} share no scores {endpoint_words(endpoint)}. {a.name} has "
            f"{', '.join(map(str, grid_a.steps))} steps, {b.name} has {', '.join(map(str, grid_b.steps))}."
        )
    summaries = [endpoint] if isinstance(endpoint, str) and len(steps) > 1 else []
    steps += ["few"] if has_few(panel) and endpoint != "few" else []
    outcomes = [_outcome(panel, grid_a, grid_b, key, level) for key in (*steps, *summaries)]
    declared = endpoint if endpoint in (*steps, *summaries) else outcomes[0].endpoint
    differences = {outcome.endpoint: outcome.difference for outcome in outcomes}
    p_values = endpoint_p_values(differences, declared)
    outcomes = [replace(outcome, adjusted_p=p_values.get(outcome.endpoint)) for outcome in outcomes]
    primary = next(outcome for outcome in outcomes if outcome.endpoint == declared)
    difference = _difference(panel, grid_a, grid_b, endpoint)
    spread = base_spread(panel, endpoint)
    images = metric_grid(grid_a, panel, endpoint), metric_grid(grid_b, panel, endpoint)
    error = None
    if len(difference.seeds) == 1 and images[0] is not None and images[1] is not None:
        error = image_standard_error(images[0].per_image() - images[1].per_image()).standard_error
    return Duel(
        panel,
        tuple(outcomes),
        primary,
        seed_interval(difference, level),
        effect_size(primary.difference, spread) if spread else None,
        error,
        verdict(differences, a.name, b.name, declared),
        left_out,
    )


def _common_seeds(a: ScoreGrid, b: ScoreGrid) -> tuple[ScoreGrid, ScoreGrid, str]:
    """Both sides under the same seeds; the base model takes those of the other."""
    if BASE in (a.method, b.method):
        seeds = b.seeds if a.method == BASE else a.seeds
        return only_seeds(a, seeds), only_seeds(b, seeds), ""
    shared = sorted(set(a.seeds) & set(b.seeds))
    if not shared:
        raise UsageError(
            f"{a.method} and {b.method} cannot be compared: seed is {', '.join(map(str, a.seeds))} for the first and "
            f"{', '.join(map(str, b.seeds))} for the second. Train both with the same seeds: sdpo-bench run --seed N"
        )
    extra = sorted(set(a.seeds) ^ set(b.seeds))
    text = f"seeds that only one of them has are left out: {', '.join(map(str, extra))}" if extra else ""
    return only_seeds(a, shared), only_seeds(b, shared), text


def _difference(panel: Panel, a: ScoreGrid, b: ScoreGrid, endpoint: Endpoint) -> Any:
    grid_a, grid_b = metric_grid(a, panel, endpoint), metric_grid(b, panel, endpoint)
    assert grid_a is not None and grid_b is not None
    return paired(reduced(grid_a, endpoint), reduced(grid_b, endpoint))


def _outcome(panel: Panel, a: ScoreGrid, b: ScoreGrid, endpoint: Endpoint, level: float) -> Outcome:
    grid_a, grid_b = metric_grid(a, panel, endpoint), metric_grid(b, panel, endpoint)
    assert grid_a is not None and grid_b is not None
    difference = crossed_interval(_difference(panel, a, b, endpoint), level)
    means = [float(reduced(grid, endpoint).values.mean()) for grid in (grid_a, grid_b)]
    return Outcome(endpoint, means[0], means[1], difference, grid_win_rate(grid_a, grid_b, level), difference.p_value())
