"""Run folders on their way to a node that does not see the results folder, and back."""

import io
import os
import shlex
import tarfile
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sdpo_bench.errors import Unwritable
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.system.files import atomic_write
from sdpo_bench.system.streams import open_log


def bases(out: Path) -> list[str]:
    """Folders of base models' scores, which cells share."""
    return sorted(path.name for path in (out / "runs").glob("base-*"))


def pack(out: Path, runs: Sequence[str], log: str = "") -> bytes:
    """Run folders, and the log of one, as a tar file; ``status`` last, so that what is half unpacked is not done."""
    buffer = io.BytesIO()
    found = [path for name in runs for path in sorted((out / "runs" / name).rglob("*"))]
    found += [out / "logs" / f"{log}.log"] * bool(log)
    files = [path for path in found if path.is_file() and path.name != "lock"]
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(files, key=lambda p: p.name == "status"):
            tar.add(path, path.relative_to(out))
    return buffer.getvalue()


def unpack(files: bytes, out: Path) -> str:
    """Put packed files into a results folder; base models' scores are joined with those that are there, logs continued.

    Returns:
        Why a log could not be written; empty where none was lost.

    Raises:
        UsageError, OSError: what is there is no file that could be joined; everything before it has arrived.
    """
    lost = ""
    with tempfile.TemporaryDirectory(dir=out, prefix=".arriving-") as folder:
        with tarfile.open(fileobj=io.BytesIO(files)) as tar:
            tar.extractall(folder, filter="data")
            names = [member.name for member in tar.getmembers()]
        for name in names:
            source, target = Path(folder) / name, out / name
            if name.startswith("logs/"):
                with open_log(target) as log:
                    log.write(source.read_text(encoding="utf-8", errors="replace"))
                lost = lost or log.lost
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists() and name.startswith("runs/base-") and target.name == "eval.parquet":
                with _base_lock(target.parent):
                    _join(source, target)
            else:
                os.replace(source, target)
    return lost


def keep_aside(files: bytes, out: Path, run: str) -> str:
    """Put packed files that could not be unpacked where this machine has room; where they are and the way on, in words.

    The node that made them has deleted its own by now.
    """
    place = Path(tempfile.gettempdir()) / f"{run}-{uuid.uuid4().hex}.tar"
    try:
        atomic_write(place, files)  # half of them would take the room of something else
    except (Unwritable, OSError) as error:
        return f"Nor can they be kept in '{tempfile.gettempdir()}': {error.strerror}, so they are lost."
    return "They are kept: mend that and type: " + shlex.join(["tar", "-xf", str(place), "-C", str(out), f"runs/{run}"])


@contextmanager
def _base_lock(folder: Path) -> Iterator[None]:
    with RunFolder(folder).locked(wait=True):
        yield


def _join(source: Path, target: Path) -> None:
    import pandas as pd

    from sdpo_bench.evaluation.evaluate import KEYS, read_rows, write_rows

    both = pd.concat([read_rows(RunFolder(path.parent)) for path in (target, source)], ignore_index=True)
    write_rows(RunFolder(target.parent), both.drop_duplicates(KEYS, keep="first").sort_values(KEYS, ignore_index=True))
