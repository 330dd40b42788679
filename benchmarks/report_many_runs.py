"""How long ``report`` and ``list runs`` take on a results folder with very many runs.

    python benchmarks/report_many_runs.py --runs 10000

Makes synthetic run folders (4 methods x 5 learning rates x 25 seeds a setting, rewards x budgets for the rest; 45
prompts, 4 step counts, 2 rewards; 40 epochs of training log) and prints seconds, peak memory and sizes as JSON.
The goals for 10,000 runs on two cores: 10 s in a terminal, 20 s for HTML, 400 MB.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from report_factory import base_frame, frame, make_base, make_run

METHODS = ("sdpo", "ddpo", "d3po", "sparse_dpo")
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SEEDS = 25
REWARDS = tuple(f"reward-{i}" for i in range(5))
PROMPTS = tuple(f"animal {i}" for i in range(45))
STEPS = (1, 2, 4, 8)
COMMANDS = {
    "list runs": (
        "from pathlib import Path; from sdpo_bench.results.run_list import list_runs; "
        "print(len(list_runs(Path(OUT))[1]))"
    ),
    **{
        f"report --format {style}": (
            "from pathlib import Path; from sdpo_bench.cli.commands.report import report_command; "
            f"report_command(results=Path(OUT), select=(), group_by=(), metric='mean', style={style!r}, "
            f"out=Path(OUT) / 'report.{style}')"
        )
        for style in ("terminal", "csv", "html")
    },
}


def make_folders(out: Path, runs: int) -> None:
    """Settings of 500 runs; every setting is a reward with a budget of its own."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(len(PROMPTS), len(STEPS), 1))
    for reward in REWARDS:
        frames = [base_frame(base, reward=name, prompts=PROMPTS, steps=STEPS) for name in (reward, "held-out")]
        make_base(out, *frames, name=f"base-{reward}")
    for _, (setting, method, rate, seed) in zip(range(runs), product(range(runs), METHODS, RATES, range(SEEDS))):
        reward = REWARDS[setting % len(REWARDS)]
        scores = base + rng.normal(0.3, 0.3) + rng.normal(0, 0.2, size=base.shape)
        rows = [
            partial(frame, scores * part, reward=name, prompts=PROMPTS, steps=STEPS)
            for name, part in ((reward, 1.0), ("held-out", 0.5))
        ]
        budget = 2560 * (1 + setting // len(REWARDS))
        changes = {"update.lr": rate, "budget.amount": budget}
        make_run(out, method, seed, None, frames=rows, reward=reward, epochs=40, **changes)


def measure(out: Path, code: str) -> dict[str, float]:
    """Seconds and peak memory of a command in a process of its own."""
    # Not ru_maxrss, which starts at what the process that started this one had.
    peak = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    program = f"OUT = {str(out)!r}; {code}; {peak}"
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_mib": round(int(done.stdout.split()[-1]) / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10000)
    parser.add_argument("--keep", type=Path, help="Make the folders here and keep them (reused if there).")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.keep or Path(temporary) / "results"
        if not (out / "runs").is_dir():
            make_folders(out, arguments.runs)
        found = {name: measure(out, code) for name, code in COMMANDS.items()}
        sizes = {path.name: path.stat().st_size for path in out.glob("report.*")}
    load = os.getloadavg()[0]
    print(
        json.dumps({"runs": arguments.runs, "cores": os.cpu_count(), "load": load, **found, "bytes": sizes}, indent=1)
    )


if __name__ == "__main__":
    main()
