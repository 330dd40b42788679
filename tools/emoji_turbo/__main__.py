"""``python -m tools.emoji_turbo --out DIR``: run every stage that is not finished yet."""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from . import assemble, autoencoder, base, distill, glyphs, measure, pictures, scorers
from .training import run_workers


def prepare_glyphs(out: Path) -> None:
    """Fetch the packages and write ``glyphs.npz``."""
    glyphs.fetch_packages(out / "npm")
    rgba, labels = glyphs.load_glyphs(out / "npm")
    np.savez_compressed(out / "glyphs.npz", rgba=rgba, labels=labels)
    print(f"{len(rgba)} glyphs of {len(set(labels[:, 0]))} classes", flush=True)


def prepare_pools(out: Path) -> None:
    """Draw the model's pool (without held-out combinations) and the scorers' (with them)."""
    torch.set_num_threads(1)
    data = np.load(out / "glyphs.npz")
    augment = pictures.Augmentation()
    for name, size, seed, held_out in (("pool", 12288, 11, False), ("scorer_pool", 8192, 12, True)):
        pool = pictures.make_pool(data["rgba"], data["labels"], size, seed, held_out=held_out, augment=augment)
        pool.save(out / f"{name}.pt")


def run_stages(name: str, description: str | None, stages: Callable[[Path, int], dict], workers: int) -> None:
    """Run the stages in order; a finished stage is recognised by the file or folder that it writes.

    Args:
        name: of the recipe's package.
        stages: what each stage writes, and the stage, for a working folder and a number of processes.
        workers: default of ``--workers``.
    """
    parser = argparse.ArgumentParser(prog=f"python -m tools.{name}", description=description)
    parser.add_argument("--out", type=Path, required=True, help="working folder (packages, checkpoints, results)")
    parser.add_argument("--workers", type=int, default=workers, help="training processes of one thread each")
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
        "vae": trained(autoencoder.train),
        "base_unet": trained(base.train),
        "trajectories-0.pt": trained(distill.make_trajectories),
        "unet": trained(distill.train),
        "scorer_pictures.pt": lambda: scorers.make_pictures(out),
        "align.pt": trained(scorers.train_align),
        "accuracy.pt": trained(scorers.train_accuracy),
        "emoji_turbo": lambda: assemble.save_pipeline(out, out / "emoji_turbo"),
        "emoji_scorers": lambda: assemble.save_scorers(out, out / "emoji_scorers"),
        "measures.json": lambda: measure.measure(out, out / "emoji_turbo"),
    }


def quiet_allocator() -> None:
    """Keep freed memory, for child processes too: giving it back costs page faults at every reuse."""
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**32))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**32))
    os.environ.setdefault("OMP_NUM_THREADS", "1")


if __name__ == "__main__":
    quiet_allocator()
    run_stages("emoji_turbo", __doc__, stages, workers=3)
