"""What the second process saves: the main job with one process and with two, in turn.

    python -m benchmarks.main_job [--rounds 2] [--budget images=1792] [--threads 0]

Prints wall seconds and the CPU seconds of both processes. On a machine with nothing else to do wall time counts; on a
busy one the CPU seconds of the main process say what the run would have to wait for, were the second core free. Checks
that both have written the same scores and logs, byte for byte.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = """
import json, resource, sys
from sdpo_bench.cli.entry import main
try:
    main(["run", *sys.argv[1:]])
except SystemExit as stop:
    if stop.code:
        raise
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
own, other = (round(u.ru_utime + u.ru_stime, 1) for u in used)
print(json.dumps({"cpu_seconds": own, "cpu_seconds_of_second": other}))
"""


def measure(processes: int, out: Path, budget: str, threads: int) -> dict[str, float]:
    """Seconds of one run."""
    options = ["--out", str(out), "--budget", budget, "--threads", str(threads), "--processes", str(processes)]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", PROGRAM, *options], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {"seconds": round(time.perf_counter() - started, 1), **json.loads(done.stdout.splitlines()[-1])}


def numbers(out: Path) -> dict[str, bytes]:
    """Content of the files with scores and logs, by folder and name."""
    paths = [path for name in ("eval.parquet", "train.jsonl") for path in out.rglob(name)]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--budget", default="images=1792")
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(given.rounds):
            folders = {count: Path(scratch) / f"{number}-{count}" for count in (1, 2)}
            found = {n: measure(n, out, given.budget, given.threads) for n, out in folders.items()}
            same = numbers(folders[1]) == numbers(folders[2])
            ratios = {name: round(found[2][name] / found[1][name], 3) for name in ("seconds", "cpu_seconds")}
            load = os.getloadavg()[0]
            print(json.dumps({"processes": found, "ratios": ratios, "same_bytes": same, "load": load}), flush=True)


if __name__ == "__main__":
    main()
