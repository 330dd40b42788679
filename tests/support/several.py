"""What a launched process does in ``test_processes``: named scenarios on the tiny pipeline, one after another.

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
from sdpo_bench.rollout.sampling import Trajectories
from sdpo_bench.running.run_one import run_job
from sdpo_bench.settings import Runtime
from sdpo_bench.system.distributed import launched
from sdpo_bench.training import updater
from sdpo_bench.training.loss_scale import Fp16Scale

PIPE = OFFICIAL / "tiny_pipe"
BUDGET, SHORT = {"budget.images": 18}, {"budget.images": 10}
"""The last epoch has one pair: one process has nothing to do in it."""
CURVE = {"eval.every": 2, "eval.curve_steps": "1,2", "eval.curve_prompts": 5}


def budget(method):
    return BUDGET if method == "sdpo" else SHORT


def trained(method, out, processes, **extra):
    """Train, and leave weights and what was sampled beside the run."""
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
    weights = {name: p.detach().clone() for name, p in trainer.updater.parameters.items()}
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
        return trained("sdpo", out, processes, **BUDGET, **{"model.precision": "fp16"})


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
                    result = trained("sdpo", folder / "resumed", processes, **BUDGET)
                elif scenario == "curve":
                    result = with_curve(folder / scenario, processes)
                elif scenario == "overflowing":
                    result = overflowing(folder / scenario, processes)
                else:
                    result = trained(scenario, folder / scenario, processes, **budget(scenario))
        except BaseException as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        (folder / f"{scenario}-{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
