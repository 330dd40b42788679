"""Read regular files, write files whole or not at all, and say what is wrong where the disk refuses them."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sdpo_bench.errors import DiskFull, Unwritable

_MENDS = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f)",
}
"""What is too full, and what helps."""
_IN_THE_WAY = {
    errno.EISDIR: "Delete the folder in its place",
    errno.EEXIST: "Delete the file in its place",
    errno.ENOTDIR: "Delete the file in the place of its folder",
    errno.EACCES: "Ask whose it is, or for write access,",
    errno.EPERM: "Ask whose it is, or for write access,",
}


def require_file(path: Path) -> None:
    """Refuse a pipe, a device or a folder where a file should be: a reader of a pipe would wait for ever.

    Raises:
        OSError: it is one, or there is nothing.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_bytes(path: Path) -> bytes:
    """Content of a file. Raises OSError."""
    require_file(path)
    return path.read_bytes()


def read_text(path: Path, errors: str = "strict") -> str:
    """Content of a UTF-8 file. Raises OSError, UnicodeDecodeError."""
    require_file(path)
    return path.read_text(encoding="utf-8", errors=errors)


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    Raises:
        DiskFull, Unwritable: no space left, a disk that became read-only, or a broken one.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_space(path):
            with open(temporary, "wb") as stream:
                _keep_access(path, temporary)
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)  # needs space too, where the folder has to grow
    finally:
        with suppress(OSError):  # it has its name by now, or never had one, or a disk that became read-only keeps it
            temporary.unlink()
    with disk_space(path):
        _sync_folder(path.parent)


def _keep_access(old: Path, new: Path) -> None:
    """Whoever could read and write a file can do so still: another user's umask would lock its owner out."""
    with suppress(OSError):
        status = old.stat()
        if hasattr(os, "chown"):
            with suppress(OSError):  # a group of which this user is no member
                os.chown(new, -1, status.st_gid)
        os.chmod(new, stat.S_IMODE(status.st_mode) | 0o600)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable (a no-op where folders cannot be opened or synced)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


@contextmanager
def disk_space(path: Path) -> Iterator[None]:
    """Say in words that the disk is full, or refuses to be written.

    Raises:
        DiskFull, Unwritable: in the place of the system's own error.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in _MENDS
        mend = (_MENDS | _IN_THE_WAY).get(error.errno or 0, "See to the disk")
        raise (DiskFull if full else Unwritable)(
            f"'{path}' cannot be written: {error.strerror}. What was written before is kept. {mend} and give the same "
            "command again; a training goes on from its last checkpoint, where it had one.",
            error.strerror,
        ) from error
