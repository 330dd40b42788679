"""Write files whole or not at all, and explain errors of the disk."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sdpo_bench.errors import DiskFull, Unwritable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space on the disk, in the user's quota, or under the limit on the size of a file."""


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    Raises:
        DiskFull, Unwritable: no space left, a disk that became read-only, or a broken one.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_space(path):
        try:
            with open(temporary, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, on systems that can sync a folder."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def disk_space(path: Path) -> Iterator[None]:
    """Explain errors of writing a file.

    Raises:
        DiskFull, Unwritable: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in FULL
        hint = "Free some space (or raise ulimit -f)" if full else "Check the disk, and the permissions of the folder,"
        raise (DiskFull if full else Unwritable)(
            f"'{path}' cannot be written: {error.strerror}. What was written before is kept. {hint} and give the same "
            "command again; a training goes on from its last checkpoint, where it had one.",
            error.strerror,
        ) from error
