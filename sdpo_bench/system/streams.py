"""Streams for progress: standard error and logs, whose writers must not fail because nobody can listen.

A full disk, a closed terminal or a pipe whose reader has gone costs the words and nothing else.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class Lossy(io.FileIO):
    """A file that takes whatever it is given; what cannot be written is dropped."""

    def write(self, data: Any) -> int:
        written = None
        with suppress(OSError):
            written = super().write(data)
        return memoryview(data).nbytes if written is None else written  # None: the reader is too slow


class Log(io.TextIOWrapper):
    """UTF-8, a line at a time; never fails."""

    def __init__(self, raw: Lossy):
        super().__init__(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)


@contextmanager
def open_log(path: Path) -> Iterator[Log]:
    """A log to be continued, in a folder that is made; where it cannot be opened, one that leads nowhere."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = Log(Lossy(path, "a"))
    except OSError:
        log = Log(Lossy(os.devnull, "w"))
    with log:
        yield log


def let_progress_fail() -> None:
    """Drop what standard error refuses from now on; a stream that a program has put in its place stays."""
    old = sys.stderr
    if old is sys.__stderr__ and isinstance(old, io.TextIOWrapper):
        raw = io.BufferedWriter(Lossy(old.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, encoding=old.encoding, errors="backslashreplace", line_buffering=True)
