"""Which methods a table tells apart: pairwise tests and their compact letter display.

"Not significantly different" is not transitive, so ranks with ties cannot show it: of three neighbours the outer two
can differ and the middle one differ from neither. Letters can: two methods share a letter exactly if no difference
between them is significant.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations

from sdpo_bench.statistics.intervals import check_level, crossed_p_values
from sdpo_bench.statistics.matrices import Matrix, paired
from sdpo_bench.statistics.ranking import holm

Pair = frozenset[str]


def pair_p_values(matrices: Mapping[str, Matrix]) -> dict[Pair, float]:
    """Crossed p value of the paired difference of each pair of methods, after Holm over all pairs; 1 with one seed.

    Raises:
        UsageError: matrices that cannot be paired.
    """
    pairs = list(combinations(matrices, 2))
    adjusted = holm(crossed_p_values([paired(matrices[a], matrices[b]) for a, b in pairs]))
    return {frozenset(pair): float(p) for pair, p in zip(pairs, adjusted, strict=True)}


def pairs_told_apart(matrices: Mapping[str, Matrix], *, level: float = 0.95) -> frozenset[Pair]:
    """Pairs of methods whose p value of :func:`pair_p_values` is below ``1 - level``.

    Raises:
        UsageError: matrices that cannot be paired, or a level outside (0, 1).
    """
    check_level(level)
    return frozenset(pair for pair, p in pair_p_values(matrices).items() if p < 1 - level)


def letter_display(names: Sequence[str], apart: Collection[Pair]) -> dict[str, str]:
    """Letters of each name: two names share one exactly if their pair is not in ``apart``.

    Insert and absorb: one group of all names; each pair in ``apart`` splits every group that holds both into one
    without the first and one without the second; a group inside another is dropped. Source: Piepho, "An Algorithm for a
    Letter-Based Representation of All-Pairwise Comparisons", J. Comput. Graph. Stat. 13 (2004).

    Args:
        names: in the order of the table; groups are lettered by their first member, so the first name has an ``a``.
        apart: pairs of names.
    """
    groups: list[frozenset[str]] = [frozenset(names)]
    for a, b in combinations(names, 2):
        if frozenset((a, b)) in apart:
            groups = _absorbed(_split(groups, a, b))
    place = {name: i for i, name in enumerate(names)}
    ordered = sorted(groups, key=lambda group: sorted(place[name] for name in group))
    letters = dict.fromkeys(names, "")
    for number, group in enumerate(ordered):
        for name in group:
            letters[name] += _letter(number)
    return letters


def _split(groups: Collection[frozenset[str]], a: str, b: str) -> list[frozenset[str]]:
    """No group holds both ``a`` and ``b``."""
    split = []
    for group in groups:
        split += [group - {a}, group - {b}] if {a, b} <= group else [group]
    return split


def _absorbed(groups: Collection[frozenset[str]]) -> list[frozenset[str]]:
    """Without the groups that lie inside another one, equal ones once."""
    different = list(dict.fromkeys(groups))
    return [group for group in different if not any(group < other for other in different)]


def _letter(number: int) -> str:
    """a to z, then A to Z, then ``(52)`` and so on."""
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return alphabet[number] if number < len(alphabet) else f"({number})"
