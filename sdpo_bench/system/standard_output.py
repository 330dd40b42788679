"""Standard output whose errors say whose they are.

The system's own error for a full disk names no file, and a command that prints may have a dozen others open.
"""

import io
import sys
from contextlib import suppress
from typing import Any

NAME = "standard output"


class Unread(OSError):
    """Nobody reads standard output any more (``| head``); without ``EPIPE``, for which click would end the process."""


class _Named(io.FileIO):
    """A file descriptor whose refusals carry :data:`NAME` as their ``filename``."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError as error:
            raise Unread from error
        except OSError as error:
            error.filename = NAME
            raise


def name_standard_output() -> None:
    """Let whatever is printed from now on fail by name; an output that a program has put in its place stays."""
    if sys.stdout is sys.__stdout__:
        sys.stdout = rewrapped(sys.stdout, _Named)


def rewrapped(old: Any, kind: type[io.FileIO]) -> Any:
    """The same output through a raw stream of another kind, with escapes for what its encoding lacks.

    It stays as it was where it is no plain file descriptor.
    """
    if not isinstance(old, io.TextIOWrapper):
        return old
    raw = getattr(old.buffer, "raw", old.buffer)  # unbuffered (python -u), the text layer writes to the file itself
    if type(raw) is not io.FileIO:  # a Windows console has its own kind
        return old
    with suppress(OSError):  # what was refused once will be refused again, by the new stream
        old.flush()
    new = kind(raw.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        new if raw is old.buffer else io.BufferedWriter(new),
        encoding=old.encoding, errors="backslashreplace", line_buffering=old.line_buffering,
        write_through=old.write_through,
    )  # fmt: skip


def reopened(descriptor: int) -> io.TextIOWrapper:
    """Standard output (1) or error (2) after somebody has closed Python's stream of it.

    Raises:
        OSError: it is closed for the system too.
    """
    raw = (_Named if descriptor == 1 else io.FileIO)(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="replace", line_buffering=True)


def refusal(error: OSError) -> str:
    """What to say of an error of standard output; empty where it is one of something else."""
    if error.filename != NAME:
        return ""
    return (
        f"{NAME} cannot be written: {error.strerror}. Free some space where it goes, or send it elsewhere (> FILE), "
        "and give the same command again; finished work is kept."
    )
