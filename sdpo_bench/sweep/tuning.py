"""The same search for every method: tuning runs are ordinary jobs, and their cost stands beside the choice.

A comparison is as fair as the tuning behind it. Every method gets the same grid (plus keys that only it has), the
same budget for each candidate and tuning seeds that are never reported; the candidate with the highest mean score
wins. What that cost is recorded, not hidden.

A search of several rounds is synchronous successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): all
candidates take part in the first round, the best of a round go on to the next, with more seeds or a larger budget.
The choice is a pure function of the results folder, so that a search resumes on any executor; the schedulers of
Optuna and Ray Tune halve asynchronously, in the order in which trials happen to end, and keep a state of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sdpo_bench.errors import UsageError
from sdpo_bench.results.read_results import MODEL_KEYS, clean_bill, flat_settings
from sdpo_bench.results.training_log import last_line
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.statistics.eval_table import Block, PanelKey
from sdpo_bench.statistics.score_reader import read_scores
from sdpo_bench.sweep.asked_scores import AskedScores, served_name
from sdpo_bench.sweep.search import Requirement, Round, Search, products
from sdpo_bench.sweep.suite import Group

BILL = ("images", "denoiser_calls", "reward_calls", "optimiser_steps")
EXTENSIONS = 2
"""How often a grid grows, at most."""


@dataclass(frozen=True)
class TuningRun:
    """One tuning run and what became of it."""

    run_id: str
    state: str
    score: float | None
    """Mean over prompts, images and step counts; None while there is none, and for a run that is out."""
    bill: Mapping[str, float]
    out: str = ""
    """Why a finished run cannot win."""

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed")


RunOf = Callable[[Mapping[str, Any], Round, int], TuningRun]
"""The tuning run of a candidate's settings in a round, with a seed."""


@dataclass(frozen=True)
class Candidate:
    """One choice of settings, with its runs of every round that it took part in."""

    settings: Mapping[str, Any]
    rounds: tuple[tuple[TuningRun, ...], ...]

    @property
    def score(self) -> float | None:
        """Mean over the seeds of its last round; None while one is missing, or where one failed or is out."""
        return mean_score([run.score for run in self.rounds[-1]])

    @property
    def state(self) -> str:
        """``done``, ``out`` or ``failed``, else the state of the first run that has not ended."""
        last = self.rounds[-1]
        for run in last:
            if not run.ended:
                return run.state
        if any(run.state == "failed" for run in last):
            return "failed"
        return "out" if self.score is None else "done"


@dataclass(frozen=True)
class Choice:
    """The search of one method, reward, model and variant."""

    group: Group
    candidates: tuple[Candidate, ...]
    settled: bool
    """Whether no tuning run is still to come."""
    chosen: Candidate | None
    """The best of the last round, the first of equals; None before all have ended or where all failed."""
    on_edge: tuple[str, ...]
    """Keys whose chosen value is still at an end of its list after the last extension."""
    runs: tuple[TuningRun, ...]
    """Every tuning run once, those of candidates too that a longer list has pushed out of a later round."""

    @property
    def cost(self) -> dict[str, float]:
        """Bill of all tuning runs so far."""
        return {key: sum(float(run.bill.get(key, 0)) for run in self.runs) for key in BILL}


def search_settings(group: Group, search: Search, run_of: RunOf) -> Choice:
    """The choice so far; ``run_of`` is asked for every run that the search needs as far as it is known by now."""
    axes = search.axes(group.method)
    settings = products(axes)
    runs: dict[str, TuningRun] = {}
    longer: dict[str, tuple[Any, ...]] = {}
    for extension in range(EXTENSIONS + 1):
        candidates, ranking = _play(search.rounds, settings, run_of)
        runs |= {run.run_id: run for one in candidates for tried in one.rounds for run in tried}
        longer = _extended(axes, ranking[0].settings, search.settings.extend) if ranking else {}
        if not longer or extension == EXTENSIONS:
            break
        axes = axes | longer
        settings += [one for one in products(axes) if one not in settings]
    chosen = ranking[0] if ranking else None
    return Choice(group, candidates, ranking is not None, chosen, tuple(longer), tuple(runs.values()))


def _play(
    rounds: Sequence[Round], settings: Sequence[Mapping[str, Any]], run_of: RunOf
) -> tuple[tuple[Candidate, ...], list[Candidate] | None]:
    """Every candidate with its runs, and those that are left after the last round, the best first.

    None instead of these while a run of some round has not ended.
    """
    played: list[list[tuple[TuningRun, ...]]] = [[] for _ in settings]
    left = list(range(len(settings)))
    ended = True
    for one in rounds:
        left = left[: one.keep]
        for place in left:
            played[place].append(tuple(run_of(settings[place], one, seed) for seed in one.seeds))
        ended = all(run.ended for place in left for run in played[place][-1])
        if not ended:
            break
        scores = {place: mean_score([run.score for run in played[place][-1]]) for place in left}
        scored = {place: score for place, score in scores.items() if score is not None}
        left = sorted(scored, key=lambda place: -scored[place])  # stable: the first of equals
    candidates = tuple(Candidate(s, tuple(runs)) for s, runs in zip(settings, played))
    return candidates, [candidates[place] for place in left] if ended else None


def mean_score(scores: Sequence[float | None]) -> float | None:
    """Mean over the seeds of a round; None where a seed has no score."""
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known and len(known) == len(scores) else None


def _extended(
    axes: Mapping[str, tuple[Any, ...]], chosen: Mapping[str, Any], keys: Sequence[str]
) -> dict[str, tuple[Any, ...]]:
    """Longer lists of the keys whose chosen value is at an end; the new value continues the ratio there."""
    longer = {}
    for key in keys:
        values = axes.get(key, ())
        if len(values) > 1 and chosen[key] == values[-1]:
            longer[key] = (*values, _rounded(values[-1] * values[-1] / values[-2]))
        elif len(values) > 1 and chosen[key] == values[0]:
            longer[key] = (_rounded(values[0] * values[0] / values[1]), *values)
    return longer


