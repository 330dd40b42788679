"""The search behind the preset `embedded`: the same number of short runs for every method, judged on other noise.

Every method gets the same grid of learning rates times two values of the one setting of its own that decides how far
it moves; the same images, optimiser steps and tuning seed (one that no reported run uses). A setting is judged by the
rise of `emoji-align` over the base model in standard errors over images, averaged over 1, 4 and 16 steps, with an
evaluation noise bank (1) that no reported number uses. In standard errors, because a large mean rise with a large
spread is a policy that improves some pictures and breaks others. The table of all runs, not only of the best, is the
record.

    python tools/search_embedded.py --out DIR [--jobs 2] [--images 1536]
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

SEED = 1000
STEPS = (1, 4, 16)
RATES = (1e-3, 2e-3, 4e-3)
OWN = {
    "sdpo": ("method.clip_range", (1e-3, 1e-2)),
    "ddpo": ("method.clip_range", (1e-3, 1e-2)),
    "d3po": ("method.beta", (1.0, 100.0)),
    "sparse_dpo": ("method.beta", (1.0, 100.0)),
    "rebel": ("method.log_scale", (0.01, 1.0)),
    "grpo": ("method.clip_range", (1e-3, 1e-2)),
    "dpok": ("method.kl_weight", (0.01, 1.0)),
    "tdpo": ("method.clip_range", (1e-3, 1e-2)),
    "pso": ("method.beta", (1.0, 100.0)),
    "refl": ("method.window", (0.25, 0.5)),
    "draft": ("method.steps", (1, 2)),
}
"""The setting of a method's own, and its candidates."""


def train(method: str, rate: float, value: float, images: int, out: Path) -> dict[str, Any]:
    """One run; its rise over the base model and the standard error by step count."""
    key = OWN[method][0]
    settings = {
        "update.lr": rate,
        key: value,
        "eval.noise_bank": 1,
        "eval.steps": ",".join(map(str, STEPS)),
        "eval.images_per_prompt": 2,
    }
    command = [sys.executable, "-m", "sdpo_bench", "run", "--method", method, "--seed", str(SEED), "--json"]
    command += ["--budget", f"images={images}", "--out", str(out), "--threads", "1", "--micro-batch", "128"]
    command += [part for name, setting in settings.items() for part in ("--set", f"{name}={setting}")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    trained = [row for row in json.loads(done.stdout)["table"] if row["reward"] == "emoji-align"]
    rises = {row["steps"]: (row["difference"], row["standard_error"]) for row in trained}
    return {"method": method, "lr": rate, "own": value, "rises": rises}


def main() -> None:
    """Run the grid and print one line a run, each method's best setting marked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--images", type=int, default=1536)
    parser.add_argument("--methods", nargs="*", default=list(OWN), choices=list(OWN))
    args = parser.parse_args()
    grid = [(m, rate, own) for m in args.methods for rate, own in product(RATES, OWN[m][1])]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = list(pool.map(lambda cell: train(*cell, args.images, args.out), grid))
    print("| method | setting | lr | " + " | ".join(f"{k} steps" for k in STEPS) + " | mean, in SE | |")
    print("|---|---|---|" + "---|" * len(STEPS) + "---|---|")
    for method in args.methods:
        mine = [run for run in runs if run["method"] == method]
        best = max(mine, key=mean_rise)
        for run in mine:
            cells = " | ".join(f"{run['rises'][k][0]:+.3f} ({run['rises'][k][1]:.3f})" for k in STEPS)
            name = OWN[method][0].split(".")[1]
            mark = "chosen" if run is best else ""
            print(f"| {method} | {name} {run['own']:g} | {run['lr']:g} | {cells} | {mean_rise(run):+.1f} | {mark} |")


def mean_rise(run: dict[str, Any]) -> float:
    """Rise in standard errors, averaged over the step counts."""
    return sum(difference / error for difference, error in run["rises"].values()) / len(run["rises"])


if __name__ == "__main__":
    main()
