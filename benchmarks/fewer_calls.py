"""How much do shared calls save? Our epoch against a plain loop that makes the calls of the official code.

    python -m benchmarks.fewer_calls [--steps 10 2] [--pairs 8] [--repeats 3]

The plain loop is not the official program: it makes the calls that the official implementation makes for the same
samples (both trajectories of a pair through all T steps in sampling and in training; three queried images a trajectory,
the first step's and repeated ones included; every prompt encoded for each trajectory) and nothing else, with the same
networks, batches and threads in the same process. So a ratio here is our whole epoch, bookkeeping included, over the
others' calls alone. Prints JSON.
"""

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

import torch

from benchmarks import epochs
from benchmarks.epochs import Call


def official_calls(trainer, pairs: int, steps: int) -> list[Call]:
    """The official order: trajectory a of all pairs, then b; in training each minibatch's a and b in one call."""
    policy = trainer.policy
    prompts = (trainer.prompts * pairs)[:pairs]
    hidden = policy.encode(prompts).positive
    noise = lambda n: torch.randn(n, *policy.latent_shape)  # noqa: E731
    times = trainer.schedule.timesteps
    images = policy.decode(noise(pairs))
    calls = []
    for _ in "ab":
        calls += [Call("encode", (prompt,)) for prompt in prompts]
        calls += [Call("unet", (noise(pairs), times[i].expand(pairs), hidden)) for i in range(steps)]
        for _query in range(3):
            calls += [Call("decode", (noise(pairs),)), Call("reward", (images, prompts))]
    size = trainer.config.update.minibatch
    for i in range(steps):
        for start in range(0, pairs, size):
            mine = {k: v[start : start + size].repeat(2, 1, 1) for k, v in hidden.items()}
            calls.append(Call("unet", (noise(2 * size), times[i].expand(2 * size), mine), True))
    return calls


def counts(calls: list[Call]) -> dict[str, int]:
    """Rows of each kind of call."""
    found: Counter[str] = Counter()
    for call in calls:
        rows = 1 if call.kind == "encode" else len(call.arguments[0])
        found[call.kind + (" forward" if call.kind == "unet" else "")] += rows
        if call.differentiated:
            found["unet backward"] += rows
    return dict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 2])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = epochs.pipeline_13m(Path(folder) / "13m")
        for steps in options.steps:
            trainer = epochs.make_trainer(
                str(model),
                "sdpo",
                Path(folder),
                steps=steps,
                pairs=options.pairs,
                **{"update.minibatch": options.pairs // 2},
            )
            # The two diagnostic pairs of each epoch (KL to the base model) are ours and stay in our time.
            ours = epochs.record(trainer)
            theirs = official_calls(trainer, options.pairs, steps)
            times = epochs.alternate(
                lambda: epochs.epoch(trainer),  # noqa: B023
                lambda: epochs.replay(trainer, theirs),  # noqa: B023
                options.repeats,
            )
            print(json.dumps({"steps": steps, "ours": counts(ours), "plain": counts(theirs), "cpu": times}), flush=True)


if __name__ == "__main__":
    main()
