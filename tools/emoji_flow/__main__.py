"""``python -m tools.emoji_flow --out DIR``: run every stage that is not finished yet."""

from functools import partial
from pathlib import Path

from tools.emoji_turbo.__main__ import prepare_glyphs, prepare_pools, quiet_allocator, run_stages
from tools.emoji_turbo.training import run_workers

from . import assemble, base, distill, measure


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
    run_stages("emoji_flow", __doc__, stages, workers=1)
