"""Experiment trackers beside a run: when they are told what, and that none of them can fail a run.

A tracker only reads what the run has logged, so it changes no number and is no part of a run's identity. One that fails
is switched off with one warning, and the run goes on. Names of what is tracked::

    train/NAME, time/NAME        every number of an epoch, in train.jsonl and timing.jsonl
    bill/NAME                    the bill so far
    eval/REWARD/SPLIT/STEPS/...  base, tuned and difference at the end
    eval/table                   the same as a table
    pictures                     the grid of base beside tuned, at the end

The resolved settings are stored as the tracker's own configuration. Trackers write below ``<out>/trackers``. A resumed
run goes on in the same tracker run; one that was deleted and trained again is another tracker run.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

from sdpo_bench.config.resolve import Resolved
from sdpo_bench.errors import MissingError
from sdpo_bench.hashing import digest
from sdpo_bench.plugins.conflicts import same_value
from sdpo_bench.plugins.parse_settings import validate
from sdpo_bench.plugins.setting_names import unknown_setting
from sdpo_bench.running.tracker_backends import BACKENDS, Backend
from sdpo_bench.runs.log_numbers import numbers_of
from sdpo_bench.runs.run_folder import RunFolder, read_object
from sdpo_bench.settings import TrackerName, TrackSettings
from sdpo_bench.system.files import atomic_write
from sdpo_bench.system.plugin_guard import preserve_process_state
from sdpo_bench.system.progress import Tick

LOGS = {"train.jsonl": "train/", "timing.jsonl": "time/"}
"""Logs of a run with one line an epoch, and the beginning of their names in a tracker."""
COLUMNS = ("split", "reward", "version", "steps", "images", "base", "tuned", "difference", "standard_error")
"""Columns of the final table."""
NAMES: tuple[str, ...] = get_args(TrackerName)


def split_settings(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ``track.*`` settings without their section, and all others."""
    tracked = {key.removeprefix("track."): value for key, value in values.items() if key.startswith("track.")}
    return tracked, {key: value for key, value in values.items() if not key.startswith("track.")}


def track_settings(values: Mapping[str, Any], names: Sequence[str] = ()) -> TrackSettings:
    """Settings of trackers, checked before anything is loaded.

    Args:
        values: ``track.*`` without the section.
        names: trackers of ``--track``; empty: those of ``track.to``.

    Raises:
        UsageError: an unknown setting or tracker. MissingError: a tracker whose package is not installed.
    """
    valid = [f"track.{name}" for name in TrackSettings.__dataclass_fields__]
    for key in values:
        if f"track.{key}" not in valid:
            raise unknown_setting(f"track.{key}", valid)
    given = dict(values) | ({"to": list(names)} if names else {})
    settings: TrackSettings = validate(TrackSettings, given, "track")
    for name in settings.to:
        if find_spec(name) is None:
            raise MissingError(
                f"tracker '{name}' needs the package '{name}'. Install it with: pip install 'sdpo-bench[{name}]'"
            )
    return settings


@dataclass
class _Tracker:
    """One tracker of a run, and what it has been told."""

    name: str
    backend: Backend
    told: dict[str, Any]
    """``epoch``: the last one; ``sent``: digest of the scores and the grid; ``score_step``: their step;
    ``training``, ``again``: see ``Tracking._told``; ``id``: that of MLflow."""


