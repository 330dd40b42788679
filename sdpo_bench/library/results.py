"""Runs and results folders as plain objects with tidy pandas frames. No torch here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdpo_bench.errors import UsageError
from sdpo_bench.results import read_results
from sdpo_bench.results.read_results import Notice, read_run
from sdpo_bench.results.read_scores import read_all_scores
from sdpo_bench.results.run_view import bases_beside, curve_points, own_settings, score_rows
from sdpo_bench.runs.log_numbers import numbers_of
from sdpo_bench.runs.run_folder import find_run
from sdpo_bench.statistics.eval_table import BASE, Scores

if TYPE_CHECKING:
    import pandas as pd

WHO = ["run", "method", "trained_on", "model", "seed"]
"""Columns of every frame: which run a row is about."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run on disk.

    Attributes:
        id: name of its folder.
        state: ``done``, ``failed``, ``interrupted`` or ``running``; ``message`` says why.
        reward: the reward that was trained on.
        settings: every setting by ``section.key``.
        bill: counts of images, denoiser calls, reward calls and optimiser steps; empty before the first epoch.
        training_seconds: seconds of training so far.
    """

    id: str
    folder: Path
    state: str
    message: str
    method: str
    reward: str
    model: str
    seed: int
    settings: Mapping[str, Any]
    bill: Mapping[str, Any]
    training_seconds: float

    @property
    def own_settings(self) -> dict[str, Any]:
        """The settings that are not at their defaults, and the names."""
        return own_settings(self._read)

    @cached_property
    def table(self) -> "pd.DataFrame":
        """Mean scores, base against tuned, one row a sampler, split, reward, version and step count.

        ``standard_error`` is that of the paired difference over images: it says nothing about other training seeds.
        """
        import pandas as pd

        return pd.DataFrame(score_rows(self._read, bases_beside(self._read)[0]))

    @cached_property
    def curves(self) -> "pd.DataFrame":
        """Training curves: ``epoch, images, denoiser_calls, metric, value``, one row a number."""
        import pandas as pd

        return pd.DataFrame([vars(point) for point in curve_points(self._read)], columns=_CURVE_COLUMNS)

    @cached_property
    def _read(self) -> read_results.Run:
        found = read_run(self.folder)
        if isinstance(found, Notice):
            raise UsageError(f"'{found.where}': {found.text}")
        return found[0]

    def __repr__(self) -> str:
        return f"<Run {self.id} ({self.state})>"


_CURVE_COLUMNS = ["epoch", "images", "denoiser_calls", "metric", "value"]


@dataclass(frozen=True, eq=False)
class Results:
    """A results folder.

    Attributes:
        runs: sorted by id.
        notices: what could not be used, ``PLACE: TEXT``.
    """

    folder: Path
    runs: tuple[Run, ...]
    notices: tuple[str, ...]
    _bases: tuple[read_results.Run, ...]

    def run(self, name: str) -> Run:
        """The run of that id, or of the unique beginning of one.

        Raises:
            UsageError: none or several fit.
        """
        return open_run(name, self.folder)

    @cached_property
    def scores(self) -> "pd.DataFrame":
        """One row an image and reward: who, ``sampler, split, reward, version, prompt, steps, image, score``.

        The base model's rows have the method ``base model`` and no seed. Incomplete step counts of a run are left out.
        """
        import pandas as pd

        every = [run._read for run in self.runs] + list(self._bases)
        found, _ = read_all_scores(every)
        frames = [_score_frame(run, found[run.id]) for run in every if run.id in found]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*WHO, *_SCORE_COLUMNS])

    @cached_property
    def curves(self) -> "pd.DataFrame":
        """One row a number of a run's logs: who, ``epoch, images, denoiser_calls, metric, value``."""
        import pandas as pd

        frames = [_with_names(run.curves, _names(run._read)) for run in self.runs]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*WHO, *_CURVE_COLUMNS])

    @cached_property
    def bills(self) -> "pd.DataFrame":
        """One row a count: who, ``item, amount``; ``training_seconds`` is an item."""
        import pandas as pd

        rows = [[*_names(run._read).values(), item, amount] for run in self.runs for item, amount in _items(run)]
        return pd.DataFrame(rows, columns=[*WHO, "item", "amount"])

    def __repr__(self) -> str:
        return f"<Results {self.folder}: {len(self.runs)} runs, {len(self.notices)} notices>"


_SCORE_COLUMNS = ["sampler", "split", "reward", "version", "prompt", "steps", "image", "score"]


def load_results(folder: str | Path = "results") -> Results:
    """Read a results folder; scores and curves are read when a frame is asked for.

    Raises:
        UsageError: no results folder, or neither run nor study in it.
    """
    found = read_results.load_results(Path(folder))
    notices = tuple(f"{notice.where}: {notice.text}" for notice in found.notices)
    return Results(found.out, tuple(map(run_of, found.runs)), notices, found.bases)


def open_run(run: "Run | str | Path", results: str | Path = "results") -> Run:
    """A run by id, by the unique beginning of one, or by the path of its folder.

    Raises:
        UsageError: none or several fit, a base model's folder, or a damaged record.
    """
    if isinstance(run, Run):
        return run
    found = read_run(find_run(Path(results), str(run)).path)
    if isinstance(found, Notice):
        raise UsageError(f"'{found.where}': {found.text}")
    if found[1] == "base":
        raise UsageError(f"'{found[0].id}' holds the base model's scores and is no run. Runs: sdpo-bench list runs")
    return run_of(found[0])


def run_of(run: read_results.Run) -> Run:
    """A run that was read, as the API shows it."""
    return Run(
        run.id,
        run.folder.path,
        run.state,
        run.message,
        run.method,
        run.reward,
        run.model,
        run.seed,
        run.settings,
        run.bill,
        run.seconds,
    )


def _names(run: read_results.Run) -> dict[str, Any]:
    is_base = run.record.get("kind") == "base"
    names = (BASE, None, run.model, None) if is_base else (run.method, run.reward, run.model, run.seed)
    return dict(zip(WHO, (run.id, *names)))


def _with_names(frame: "pd.DataFrame", names: Mapping[str, Any]) -> "pd.DataFrame":
    return frame.assign(**names)[[*WHO, *frame.columns]]


def _score_frame(run: read_results.Run, scores: Scores) -> "pd.DataFrame":
    import pandas as pd

    frames = []
    for key, block in scores.every_block:
        prompts, steps, images = (np.asarray(axis) for axis in (block.prompts, block.steps, block.images))
        present = np.ones(block.scores.shape, bool) if block.present is None else block.present
        p, k, i = np.nonzero(present)
        where = {"prompt": prompts[p], "steps": steps[k], "image": images[i], "score": block.scores[p, k, i]}
        frames.append(pd.DataFrame({**key._asdict(), **where}))
    return _with_names(pd.concat(frames, ignore_index=True), _names(run))


def _items(run: Run) -> Iterator[tuple[str, float]]:
    yield from numbers_of(run.bill)
    yield "training_seconds", run.training_seconds
