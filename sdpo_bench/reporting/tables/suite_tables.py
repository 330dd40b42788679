"""A suite's part of a report: its progress, its table, and the search for its settings."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace

from sdpo_bench.reporting.tables import ablation
from sdpo_bench.reporting.tables.main_table import main_tables
from sdpo_bench.reporting.tables.search_tables import search_tables
from sdpo_bench.results.read_results import Run
from sdpo_bench.results.scoreboard import Board
from sdpo_bench.results.suite_records import SuiteRecord
from sdpo_bench.statistics import table as t
from sdpo_bench.sweep.suite import suite_folder

STATES = ("done", "failed", "unfinished", "not run")


def suite_tables(
    suite: SuiteRecord, runs: Sequence[Run], boards_of: Callable[[Sequence[Run]], list[Board]]
) -> list[t.Table]:
    """State, results and search of one suite.

    Args:
        runs: of the whole report; the suite's reported ones are picked out.
        boards_of: judges some runs by themselves.
    """
    reported = [run for run in runs if run.id in suite.reported]
    prefix = f"suite-{suite.name}-"
    boards = boards_of(reported)
    tables = _results(suite, boards, prefix)
    titled = [replace(table, title=f"{suite.name}: {table.title}") for table in tables]
    return [_state_table(suite, runs, f"{prefix}cells"), *titled, *search_tables(suite, f"{prefix}search")]


def _results(suite: SuiteRecord, boards: Sequence[Board], prefix: str) -> list[t.Table]:
    """One row a value where the variants differ in one setting, the paper's main table otherwise."""
    if len(suite.variant_keys) == 1:
        trained = [board for board in boards if board.panel.trained]
        families = ablation.families(trained, suite.variant_keys[0])
        if families:
            return [ablation.ablation_table(f, f"{prefix}ablation-{i + 1}") for i, f in enumerate(families)]
    return main_tables(boards, prefix)


def _state_table(suite: SuiteRecord, runs: Sequence[Run], name: str) -> t.Table:
    states = {run.id: run.state for run in runs}
    counts = dict.fromkeys(STATES, 0)
    for run in suite.reported:
        state = states.get(run)
        counts[state if state in ("done", "failed") else "unfinished" if state else "not run"] += 1
    counts["not run"] += suite.waiting
    total = sum(counts.values())
    columns = (t.Column("suite", "suite", numeric=False), t.Column("cells", "jobs"), *(t.Column(s, s) for s in STATES))
    row = t.Row((t.word(suite.name), t.count(total), *(t.count(counts[state]) for state in STATES)))
    labels = {"description": "", "reproduces": "Reproduces: ", "departs": "Departs: "}
    notes = tuple(f"{label}{_sentence(suite.texts[key])}" for key, label in labels.items() if suite.texts[key])
    incomplete = f"{total - counts['done']} of {total} jobs are not in the tables: sdpo-bench sweep {_again(suite)}"
    cautions = (incomplete,) if counts["done"] < total else ()
    return t.Table(name, f"Suite {suite.name}", columns, (t.Group("", (row,)),), notes, cautions)


def _again(suite: SuiteRecord) -> str:
    """Arguments of ``sweep`` that go on with a suite."""
    name, model = suite.swept_by
    on = f" --model {shlex.quote(model)}" if model else ""
    if name in {path.stem for path in suite_folder().glob("*.toml")}:
        return name + on
    return f"FILE{on}, with the file that it was swept from"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."
