"""The logs of a training, kept safe from what happens to their files.

A checkpoint holds a copy of them, so that a log that was damaged, cut or lost costs no training: it is put back. So is
one that somebody changes while the training writes it, for what was written is also kept in memory.
"""

from collections.abc import Mapping
from contextlib import suppress

from sdpo_bench.runs.run_folder import VALIDATION, RunFolder
from sdpo_bench.system.files import atomic_write, disk_space, read_bytes

LOGS = ("train.jsonl", "timing.jsonl", VALIDATION, "warnings.jsonl")


def read(run: RunFolder, name: str) -> bytes:
    """Content of a log; nothing where there is none, or something else than a file.

    Raises:
        Unwritable: the disk refuses.
    """
    with disk_space(run.path / name), suppress(FileNotFoundError):
        return read_bytes(run.path / name)
    return b""


def go_back(run: RunFolder, copies: Mapping[str, bytes]) -> list[str]:
    """Put back logs that do not begin with the copy in a checkpoint; their names. What follows a sound copy stays."""
    damaged = [name for name in LOGS if not read(run, name).startswith(copies.get(name, b""))]
    for name in damaged:
        atomic_write(run.path / name, copies[name])
    return damaged


def keep(run: RunFolder) -> None:
    """Keep in memory what the logs hold, from now on with every line that is added."""
    run.written.update({name: read(run, name) for name in LOGS})


def mend(run: RunFolder) -> list[str]:
    """Put back logs that are no longer what was written; their names. Nothing is done before :func:`keep`."""
    damaged = [name for name, content in run.written.items() if read(run, name) != content]
    for name in damaged:
        atomic_write(run.path / name, run.written[name])
    return damaged