def edge_of_values(
    tried: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any], extend: Sequence[str]
) -> tuple[str, ...]:
    """Keys whose chosen value is the smallest or largest tried and whose list the search does not extend.

    Of two values one is always at an edge: nothing was tried beyond it. Words and switches have no order.

    Args:
        tried: settings of every candidate.
        extend: keys whose lists grow; those that are still at an end are ``Choice.on_edge``.
    """
    keys = []
    for key, value in chosen.items():
        values = {settings[key] for settings in tried if key in settings}
        ordered = all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
        if ordered and len(values) > 1 and key not in extend and value in (min(values), max(values)):
            keys.append(key)
    return tuple(keys)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def tuning_overrides(search: Search, one: Round) -> dict[str, Any]:
    """Settings of a round's tuning runs besides their candidate: its budget, and an evaluation of what decides."""
    s = search.settings
    judged = {
        "eval.unseen": "",
        "eval.rewards": (search.require.reward,) if search.require else (),
        "eval.steps": s.steps,
        "eval.images_per_prompt": s.images_per_prompt,
        "eval.every": 0,
    }
    if s.by == "validation":
        judged |= {"eval.train": "", "eval.validation": s.prompts}
    return {**one.budget, **judged, "checkpoint.choose": "last"}


def read_tuning_run(folder: RunFolder, state: str, search: Search, asked: AskedScores) -> TuningRun:
    """A tuning run from disk.

    Args:
        state: of its job.
        asked: the scores that decide.
    """
    bill = clean_bill((last_line(folder.path / "train.jsonl") or {}).get("bill"))
    if state != "done":
        return TuningRun(folder.run_id, state, None, bill)
    reason = "" if search.require is None else _broken_requirement(folder, search.require, search, asked)
    score = None if reason else tuning_score(folder, search, asked)
    return TuningRun(folder.run_id, state, score, bill, reason)


def _broken_requirement(folder: RunFolder, require: Requirement, search: Search, asked: AskedScores) -> str:
    """Why a run does not keep what is required besides the trained reward; empty where it does."""
    own = _judged(folder, require.reward, search, asked)
    if own is None:
        return f"it has no scores by {require.reward}"
    key, block = own
    base = _base_block(folder, key, block)
    if base is None:
        return f"the base model has no scores by {require.reward}"
    score, least = float(block.scores.mean()), float(base.scores.mean()) - require.drop
    if score >= least:
        return ""
    return f"{require.reward} {score:.3f} is below {least:.3f}, the base model's minus {require.drop:g}"


def _base_block(folder: RunFolder, key: PanelKey, own: Block) -> Block | None:
    """The base model's scores of the run's prompts, step counts and images, from the folder beside the run's."""
    model = _base_model(folder)
    for path in sorted(folder.path.parent.glob("base-*")):
        base = RunFolder(path)
        try:
            other = _base_model(base)
        except UsageError:
            continue
        if other != model or not base.evaluation.exists():
            continue
        block = read_scores(base.evaluation, pictures=False).blocks.get(key)
        part = block.part(own.prompts, own.images) if block is not None else None
        if part is not None and set(own.steps) <= set(part.steps):
            return part.restrict(own.steps, own.images)
    return None


def _base_model(folder: RunFolder) -> list[Any]:
    """What tells the base model of a run, or of a folder of base scores, from others."""
    settings = flat_settings(folder.record())
    return [settings.get(key) for key in MODEL_KEYS]


def tuning_score(folder: RunFolder, search: Search, asked: AskedScores) -> float | None:
    """Mean asked score of a finished tuning run by the trained reward; None if one is missing or not finite."""
    judged = _judged(folder, asked.trained, search, asked)
    return float(judged[1].scores.mean()) if judged else None


def _judged(folder: RunFolder, reward: str, search: Search, asked: AskedScores) -> tuple[PanelKey, Block] | None:
    """A run's scores by a reward on the prompts of the search, if all asked ones are there and finite.

    Results file a held-out reward that a service computes under the service's name for it.
    """
    split = "validation" if search.settings.by == "validation" else "train"
    scores = read_scores(folder.evaluation, pictures=False)
    found = asked.block(scores, split, reward) or asked.block(scores, split, reward, filed_as=served_name(reward))
    return None if found is None or found[1].bad else found


def search_data(search: Search, suite: str = "") -> dict[str, Any]:
    """How a search was made, as plain data.

    Args:
        suite: whose search it is, where it is another suite's.
    """
    rounds = [{"seeds": one.seeds, "budget": dict(one.budget), "keep": one.keep} for one in search.rounds]
    require = {"reward": search.require.reward, "drop": search.require.drop} if search.require else None
    borrowed = {"suite": suite} if suite else {}
    return {**asdict(search.settings), "rounds": rounds, "require": require, **borrowed}


def choice_data(choice: Choice) -> dict[str, Any]:
    """A choice as plain data, with every candidate and what became of it."""
    candidates = []
    for one in choice.candidates:
        rounds = []
        for runs in one.rounds:
            rounds.append([{"run": r.run_id, "state": r.state, "score": r.score, "out": r.out} for r in runs])
        candidates.append({"settings": dict(one.settings), "state": one.state, "score": one.score, "rounds": rounds})
    return {
        **choice.group._asdict(),
        "candidates": candidates,
        "chosen": dict(choice.chosen.settings) if choice.chosen else None,
        "score": choice.chosen.score if choice.chosen else None,
        "on_edge": choice.on_edge,
        "cost": choice.cost,
    }
