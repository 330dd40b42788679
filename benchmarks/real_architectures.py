"""Does a whole run work on a pipeline of the published size? The tests have small ones; this makes a full-size one.

Writes StableDiffusionPipeline in SD-Turbo's architecture (866 M-parameter UNet) with random weights to a temporary
folder, and trains, saves, evaluates and exports one SDPO step with LoRA from it in fp32 and bf16; likewise a small
SDXL- and a small LCM-shaped pipeline. Each part runs in a process of its own, so that peak memory does not mix, and
is compared with the estimate that a run prints. Needs about 12 GB of memory and 6 GB of disk.

    python -m benchmarks.real_architectures [sd-turbo] [sdxl] [lcm] [--precision fp32 bf16] [--train-only]
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

from benchmarks.apart import apart

PARTS = ("sd-turbo", "sdxl", "lcm")


def write(name: str, folder: Path) -> None:
    """The pipeline folder of one part."""
    from sdpo_bench.models.pipeline_files import published
    from tools.random_pipeline import SMALL, write_pipeline

    known = published(name)
    write_pipeline(known.configs if known else SMALL[name], folder)


def train(name: str, folder: Path, precision: str, resolution: int | None, train_only: bool, answers) -> None:
    """One optimiser step and all that belongs to a run; puts what came out into the queue ``answers``."""
    import torch

    torch.set_num_threads(1)
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("a cat\n")
    images = 2 if resolution else 8
    settings = {
        "model.precision": precision,
        "schedule.steps": 2,
        "sample.images_per_epoch": images,
        "sample.prompts": str(prompts),
        "update.minibatch": images // 2,
        "update.accumulation": 1,
        "update.order": "accumulated",
        "budget.images": images,
        "eval.steps": "1",
        "eval.train": str(prompts),
        "eval.images_per_prompt": 1,
    } | ({"model.resolution": resolution} if resolution else {})
    found = run_once(folder, settings, folder.parent / f"results-{precision}", train_only)
    answers.put({"part": name, "precision": precision, "pixels": resolution or "own"} | found)


def run_once(folder: Path, settings: dict, out: Path, train_only: bool) -> dict:
    """Run it, or only train it and read the adapter back, and say what it took."""
    from sdpo_bench.config.resolve import Request, resolve
    from sdpo_bench.estimates import memory_estimate
    from sdpo_bench.models.base_model import load_policy
    from sdpo_bench.running.run_one import run_job
    from sdpo_bench.runs.run_folder import RunFolder
    from sdpo_bench.runs.saved_adapter import load_adapter, save_adapter
    from sdpo_bench.scoring.make_scorers import make_scorer
    from sdpo_bench.scoring.scorer import supervise
    from sdpo_bench.settings import Runtime
    from sdpo_bench.training.loop import Trainer, run_context

    resolved = resolve(Request(method="sdpo", reward="jpeg-compressibility", model=str(folder), overrides=settings))
    needed = memory_estimate.estimate(resolved.config, 2, "cpu")
    runtime = Runtime(out, "cpu", micro_batch=2, threads=1)
    start = time.perf_counter()
    if train_only:
        run = RunFolder(out / "runs" / resolved.run_id)
        run.create({"kind": "run", "config": resolved.data})
        policy = load_policy(resolved.config.model, lora_seed=0)
        reward = make_scorer("jpeg-compressibility", {}, "cpu").reward
        context = run_context(resolved.config, runtime, policy, resolved.method(resolved.method.Settings()))
        Trainer(context, resolved.config, run, supervise("jpeg-compressibility", reward, context.ledger)).train()
        save_adapter(policy, run.lora)
        load_adapter(policy, run.lora)
    else:
        run = run_job(resolved, runtime).run
    (row,) = run.log()
    (timing,) = run.log("timing.jsonl")
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "training_seconds": timing["seconds"],
        "loss": row["loss"],
        "grad_norm": row["grad_norm"],
        "ratio_at_zero_update": row["ratio_at_zero_update"],
        "optimiser_steps": row["bill"]["optimiser_steps"],
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "estimate_gb": round(needed.total / 1e9, 2),
        "adapter_bytes": next(run.lora.iterdir()).stat().st_size,
        "evaluated": run.evaluation.exists(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--resolution", type=int, default=64, help="pixels of the full-size model's pictures")
    parser.add_argument("--train-only", action="store_true", help="leave the evaluation and the grid out")
    given = parser.parse_args()
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    for name in given.parts:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / name
            started = time.perf_counter()
            apart(write, name, folder)
            written = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            print(f"{name}: {written / 1e9:.2f} GB written in {time.perf_counter() - started:.0f} s", flush=True)
            for precision in given.precision:
                size = given.resolution if name == "sd-turbo" else None
                apart(train, name, folder, precision, size, given.train_only, answers)
                print(json.dumps(answers.get()), flush=True)


if __name__ == "__main__":
    main()
