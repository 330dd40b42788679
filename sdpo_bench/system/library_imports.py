"""Imports of large libraries without the garbage collector's passes, which find nothing while modules load."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """A block of imports without cyclic garbage collection; afterwards it is on again, unless it was off before.

    torch, diffusers, transformers and peft create some 800,000 objects that live as long as the process. The collector
    walks through them a thousand times on the way, which takes a sixth of the CPU time of these imports.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
