"""One process at a time works on a run folder: the lock file in it, which the kernel frees when its process dies."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sdpo_bench.errors import Unwritable


@contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Try to lock a file for the block; gives whether that succeeded.

    A process that is forked in the block does not hold the lock: the workers of a plugin's pool outlive a killed run.

    Args:
        wait: until no other process holds it.

    Raises:
        Unwritable: it cannot be opened, or its file system has no locks.
    """
    # A lock without the kernel (a marker file) would stay behind when its process is killed.
    file_lock = FileLock(path, timeout=-1 if wait else 0, thread_local=False, fallback_to_soft=False)
    try:
        file_lock.acquire()
    except Timeout:
        pass
    except OSError as error:
        text = f"'{path}' cannot be locked: {error.strerror}. Give its folder free space and write access first."
        raise Unwritable(text, error.strerror) from error
    try:
        yield file_lock.is_locked
    finally:
        file_lock.release()
