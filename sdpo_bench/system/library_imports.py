"""Imports of large libraries without the garbage collector's passes, which find nothing while modules load."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """A block of imports without cyclic garbage collection; afterwards it is on again, unless it was off before.

    torch, diffusers, transformers and peft create some 800,000 objects that live as long as the process. The collector
    walks through them a thousand times on the way, which takes a fifth of the CPU time of these imports.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            _age_all_objects()
            gc.enable()


def _age_all_objects() -> None:
    """Move all objects to the oldest generation; as young ones they would all be walked through three times at once.

    In a process that has frozen objects (``gc.freeze``) they are frozen too, and never walked through.
    """
    freezes = gc.get_freeze_count() > 0
    gc.freeze()
    if not freezes:
        gc.unfreeze()
