"""Jobs on a Ray cluster: Ray places them, and starts a job again whose worker or node is lost.

All nodes share the results folder: jobs write into it, and a job that starts again resumes from its last checkpoint.
"""

import os
import socket
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdpo_bench.errors import MissingError
from sdpo_bench.sweep.local_executor import TaskResult
from sdpo_bench.sweep.worker import FAILED, STOPPED, Task, logged_work

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
        MissingError: Ray is not installed, nothing answers at the address, or no node has room for a job.
    """

    def __init__(self, address: str, out: Path, *, cpus: int = 1, gpus: float = 0.0, device: str = "auto"):
        self._ray, self._connected_here = _connect(address)
        self.cpus, self.gpus, self.device = cpus, gpus, device
        self._refuse_large_jobs()
        self._running: dict[Any, Task] = {}
        self._probe = out / f".shared-{uuid.uuid4().hex}"
        self._probe.touch()
        # A process that has used a GPU keeps memory on it, so it runs one job only.
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES, "max_calls": 1 if gpus else 0}
        self._remote = self._ray.remote(**options)(remote_job)

    def _refuse_large_jobs(self) -> None:
        """Ray would wait without a message for a node that is large enough."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any(node.get("CPU", 0) >= self.cpus and node.get("GPU", 0) >= self.gpus for node in nodes):
            return
        sizes = ", ".join(sorted({f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes}))
        raise MissingError(
            f"no node of the Ray cluster has room for a job of {self.cpus} CPUs and {self.gpus:g} GPUs; its nodes have "
            f"{sizes}. Use smaller --cpus-per-cell and --gpus-per-cell, or add a node first."
        )

    @property
    def slots(self) -> int:
        """How many jobs the cluster has room for, as it is now."""
        total = self._ray.cluster_resources()
        room = [total.get("CPU", 0) // self.cpus] + ([total.get("GPU", 0) // self.gpus] if self.gpus else [])
        return max(1, int(min(room)))

    def start(self, task: Task) -> None:
        task = replace(task, runtime=replace(task.runtime, threads=self.cpus, device=self.device))
        self._running[self._remote.remote(task, str(self._probe))] = task

    def wait(self, timeout: float) -> list[TaskResult]:
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout)
        return [self._finish(reference) for reference in ready]

    def _finish(self, reference: Any) -> TaskResult:
        task = self._running.pop(reference)
        errors = self._ray.exceptions
        try:
            return TaskResult(task, *self._ray.get(reference))
        except errors.TaskCancelledError:
            return TaskResult(task, STOPPED)
        except errors.WorkerCrashedError:
            return TaskResult(task, FAILED, f"its worker was lost {RETRIES + 1} times (out of memory?); see its logs.")
        except errors.RayError as error:
            return TaskResult(task, FAILED, f"Ray: {[type(error).__name__, *str(error).strip().splitlines()][-1]}")

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
            if self._connected_here:
                self._ray.shutdown()
        self._running.clear()
        self._probe.unlink(missing_ok=True)


def _connect(address: str) -> tuple[Any, bool]:
    """Ray, and whether the connection was made here: a program that has one keeps it."""
    try:
        import ray
    except ImportError as error:
        raise MissingError('Ray is not installed. Install it with: pip install "sdpo-bench[ray]"') from error
    if ray.is_initialized():
        return ray, False
    if address not in ("auto", "local"):
        _refuse_silent_address(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=None)
    except Exception as error:  # Ray raises many kinds, some only on some platforms
        reason = str(error).strip().splitlines()
        hint = "Start a cluster with 'ray start --head', or use --address local." if address == "auto" else ""
        raise MissingError(
            f"no Ray cluster answers at '{address}': {reason[0] if reason else type(error).__name__} {hint}".rstrip()
        ) from error
    return ray, True


def _refuse_silent_address(address: str) -> None:
    """Ray itself waits a minute or more for an address without a cluster."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        raise MissingError(
            f"no Ray cluster answers at '{address}': {error}. Give HOST:PORT, ray://HOST:PORT, auto or local. Is the "
            "cluster running (ray status), and is the port open from here?"
        ) from error


# -- on the worker -------------------------------------------------------------------------------------------


def remote_job(task: Task, probe: str) -> tuple[int, str]:
    """The job on a worker: its exit report. Without shared storage its results would be lost on that node."""
    if not os.path.exists(probe):
        node, out = socket.gethostname(), task.runtime.out
        return FAILED, (
            f"node {node} does not see the results folder '{out}'. Put it on storage that all nodes share: --out FOLDER"
        )
    return logged_work(task)
