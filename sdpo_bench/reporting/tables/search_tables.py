"""What a report says about a suite's search for settings: the choices with their cost, and every candidate."""

from collections.abc import Mapping, Sequence
from typing import Any

from sdpo_bench.results.comparability import settings_text, shown
from sdpo_bench.results.suite_records import SuiteRecord
from sdpo_bench.statistics import table as t
from sdpo_bench.sweep.tuning import BILL, edge_of_values, mean_score

Choice = Mapping[str, Any]
"""As :func:`~sdpo_bench.sweep.tuning.choice_data` records it."""


def search_tables(suite: SuiteRecord, name: str) -> list[t.Table]:
    """The choice of each method, and the scores of its candidates in each round; nothing for a suite without search."""
    candidates = [candidate for choice in suite.choices for candidate in choice["candidates"]]
    rounds = max((len(candidate.get("rounds", ())) for candidate in candidates), default=0)
    tables = [_choices_table(suite, name)] if suite.choices else []
    return [*tables, _candidates_table(suite, rounds, f"{name}-candidates")] if rounds else tables


def _choices_table(suite: SuiteRecord, name: str) -> t.Table:
    """Candidates and choice of each method, and the bill of all tuning runs."""
    names = _names(suite)
    columns = (
        *(t.Column(key, key, numeric=False) for key in names),
        t.Column("chosen", "chosen", numeric=False),
        t.Column("tried", "tried"),
        t.Column("failed", "failed or out"),
        t.Column("score", "tuning score"),
        *(t.Column(key, key.replace("_", " ")) for key in BILL),
    )
    rows = tuple(_choice_row(choice, names) for choice in suite.choices)
    s = suite.search or {}
    where = f"validation prompts ({s.get('prompts')})" if s.get("by") == "validation" else "the training prompts"
    last = " of the last round" if len(s.get("rounds") or ()) > 1 else ""
    notes = [
        *_round_notes(s),
        f"The highest mean score{last} on {where} at {shown(s.get('steps'))} steps was chosen.",
        "The cost is that of all tuning runs of the row; it is not part of the cost of the reported runs.",
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
    notes += _edge_notes(suite, s.get("extend") or ())
    return t.Table(name, f"{suite.name}: search for settings and its cost", columns, (t.Group("", rows),), tuple(notes))


def _edge_notes(suite: SuiteRecord, extend: Sequence[str]) -> list[str]:
    """Which chosen values are the smallest or largest of a list that does not grow."""
    remarks = {}
    for choice in suite.choices:
        tried = [candidate.get("settings", {}) for candidate in choice["candidates"]]
        if keys := edge_of_values(tried, choice["chosen"] or {}, extend):
            name = " ".join(choice[name] for name in _names(suite) if choice[name])
            remarks[name] = f"the chosen {shown(keys)} is at an edge of its values; nothing was tried beyond it."
    return t.gathered(remarks)


def _names(suite: SuiteRecord) -> list[str]:
    """What tells the searches of a suite apart."""
    models = len({choice["model"] for choice in suite.choices}) > 1
    variants = any(choice["variant"] for choice in suite.choices)
    return ["method", "reward", *(["model"] if models else []), *(["variant"] if variants else [])]


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


def _choice_row(choice: Choice, names: Sequence[str]) -> t.Row:
    chosen = choice["chosen"]
    words = settings_text(chosen) if chosen else "not yet"
    failed = sum(candidate["state"] in ("failed", "out") for candidate in choice["candidates"])
    cost = choice["cost"]
    return t.Row(
        (
            *(t.word(choice[name]) for name in names),
            t.word(words),
            t.count(len(choice["candidates"])),
            t.count(failed),
            t.number(choice["score"], 4),
            *(t.count(cost.get(key)) for key in BILL),
        )
    )


def _candidates_table(suite: SuiteRecord, rounds: int, name: str) -> t.Table:
    """Every candidate's mean score in each round that it took part in, the furthest and best first."""
    columns = (
        t.Column("settings", "settings", numeric=False),
        *(t.Column(f"round_{number}", f"round {number}") for number in range(1, rounds + 1)),
        t.Column("outcome", "outcome", numeric=False),
    )
    groups = []
    for choice in suite.choices:
        candidates = sorted(choice["candidates"], key=_place)
        title = ", ".join(choice[key] for key in _names(suite) if choice[key])
        groups.append(t.Group(title, tuple(_candidate_row(one, choice, rounds) for one in candidates)))
    note = "Mean tuning scores over the seeds of a round. Rounds differ in length and seeds: compare within a column."
    return t.Table(name, f"{suite.name}: candidates of the search", columns, tuple(groups), (note,))


def _place(candidate: Mapping[str, Any]) -> tuple[int, float]:
    score = candidate.get("score")
    return -len(candidate.get("rounds", ())), float("inf") if score is None else -score


def _candidate_row(candidate: Mapping[str, Any], choice: Choice, rounds: int) -> t.Row:
    played = [mean_score([run["score"] for run in runs]) for runs in candidate.get("rounds", ())]
    scores = [t.number(score, 4) for score in [*played, *[None] * (rounds - len(played))]]
    return t.Row((t.word(settings_text(candidate.get("settings", {}))), *scores, t.word(_outcome(candidate, choice))))


def _outcome(candidate: Mapping[str, Any], choice: Choice) -> str:
    """What became of a candidate; empty for one that lost."""
    if choice["chosen"] is not None and candidate.get("settings") == choice["chosen"]:
        return "chosen"
    reasons = [run["out"] for run in candidate.get("rounds", [[]])[-1] if run["out"]]
    if reasons:
        return f"out: {reasons[0]}"
    return {"done": "", "out": "", "failed": "failed"}.get(candidate["state"], "not decided yet")
