"""``list runs``: state, budget used and one number for each run, cheap enough for ten thousand of them.

The headline of a run is its score minus the base model's under the trained reward, mean over the run's own step counts
(``eval.steps``) by its own sampler, on the first split it was judged on. Samplers and step counts that ``eval`` added
are left out: a number with them cannot be compared with that of another run. It is one seed's number; for statements
about a method see ``compare`` and ``report``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_bench.errors import UsageError
from sdpo_bench.ledger import limit_text, used_text
from sdpo_bench.results.comparability import MODEL_KEYS
from sdpo_bench.results.panels import SPLITS
from sdpo_bench.results.read_results import Run, load_results, trained_on
from sdpo_bench.results.read_scores import foreign_run_ids, with_scores
from sdpo_bench.statistics.eval_table import Block, PanelKey, Scores
from sdpo_bench.statistics.score_reader import read_scores
from sdpo_bench.system.console_text import duration

COLUMNS = [
    "run",
    "state",
    "date",
    "training time",
    "method",
    "reward",
    "seed",
    "budget used",
    "score - base",
    "judged by",
    "message",
]
OPTIONAL = ("judged by", "reward", "seed", "method", "date", "training time", "budget used", "score - base")
"""Columns that a narrow terminal does without, the least important first; the run's name has three of them."""


@dataclass(frozen=True)
class Headline:
    """Tuned minus base, mean over step counts, prompts and images."""

    value: float
    key: PanelKey
    steps: tuple[int, ...]
    """The step counts of the mean."""

    @property
    def judged_by(self) -> str:
        """For example ``hpsv2, train, steps 1, 4``."""
        return f"{self.key.reward}, {self.key.split}, steps {', '.join(map(str, self.steps))}"


def list_runs(out: Path) -> tuple[list[str], list[list[Any]]]:
    """Column names and one row a run; damaged runs are listed with their problem. No rows without runs."""
    try:
        results = load_results(out)
    except UsageError:
        return COLUMNS, []
    bases = base_panels(results.bases)
    rows = []
    for run, scores in with_scores(results.runs, pictures=False):
        own = scores is not None and not foreign_run_ids(run, scores)
        rows.append(_row(run, scores if own else None, bases))
    for notice in results.notices:
        state = "damaged" if "damaged" in notice.text else "not used"
        rows.append([notice.where, state, *[None] * (len(COLUMNS) - 3), notice.text])
    return COLUMNS, sorted(rows, key=lambda row: row[0])


Bases = Mapping[tuple[Any, ...], Mapping[PanelKey, Block]]


def base_panels(bases: Sequence[Run]) -> Bases:
    by_model: dict[tuple[Any, ...], dict[PanelKey, Block]] = {}
    for base in bases:
        model = tuple(base.settings.get(key) for key in MODEL_KEYS)
        earlier = by_model.setdefault(model, {})
        by_model[model] = read_scores(base.folder.evaluation, pictures=False).blocks | earlier
    return by_model


def _row(run: Run, evaluated: Scores | None, bases: Bases) -> list[Any]:
    scores = evaluated or Scores()
    number = headline(run, scores, bases.get(tuple(run.settings.get(key) for key in MODEL_KEYS), {}))
    problems = [] if not scores.problems else [scores.problems[0]]
    if scores.bad:
        problems.append(f"diverged: {scores.bad} scores are NaN or infinite")
    if run.state == "done" and evaluated is None:
        problems.append("not evaluated")
    message = "; ".join(text for text in (run.message, *problems) if text)
    value = round(number.value, 4) + 0.0 if number else None  # no -0.0
    judged = number.judged_by if number else None
    names = [run.method, run.reward, run.seed]
    return [run.id, run.state, date_of(run), duration_of(run), *names, budget_used(run), value, judged, message]


def date_of(run: Run) -> str | None:
    """When the run began, e.g. ``2026-11-26 01:57`` (UTC); None where its record does not say."""
    return str(run.record.get("created", ""))[:16].replace("T", " ") or None


def duration_of(run: Run) -> str | None:
    """Time of training so far; None before the first epoch."""
    return duration(run.seconds) if run.seconds else None


def budget_used(run: Run) -> str | None:
    """For example ``128 of 2,560 images``; None before the first epoch."""
    axis, limit = str(run.settings["budget.axis"]), run.settings["budget.amount"]
    if isinstance(searched := run.search_bill.get(axis), int | float):
        return f"{searched:,.0f} {axis.replace('_', ' ')} in evaluation"
    used = run.seconds if axis == "seconds" else run.bill.get(axis)
    if not isinstance(used, int | float) or not isinstance(limit, int | float) or not (run.bill or run.seconds):
        return None
    return f"{used_text(used)} of {limit_text(limit, axis)}"


def headline(run: Run, scores: Scores, base: Mapping[PanelKey, Block]) -> Headline | None:
    """The one number; None where run and base model share no finite scores by the run's own sampler and step counts."""
    own = run.settings["eval.steps"]
    trained = [key for key in scores.blocks if trained_on(run.settings, key.reward, key.version)]
    keys = [key for key in trained if key.sampler == run.own_sampler and key in base]
    for key in sorted(keys, key=_split_first):
        block = scores.blocks[key]
        steps = [step for step in block.steps if step in own]
        pair = shared_part(block.restrict(steps, block.images), base[key]) if steps else None
        if pair is not None:
            tuned, untuned = pair
            return Headline(float(tuned.scores.mean() - untuned.scores.mean()), key, tuned.steps)
    return None


def _split_first(key: PanelKey) -> tuple[Any, ...]:
    return (SPLITS.index(key.split) if key.split in SPLITS else len(SPLITS), key)


def shared_part(a: Block, b: Block) -> tuple[Block, Block] | None:
    """Both at the prompts of ``a`` and their common step counts and images; None without any, or if not finite.

    ``a`` has no gaps.
    """
    images = [image for image in a.images if image in b.images]
    other = b.part(a.prompts, images) if images else None
    steps = [step for step in a.steps if step in other.steps] if other else []
    if other is None or not steps:
        return None
    pair = a.restrict(steps, images), other.restrict(steps, images)
    return None if pair[0].bad or pair[1].bad else pair
