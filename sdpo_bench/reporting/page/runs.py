"""The section of each run on the page: configuration, training curve and state, as data that the page unfolds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdpo_bench.results.comparability import Setting, shown
from sdpo_bench.results.read_results import Run

MOST_POINTS = 60
"""Points of a run's training curve on the page; longer logs are thinned."""


@dataclass(frozen=True, eq=False)
class RunView:
    """A run with its label and setting."""

    run: Run
    label: str
    setting: Setting

    @property
    def anchor(self) -> str:
        """Identifier of its section."""
        return f"run-{self.run.id}"


def run_views(settings: Sequence[Setting]) -> tuple[RunView, ...]:
    """In the order of the list of runs."""
    return tuple(RunView(run, arm.label, setting) for setting in settings for arm in setting.arms for run in arm.runs)


def run_data(views: Sequence[RunView]) -> dict[str, Any]:
    """By anchor: a training curve ``[[images], [reward]]`` and the numbers of the run's configuration.

    Configurations repeat from seed to seed, so each different text is stored once, in ``texts``.
    """
    texts: dict[str, int] = {}
    runs = {}
    for view in views:
        values = [f"{key} = {shown(value)}" for key, value in sorted(view.run.settings.items())]
        places = [texts.setdefault(text, len(texts)) for text in values]
        runs[view.anchor] = {
            "config": places,
            "curve": _curve(view.run),
            "grid": (view.run.folder.path / "grid.png").is_file(),
        }
    return {"texts": list(texts), "runs": runs}


def _curve(run: Run) -> list[list[float]]:
    logged = run.log().points("bill.images", "reward_mean").tolist()
    points = [(images, float(f"{reward:.5g}")) for images, reward in logged]
    thinned = points[:: -(-len(points) // MOST_POINTS) or 1]
    return [[x for x, _ in thinned], [y for _, y in thinned]]
