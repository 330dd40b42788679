"""A suite's part of a report: its progress, its table, and the cost of choosing its settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sdpo_bench.reporting.tables import ablation
from sdpo_bench.reporting.tables.main_table import main_tables
from sdpo_bench.results.comparability import shown
from sdpo_bench.results.read_results import Run
from sdpo_bench.results.scoreboard import Board
from sdpo_bench.results.suite_records import SuiteRecord
from sdpo_bench.statistics import table as t
from sdpo_bench.sweep.suite import suite_folder
from sdpo_bench.sweep.tuning import BILL

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
    search = [_search_table(suite, f"{prefix}search")] if suite.choices else []
    return [_state_table(suite, runs, f"{prefix}cells"), *titled, *search]


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
    shipped = {path.stem for path in suite_folder().glob("*.toml")}
    again = suite.name if suite.name in shipped else "FILE, with the file that it was swept from"
    incomplete = f"{total - counts['done']} of {total} jobs are not in the tables: sdpo-bench sweep {again}"
    cautions = (incomplete,) if counts["done"] < total else ()
    return t.Table(name, f"Suite {suite.name}", columns, (t.Group("", (row,)),), notes, cautions)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _search_table(suite: SuiteRecord, name: str) -> t.Table:
    """Candidates and choice of each method, and the bill of all tuning runs."""
    variants = any(choice["variant"] for choice in suite.choices)
    columns = (
        t.Column("method", "method", numeric=False),
        t.Column("reward", "reward", numeric=False),
        *([t.Column("variant", "variant", numeric=False)] if variants else []),
        t.Column("chosen", "chosen", numeric=False),
        t.Column("tried", "tried"),
        t.Column("failed", "failed or out"),
        t.Column("score", "tuning score"),
        *(t.Column(key, key.replace("_", " ")) for key in BILL),
    )
    rows = tuple(_search_row(choice, variants) for choice in suite.choices)
    s = suite.search or {}
    where = f"validation prompts ({s.get('prompts')})" if s.get("by") == "validation" else "the training prompts"
    notes = [
        *_round_notes(s),
        f"The highest mean score on {where} at {shown(s.get('steps'))} steps was chosen.",
        "The bill is that of all tuning runs of the row; it is not part of the bill of the reported runs.",
    ]
    if s.get("suite"):
        notes.append(
            f"It is the search of suite {s['suite']}: all rows of {suite.name} have the settings chosen there."
        )
    if require := s.get("require"):
        least = f"the base model's minus {require['drop']:g}"
        notes.append(f"A candidate whose {require['reward']} there fell below {least} was out.")
    if s.get("extend"):
        notes.append(f"Where an end of the list of {shown(s['extend'])} won, the list grew by its next value.")
    notes += [
        f"{c['method']}: the chosen {shown(c['on_edge'])} is still at an end of its list."
        for c in suite.choices
        if c.get("on_edge")
    ]
    return t.Table(name, f"{suite.name}: search for settings and its cost", columns, (t.Group("", rows),), tuple(notes))


def _round_notes(search: Mapping[str, Any]) -> list[str]:
    """What each round trained, one sentence each."""
    rounds = search.get("rounds") or [
        {"seeds": [search.get("seed")], "budget": search.get("budget", {"": ""}), "keep": None}
    ]
    notes = []
    for number, one in enumerate(rounds, 1):
        axis, amount = next(iter(one["budget"].items()))
        who = "Each candidate" if one["keep"] is None else f"Round {number}: each of the best {one['keep']}"
        seeds = f"seed{'s' * (len(one['seeds']) > 1)} {shown(one['seeds'])}, not reported"
        notes.append(
            f"{who} was trained with {seeds}, for {shown(amount)} {axis.removeprefix('budget.').replace('_', ' ')}."
        )
    return notes


def _search_row(choice: Mapping[str, Any], variants: bool) -> t.Row:
    chosen = choice["chosen"]
    words = ", ".join(f"{key} = {shown(value)}" for key, value in chosen.items()) if chosen else "not yet"
    failed = sum(candidate["state"] in ("failed", "out") for candidate in choice["candidates"])
    cost = choice["cost"]
    return t.Row(
        (
            t.word(choice["method"]),
            t.word(choice["reward"]),
            *([t.word(choice["variant"])] if variants else []),
            t.word(words),
            t.count(len(choice["candidates"])),
            t.count(failed),
            t.number(choice["score"], 4),
            *(t.count(cost.get(key)) for key in BILL),
        )
    )
