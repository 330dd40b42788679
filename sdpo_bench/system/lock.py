"""One process at a time works on a run folder: the lock in it, which the kernel frees when its process dies.

Processes that a plugin starts are forked with everything open. Those that outlive a killed run (a pool's workers wait
for ever) would hold its lock as long as they live, so a forked process lets go of it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sdpo_bench.errors import Unwritable

_OPEN: list[IO[str]] = []
"""Lock files that are open in this process."""


@contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Try to lock a file for the block; gives whether that succeeded.

    Args:
        wait: until whoever holds it is done.

    Raises:
        Unwritable: it cannot be opened.
    """
    with _open(path) as handle:
        _OPEN.append(handle)
        try:
            yield _try_lock(handle, wait)
        finally:
            with suppress(ValueError):
                _OPEN.remove(handle)


def _open(path: Path) -> IO[str]:
    try:
        return open(path, "a+")
    except OSError as error:
        text = f"'{path}' cannot be locked: {error.strerror}. Give its folder free space and write access first."
        raise Unwritable(text, error.strerror) from error


def _try_lock(handle: IO[str], wait: bool) -> bool:
    try:
        import fcntl
    except ImportError:  # no advisory locks on this platform
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _let_go() -> None:
    """In a forked process: closing frees nothing as long as the process that it was forked from has the file open."""
    while _OPEN:
        with suppress(OSError):
            _OPEN.pop().close()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_let_go)
