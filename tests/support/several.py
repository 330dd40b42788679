"""What a launched process does in ``test_distributed``: named scenarios on the tiny pipeline, one after another.

Started as ``python several.py RANK COUNT PORT FOLDER SCENARIO...``; every process leaves ``SCENARIO-RANK.json``.
"""

import json
import os
import signal
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
from places import OFFICIAL  # one thread, no network
from safetensors.torch import save_file

from factories import make_resolved, make_trainer
from sdpo_bench.errors import RunFailed
from sdpo_bench.plugins.registry import find
from sdpo_bench.rollout.sampling import Trajectories
from sdpo_bench.running.run_one import run_job
from sdpo_bench.settings import Runtime
from sdpo_bench.system.distributed import launched
from sdpo_bench.training import updater
from sdpo_bench.training.loss_scale import Fp16Scale

PIPE = OFFICIAL / "tiny_pipe"
BUDGET, SHORT, GROUPS = {"budget.images": 18}, {"budget.images": 10}, {"budget.images": 20}
"""The last epoch has one group (of a pair, or of four images): one process has nothing to do in it."""
TRAININGS = {
    "sdpo": ("sdpo", BUDGET),
    "sparse_dpo": ("sparse_dpo", SHORT),
    "draft": ("draft", SHORT),
    "average": ("grpo", GROUPS | {"ema.decay": 0.5}),
    "nft": ("nft", GROUPS | {"update.inner_epochs": 2}),
    "awm": ("awm", GROUPS | {"update.inner_epochs": 2}),
    # Its default beta of 100 multiplies the rounding of the errors that it compares.
    "dgpo": ("dgpo", GROUPS | {"update.inner_epochs": 2, "method.clip_range": 1e-3, "method.beta": 1.0}),
    "drpo": ("drpo", GROUPS),
}
"""Method and settings of the scenarios that train: losses of single steps, of whole trajectories with a reference, of
rewards asked for in the updates, of noised samples and of final latents; and every kind of adapter beside the one that
learns: the moving average, and the policy that samples."""
CURVE = {"eval.every": 2, "eval.curve_steps": "1,2", "eval.curve_prompts": 5}


def trained(name, out, processes):
    """Train as the scenario ``name`` says; see :func:`train`."""
    method, settings = TRAININGS[name]
    if name != "nft":
        return train(method, out, processes, **settings)
    # The official rule is min(0.001 n, 0.5) after n optimiser steps; a few steps must show it.
    plugin = find("methods", method).load()
    with mock.patch.object(plugin, "old_decay", lambda self, updates: min(0.1 * updates, 0.5)):
        return train(method, out, processes, **settings)


def train(method, out, processes, **extra):
    """Train, and leave the weights of all adapters and what was sampled beside the run."""
    trainer = make_trainer(make_resolved(PIPE, method, **extra), out, processes=processes)
    sampled: list[list[float]] = []
    sample = trainer._sample

    def watched(*arguments):
        trajectories: Trajectories = sample(*arguments)
        sampled.extend(trajectories.latents[:, :, -1].flatten(2).sum(-1).tolist())
        return trajectories

    trainer._sample = watched
    trainer.train()
    out.mkdir(parents=True, exist_ok=True)
    every = trainer.updater.parameters | trainer.updater.followers.named()
    weights = {name: p.detach().clone() for name, p in every.items()}
    save_file(weights, str(out / f"weights-{processes.rank}.safetensors"))
    return {"sampled": sampled, "bill": trainer.ledger.bill(), "metrics": trainer.state.last}


def with_curve(out, processes):
    """A whole run with a learning curve: its training log, adapter and points are in ``out``."""
    resolved = make_resolved(PIPE, **BUDGET, **CURVE)
    run_job(resolved, Runtime(out=out, device="cpu"), processes=processes)
    return {"run": resolved.run_id}


def overflowing(out, processes):
    """Train in fp16 from a loss scale at which the first steps overflow."""
    first = lambda dtype, device: Fp16Scale(device, 2.0**34)  # noqa: E731
    with mock.patch.object(updater, "loss_scale", first):
        return train("sdpo", out, processes, **BUDGET, **{"model.precision": "fp16"})


def failing(processes):
    """Process 1 fails in its own way while process 0 waits for it."""
    if processes.rank == 1:
        raise RunFailed("the disk of process 1 is on fire")
    processes.gather(0)


def killed(processes):
    """Process 1 dies without a word."""
    if processes.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    processes.gather(0)


def stopped(processes):
    """Process 1 alone is told to stop, in the middle of a meeting."""
    if processes.rank == 1:
        os.kill(os.getpid(), signal.SIGINT)
    while True:
        processes.gather(0)


def main(rank, count, port, folder, *scenarios):
    folder = Path(folder)
    os.environ.update(RANK=rank, WORLD_SIZE=count, LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1")
    for number, scenario in enumerate(scenarios):
        os.environ["MASTER_PORT"] = str(int(port) + number)
        try:
            with launched("cpu") as processes:
                if scenario in ("failing", "killed", "stopped"):
                    globals()[scenario](processes)
                elif scenario == "resumed":
                    # Begun by one process (the test), finished by these.
                    result = trained("sdpo", folder / "resumed", processes)
                elif scenario == "curve":
                    result = with_curve(folder / scenario, processes)
                elif scenario == "overflowing":
                    result = overflowing(folder / scenario, processes)
                else:
                    result = trained(scenario, folder / scenario, processes)
        except BaseException as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        (folder / f"{scenario}-{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
