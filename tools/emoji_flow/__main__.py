"""``python -m tools.emoji_flow --out DIR``: run every stage that is not finished yet."""

import argparse
import time
from functools import partial
from pathlib import Path

from tools.emoji_turbo.__main__ import prepare_glyphs, prepare_pools, quiet_allocator
from tools.emoji_turbo.training import run_workers

from . import assemble, base, distill, measure


def main() -> None:
    """Run the stages in order; a finished stage is recognised by the file or folder that it writes."""
    parser = argparse.ArgumentParser(prog="python -m tools.emoji_flow", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="working folder (packages, checkpoints, results)")
    parser.add_argument("--workers", type=int, default=1, help="training processes of one thread each")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    for product, stage in stages(out, arguments.workers).items():
        if (out / product).exists():
            print(f"have {product}", flush=True)
            continue
        started = time.time()
        stage()
        print(f"made {product} in {time.time() - started:.0f}s", flush=True)


def stages(out: Path, workers: int) -> dict:
    """What each stage writes, and the stage."""

    def trained(function):
        return lambda: run_workers(workers, partial(function, out), out / "rendezvous")

    return {
        "glyphs.npz": lambda: prepare_glyphs(out),
        "scorer_pool.pt": lambda: prepare_pools(out),
        "base": trained(base.train),
        "trajectories-0.pt": trained(distill.make_trajectories),
        "student": trained(distill.train),
        "emoji_flow_base": lambda: assemble.save_pipeline(out / "base", out / "emoji_flow_base"),
        "emoji_flow": lambda: assemble.save_pipeline(out / "student", out / "emoji_flow"),
        "measures.json": lambda: measure.measure(out),
    }


if __name__ == "__main__":
    quiet_allocator()
    main()
