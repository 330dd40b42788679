"""What every conformance check may say: it does not hold, or it cannot be made here; and blocks that leave no trace."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sdpo_bench.system.plugin_guard import ProcessState, preserve_process_state


class Nonconforming(Exception):
    """What a check saw that the contract does not allow."""


class NotHere(Exception):
    """Why a check could not be made on this machine."""


def require(condition: Any, message: str) -> None:
    """Raise :class:`Nonconforming` unless ``condition`` is true."""
    if not condition:
        raise Nonconforming(message)


@contextmanager
def untouched_process() -> Iterator[None]:
    """Refuse code that changes the state of the whole process.

    Raises:
        Nonconforming: it did; the state is restored.
    """
    with preserve_process_state():
        before = ProcessState.now()
        yield
        changed = before.changes(ProcessState.now())
    require(not changed, f"it changes the {', '.join(changed).replace('_', ' ')} of the whole process.")


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Refuse code that draws from, or reseeds, a global generator.

    Raises:
        Nonconforming: it did.
    """
    import random

    import numpy as np
    import torch

    torch_state, numpy_state, python_state = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    yield
    same = (
        torch.equal(torch_state, torch.get_rng_state())
        and numpy_state == repr(np.random.get_state())
        and python_state == random.getstate()
    )
    require(same, "it draws random numbers from a global generator.")
