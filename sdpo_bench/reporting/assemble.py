"""From a results folder to a report: reads and judges the runs, and puts the tables in order.

A report is a function of the run folders alone: no date, no path of the machine, everything sorted. Two reports of
the same results are equal, byte for byte.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdpo_bench.errors import UsageError, nearest
from sdpo_bench.ledger import Axis
from sdpo_bench.reporting.content import Report
from sdpo_bench.reporting.page.notices import group_notices, run_places
from sdpo_bench.reporting.page.runs import run_views
from sdpo_bench.reporting.sections import Curves, Judged, section
from sdpo_bench.reporting.study_view import study_view
from sdpo_bench.reporting.tables import ablation
from sdpo_bench.reporting.tables.against_sides import Side, board_side
from sdpo_bench.reporting.tables.curve_tables import CurveOptions
from sdpo_bench.reporting.tables.main_table import main_tables
from sdpo_bench.reporting.tables.published_comparison import Against, compare_with_others
from sdpo_bench.reporting.tables.run_tables import runs_table, versions_table
from sdpo_bench.reporting.tables.suite_tables import suite_tables
from sdpo_bench.results.comparability import Setting, group_settings
from sdpo_bench.results.compare_names import row_named
from sdpo_bench.results.equal_reward import curve_pairs
from sdpo_bench.results.learning_curves import curve_panels
from sdpo_bench.results.panels import Panel, base_scores, panels_of, panels_of_splits
from sdpo_bench.results.read_results import Notice, Results, Run
from sdpo_bench.results.read_scores import read_all_scores
from sdpo_bench.results.scoreboard import PRIMARY, Board, scoreboard
from sdpo_bench.results.select_runs import SPLIT, Selection, select, tuning_only
from sdpo_bench.runs.adapter import log_changed
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.eval_table import Scores
from sdpo_bench.statistics.matrices import FEW_STEPS, Endpoint
from sdpo_bench.training import collapse_guards

MOST_ILLUSTRATED = 8
"""A report of more settings draws figures for the first :data:`SOME_ILLUSTRATED` of them; all tables are there."""
SOME_ILLUSTRATED = 2


@dataclass(frozen=True)
class Request:
    """Options of a report."""

    selection: Selection = field(default_factory=dict)
    group_by: tuple[str, ...] = ()
    endpoint: Endpoint = PRIMARY
    level: float = 0.95
    axis: Axis = "images"
    """What the cost of training is counted in where methods are timed to a level."""
    reach: float | None = None
    """That level, as a rise over the base model; None: half of the best method's final one."""
    reference: str = ""
    """Row that differences are measured against, by its label or ``method[,key=value...]``; by default SDPO, or the
    best on the trained reward where it is missing."""
    against: tuple[Side, ...] = ()
    """Sides to compare with: published numbers or other results folders."""


def build_report(results: Results, request: Request) -> Report:
    """Read the selected runs' scores and make all tables.

    Raises:
        UsageError: a selection, group key or metric that fits nothing.
    """
    chosen = select(results, request.selection)
    settings, repeated = group_settings(chosen.runs)
    ablation.check_group_keys(request.group_by, settings)
    done = [run for run in chosen.runs if run.state == "done"]
    scores, problems = read_all_scores((*done, *chosen.bases))
    judged = _judge_all(settings, scores, chosen.bases, request)
    settings = [one.setting for one in judged]
    _check_metric(judged, request)
    _check_reference(settings, request)
    curves, unusable = _curves(settings, request)
    notices = sorted({*chosen.notices, *repeated, *problems, *unusable, *_run_notices(chosen.runs, scores)})
    boards = [board for one in judged for board in one.boards]
    families = _families(boards, request)
    beside = compare_with_others(boards, request.against) if request.against else Against()
    most = MOST_ILLUSTRATED if len(settings) <= MOST_ILLUSTRATED else SOME_ILLUSTRATED
    options = CurveOptions(request.axis, request.reach, request.level)
    sections = []
    for i, (one, own) in enumerate(zip(judged, curves, strict=True)):
        illustrated = i < most
        sections.append(section(one, settings, scores, families, own, options, illustrated=illustrated, number=i))
    return Report(
        "sdpo-bench report",
        tuple(_summary(chosen, settings, len(tuning_only(results)))),
        (*_main(chosen, judged, scores, request), *beside.tables),
        tuple(sections),
        runs_table(settings),
        versions_table(chosen.runs),
        tuple(notices),
        group_notices(notices, run_places(settings)),
        "; ".join(f"{key} = {', '.join(values)}" for key, values in request.selection.items()),
        tuple(study_view(record) for record in chosen.studies),
        run_views(settings),
        verdicts=beside.verdicts,
    )


