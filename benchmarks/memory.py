"""Is memory flat over epochs, close to what the calls alone need, and what was estimated before the start?

    python -m benchmarks.memory [--model 13m|embedded] [--epochs 20] [--pairs 4] [--steps 4]

Two processes: one trains and reads its resident memory after every
epoch; one makes the calls of an epoch alone (the floor); both report their peak. Prints JSON.
"""

import argparse
import gc
import json
import multiprocessing
import resource
import tempfile
from pathlib import Path


def peak() -> float:
    """Highest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def train(model: str, out: str, options: dict, answers) -> None:
    """Resident memory after each epoch."""
    import psutil
    import torch

    from benchmarks import epochs
    from sdpo_bench.estimates import memory_estimate

    torch.set_num_threads(1)
    largest = 2 * options["pairs"]  # of the epoch; evaluation, which is not measured, would decode more at once
    trainer = epochs.make_trainer(
        model, "sdpo", Path(out), steps=options["steps"], pairs=options["pairs"], runtime={"micro_batch": largest}
    )
    needed = memory_estimate.estimate(trainer.resolved.config, largest, "cpu")
    resident = []
    for _ in range(options["epochs"]):
        epochs.epoch(trainer)
        gc.collect()
        resident.append(round(psutil.Process().memory_info().rss / 2**20, 1))
    answers.put({"resident_mb": resident, "peak_mb": round(peak(), 1), "estimate_mb": round(needed.total / 2**20, 1)})


def floor(model: str, out: str, options: dict, answers) -> None:
    """The same calls without the harness, on inputs made on the spot."""
    import torch

    from benchmarks import epochs

    torch.set_num_threads(1)
    trainer = epochs.make_trainer(model, "sdpo", Path(out), steps=options["steps"], pairs=options["pairs"])
    policy, pairs, steps = trainer.policy, options["pairs"], options["steps"]
    rows = 2 * trainer.config.update.minibatch
    hidden = {k: v.expand(max(rows, 2 * pairs), -1, -1) for k, v in policy.encode(["a cat"]).positive.items()}

    def call(n: int, grad: bool) -> epochs.Call:
        told = {k: v[:n] for k, v in hidden.items()}
        return epochs.Call("unet", (torch.randn(n, *policy.latent_shape), torch.full((n,), 500), told), grad)

    images = policy.decode(torch.randn(2 * pairs, *policy.latent_shape))
    prompts = trainer.prompts[:1] * 2 * pairs
    for _ in range(2):
        calls = [call(2 * pairs, False) for _ in range(steps)]
        calls += [epochs.Call("decode", (torch.randn(5 * pairs, *policy.latent_shape),))]
        calls += [epochs.Call("reward", (images, prompts))]
        calls += [call(rows, True) for _ in range(steps)]
        epochs.replay(trainer, calls)
    answers.put({"floor_peak_mb": round(peak(), 1)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--model", choices=("13m", "embedded"), default="13m")
    options = vars(parser.parse_args())
    context = multiprocessing.get_context("spawn")
    found: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        from benchmarks import epochs

        model = "emoji-turbo" if options["model"] == "embedded" else str(epochs.pipeline_13m(Path(folder) / "13m"))
        for work in (train, floor):
            answers = context.Queue()
            process = context.Process(target=work, args=(model, str(Path(folder) / work.__name__), options, answers))
            process.start()
            found |= answers.get(timeout=3600)
            process.join()
    resident = found["resident_mb"]
    found["growth_after_epoch_2"] = round(max(resident[2:]) / resident[2] - 1, 4) if len(resident) > 3 else None
    found["peak_over_floor"] = round(found["peak_mb"] / found["floor_peak_mb"], 3)
    found["estimate_over_peak"] = round(found["estimate_mb"] / found["peak_mb"], 3)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
