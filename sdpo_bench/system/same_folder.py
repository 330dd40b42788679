"""Whether a folder is still the one in which a run began: somebody may remove it while the run works."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sdpo_bench.errors import Unwritable
from sdpo_bench.system.files import disk_space


@contextmanager
def same_folder(path: Path) -> Iterator[Callable[[], None]]:
    """A function that raises Unwritable once ``path`` is another folder or none: removed, moved, or made anew.

    The folder is held open meanwhile, so that no other gets its number on the disk.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # a platform that opens no folders
        yield lambda: None
        return

    def require() -> None:
        if not _is(handle, path):
            raise Unwritable(
                f"the folder '{path}' was removed or moved while the run worked, so the run has stopped. Put it back "
                "to go on from its last checkpoint, or give the same command again to begin anew."
            )

    try:
        yield require
    finally:
        os.close(handle)


def _is(handle: int, path: Path) -> bool:
    with disk_space(path):
        try:
            return os.path.samestat(os.fstat(handle), os.stat(path))
        except (FileNotFoundError, NotADirectoryError):
            return False
