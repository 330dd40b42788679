"""Several processes that do one run together: who does which part, how results meet, how trouble on one stops all.

Each process samples, scores and differentiates its own prompt groups; rewards, statistics, gradients and bills meet
here. The numbers are those of one process with the same settings, since every draw is named by its group (``seeds``)
and every average is over the whole epoch. ``accelerate launch`` and ``torchrun`` start the processes and tell them of
each other through environment variables; the meeting itself is torch.distributed's. Its CPU backend (gloo) carries
everything but the gradients of GPU runs: unlike NCCL it notices at once when a process dies, and a process that failed
can still say why.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from sdpo_bench.errors import RunFailed, SdpoBenchError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")
PATIENCE = timedelta(hours=24)  # the main process may wait for a lock or draw alone; a dead process is noticed at once
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Processes:
    """The processes of one run; this class is the run of a single process, in which nothing needs to meet."""

    rank = 0
    count = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files, holds locks and prints."""
        return self.rank == 0

    def mine(self, items: "Tensor") -> "Tensor":
        """This process's share of a list that all processes have: every ``count``-th item."""
        return items[self.rank :: self.count]

    def gather(self, value: T) -> list[T]:
        """The value of every process, in rank order, on all of them (CPU data; all must call this)."""
        return [value]

    def share(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on the main process, on all of them. It runs there alone."""
        return make()

    def rows(self, values: "Tensor", numbers: "Tensor") -> "Tensor":
        """Rows ``[N, ...]`` of all processes in the order of their ``numbers``, from this one's rows ``[n, ...]``.

        Args:
            numbers: int64 ``[n]``, which of the N rows these are; every row belongs to one process.
        """
        if self.count == 1:
            return values
        import torch

        parts = self.gather((values.detach().cpu(), numbers))
        where = torch.cat([at for _, at in parts])
        return torch.cat([part for part, _ in parts])[where.argsort()].to(values.device)

    def sum_gradients(self, parameters: "Iterable[nn.Parameter]") -> None:
        """Replace every gradient by its sum over all processes."""

    def meet(self) -> None:
        """Wait for all processes.

        Raises:
            RunFailed: one of them failed. KeyboardInterrupt: one was told to stop.
        """

    @contextmanager
    def together(self) -> Iterator[None]:
        """A stretch of work in which trouble on one process ends it on all, instead of leaving them waiting."""
        yield


ALONE = Processes()


@dataclass(frozen=True)
class Report:
    """Why a process ends, in a form that the others can raise."""

    rank: int
    interrupted: bool
    message: str
    exit_code: int

    @classmethod
    def of(cls, rank: int, error: BaseException) -> "Report":
        known = isinstance(error, SdpoBenchError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        interrupted = isinstance(error, KeyboardInterrupt)
        return cls(rank, interrupted, text, getattr(error, "exit_code", 130 if interrupted else 1))

    def error(self) -> BaseException:
        if self.interrupted:
            return KeyboardInterrupt(f"process {self.rank} was told to stop")
        failed = RunFailed(f"process {self.rank} failed: {self.message}")
        failed.exit_code = self.exit_code
        return failed


class Launched(Processes):
    """One of several processes started by a launcher.

    Each meeting begins with one flag, so that a process that failed meets the others wherever they come next and is
    not waited for in vain. Signals that arrive during a meeting are heard at its end: half a meeting would leave
    processes in different ones.

    Args:
        device: where gradients are, e.g. ``cpu`` or ``cuda:1``.
    """

    def __init__(self, device: str):
        import torch
        import torch.distributed as dist

        self._dist = dist
        backend = "gloo"
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, timeout=PATIENCE)
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self._over = self._busy = self._stopping = False
        self._pending: int | None = None
        self._handlers: dict[int, Any] = {}

    # -- meetings --------------------------------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.count
        with self._meeting():
            self._dist.all_gather_object(values, value)
        return values

    def share(self, make: Callable[[], T]) -> T:
        box: list[Any] = [make() if self.is_main else None]
        with self._meeting():
            self._dist.broadcast_object_list(box, src=0)
        result: T = box[0]
        return result

    def sum_gradients(self, parameters: "Iterable[nn.Parameter]") -> None:
        """In one message. A parameter without a gradient on any process stays without one, so that the optimiser
        leaves it alone as it would in one process."""
        import torch

        owned = list(parameters)
        present = torch.tensor([p.grad is not None for p in owned], dtype=torch.float32, device=owned[0].device)
        flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in owned]
        bucket = torch.cat([present, *(g.flatten().float() for g in flat)])
        with self._meeting():
            self._dist.all_reduce(bucket)
        parts = bucket[len(owned) :].split([p.numel() for p in owned])
        for parameter, part, anywhere in zip(owned, parts, bucket[: len(owned)].tolist()):
            parameter.grad = part.view_as(parameter).clone() if anywhere else None

    def meet(self) -> None:
        with self._meeting():
            pass

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        self._busy = True
        try:
            self._exchange(None)
            yield
        except RuntimeError as error:  # of torch.distributed: somebody is not there any more
            self._over = self._stopping = True
            raise RunFailed(f"another process of this run has died ({str(error).splitlines()[0]})") from error
        finally:
            self._busy = False
        if self._pending is not None:
            self._hear(self._pending, None)

    def _exchange(self, report: Report | None) -> None:
        """Say that all is well, or what is not, and hear the same of the others."""
        import torch

        trouble = torch.tensor([int(report is not None)])
        self._dist.all_reduce(trouble)
        if trouble.item():
            reports: list[Report | None] = [None] * self.count
            self._dist.all_gather_object(reports, report)
            self._over = self._stopping = True
            raise next(r for r in reports if r is not None).error()

    # -- endings ---------------------------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        self._listen()
        try:
            yield
            self.meet()
        except BaseException as error:
            self._announce(error)
            raise
        finally:
            # After a failure the launcher stops all processes; one that still reports its error may finish.
            for number, handler in self._handlers.items():
                signal.signal(number, signal.SIG_IGN if self._stopping else handler)
            with suppress(RuntimeError):
                self._dist.destroy_process_group()

    def _announce(self, error: BaseException) -> None:
        if self._over:
            return
        self._stopping = True
        # Whatever comes of it: this process ends with its own error.
        with suppress(RuntimeError, KeyboardInterrupt, RunFailed):
            self._exchange(Report.of(self.rank, error))

    def _listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._busy:
            self._pending = number
        elif not self._stopping:
            # Once: the terminal and the launcher both tell, and the second must not tear saving apart.
            self._stopping = True
            handler = self._handlers[number]
            if callable(handler):
                handler(number, frame)
            raise KeyboardInterrupt


def usable_cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def several() -> bool:
    """Whether a launcher started this process as one of several."""
    return all(name in os.environ for name in VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def local_device(device: str) -> str:
    """The device of this process: ``cuda`` without a number is the GPU of its local rank.

    Raises:
        UsageError: one GPU named for several processes.
    """
    if not several() or not device.startswith("cuda"):
        return device
    if device != "cuda":
        raise UsageError(f"--device {device} would put all {os.environ['WORLD_SIZE']} processes on one GPU. Use cuda.")
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


@contextmanager
def launched(device: str) -> Iterator[Processes]:
    """The processes of this run, as the launcher's environment says; work inside ends on all of them or on none.

    A process that is not the main one ends silently where the main one says the same.
    """
    if not several():
        yield ALONE
        return
    processes = Launched(device)
    try:
        with processes.together():
            yield processes
    except (SdpoBenchError, KeyboardInterrupt) as error:
        if processes.is_main:
            raise
        sys.exit(Report.of(0, error).exit_code)


def refuse_several(command: str) -> None:
    """Commands that would do the same work once in each process.

    Raises:
        UsageError: started by a launcher.
    """
    if several():
        raise UsageError(
            f"'{command}' works in one process; only 'run' is for accelerate launch and torchrun. "
            f"Use: sdpo-bench {command} ..."
        )