def _curves(settings: Sequence[Setting], request: Request) -> tuple[list[Curves], list[Notice]]:
    """Learning curves of each setting in the selected splits, and what is wrong with curves that cannot be used."""
    splits = request.selection.get(SPLIT)
    found, problems = [], []
    for setting in settings:
        panels, notices = curve_panels(setting)
        pairs = [pair for pair in curve_pairs(panels) if not splits or pair.other.key.split in splits]
        found.append(Curves([panel for panel in panels if not splits or panel.key.split in splits], pairs))
        problems += notices
    return found, problems


def results_sides(results: Results, name: str) -> list[Side]:
    """Sides of another results folder, one for each board of a trained reward."""
    chosen = select(results, {})
    done = [run for run in chosen.runs if run.state == "done"]
    scores, _ = read_all_scores((*done, *chosen.bases))
    judged = _judge_all(group_settings(chosen.runs)[0], scores, chosen.bases, Request())
    boards = [board for one in judged for board in one.boards]
    sides = [board_side(board, name) for board in boards if board.panel.trained]
    return [side for side in sides if side is not None]


def _judge_all(
    settings: Sequence[Setting], scores: Mapping[str, Scores], bases: Sequence[Run], request: Request
) -> list[Judged]:
    """Boards of each setting; without those that have scores, but none of the selected splits.

    Raises:
        UsageError: no setting has scores of these splits.
    """
    splits = request.selection.get(SPLIT)
    found = []
    for setting in settings:
        base = base_scores(setting, bases, scores)
        found.append((setting, base, panels_of(setting, scores, base.blocks)))
    every = [panel for _, _, panels in found for panel in panels]
    if splits and every:
        panels_of_splits(every, splits)  # refuses splits that no setting has
    judged = []
    for setting, base, panels in found:
        chosen = [panel for panel in panels if not splits or panel.key.split in splits]
        if chosen or not panels:
            judged.append(_judge(setting, base, panels, chosen, request))
    return judged


def _judge(
    setting: Setting, base: Scores, panels: Sequence[Panel], chosen: Sequence[Panel], request: Request
) -> Judged:
    """Boards of the chosen ones of a setting's panels; all of them say which row is the reference."""
    reference = row_named(setting, request.reference) if request.reference else ""
    first = next((panel for panel in panels if panel.trained), None)
    own = scoreboard(first, request.endpoint, level=request.level, reference=reference) if first else None
    if own is not None:  # its reference is that of all tables, so that they do not differ in it
        reference = own.reference
    boards = []
    for panel in chosen:
        known = own if panel is first else None
        boards.append(known or scoreboard(panel, request.endpoint, level=request.level, reference=reference))
    return Judged(setting, tuple(boards), base)


def _check_metric(judged: Iterable[Judged], request: Request) -> None:
    boards = [board for one in judged for board in one.boards]
    _check_few(boards, request)
    steps = {step for board in boards for step in board.panel.steps}
    if steps and not isinstance(request.endpoint, str) and request.endpoint not in steps:
        raise UsageError(
            f"no run has scores at {request.endpoint} steps. Valid: mean, few, area, "
            f"{', '.join(map(str, sorted(steps)))}."
        )


def _check_few(boards: Sequence[Board], request: Request) -> None:
    """Raises UsageError for the few-step mean where no table can have it."""
    if request.endpoint == "few" and boards and not any(set(FEW_STEPS) <= set(board.panel.common) for board in boards):
        raise UsageError("--metric few: no table has scores at 1, 2 and 4 steps. sdpo-bench eval RUN --steps 1,2,4")


def _check_reference(settings: Sequence[Setting], request: Request) -> None:
    """Raises UsageError for a reference that no table has."""
    if request.reference and settings and not any(row_named(setting, request.reference) for setting in settings):
        labels = [arm.label for setting in settings for arm in setting.arms]
        raise UsageError(
            f"--reference: no table has a method '{request.reference}'.{nearest(request.reference, labels)}"
        )


