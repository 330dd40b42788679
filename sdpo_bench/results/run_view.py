"""One run as a reader wants it: its own settings, cost, scores beside the base model's, and curves. No torch here."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdpo_bench.config.differences import differs_from_default
from sdpo_bench.results.read_results import MODEL_KEYS, Notice, Run, read_run
from sdpo_bench.results.read_scores import foreign_run_ids, own_prompts
from sdpo_bench.results.run_list import base_panels, shared_part
from sdpo_bench.runs.log_numbers import numbers_of
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.statistics.eval_table import own_part
from sdpo_bench.statistics.score_reader import read_scores

FILES = ("run.json", "train.jsonl", "timing.jsonl", "eval.parquet", "grid.png", "lora", "checkpoints")
CURVES = {"train.jsonl": ""}
"""Logs that are curves, and what is put before the names of their numbers."""
AXES = ("epoch", "images", "denoiser_calls", "reward_calls", "optimiser_steps")
"""Numbers of a log's line that say where a point of a curve lies."""
BASE_PREFIX = "base-"


@dataclass(frozen=True)
class Point:
    """One number of a curve.

    Attributes:
        epoch, images, denoiser_calls: what training had done by then; None where the log does not say.
        metric: name in the log, nested ones as ``pictures.diversity``.
    """

    epoch: int | None
    images: float | None
    denoiser_calls: float | None
    metric: str
    value: float


def bases_beside(run: Run) -> tuple[list[Run], list[Notice]]:
    """Base models' folders in the results folder of a run, and why one cannot be read."""
    bases, notices = [], []
    for path in sorted(run.folder.path.parent.glob(f"{BASE_PREFIX}*")):
        found = read_run(path)
        if isinstance(found, Notice):
            notices.append(found)
        elif found[1] == "base":
            bases.append(found[0])
    return bases, notices


def score_rows(run: Run, bases: Sequence[Run]) -> list[dict[str, Any]]:
    """Base against tuned by sampler, split, reward, version and step count, paired over images.

    ``standard_error`` is that of the mean paired difference over images; it says nothing about other training seeds.
    """
    if not run.folder.evaluation.exists():
        return []
    scores = read_scores(run.folder.evaluation, pictures=False)
    if foreign_run_ids(run, scores):
        return []
    scores = own_part(scores, own_prompts(run.folder, run.record))
    base = base_panels(bases).get(tuple(run.settings.get(key) for key in MODEL_KEYS), {})
    rows = []
    for key in sorted(scores.blocks):
        if key in base and (pair := shared_part(scores.blocks[key], base[key])):
            tuned, untuned = pair
            for i, steps in enumerate(tuned.steps):
                rows.append({**key._asdict(), "steps": steps, **_paired(tuned.scores[:, i], untuned.scores[:, i])})
    return rows


def _paired(tuned: np.ndarray, base: np.ndarray) -> dict[str, Any]:
    difference = (tuned - base).ravel()
    count = difference.size
    error = float(difference.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    means = {"base": float(base.mean()), "tuned": float(tuned.mean()), "difference": float(difference.mean())}
    return {"images": count, **means, "standard_error": error}


def own_settings(run: Run) -> dict[str, Any]:
    """The settings that are not at their defaults, and the names."""
    sources = run.record.get("sources")
    origin = sources if isinstance(sources, Mapping) else {}
    return {
        key: value
        for key, value in run.settings.items()
        if differs_from_default(key, value, str(origin.get(key, "default")))
    }


def curve_points(run: Run) -> Iterator[Point]:
    """The numbers of all logs of :data:`CURVES`, in the order of the logs, then the points of the learning curve.

    A score of the learning curve is named ``eval/REWARD/SPLIT/STEPS``, as trackers name those of the evaluation.
    """
    for name, prefix in CURVES.items():
        for row in run.folder.log(name):
            bill = row.get("bill")
            place = {**(bill if isinstance(bill, dict) else {}), "epoch": row.get("epoch")}
            for metric, value in numbers_of(row):
                if not metric.startswith("bill.") and metric not in AXES:
                    epoch, images, calls = (place.get(axis) for axis in ("epoch", "images", "denoiser_calls"))
                    yield Point(epoch, images, calls, prefix + metric, value)
    for row in run.folder.log("curve.jsonl"):
        epoch, images, calls = (row.get(axis) for axis in ("epoch", "images", "denoiser_calls"))
        for score in row.get("scores", ()):
            name = f"eval/{score['reward']}/{score['split']}/{score['steps']}"
            yield Point(epoch, images, calls, name, score["mean"])


def files_of(folder: RunFolder) -> dict[str, Path]:
    """The files and folders that are there, by name."""
    return {name: folder.path / name for name in FILES if (folder.path / name).exists()}
