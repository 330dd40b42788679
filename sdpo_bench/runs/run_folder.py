"""Run folders: everything a report needs is in them, and a killed process never leaves one that reads as done.

A run is its folder ``<out>/runs/<run id>``::

    run.json         resolved settings, where each came from, versions, git commit, plugin hashes, hardware
    inputs.json      digests of files that went into the numbers and can change under their names (``input_digests``)
    status           one JSON line: state (new, running, interrupted, failed, done), message, budget used
    train.jsonl      one line an epoch, numbers only (identical for identical runs)
    timing.jsonl     one line an epoch, seconds and throughput (differs from machine to machine)
    validation.jsonl one line a candidate, where the best checkpoint on validation prompts is the result
    curve.jsonl      one line a point of the learning curve: mean scores of the policy so far, and what it had cost
    checkpoints/     what is needed to go on
    lora/            the adapter in diffusers' own format, and its seals (``adapter``)
    warnings.jsonl   one line a warning: collapse, doubtful updates, no update, memory (only where there was one)
    eval.parquet     one row an image, reward and step count
    grid.png         the same prompts and noise, base beside tuned

Every file but the append-only logs is written to a temporary name, synced and renamed.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdpo_bench.config.run_id import problem
from sdpo_bench.errors import Busy, MissingError, Unwritable, UsageError, nearest
from sdpo_bench.system.files import atomic_write, disk_space
from sdpo_bench.system.json_toml import parse_json
from sdpo_bench.system.lock import lock

KILLED = "its process died without an exit status; the same command resumes it"
VALIDATION = "validation.jsonl"
CURVE = "curve.jsonl"
State = Literal["new", "running", "interrupted", "failed", "done"]


@dataclass(frozen=True)
class RunFolder:
    """One run on disk; reading never changes it."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def lora(self) -> Path:
        return self.path / "lora"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def inputs(self) -> Path:
        return self.path / "inputs.json"

    @property
    def evaluation(self) -> Path:
        return self.path / "eval.parquet"

    def create(self, record: Mapping[str, Any], *, replace: bool = False) -> None:
        """Make the folder and its ``run.json``; a folder that exists keeps its first record, unless ``replace``."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if replace or not (self.path / "run.json").exists():
                atomic_write(self.path / "run.json", json.dumps(record, indent=1, sort_keys=True) + "\n")
        except OSError as error:
            raise MissingError(
                f"the results folder '{self.path}' cannot be written: {error.strerror}. "
                "Choose another with --out FOLDER."
            ) from error

    def record(self) -> dict[str, Any]:
        """Content of ``run.json``.

        Raises:
            UsageError: missing, damaged, or not with the settings that the run's id was made from.
        """
        path = self.path / "run.json"
        mend = " Delete 'run.json' and give the run command again: it writes the file."
        record = read_object(path, mend)
        if wrong := problem(record):
            raise UsageError(f"'{path}' is damaged: {wrong}.{mend}")
        return record

    @property
    def status(self) -> dict[str, Any]:
        """State and message; ``new`` where nothing has been written yet."""
        with suppress(PermissionError):  # of the folder: reading says so
            if not (self.path / "status").exists():
                return {"state": "new", "message": ""}
        return read_object(self.path / "status")

    @property
    def state(self) -> State:
        state: State = self.status["state"]
        return state

    @property
    def state_or_unknown(self) -> str:
        """The state, or ``unknown`` where the status file is damaged; doing the run again mends that."""
        return str(self.status_or_unknown["state"])

    @property
    def status_or_unknown(self) -> dict[str, Any]:
        """State, message and more; never an error: one damaged file must not stop what looks after many runs."""
        with suppress(UsageError):
            return {"state": "unknown", "message": ""} | self.status
        return {"state": "unknown", "message": ""}

    def set_status(self, state: State, message: str = "", **more: Any) -> None:
        """Write the status where it is another one; a finished run can be shown where nothing can be written."""
        text = json.dumps({"state": state, "message": message, **more}, sort_keys=True)
        with suppress(OSError, ValueError):
            if (self.path / "status").read_text(encoding="utf-8") == text:
                return
        atomic_write(self.path / "status", text)

    def record_failure(self, message: str) -> None:
        """Say why a run ended whose own process could not: it never began, or it was killed.

        Raises:
            Busy: the run has begun again elsewhere, so nothing has ended.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self.locked():
            if self.state_or_unknown != "done":
                self.set_status("failed", message)

    # -- append-only logs ------------------------------------------------------------------------------------

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one line to ``train.jsonl`` or ``timing.jsonl``."""
        path = self.path / name
        line = json.dumps(row, sort_keys=True, allow_nan=False).encode() + b"\n"
        with disk_space(path), open(path, "ab") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    def size(self, name: str) -> int:
        path = self.path / name
        return path.stat().st_size if path.exists() else 0

    def digest(self, name: str, size: int) -> str:
        """SHA-256 of the first ``size`` bytes of a file; of nothing where there is none."""
        content = b""
        with suppress(FileNotFoundError), open(self.path / name, "rb") as stream:
            content = stream.read(size)
        return hashlib.sha256(content).hexdigest()

    def truncate(self, name: str, size: int) -> None:
        """Forget what was logged after a checkpoint, so that resuming repeats no line."""
        path = self.path / name
        if path.exists() and path.stat().st_size > size:
            with disk_space(path), open(path, "rb+") as stream:
                stream.truncate(size)
                os.fsync(stream.fileno())

    def log(self, name: str = "train.jsonl") -> list[dict[str, Any]]:
        """Lines of a log, oldest first; a last line that a killed process left unfinished is skipped."""
        rows: list[dict[str, Any]] = []
        with suppress(FileNotFoundError):
            for line in (self.path / name).read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError):
                    row = parse_json(line)
                    if isinstance(row, dict):
                        rows.append(row)
        return rows

    def forget_after(self, name: str, epoch: int) -> None:
        """Drop the lines of a log that belong to epochs which a resumed run will do again."""
        if (self.path / name).exists():
            kept = [row for row in self.log(name) if row.get("epoch", math.inf) <= epoch]
            atomic_write(self.path / name, "".join(json.dumps(row, sort_keys=True) + "\n" for row in kept))

    @property
    def seconds(self) -> float:
        """Time of training so far, as far as ``timing.jsonl`` can be read."""
        seconds = [row.get("seconds") for row in self.log("timing.jsonl")]
        total = sum(x for x in seconds if isinstance(x, int | float))
        return total if math.isfinite(total) else 0.0

    @property
    def rescoring(self) -> str:
        """The command that scores it again; a base model is scored with any run that is judged beside it."""
        return f"sdpo-bench eval {'RUN, for a run beside it' if self.run_id.startswith('base-') else self.run_id}"

    @contextmanager
    def locked(self, *, wait: bool = False) -> Iterator[None]:
        """Hold the run for this process; the kernel frees the lock when a process dies, however it dies.

        Raises:
            Busy: another living process holds it (and ``wait`` is off).
            Unwritable: the lock cannot be opened.
        """
        with lock(self.path / "lock", wait=wait) as held:
            if not held:
                raise Busy(f"another process is working on run '{self.run_id}'. Wait for it, or stop it first.")
            self._clear_unfinished()
            yield

    def _clear_unfinished(self) -> None:
        """Remove what processes that were killed in mid-write have left; the holder of the lock is the only writer.

        Not of ``run.json``, which is written before the lock is taken.
        """
        for left in self.path.rglob(".*.tmp"):
            if not left.name.startswith(".run.json."):
                with suppress(FileNotFoundError):
                    left.unlink()

    @property
    def is_abandoned(self) -> bool:
        """Whether no process works on the run: its own was killed if the status says running.

        A folder that this user cannot lock is not called abandoned.
        """
        try:
            return not self.is_locked
        except Unwritable:
            return False

    @property
    def is_locked(self) -> bool:
        """Whether a living process works on the run just now."""
        if not (self.path / "lock").is_file():
            return False
        with lock(self.path / "lock") as held:
            return not held


def best_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The best candidate of a run's ``validation.jsonl``; the earliest of equals."""
    return max(rows, key=lambda row: row["score"])


