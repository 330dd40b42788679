"""Is a difference of two models one of their samplers? One model is sampled again, with the other one's share of noise.

All of it is exploratory: the declared comparison is of each model as its preset trains it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.contrasts import Contrast, contrast_cells, exploratory, listed
from sdpo_bench.statistics.matrices import Matrix
from sdpo_bench.studies.shared.models_compared import ModelsCompared, Place, contrasts_by_place, verdicts


@dataclass(frozen=True)
class Arm:
    """How one model was sampled."""

    name: str
    sampler: str
    kept: Mapping[int, float]
    """Mean share of the old noise that a step keeps, by T."""


class SamplersCompared:
    """A model at another eta against the reference model and against itself as its preset trains it."""

    def __init__(
        self,
        compared: ModelsCompared,
        arms: tuple[Arm, Arm, Arm],
        to_reference: Mapping[Place, Matrix],
        to_itself: Mapping[Place, Matrix],
    ):
        """
        Args:
            compared: the models as their presets train them.
            arms: the reference model, the model, and the model at the other eta.
            to_reference: errors of the last arm minus those of the first; rules other than the main one do not count.
            to_itself: errors of the last arm minus those of the second.
        """
        self.compared, self.arms = compared, arms
        self.to_reference = self._grid(to_reference)
        self.to_itself = self._grid(to_itself)

    def _grid(self, differences: Mapping[Place, Matrix]) -> dict[Place, Contrast]:
        chosen = {place: m for place, m in differences.items() if place.rule == self.compared.main}
        return contrasts_by_place(chosen, exploratory)

    def sentences(self) -> list[str]:
        """What the samplers keep, and both exploratory comparisons."""
        reference, model, matched = self.arms
        kept = [f"{arm.name} {listed(f'{share:.2f}' for share in arm.kept.values())}" for arm in (reference, model)]
        counts = listed(reference.kept)
        found = [
            f"Share of the old noise that a step keeps, mean over steps but the last: {'; '.join(kept)} at "
            f"T = {counts}. The comparison above is of each model together with its sampler, as its preset trains it."
        ]
        for other, contrasts in ((reference.name, self.to_reference), (f"{model.name} as trained", self.to_itself)):
            if contrasts:
                found.append(
                    f"Exploratory: on {matched.name} ({matched.sampler}) SDPO's prediction is "
                    f"{verdicts(contrasts, other)}."
                )
        return found

    def noise_table(self) -> t.Table:
        """The sampler of each arm, and what it keeps."""
        columns = (
            t.Column("arm", "sampled", numeric=False),
            t.Column("sampler", "sampler", numeric=False),
            *(t.Column(f"t{n}", f"T = {n}", help="share of the old noise that a step keeps") for n in self._counts),
        )
        rows = [
            t.Row((t.word(arm.name), t.word(arm.sampler), *(t.number(arm.kept[n], 2) for n in self._counts)))
            for arm in self.arms
        ]
        notes = ("Share of the old noise that a step keeps, mean over steps but the last; 0: all noise is fresh.",)
        return t.Table("samplers", "Samplers: share of the old noise kept", columns, (t.Group("", tuple(rows)),), notes)

    @property
    def _counts(self) -> list[int]:
        return sorted(self.arms[0].kept)

    def table(self) -> t.Table:
        """Differences of SDPO's error between the arms, one group a reward."""
        columns = [t.Column("arms", "error of SDPO's prediction on", numeric=False)]
        for n in self._counts:
            columns.append(t.Column(f"t{n}", f"T = {n}"))
            columns.append(t.Column(f"p{n}", "p", help="adjusted"))
        notes: tuple[str, ...] = (
            "Mean absolute errors in standard deviations of the true reward of their own arm, paired by prompt and "
            "seed, ± half the 95 % crossed interval over seeds and prompts. Grey rows: the declared family, as in the "
            "table above. Other rows: exploratory (Benjamini-Hochberg over all rewards and T, one grid each). Bold: "
            "significant.",
        )
        groups = tuple(self._group(reward) for reward in self.compared.rewards)
        if any(cell.text == t.DASH for group in groups for row in group.rows for cell in row.cells[1::2]):
            notes = (*notes, f"{t.DASH}: the true reward of at least one of the two arms never varies there.")
        return t.Table("matched", "Is the difference one of the samplers?", tuple(columns), groups, notes)

    def _group(self, reward: str) -> t.Group:
        reference, model, matched = (arm.name for arm in self.arms)
        rows = []
        for words, contrasts, declared in (
            (f"{model} minus {reference}", self.compared.contrasts, True),
            (f"{matched} minus {reference}", self.to_reference, False),
            (f"{matched} minus {model}", self.to_itself, False),
        ):
            pairs = [contrast_cells(contrasts.get(Place(reward, self.compared.main, n))) for n in self._counts]
            rows.append(t.Row((t.word(words), *(cell for pair in pairs for cell in pair)), declared))
        return t.Group(reward, tuple(rows))
