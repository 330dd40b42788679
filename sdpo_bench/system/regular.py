"""Opening files of folders that somebody else may have filled: what is not a regular file is refused at once.

A pipe would keep its reader waiting for ever, and an endless device would fill the memory. Links are followed.
"""

import errno
import os
import stat
from pathlib import Path


class Irregular(OSError):
    """A pipe, a device, a socket or a folder where a file should be."""

    def __str__(self) -> str:  # without the path, so that reports are alike wherever their folder is
        return str(self.strerror)


def regular(path: str, flags: int) -> int:
    """An ``opener`` for :func:`open` in any mode, which waits for nobody.

    Raises:
        Irregular: not a regular file. OSError: what opening it raises.
    """
    try:
        handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a pipe that nobody reads, opened for writing
            raise _refusal(path) from None
        raise
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise _refusal(path)


def require_regular(path: Path) -> None:
    """For libraries that open a file by its name.

    Raises:
        Irregular: not a regular file. OSError: there is none.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise _refusal(str(path))


def _refusal(path: str) -> Irregular:
    return Irregular(errno.EINVAL, "not a regular file", path)


def read_bytes(path: Path) -> bytes:
    """Content of a regular file. Raises OSError."""
    with open(path, "rb", opener=regular) as stream:
        return stream.read()


def read_text(path: Path, errors: str = "strict") -> str:
    """Content of a regular UTF-8 file. Raises OSError, UnicodeDecodeError."""
    with open(path, encoding="utf-8", errors=errors, opener=regular) as stream:
        return stream.read()