class Tracking:
    """The trackers of one run; use as a context manager.

    Args:
        warn: called with the text of a warning.
    """

    def __init__(self, settings: TrackSettings, resolved: Resolved, out: Path, warn: Callable[[str], None]):
        self.settings, self.resolved, self.warn = settings, resolved, warn
        self.run = RunFolder(out / "runs" / resolved.run_id)
        self.folder = out / "trackers"
        self.name = settings.name or resolved.run_id
        self._trackers: list[_Tracker] | None = None

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._trackers is not None:  # a run that ended before its first epoch has nothing to track
            self._each(lambda tracker: tracker.backend.finish())
        self._trackers = []

    def tick(self, tick: Tick) -> None:
        """Track a completed epoch."""
        if tick.phase == "epoch":
            self._each(self._send_epochs)

    def finish(self, table: Sequence[Mapping[str, Any]]) -> None:
        """Track what an earlier process has not, the scores and the picture grid.

        Args:
            table: rows of base against tuned (``score_rows.step_table``).
        """
        self._each(self._send_epochs)
        self._each(lambda tracker: self._send_scores(tracker, table))

    def _each(self, work: Callable[[_Tracker], None]) -> None:
        """Do something with every tracker; one that fails is left out from then on."""
        if not self.settings.to:
            return
        if self._trackers is None:
            self._trackers = [one for name in self.settings.to if (one := self._start(name))]
        self._trackers = [tracker for tracker in self._trackers if self._works(tracker, work)]

    def _works(self, tracker: _Tracker, work: Callable[[_Tracker], None]) -> bool:
        try:
            with preserve_process_state():
                work(tracker)
                self._remember(tracker)
        except Exception as error:  # a tracker may fail in any way
            self._give_up(tracker.name, error)
            return False
        return True

    def _give_up(self, name: str, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        self.warn(f"tracker '{name}' failed and is off for this run: {reason}")

    def _start(self, name: str) -> _Tracker | None:
        try:
            with preserve_process_state():
                told = self._told(name)
                place = self.folder / name
                place.mkdir(exist_ok=True)
                backend = BACKENDS[name](self.settings.project, self.name, self.run.run_id, place, told)
                if "epoch" not in told or not backend.stores_settings_once:
                    backend.store_settings(_flat(self.resolved.data))
                told.setdefault("epoch", 0)
                return _Tracker(name, backend, told)
        except Exception as error:
            self._give_up(name, error)
            return None

    def _send_epochs(self, tracker: _Tracker) -> None:
        """The epochs of the logs that the tracker has not been told of."""
        rows: dict[int, dict[str, float]] = {}
        for log, prefix in LOGS.items():
            for row in self.run.log(log):
                rest = {key: value for key, value in row.items() if key not in ("epoch", "bill")}
                values = {prefix + name: number for name, number in numbers_of(rest, "/")}
                values |= {f"bill/{name}": number for name, number in numbers_of(row.get("bill", {}), "/")}
                rows.setdefault(int(row["epoch"]), {}).update(values)
        for epoch in sorted(rows):
            if epoch > tracker.told["epoch"]:
                tracker.backend.log(rows[epoch], step=epoch)
                tracker.told["epoch"] = epoch

    def _send_scores(self, tracker: _Tracker, table: Sequence[Mapping[str, Any]]) -> None:
        sent = self._digest_of_scores(table)
        if tracker.told.get("sent") == sent:
            return
        step = self._score_step(tracker)
        values: dict[str, float] = {}
        for row in table:
            place = f"eval/{row['reward']}/{row['split']}/{row['steps']}"
            values |= {f"{place}/{name}": float(row[name]) for name in ("base", "tuned", "difference")}
        tracker.backend.log(values, step=step)
        if table:
            _send_table(tracker, table, step)
        if self.settings.images:
            _send_grid(tracker, self.run.path / "grid.png", step)
        tracker.told["sent"] = sent

    def _digest_of_scores(self, table: Sequence[Mapping[str, Any]]) -> str:
        """Digest of what the end of a run sends: an evaluation at more steps or on more prompts has another one."""
        grid = self.run.path / "grid.png"
        pixels = grid.read_bytes() if self.settings.images and grid.exists() else b""
        rows = [[str(row[name]) for name in COLUMNS] for row in table]
        return digest([rows, sha256(pixels).hexdigest()])

    def _score_step(self, tracker: _Tracker) -> int:
        """Step of scores, table and grid; remembered before they are sent, so that no killed process uses it twice."""
        told = tracker.told
        step: int = told["epoch"] + int(tracker.backend.scores_follow_epochs)
        if tracker.backend.scores_follow_epochs and "score_step" in told:
            step = max(step, told["score_step"] + 1)
        told["score_step"] = step
        self._remember(tracker)
        return step

    # -- what a tracker has been told, beside the trackers' own files ----------------------------------------------

    @property
    def _memory(self) -> Path:
        return self.folder / f"{self.run.run_id}.json"

    def _key(self, name: str) -> str:
        return f"{name}: {self.settings.project}/{self.name}"

    def _told(self, name: str) -> dict[str, Any]:
        """What the tracker was told about this training of the run.

        A run can be deleted and trained again under its id, and numbers of another training are not this one's. The
        first lines of the logs tell trainings apart, because they hold the seconds of the first epoch. What was told of
        an earlier training, or by a version that did not note which, counts for nothing: ``again`` is set then.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        memory = read_object(self._memory) if self._memory.exists() else {}
        told = dict(memory.get(self._key(name), {}))
        training = digest([self.run.log(log)[:1] for log in LOGS])
        if told.get("epoch") and told.get("training") != training:
            told = {"again": True}
        return told | {"training": training}

    def _remember(self, tracker: _Tracker) -> None:
        memory = read_object(self._memory) if self._memory.exists() else {}
        if memory.get(self._key(tracker.name)) != tracker.told:
            memory[self._key(tracker.name)] = tracker.told
            atomic_write(self._memory, json.dumps(memory, indent=1, sort_keys=True))


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by ``section.key`` as trackers take them: lists as text, no None."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str) else str(value)
    return flat


def _send_table(tracker: _Tracker, table: Sequence[Mapping[str, Any]], step: int) -> None:
    tracker.backend.log_table(COLUMNS, [[row[name] for name in COLUMNS] for row in table], step)


def _send_grid(tracker: _Tracker, path: Path, step: int) -> None:
    if not path.exists():
        return
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    tracker.backend.log_grid(pixels, step)


def replaced_trackers(names: Sequence[str], values: Mapping[str, Any]) -> str:
    """The line that says that ``--track`` replaces ``track.to`` of a file; empty where it does not."""
    filed = values.get("to")
    if not names or filed is None or same_value(",".join(names), ",".join(map(str, filed))):
        return ""
    return f"--track {' --track '.join(names)} replaces track.to = {','.join(map(str, filed))}"
