"""The trackers themselves: how each is started, resumed and closed, and how it takes settings, tables and pictures.

Each is one of accelerate's tracker classes with what that class leaves out. All write below one folder and stay
offline unless the user's environment says otherwise.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo_bench.hashing import digest

Rows = Sequence[Sequence[Any]]
TABLE, GRID = "eval/table", "pictures"
"""Names of the final table and of the picture grid in every tracker."""


class Backend:
    """A started tracker.

    Args:
        project: project, or experiment, that runs are collected in.
        run: name of the run in the tracker.
        run_id: id of the run; another one with the same name is another run.
        folder: where this tracker writes.
        told: what an earlier process of the run told this tracker; a subclass may remember its own id there.
            ``training`` tells a run from one of the same id that was deleted and trained again.
    """

    name = ""
    stores_settings_once = False
    """Whether a resumed run has its settings already and takes no others."""
    scores_follow_epochs = False
    """Whether scores need a step above the last epoch, because a resumed run drops values at steps that it has."""
    own_id: str
    """Id of the run for trackers that take one."""
    own_name: str
    """Name of the run for trackers that tell runs apart by name alone: the seeds of one ``track.name`` differ in it."""

    def __init__(self, project: str, run: str, run_id: str, folder: Path, told: dict[str, Any]):
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's own logging needs it
        self.own_id = digest([project, run, run_id, told["training"]], 21)
        self.own_name = f"{run}-{self.own_id[:6]}" if run != run_id or told.get("again") else run
        first, options = self._options(project, run, folder, told)
        self.tracker = LOGGER_TYPE_TO_CLASS[self.name](first, **options)
        self.tracker.start()

    def _options(self, project: str, run: str, folder: Path, told: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """First argument and the other arguments of accelerate's class."""
        raise NotImplementedError

    def store_settings(self, values: Mapping[str, Any]) -> None:
        """Store the settings of the run: numbers, truth values and text by ``section.key``."""
        self.tracker.store_init_configuration(dict(values))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Track numbers by name."""
        self.tracker.log(dict(values), step=step)

    def log_table(self, columns: Sequence[str], rows: Rows, step: int) -> None:
        """Track the final table."""
        raise NotImplementedError

    def log_grid(self, pixels: Any, step: int) -> None:
        """Track the picture grid.

        Args:
            pixels: uint8 array ``[height, width, 3]``.
        """
        self.tracker.log_images({GRID: pixels[None]}, step=step)

    def finish(self) -> None:
        """Write what is not written and close the tracker."""
        self.tracker.finish()


class TensorBoard(Backend):
    """TensorBoard: event files; each process of a run adds one in the folder of the run."""

    name = "tensorboard"
    stores_settings_once = True

    def _options(self, project: str, run: str, folder: Path, told: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        return self.own_name, {"logging_dir": str(folder / project)}

    def log_table(self, columns: Sequence[str], rows: Rows, step: int) -> None:
        from tabulate import tabulate

        self.tracker.log({TABLE: tabulate(rows, headers=columns, tablefmt="pipe")}, step=step)

    def log_grid(self, pixels: Any, step: int) -> None:
        self.tracker.log_images({GRID: pixels[None]}, step=step, dataformats="NHWC")


class WandB(Backend):
    """Weights & Biases: offline, each process writes a folder of its own, and ``wandb sync`` joins them by their id."""

    name = "wandb"
    # A run resumed online begins one step above its last, and ignores values of earlier steps without an error.
    scores_follow_epochs = True

    def _options(self, project: str, run: str, folder: Path, told: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        os.environ.setdefault("WANDB_MODE", "offline")
        return project, {"name": run, "id": self.own_id, "resume": "allow", "dir": str(folder)}

    def log_table(self, columns: Sequence[str], rows: Rows, step: int) -> None:
        self.tracker.log_table(TABLE, columns=list(columns), data=list(rows), step=step)


class Trackio(Backend):
    """Trackio: one database a project; a resumed run replaces its stored settings."""

    name = "trackio"

    def _options(self, project: str, run: str, folder: Path, told: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        os.environ.setdefault("TRACKIO_DIR", str(folder))
        return project, {"name": self.own_name, "resume": "allow"}

    def log_table(self, columns: Sequence[str], rows: Rows, step: int) -> None:
        import pandas
        import trackio

        self.tracker.log({TABLE: trackio.Table(dataframe=pandas.DataFrame(rows, columns=list(columns)))}, step=step)

    def log_grid(self, pixels: Any, step: int) -> None:
        import trackio

        self.tracker.log({GRID: trackio.Image(pixels)}, step=step)

    def finish(self) -> None:
        import trackio

        trackio.finish()  # accelerate's leaves the run open, and Trackio then writes on standard output at exit


class SwanLab(Backend):
    """SwanLab: offline, each process writes a folder of its own, and ``swanlab sync`` joins them by their id."""

    name = "swanlab"

    def _options(self, project: str, run: str, folder: Path, told: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        os.environ.setdefault("SWANLAB_MODE", "offline")
        return project, {"experiment_name": run, "logdir": str(folder), "id": self.own_id, "resume": "allow"}

    def log_table(self, columns: Sequence[str], rows: Rows, step: int) -> None:
        import swanlab

        self.tracker.log({TABLE: swanlab.echarts.Table().add(list(columns), list(rows))}, step=step)


class MLflow(Backend):
    """MLflow: one database with the runs of all projects; table and grid are artifacts of the run."""

    name = "mlflow"
    stores_settings_once = True

    def __init__(self, project: str, run: str, run_id: str, folder: Path, told: dict[str, Any]):
        super().__init__(project, run, run_id, folder, told)
        told["id"] = self.tracker.tracker.info.run_id

    def _options(self, project: str, run: str, folder: Path, told: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        files = (folder / "files").resolve().as_uri()
        return project, {"run_name": run, "run_id": told.get("id"), "logging_dir": files}

    def log_table(self, columns: Sequence[str], rows: Rows, step: int) -> None:
        import mlflow

        mlflow.log_table({name: list(values) for name, values in zip(columns, zip(*rows))}, f"{TABLE}.json")

    def log_grid(self, pixels: Any, step: int) -> None:
        import mlflow

        mlflow.log_image(pixels, key=GRID, step=step)


BACKENDS: dict[str, type[Backend]] = {one.name: one for one in (TensorBoard, WandB, Trackio, SwanLab, MLflow)}
"""Trackers by the name that ``--track`` takes."""
