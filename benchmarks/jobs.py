"""Is it faster to run several jobs of a sweep at a time, each on its share of the cores, than one after the other?

The same small suite (SDPO on the embedded model, one job a seed) is swept with one process, which has every core, and
with N processes, which have one Nth of them each: both alternate, so that other work meets them alike.

    python benchmarks/jobs.py [--jobs 2] [--rounds 3] [--images 512]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUITE = """description = "The same work by different numbers of jobs"

[cells]
method = "sdpo"
reward = "emoji-align"
model = "emoji-turbo"
seed = {seeds}

[budget]
images = {images}

[eval]
steps = [1, 4]
images_per_prompt = 1
"""


def sweep(suite: Path, out: Path, jobs: int) -> float:
    """Seconds of one whole sweep, from the command to its end."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "sdpo_bench", "sweep", str(suite), "--out", str(out), "--jobs", str(jobs)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=512)
    given = parser.parse_args()
    seconds: dict[int, list[float]] = {1: [], given.jobs: []}
    with tempfile.TemporaryDirectory() as scratch:
        suite = Path(scratch) / "jobs.toml"
        suite.write_text(SUITE.format(seeds=list(range(2 * given.jobs)), images=given.images))
        for round_number in range(given.rounds):
            for jobs, found in seconds.items():
                found.append(round(sweep(suite, Path(scratch) / f"{round_number}-{jobs}", jobs), 1))
                print(json.dumps({"jobs": jobs, "seconds": found[-1]}), flush=True)
    ratios = [many / one for one, many in zip(*seconds.values())]
    print(json.dumps({"cells": 2 * given.jobs, "ratio_by_round": ratios, "median_ratio": statistics.median(ratios)}))


if __name__ == "__main__":
    main()
