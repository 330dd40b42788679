"""How many tuning runs a search still has to come, before the scores say which: a sweep's estimate counts them.

The runs of a later round are known once the round before has ended, but their number is known before: a round keeps so
many candidates. How often a list is extended is known at the end only, so of that there is an upper bound.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdpo_bench.hashing import canonical_json
from sdpo_bench.sweep.search import Round, Search, products
from sdpo_bench.sweep.tuning import EXTENSIONS, Choice


@dataclass(frozen=True)
class LaterRun:
    """A tuning run of a later round, with the settings of some candidate in place of the one that will be kept."""

    settings: Mapping[str, Any]
    round: Round
    seed: int


def later_runs(search: Search, choice: Choice) -> list[LaterRun]:
    """The runs of later rounds that a choice has not asked for yet, the first candidates standing for the kept ones.

    Fewer come where candidates fail, and after a list was extended, since kept candidates then have runs already.
    """
    if choice.settled:
        return []
    candidates = choice.candidates
    started = max(len(candidate.rounds) for candidate in candidates)
    later = []
    for number, seeds in enumerate(_new_seeds(search.rounds)):
        if number >= started:
            one = search.rounds[number]
            kept = candidates[: one.keep]
            later += [LaterRun(candidate.settings, one, seed) for candidate in kept for seed in seeds]
    return later


def most_by_extension(search: Search, choice: Choice) -> int:
    """The most tuning runs that longer lists can add to those of :func:`later_runs`."""
    if choice.settled:
        return 0
    axes = search.axes(choice.group.method)
    extended = [key for key in search.settings.extend if len(axes.get(key, ())) > 1]
    if not extended:
        return 0
    longest = {key: (*values, *range(EXTENSIONS)) if key in extended else values for key, values in axes.items()}
    left, most = len(products(longest)) - len(choice.candidates), 0
    for one, seeds in zip(search.rounds, _new_seeds(search.rounds)):
        # Each extension plays the rounds again, and only new candidates have runs to do.
        kept = left if one.keep is None else min(left, EXTENSIONS * one.keep)
        most += kept * len(seeds)
    return most


def _new_seeds(rounds: Sequence[Round]) -> list[list[int]]:
    """Seeds of each round whose runs no earlier round of the same budget has made."""
    made: set[tuple[str, int]] = set()
    new = []
    for one in rounds:
        budget = canonical_json(dict(one.budget))
        new.append([seed for seed in one.seeds if (budget, seed) not in made])
        made |= {(budget, seed) for seed in one.seeds}
    return new
