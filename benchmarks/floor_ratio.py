"""What does the harness cost over the calls it makes? CPU time of an epoch over that of its calls alone.

    python -m benchmarks.floor_ratio [--model 13m embedded] [--method sdpo ddpo d3po] [--repeats 3] [--profile]

Both sides alternate in one process. Goals: at most 1.05 on a 13 M-parameter UNet (8 pairs, 10 steps), at most 1.15 on
the embedded model. ``--profile`` says where the rest goes. Prints JSON.
"""

import argparse
import cProfile
import json
import pstats
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import epochs

HARNESS = (
    "_optimiser_step",
    "_snapshot",
    "append",
    "_switch",
    "_loss",
    "_minibatch",
    "_record_gradient",
    "_record_ratio",
    "denoise",
    "gaussian_log_prob",
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=("13m", "embedded"), default=["13m", "embedded"])
    parser.add_argument("--method", nargs="+", default=["sdpo", "ddpo", "d3po"])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        big = epochs.pipeline_13m(Path(folder) / "13m") if "13m" in options.model else None
        for model in options.model:
            name, reward = (str(big), "jpeg-incompressibility") if model == "13m" else ("emoji-turbo", "emoji-align")
            for method in options.method:
                trainer = epochs.make_trainer(
                    name,
                    method,
                    Path(folder) / model,
                    steps=options.steps,
                    pairs=options.pairs,
                    reward=reward,
                    **{"update.minibatch": options.pairs // 2},
                )
                calls = epochs.record(trainer)
                times = epochs.alternate(
                    lambda: epochs.epoch(trainer),  # noqa: B023
                    lambda: epochs.replay(trainer, calls),  # noqa: B023
                    options.repeats,
                )
                found = {"model": model, "method": method, "calls": len(calls), **times}
                if options.profile:
                    found["profile"] = attribute(trainer)
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
