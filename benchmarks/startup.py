"""How long before anything happens: importing, listing, and the first denoiser call of a run.

    python -m benchmarks.startup [--repeats 3]

Each measurement is a fresh process. Goals: import, ``--help`` and ``list`` under 0.5 s (no torch), first denoiser call
of ``sdpo-bench run`` on the embedded model within 10 s. CPU seconds stand beside wall seconds, because a shared machine
stretches the second. Prints JSON, best of the repeats.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

FIRST_CALL = """
import sys, time
from sdpo_bench.models.policy import Policy
call = Policy._call
def first(*arguments):
    print(time.process_time(), flush=True)
    import os; os._exit(0)
Policy._call = first
from sdpo_bench.cli.entry import main
main(["run", "--threads", "1", "--out", sys.argv[1]])
"""
COMMANDS = {
    "import": [sys.executable, "-c", "import sdpo_bench"],
    "--help": [sys.executable, "-m", "sdpo_bench", "--help"],
    "list methods": [sys.executable, "-m", "sdpo_bench", "list", "methods"],
    "first denoiser call": [sys.executable, "-c", FIRST_CALL],
}


def measure(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds of one fresh process."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as out:
        before, start = os.times(), time.perf_counter()
        full = [*command, out] if command[-1] == FIRST_CALL else command
        # No pipes: the second process of a run holds them open for seconds after the first one has ended.
        subprocess.run(full, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after, seconds = os.times(), time.perf_counter() - start
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    for name, command in COMMANDS.items():
        print(json.dumps({"what": name, **min((measure(command) for _ in range(repeats)), key=lambda m: m["seconds"])}))


if __name__ == "__main__":
    main()
