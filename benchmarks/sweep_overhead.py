"""What a job of a sweep costs over its own work: the process, the imports that it repeats, loading, the log.

    python benchmarks/sweep_overhead.py [--jobs 6] [--rounds 2]

A sweep of small jobs (SDPO on the embedded model, one epoch of 64 images, one job a seed), one at a time, and the same
runs one after the other in one process, in turn. Both import the libraries once, so that the difference over the number
of jobs is the overhead of a job. Goal: 3 s. CPU seconds count all processes (Linux only).
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUITE = """description = "Small jobs"

[cells]
method = "sdpo"
reward = "emoji-align"
model = "emoji-turbo"
seed = {seeds}

[budget]
images = 64

[eval]
steps = [1]
images_per_prompt = 1
"""
IN_ONE_PROCESS = """
import sys
from pathlib import Path
from sdpo_bench.sweep import preload
from sdpo_bench.config.resolve import resolve
from sdpo_bench.running.run_one import run_job
from sdpo_bench.settings import Runtime
from sdpo_bench.sweep.plan import make_plan
from sdpo_bench.sweep.suite import read_suite
out = Path(sys.argv[2])
for job in make_plan(read_suite(Path(sys.argv[1])), out).jobs:
    run_job(resolve(job.request), Runtime(out, threads=1))
"""
PR_SET_CHILD_SUBREAPER = 36
"""Of prctl(2): processes whose parent ends become ours, so that their CPU time is counted."""


def measure(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds of a command with all processes that it starts."""
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    seconds = time.perf_counter() - started
    try:
        while True:
            os.wait()
    except ChildProcessError:
        after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    overheads: dict[str, list[float]] = {"seconds": [], "cpu_seconds": []}
    with tempfile.TemporaryDirectory() as scratch:
        suite = Path(scratch) / "small.toml"
        suite.write_text(SUITE.format(seeds=list(range(given.jobs))))
        for number in range(given.rounds):
            ours, swept = Path(scratch) / f"one-{number}", Path(scratch) / f"sweep-{number}"
            alone = measure([sys.executable, "-c", IN_ONE_PROCESS, str(suite), str(ours)])
            sweep = [sys.executable, "-m", "sdpo_bench", "sweep", str(suite), "--out", str(swept)]
            many = measure([*sweep, "--jobs", "1", "--threads", "1"])
            print(json.dumps({"one process": alone, "sweep": many}), flush=True)
            for name, found in overheads.items():
                found.append((many[name] - alone[name]) / given.jobs)
    print(json.dumps({"overhead of a job": {name: round(statistics.median(v), 2) for name, v in overheads.items()}}))


if __name__ == "__main__":
    main()