def read_object(path: Path, mend: str = "") -> dict[str, Any]:
    """Content of one of a run folder's JSON files.

    Args:
        mend: what to do about a damaged one.

    Raises:
        UsageError: missing, damaged or unreadable.
    """
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"'{path.parent}' is not a run folder: it has no {path.name}.") from None
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"'{path}' is damaged: {error}.{mend}") from error
    if not isinstance(data, dict):
        raise UsageError(f"'{path}' is damaged: an object was expected.{mend}")
    return data


def check_writable(out: Path, *runs: RunFolder) -> None:
    """Fail before any work if results cannot be written, to a results folder or to those of its ``runs`` that exist.

    Raises:
        Unwritable: no permission, a file in the way, or a read-only disk.
    """
    folder = out
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
        for folder in (out, *(run.path for run in runs if run.path.exists())):
            probe = folder / f".probe-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
    except OSError as error:
        raise Unwritable(
            f"'{folder}' cannot be written: {error.strerror}. Choose another results folder with --out FOLDER.",
            error.strerror,
        ) from error


def run_folders(out: Path) -> list[RunFolder]:
    """All runs of a results folder, sorted by id."""
    root = out / "runs"
    if not root.is_dir():
        return []
    return [RunFolder(p) for p in sorted(root.iterdir()) if _may_be_a_run(p)]


def _may_be_a_run(path: Path) -> bool:
    """A folder that cannot be read may be a run: a command that names it explains why, and others go on."""
    try:
        return (path / "run.json").is_file()
    except PermissionError:
        return True


def find_run(out: Path, name: str) -> RunFolder:
    """A run by id, by the unique beginning of one, or by path.

    Raises:
        UsageError: none or several fit.
    """
    direct = Path(name)
    if _may_be_a_run(direct):
        return RunFolder(direct.resolve())
    runs = {run.run_id: run for run in run_folders(out)}
    fitting = [run for run_id, run in runs.items() if run_id == name or run_id.startswith(name)]
    exact = [run for run in fitting if run.run_id == name]
    if exact or len(fitting) == 1:
        return (exact or fitting)[0]
    if fitting:
        raise UsageError(f"'{name}' fits {len(fitting)} runs: {', '.join(r.run_id for r in fitting)}.")
    raise UsageError(f"no run '{name}' in '{out}'.{nearest(name, runs)} See: sdpo-bench list runs")
