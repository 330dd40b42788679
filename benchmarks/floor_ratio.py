"""What does the harness cost over the calls it makes? CPU time of an epoch over that of its calls alone.

    python -m benchmarks.floor_ratio [--model 13m embedded] [--method sdpo ddpo ...] [--repeats 3] [--profile]

The calls alone are made in the largest batches that give the same gradients, whatever the minibatches of the settings.
Both sides alternate in one process, each method in a fresh one: what others have left behind costs time. The embedded
model has the settings of its preset; the 13 M-parameter UNet has 16 images, in groups of the method's own size, and 10
steps. Goals: at most 1.05 on the embedded model, 1.02 on the other, for every method that trains.
``--profile`` says where the rest goes. Prints JSON.
"""

import argparse
import cProfile
import json
import pstats
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import epochs
from benchmarks.apart import apart

HARNESS = (
    "_optimiser_step",
    "_snapshot",
    "append",
    "_switch",
    "_loss",
    "_minibatch",
    "_losses",
    "_record_gradient",
    "_record_ratio",
    "denoise",
    "log_prob",
    "gaussian_kl",
    "pick",
    "unique_rows",
    "encode",
    "initial",
    "steps",
    "choose_queries",
    "step_rewards",
    "_advantages",
    "_picture_summary",
    "picture_digests",
    "_order",
    "mean_from_original",
    "reward_metrics",
)
"""Functions of the harness that contain no call of the floor."""


def attribute(trainer) -> dict[str, float]:
    """Share of an epoch's CPU time in each function of the harness, largest first; profiling itself inflates them."""
    profiler = cProfile.Profile(time.process_time)
    profiler.runcall(epochs.epoch, trainer)
    entries = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    whole = next(t for (_, _, name), (_, _, _, t, _) in entries.items() if name == "_epoch")
    shares: dict[str, float] = {}
    for (path, _, name), (_, _, _, total, _) in entries.items():
        if "sdpo_bench" in path and name in HARNESS:
            shares[f"{Path(path).stem}.{name}"] = round(total / whole, 4)
    return dict(sorted(shares.items(), key=lambda item: -item[1])[:12])


def trained_methods() -> list[str]:
    """Every registered method that trains."""
    from sdpo_bench.plugins.registry import find, plugins

    return [name for name in plugins("methods") if find("methods", name).load().signal != "none"]


def trainer_of(model: str, method: str, folder: Path, options: argparse.Namespace) -> Any:
    """A trainer of the embedded model by its preset, or of the 13 M-parameter UNet."""
    if model == "embedded":
        return epochs.make_trainer("emoji-turbo", method, folder / model, reward="emoji-align")
    return small_trainer(folder / "13m", method, folder / "runs-13m", images=2 * options.pairs, steps=options.steps)


def small_trainer(pipeline: Path, method: str, out: Path, *, images: int, steps: int) -> Any:
    """A trainer whose epoch has about ``images`` images, in groups of the method's own size, and two optimiser steps.

    An epoch is one group where a group is larger, and then one optimiser step.
    """
    from sdpo_bench.plugins.parse_settings import validate
    from sdpo_bench.plugins.registry import find

    plugin = find("methods", method).load()
    members = plugin(validate(plugin.Settings, {}, "method")).members
    groups = max(1, images // members)
    minibatch = max(size for size in range(1, groups + 1) if groups % size == 0 and size <= max(1, groups // 2))
    settings = {
        "schedule.steps": steps,
        "sample.images_per_epoch": groups * members,
        "update.minibatch": minibatch,
        "update.accumulation": 1,
        "budget.images": groups * members,
    }
    reward = "emoji-align" if plugin.signal == "gradient" else "jpeg-incompressibility"  # one that has a gradient
    return epochs.make_trainer(str(pipeline), method, out, reward=reward, **settings)


def measure(trainer: Any, repeats: int) -> dict[str, Any]:
    """Numbers of calls, CPU seconds of an epoch and of its calls alone, and their ratio."""
    made = epochs.record(trainer)
    calls = epochs.largest_batches(made, trainer.runtime.micro_batch)
    times = epochs.alternate(lambda: epochs.epoch(trainer), lambda: epochs.replay(trainer, calls), repeats)
    return {"calls": len(made), "fewest": len(calls), **times}


def one_method(model: str, method: str, folder: str, options: argparse.Namespace) -> None:
    """Measure it and print its line."""
    torch.set_num_threads(1)
    trainer = trainer_of(model, method, Path(folder), options)
    found = {"model": model, "method": method, **measure(trainer, options.repeats)}
    if options.profile:
        found["profile"] = attribute(trainer)
    print(json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=("13m", "embedded"), default=["13m", "embedded"])
    parser.add_argument("--method", nargs="+", default=trained_methods())
    parser.add_argument("--pairs", type=int, default=8, help="half of the images of the 13 M-parameter UNet")
    parser.add_argument("--steps", type=int, default=10, help="of the 13 M-parameter UNet")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if "13m" in options.model:
            epochs.pipeline_13m(Path(folder) / "13m")
        for model in options.model:
            for method in options.method:
                apart(one_method, model, method, folder, options)


if __name__ == "__main__":
    main()
