"""Which rows of a board differ from which: tests of all pairs at one endpoint, over the seeds that the rows share.

Rows are the methods of several seeds and the base model. Every p value is that of the crossed interval, adjusted by
Holm over all pairs; the letters, the bold numbers and the sentences about the best row rest on these tests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sdpo_bench.results.endpoints import metric_grid
from sdpo_bench.results.panels import Panel
from sdpo_bench.statistics.eval_table import BASE, only_seeds, reduced
from sdpo_bench.statistics.intervals import Estimate, crossed_interval
from sdpo_bench.statistics.letters import Pair, pair_p_values, pairs_told_apart
from sdpo_bench.statistics.matrices import Endpoint, Matrix, paired


@dataclass(frozen=True)
class PairTest:
    """The paired difference of two rows with its p value."""

    difference: Estimate
    p: float
    """Of the interval, after Holm over all pairs of the board."""


@dataclass(frozen=True)
class RowPairs:
    """The tests of one board at one endpoint; empty where nothing can be tested."""

    means: Mapping[str, float] = field(default_factory=dict)
    """Of each tested row over ``seeds``, the base model's too."""
    seeds: tuple[int, ...] = ()
    """Training seeds that all tested methods have: the tests use these alone."""
    apart: frozenset[Pair] = frozenset()
    """Pairs that differ significantly."""
    to_best: Mapping[str, PairTest] = field(default_factory=dict)
    """Each other row minus the best one."""
    notes: tuple[str, ...] = ()
    """Seeds that are left out, rows without a test, or why there is none."""

    @property
    def best(self) -> str:
        """The row with the highest mean, the first by name of equals; empty without tests."""
        return max(sorted(self.means), key=lambda label: self.means[label], default="")

    @property
    def leaders(self) -> frozenset[str]:
        """The best row and those not significantly different from it."""
        return frozenset(label for label in self.means if frozenset((label, self.best)) not in self.apart)

    def ahead(self, a: str, b: str) -> bool:
        """Whether row ``a`` is significantly above ``b`` over the seeds that the test uses.

        Lines stand by the means over each method's own seeds, which can differ in direction.
        """
        return frozenset((a, b)) in self.apart and self.means[a] > self.means[b]

    def undecided(self, level: float) -> dict[str, PairTest]:
        """Rows whose difference to the best one is not significant though its interval excludes 0."""
        alpha = 1 - level
        return {
            label: test for label, test in self.to_best.items() if test.p >= alpha and test.difference.excludes_zero
        }


def row_pairs(panel: Panel, endpoint: Endpoint, level: float) -> RowPairs:
    """The tests of all pairs of rows of a panel."""
    matrices, notes = _comparable(panel, endpoint)
    tested = replace(_tested(matrices, level), notes=tuple(notes))
    return replace(tested, to_best=_to_best(matrices, tested.best, level))


def leaders_at(panel: Panel, endpoint: Endpoint, level: float) -> frozenset[str]:
    """The best row at a further endpoint and those not significantly different from it: a family of its own."""
    return _tested(_comparable(panel, endpoint)[0], level).leaders


def _tested(matrices: Mapping[str, Matrix], level: float) -> RowPairs:
    """Means and significant pairs, without the sizes of the differences."""
    means = {label: float(matrix.values.mean()) for label, matrix in matrices.items()}
    seeds = next((matrix.seeds for label, matrix in matrices.items() if label != BASE), ())
    return RowPairs(means, seeds, pairs_told_apart(matrices, level=level))


def _comparable(panel: Panel, endpoint: Endpoint) -> tuple[dict[str, Matrix], list[str]]:
    """Methods of several seeds and the base model, over the seeds that these methods share; and what is missing."""
    parts = {label: metric_grid(grid, panel, endpoint) for label, grid in panel.arms.items()}
    several = {label: part for label, part in parts.items() if part is not None and len(part.seeds) > 1}
    if not several:
        between = "between methods" if len(panel.arms) > 1 else "to the base model"
        return {}, [f"1 seed: no difference {between} can be shown."]
    shared = sorted(set.intersection(*(set(part.seeds) for part in several.values())))
    if len(shared) < 2:
        return {}, [
            "No difference between methods can be shown: they share fewer than two seeds; run the same seeds for each."
        ]
    notes = []
    if any(set(part.seeds) != set(shared) for part in several.values()):
        notes.append(f"Letters use the training seeds that all lettered methods have: {', '.join(map(str, shared))}.")
    if others := sorted(set(panel.arms) - set(several)):
        notes.append(f"No letter, because of fewer than two seeds at this endpoint: {', '.join(others)}.")
    if panel.base is not None and (base := metric_grid(panel.base, panel, endpoint)) is not None:
        several[BASE] = base
    return {label: reduced(only_seeds(part, shared), endpoint) for label, part in several.items()}, notes


def _to_best(matrices: Mapping[str, Matrix], best: str, level: float) -> dict[str, PairTest]:
    """Each row minus the best one, with the p values that letters and leaders rest on."""
    p_values = pair_p_values(matrices)
    tests = {}
    for label, matrix in matrices.items():
        if label != best:
            difference = crossed_interval(paired(matrix, matrices[best]), level)
            tests[label] = PairTest(difference, p_values[frozenset((label, best))])
    return tests
