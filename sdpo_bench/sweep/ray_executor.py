"""Jobs on a Ray cluster: the scheduler places them, and starts a job again whose worker or node is lost.

All nodes share the results folder: jobs write into it, and a job that starts again resumes from its last checkpoint.
"""

import os
import socket
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdpo_bench.errors import MissingError
from sdpo_bench.sweep.local_executor import Ended
from sdpo_bench.sweep.worker import FAILED, STOPPED, Said, Task, logged_work

RETRIES = 3
"""How often a job starts again after its worker or node was lost."""
ANSWER_SECONDS = 5.0


class RayExecutor:
    """A Ray cluster.

    Args:
        address: ``auto``, ``local`` (start a cluster on this machine), ``HOST:PORT`` or ``ray://HOST:PORT``.
        out: results folder of this machine, absolute.
        cpus, gpus: what a job occupies; its threads are ``cpus``.

    Raises:
        MissingError: Ray is not installed, nothing answers at the address, no node has room for a job, or
            a node does not see ``out``.
    """

    def __init__(self, address: str, out: Path, *, cpus: int = 1, gpus: float = 0.0, device: str = "auto", **init: Any):
        self._ray, self._mine = _connect(address, init)
        self._running: dict[Any, Task] = {}
        self._probe = out / f".shared-{uuid.uuid4().hex}"
        self.out, self.cpus, self.gpus, self.device = out, cpus, gpus, device
        try:
            self._refuse_large_jobs(cpus, gpus)
            self._probe.touch()
            if not self._all_nodes_see(self._probe):
                raise MissingError(
                    f"not every node of the Ray cluster sees the results folder '{out}'. Put it on storage that all "
                    "nodes share: --out FOLDER"
                )
        except self._ray.exceptions.RayError as error:
            self.close()
            raise MissingError(
                f"a node of the Ray cluster does not answer ({type(error).__name__}). See 'ray status', take it out or "
                "start it again, and give the same command once more."
            ) from error
        except BaseException:
            self.close()
            raise
        # A process that has used a GPU keeps memory on it, so it does one job only.
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES, "max_calls": 1 if gpus else 0}
        self._task = self._ray.remote(**options)(remote_job)

    def _refuse_large_jobs(self, cpus: int, gpus: float) -> None:
        """Ray would wait for ever, without a word, for a node that is large enough."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            return
        there = ", ".join(sorted({f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes}))
        raise MissingError(
            f"no node of the Ray cluster has room for a job of {cpus} CPUs and {gpus:g} GPUs; its nodes have {there}. "
            "Use smaller --cpus-per-cell and --gpus-per-cell, or add a node first."
        )

    @property
    def slots(self) -> int:
        """How many jobs the cluster has room for, as it is now."""
        there = self._ray.cluster_resources()
        room = [there.get("CPU", 0) // self.cpus] + ([there.get("GPU", 0) // self.gpus] if self.gpus else [])
        return max(1, int(min(room)))

    @property
    def after_kill(self) -> str:
        return "what was saved before stays"

    def start(self, task: Task) -> None:
        task = replace(task, runtime=replace(task.runtime, threads=self.cpus, device=self.device))
        self._running[self._task.remote(task, str(self._probe))] = task

    def wait(self, timeout: float) -> list[Ended]:
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout)
        return [self._end(reference) for reference in ready]

    def _end(self, reference: Any) -> Ended:
        task = self._running.pop(reference)
        errors = self._ray.exceptions
        try:
            return Ended(task, *self._ray.get(reference))
        except errors.TaskCancelledError:
            return Ended(task, STOPPED)
        except errors.WorkerCrashedError:
            return Ended(task, FAILED, f"its worker was lost {RETRIES + 1} times; out of memory? See the Ray logs.")
        except errors.RayError as error:
            return Ended(task, FAILED, f"Ray: {[type(error).__name__, *str(error).strip().splitlines()][-1]}")

    def stop(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=False)

    def kill(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)

    def close(self) -> None:
        """Leave the cluster (and end it, if it was started here)."""
        if self._ray.is_initialized():
            self.kill()
            if self._mine:
                self._ray.shutdown()
        self._running.clear()
        self._probe.unlink(missing_ok=True)

    def _all_nodes_see(self, probe: Path) -> bool:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ask = self._ray.remote(num_cpus=0)(os.path.exists)
        nodes = [node["NodeID"] for node in self._ray.nodes() if node["Alive"]]
        answers = [
            ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(str(probe))
            for node in nodes
        ]
        return all(self._ray.get(answers))


def _connect(address: str, init: dict[str, Any]) -> tuple[Any, bool]:
    """Ray, and whether the connection was made here (one that a program has already is used as it is)."""
    try:
        import ray
    except ImportError as error:
        raise MissingError('Ray is not installed. Install it with: pip install "sdpo-bench[ray]"') from error
    if ray.is_initialized():
        return ray, False
    host = address.removeprefix("ray://")
    if address not in ("auto", "local"):
        _refuse_silence(host, address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=None, **init)
    except Exception as error:  # Ray raises many kinds, some only on some platforms
        reason = str(error).strip().splitlines()
        hint = "Start a cluster with 'ray start --head', or use --address local." if address == "auto" else ""
        raise MissingError(
            f"no Ray cluster answers at '{address}': {reason[0] if reason else type(error).__name__} {hint}".rstrip()
        ) from error
    return ray, True


def _refuse_silence(host: str, address: str) -> None:
    """Ray itself waits a minute or more for an address that nobody answers at."""
    name, _, port = host.rpartition(":")
    if not name or not port.isdigit():
        raise MissingError(f"'{address}' is no Ray address. Give HOST:PORT, ray://HOST:PORT, auto or local.")
    try:
        socket.create_connection((name, int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise MissingError(
            f"no Ray cluster answers at '{address}': {error.strerror or error}. Is it running (ray status), and is the "
            "port open from here?"
        ) from error


# -- on the worker -------------------------------------------------------------------------------------------


def remote_job(task: Task, probe: str) -> Said:
    """The job on a worker, and how it ended."""
    if not os.path.exists(probe):
        return Said(FAILED, f"node {socket.gethostname()} does not see the results folder '{task.runtime.out}'.")
    return logged_work(task)
