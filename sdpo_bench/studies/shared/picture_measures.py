"""Whether pictures blur: measures of a training's pictures, each as a change against the base model.

Sharpness, the mean difference of neighbouring pixels, falls with the contrast of a picture too, so that paler pictures
look like blurred ones. Divided by the contrast it does not. Noise left in pictures raises both.
"""

from dataclasses import dataclass, replace

from sdpo_bench.statistics.eval_table import reduced
from sdpo_bench.statistics.matrices import Endpoint, Matrix
from sdpo_bench.studies.shared.trainings import Arm, Trainings


@dataclass(frozen=True)
class PictureMeasure:
    """What pictures are measured by, in place of the trained reward where it is not that."""

    reward: str = ""
    statistic: str = ""
    divisor: str = ""
    """Statistic that the first is divided by, each averaged over the images of a prompt."""
    unit: str = "reward units"


SHARE = "share of the base model's"
MEASURES = {
    "reward": PictureMeasure(),
    "emoji-accuracy": PictureMeasure(reward="emoji-accuracy", unit="share of pictures recognised"),
    "sharpness": PictureMeasure(statistic="sharpness", unit=SHARE),
    "contrast": PictureMeasure(statistic="contrast", unit=SHARE),
    "sharpness/contrast": PictureMeasure(statistic="sharpness", divisor="contrast", unit=SHARE),
}
BLUR = ("sharpness", "sharpness/contrast")
"""Measures that a blur lowers."""


def change(trainings: Trainings, arm: Arm, endpoint: Endpoint, name: str) -> Matrix | None:
    """Tuned minus base model by a measure ``[S, P]``; a statistic of pictures as a share of the base model's mean.

    None where a statistic is to be divided by another one that is 0.
    """
    measure = MEASURES[name]
    if not measure.statistic:
        return trainings.gain(arm, endpoint, measure.reward)
    found = _levels(trainings, arm, endpoint, measure.statistic)
    if found is None:
        return None
    tuned, base = found
    values, base_values = tuned.values, base.values
    if measure.divisor:
        divisors = _levels(trainings, arm, endpoint, measure.divisor)
        if divisors is None or not all(one.values.all() for one in divisors):
            return None
        values, base_values = values / divisors[0].values, base_values / divisors[1].values
    level = base_values.mean()
    return replace(tuned, values=(values - base_values) / level) if level > 0 else None


def _levels(trainings: Trainings, arm: Arm, endpoint: Endpoint, statistic: str) -> tuple[Matrix, Matrix] | None:
    """A picture statistic of the tuned ``[S, P]`` and of the base model ``[1, P]``, mean over images."""
    grids = trainings.grids(arm, statistic=statistic)
    if grids is None:
        return None
    tuned, base = (reduced(grid, endpoint) for grid in grids)
    return tuned, base
