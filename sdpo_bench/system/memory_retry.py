"""Out of memory is no reason to lose a run: half the micro-batch needs half the activations and gives the same numbers.

Whatever is tried again must start from where it started the first time; the caller sees to that. An operating system
that kills the process instead of refusing the memory leaves nothing to catch; the run then resumes as after any kill.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from sdpo_bench.errors import RunFailed, said, says_out_of_memory

T = TypeVar("T")


@dataclass
class MicroBatch:
    """The most latents in one denoiser call, one object for all stages of a run.

    Running out of memory halves ``size`` for all of them at once. It changes no number.
    """

    size: int


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device or the machine has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and says_out_of_memory(error)


def halving(work: Callable[[int], T], micro_batch: int, halved: Callable[[int, str], None]) -> T:
    """``work(micro_batch)``, tried again with half the micro-batch as often as it runs out of memory.

    Args:
        work: does its thing with a micro-batch; everything it has begun is thrown away when it is called again.
        halved: called before each new attempt, with the new micro-batch and what to tell the user.

    Raises:
        RunFailed: not even one latent at a time fits.
    """
    while True:
        try:
            return work(micro_batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = said(error).strip().split("\n")[0][:200] or type(error).__name__
        # Here the exception is gone, and with it the frames that held the tensors.
        if micro_batch == 1:
            raise RunFailed(
                f"out of memory with one latent at a time ({reason}). Use a smaller model.resolution, "
                "model.precision=bf16, model.gradient_checkpointing=true or model.cpu_offload=true."
            )
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        micro_batch //= 2
        halved(micro_batch, f"out of memory ({reason}); going on with --micro-batch {micro_batch}, the same numbers")


def refusing(work: Callable[[int], T], micro_batch: int) -> T:
    """``work(micro_batch)``, once.

    Raises:
        RunFailed: it runs out of memory; says how the run goes on.
    """
    try:
        return work(micro_batch)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RunFailed(
            f"out of memory with --micro-batch {micro_batch}. The same command with a smaller one goes on from the "
            "last whole epoch, with the same numbers."
        ) from error
