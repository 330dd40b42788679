"""Out of memory is no reason to lose a run: half the micro-batch needs half the activations and gives the same numbers.

Whatever is tried again must start from where it started the first time; the caller sees to that. An operating system
that kills the process instead of refusing the memory leaves nothing to catch; the run then resumes as after any kill.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import torch

from sdpo_bench.errors import RunFailed, says_out_of_memory

T = TypeVar("T")


@dataclass
class MicroBatch:
    """The most latents in one denoiser call, one object for all stages of a run.

    Running out of memory halves ``size`` for all of them at once. It changes no number.
    """

    size: int

    def attempts(self, halved: Callable[[str], None], *, retry: bool = True) -> Iterator["Attempt"]:
        """Attempts of a block of work, until one of them does not run out of memory::

            for attempt in micro_batch.attempts(halved):
                with attempt:
                    result = work()

        Args:
            halved: called before each further attempt, with what to tell the user; throws away what the block began.
            retry: False where running out of memory must end the run.

        Raises:
            RunFailed: not even one latent at a time fits, or ``retry`` is False.
        """
        while True:
            yield (attempt := Attempt(self.size, retry))
            if not attempt.failed:
                return
            # Here the exception is gone, and with it the frames that held the tensors.
            if self.size == 1:
                raise RunFailed(
                    f"out of memory with one latent at a time ({attempt.failed}). Use a smaller model.resolution, "
                    "model.precision=bf16, model.gradient_checkpointing=true or model.cpu_offload=true."
                )
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.size //= 2
            text = f"out of memory ({attempt.failed}); going on with --micro-batch {self.size}, the same numbers"
            halved(text)


class Attempt:
    """One attempt of :meth:`MicroBatch.attempts`; ``failed`` says why memory ran out, empty where it did not."""

    def __init__(self, size: int, retry: bool):
        self.failed, self._size, self._retry = "", size, retry

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception) or not is_out_of_memory(error):
            return False
        if not self._retry:
            raise RunFailed(
                f"out of memory with --micro-batch {self._size}. The same command with a smaller one goes on from the "
                "last whole epoch, with the same numbers."
            ) from error
        self.failed = str(error).strip().split("\n")[0][:200] or type(error).__name__
        return True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device or the machine has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and says_out_of_memory(error)


def halving(work: Callable[[int], T], micro_batch: int, halved: Callable[[int, str], None]) -> T:
    """``work(micro_batch)``, tried again with half the micro-batch as often as it runs out of memory.

    Args:
        work: runs with the given micro-batch; what an attempt that failed has begun is thrown away.
        halved: called before each new attempt, with the new micro-batch and what to tell the user.

    Raises:
        RunFailed: not even one latent at a time fits.
    """
    batch = MicroBatch(micro_batch)
    for attempt in batch.attempts(lambda text: halved(batch.size, text)):
        with attempt:
            result = work(batch.size)
    return result