def _run_notices(runs: Iterable[Run], scores: Mapping[str, Scores]) -> list[Notice]:
    """Notices about runs that are missing from the tables or incomplete, and their warnings."""
    notices = []
    for run in runs:
        if run.state != "done":
            message = f" ({run.message})" if run.message else ""
            notices.append(Notice(run.id, f"not in the tables: its state is '{run.state}'{message}"))
        elif run.id not in scores and not run.folder.evaluation.exists():
            notices.append(Notice(run.id, f"not in the tables: it has no evaluation. sdpo-bench eval {run.id}"))
        elif run.id in scores and scores[run.id].bad:
            bad = scores[run.id].bad
            notices.append(Notice(run.id, f"not in the tables: diverged, {bad} of its scores are NaN or infinite"))
        if changed := log_changed(run.folder):
            notices.append(Notice(run.id, changed))
        notices += [
            Notice(run.id, f"warned {'in ' * (w.epoch > 0)}{w.when}: {w.text}")
            for w in collapse_guards.warnings(run.folder)
        ]
    return notices


def _nothing_ranked(searched: int) -> str:
    """Why no run is in the tables."""
    if not searched:
        return "No runs; studies only."
    runs = f"{searched} run{'s' * (searched != 1)}"
    return f"No results yet: {runs} of a suite's search for settings, which no leaderboard shows (--select run=ID)."


def _summary(chosen: Results, settings: Sequence[Setting], searched: int) -> list[str]:
    """Counts of runs, methods and settings; ``searched`` runs were left out, since they served a suite's search."""
    if not chosen.runs:
        return [_nothing_ranked(searched)]
    states: dict[str, int] = {}
    for run in chosen.runs:
        states[run.state] = states.get(run.state, 0) + 1
    counted = ", ".join(f"{states[state]:,} {state}" for state in sorted(states))
    methods = {run.method for run in chosen.runs}
    runs, several = len(chosen.runs), len(settings) != 1
    text = f"{runs:,} run{'s' * (runs != 1)} ({counted}) of {len(methods):,} method{'s' * (len(methods) != 1)}"
    return [f"{text} in {len(settings)} setting{'s' * several}" + (" that are not comparable." if several else ".")]


def _main(
    chosen: Results, judged: Sequence[Judged], scores: Mapping[str, Scores], request: Request
) -> Iterator[t.Table]:
    """Each suite's tables, then those of settings with runs that belong to no suite."""
    by_arms = {_arms(one.setting): one for one in judged}

    def boards_of(runs: Sequence[Run]) -> list[Board]:
        settings, _ = group_settings(runs)
        parts = [setting for setting in settings if _arms(setting) not in by_arms]
        by_arms.update((_arms(one.setting), one) for one in _judge_all(parts, scores, chosen.bases, request))
        return [board for setting in settings for board in by_arms[_arms(setting)].boards]

    present = {run.id for run in chosen.runs}
    suites = [suite for suite in chosen.suites if not present.isdisjoint(suite.reported)]
    if not request.selection:  # a suite that is still searching has nothing but its search
        suites += [suite for suite in chosen.suites if not suite.reported]
    for suite in suites:
        yield from suite_tables(suite, chosen.runs, boards_of)
    covered = {run for suite in suites for run in suite.reported}
    boards = [board for one in judged for board in one.boards]
    yield from main_tables([board for board in boards if not _runs(board) <= covered])


def _arms(setting: Setting) -> tuple[Any, ...]:
    """What a setting's boards depend on: a suite with all of its runs has the same ones."""
    return (setting.id, setting.title, *((arm.label, *(run.id for run in arm.runs)) for arm in setting.arms))


def _runs(board: Board) -> set[str]:
    return {run.id for arm in board.panel.setting.arms for run in arm.runs}


def _families(boards: Sequence[Board], request: Request) -> list[ablation.Family]:
    trained = [board for board in boards if board.panel.trained]
    keys = list(dict.fromkeys([*ablation.ABLATIONS, *request.group_by]))
    return [family for key in keys for family in ablation.families(trained, key)]
