"""A results folder as plain data: the only module through which reports read run folders.

Many processes write a results folder over days, so any file in it can be missing, truncated or damaged. Each such
problem becomes a :class:`Notice` that every report prints; the other runs are still reported. ``read_scores`` has the
scores of these runs.
Nothing here imports torch.
"""

import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sdpo_bench.config.sampler_id import recorded_sampler
from sdpo_bench.errors import UsageError
from sdpo_bench.hashing import canonical
from sdpo_bench.results.study_record import StudyRecord, read_studies
from sdpo_bench.results.suite_records import SuiteRecord, read_records
from sdpo_bench.results.training_log import LogNumbers, log_ends, log_numbers
from sdpo_bench.runs.run_folder import KILLED, RunFolder
from sdpo_bench.training.bill_text import search_bill

SECONDS = re.compile(r'"seconds": ([0-9.eE+-]+)[,}].*$', re.MULTILINE)
"""In lines of timing.jsonl; parsing every line as JSON takes ten times as long."""
SHOWN = ("pictures", "kl_to_base")
"""What tables show of a line of the training log. The other entries of ten thousand runs would fill the memory."""
MODEL_KEYS = (
    "model.name",
    "model.digest",
    "model.revision",
    "model.precision",
    "model.resolution",
    "model.text_tokens",
)
"""What tells base models apart, for runs and base folders alike."""


@dataclass(frozen=True, order=True)
class Notice:
    """A problem that a reader of the numbers must know: its place and its text."""

    where: str
    text: str


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder, read once; everything but the scores and the curves."""

    folder: RunFolder
    record: Mapping[str, Any]
    """``run.json``."""
    settings: Mapping[str, Any]
    """The configuration by ``section.key``, plugins' settings as ``method.key`` and ``reward.key``."""
    state: str
    message: str

    @cached_property
    def id(self) -> str:
        return self.folder.run_id

    @property
    def method(self) -> str:
        return str(self.settings["method.name"])

    @property
    def reward(self) -> str:
        """The reward that was trained on."""
        return str(self.settings["reward.name"])

    @property
    def model(self) -> str:
        return str(self.settings["model.name"])

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @cached_property
    def own_sampler(self) -> str:
        """The evaluation sampler of the run's configuration, as its rows name it; ``eval`` can add rows by others.

        Empty where the record does not say.
        """
        config = self.record.get("config")
        evaluation = config.get("eval") if isinstance(config, Mapping) else None
        return recorded_sampler(evaluation) if isinstance(evaluation, Mapping) else ""

    @property
    def last_epoch(self) -> dict[str, Any]:
        """:data:`SHOWN` of the last whole line of the training log, and its bill; empty before the first epoch."""
        return self._log_ends[1]

    @property
    def first_epoch(self) -> dict[str, Any]:
        """:data:`SHOWN` of the first line of the log, whose pictures are the base model's; empty before that epoch."""
        return self._log_ends[0]

    @cached_property
    def _log_ends(self) -> tuple[dict[str, Any], dict[str, Any]]:
        first, last = log_ends(self.folder.path / "train.jsonl")
        return _shown(first), _shown(last) | {"bill": clean_bill(last.get("bill"))}

    @cached_property
    def bill(self) -> dict[str, Any]:
        """Cost of training so far, or a search's cost of evaluation; empty before the first epoch."""
        return self.search_bill or self.last_epoch["bill"]

    @cached_property
    def search_bill(self) -> dict[str, Any]:
        """Cost of evaluation of a method that trains nothing; empty for other methods."""
        return clean_bill(search_bill(self.folder.path))

    @cached_property
    def seconds(self) -> float:
        """Seconds of training, summed over the complete lines of the log, whatever the machine."""
        with suppress(OSError, ValueError, OverflowError):
            text = (self.folder.path / "timing.jsonl").read_text(encoding="utf-8")
            total = math.fsum(map(float, SECONDS.findall(text)))
            return total if math.isfinite(total) else 0.0
        return 0.0

    @cached_property
    def held_log(self) -> LogNumbers:
        """The training log's numbers, held in memory from now on: for figures, which look at all of them."""
        return self.log()

    def log(self) -> LogNumbers:
        """Numbers of the training log, one line an epoch, oldest first; damaged lines are left out."""
        if "held_log" in vars(self):
            return self.held_log
        with suppress(OSError):
            return log_numbers(self.folder.log())
        return log_numbers([])


@dataclass(frozen=True, eq=False)
class Results:
    """All runs of a results folder, sorted by id, and a notice for each file that cannot be used."""

    out: Path
    runs: tuple[Run, ...]
    bases: tuple[Run, ...]
    """Folders of base models' scores."""
    notices: tuple[Notice, ...] = ()
    suites: tuple[SuiteRecord, ...] = ()
    studies: tuple[StudyRecord, ...] = ()

    def keep(self, runs: Iterable[Run]) -> "Results":
        """The same results with fewer runs, and without the notices of the others."""
        chosen = tuple(runs)
        gone = {run.id for run in self.runs} - {run.id for run in chosen}
        notices = tuple(n for n in self.notices if n.where not in gone)
        return replace(self, runs=chosen, notices=notices)


def load_results(out: Path) -> Results:
    """Read every run folder of ``out`` except scores and curves.

    Raises:
        UsageError: no results folder, or neither run nor study in it.
    """
    root = out / "runs"
    studies, unread = read_studies(out)
    if not root.is_dir() and not studies and not unread:
        if out.name == "runs" and out.is_dir():
            raise UsageError(f"'{out}' is the folder of the runs. Give the results folder above it: '{out.parent}'.")
        raise UsageError(f"no runs in '{out}': it has no folder 'runs'. Start one with: sdpo-bench run")
    runs: list[Run] = []
    bases: list[Run] = []
    notices = [Notice(name, problem) for name, problem in unread]
    sections: dict[str, Any] = {}
    for path in _folders(root):
        found = read_run(Path(path), sections)
        if isinstance(found, Notice):
            notices.append(found)
        else:
            (bases if found[1] == "base" else runs).append(found[0])
    if not runs and not notices and not studies:
        raise UsageError(f"no runs in '{out}'. Start one with: sdpo-bench run")
    suites, broken = read_records(out)
    notices += [Notice(name, problem) for name, problem in broken]
    own, copies = _without_copies(bases)
    return Results(out, tuple(runs), own, (*notices, *copies), tuple(suites), tuple(studies))


def _without_copies(bases: Iterable[Run]) -> tuple[tuple[Run, ...], list[Notice]]:
    """Base folders without copies: a base model's scores count once, from the folder that has its own name."""
    chosen: dict[str, Run] = {}
    notices = []
    for base in sorted(bases, key=lambda run: (run.id != run.record.get("run", run.id), run.id)):
        name = str(base.record.get("run", base.id))
        if name in chosen:
            notices.append(Notice(base.id, f"a copy of the base model's folder {chosen[name].id}: not used"))
        else:
            chosen[name] = base
    return tuple(sorted(chosen.values(), key=lambda run: run.id)), notices


def _folders(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    # isdir, because an entry raises for a link that leads to itself.
    return sorted(e.path for e in os.scandir(root) if os.path.isdir(e.path) and not e.name.startswith("."))


def _why_unread(folder: RunFolder, error: Exception) -> str:
    """The reason from the status of a run that failed before it wrote a record, else the error."""
    state, message = _status(folder)
    return f"failed before training began: {message}" if state == "failed" and message else str(error)


def read_run(path: Path, sections: dict[str, Any] | None = None) -> tuple[Run, str] | Notice:
    """A run and its kind, ``run`` or ``base``; or why its folder cannot be used.

    Args:
        sections: equal sections of the records that were read before, shared between runs.
    """
    try:
        return _read_run(path, {} if sections is None else sections)
    except (UsageError, OSError) as error:
        return Notice(path.name, _why_unread(RunFolder(path), error))


def _read_run(path: Path, sections: dict[str, Any]) -> tuple[Run, str]:
    """A run and its kind. Thousands of records have equal sections, e.g. the model's: ``sections`` has each once."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise UsageError("the name of this folder is not UTF-8, so no command can name it: rename the folder") from None
    folder = RunFolder(path)
    record = _with_shared_sections(folder.record(), sections)
    kind = str(record["kind"])
    try:
        settings = canonical(flat_settings(record))
    except (TypeError, ValueError) as error:
        raise UsageError(f"'{path / 'run.json'}' is damaged: {error}.") from error
    for key in MODEL_KEYS:  # of a base model; a run's settings are those of its id
        if isinstance(settings.get(key), dict | list):
            raise UsageError(f"'{path / 'run.json'}' is damaged: {key} is {str(settings[key])[:40]}.")
    state, message = _status(folder)
    return Run(folder, record, settings, state, message), kind


def _with_shared_sections(record: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    """The record with its sections, and those of its configuration, replaced by the first equal ones."""

    def first(value: Any) -> Any:
        return sections.setdefault(repr(value), value)

    config = record.get("config")
    if isinstance(config, dict):
        record = record | {"config": {sys.intern(key): first(value) for key, value in config.items()}}
    return {sys.intern(key): value if key == "config" else first(value) for key, value in record.items()}


def _status(folder: RunFolder) -> tuple[str, str]:
    """State and message: ``killed`` where no process works on a running run, ``unknown`` for an unreadable file."""
    try:
        status = folder.status
        if status["state"] == "running" and folder.is_abandoned:
            return "killed", KILLED
        return str(status["state"]), str(status.get("message", ""))
    except (UsageError, OSError, KeyError) as error:
        if isinstance(error.__cause__, PermissionError):
            return "unknown", "its status file cannot be read: Permission denied. Ask whose it is"
        return "unknown", "its status file is damaged; repeat the command of the run to repair it"


def flat_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration in ``run.json`` by ``section.key``, plus ``reward.version``.

    The user's own prompt files and pipeline add their digests as ``sample.prompts.digest`` and ``model.digest``;
    shipped sets and models have none.
    """
    config = record.get("config")
    flat: dict[str, Any] = {}
    for section, values in (config if isinstance(config, dict) else {}).items():
        if not isinstance(values, dict):
            flat[section] = values
            continue
        nested = values.get("settings") if section in ("method", "reward") else None
        own = {k: v for k, v in values.items() if not (isinstance(nested, dict) and k == "settings")}
        flat |= {sys.intern(f"{section}.{key}"): value for key, value in (own | (nested or {})).items()}
    files = record.get("prompt_files")
    digests = {f"{key}.digest": value for key, value in files.items()} if isinstance(files, dict) else {}
    if record.get("model_digest"):
        digests["model.digest"] = record["model_digest"]
    return flat | {"reward.version": record.get("reward_version", "")} | digests


def trained_on(settings: Mapping[str, Any], reward: str, version: str) -> bool:
    """Whether runs with these :func:`flat_settings` were trained on a reward in this version: another version of it is
    another measure, which a later ``eval`` can add. Settings that name no version are believed by the reward's name."""
    recorded = settings.get("reward.version") or f"{reward}/{version}"
    return bool(reward == settings["reward.name"] and recorded == f"{reward}/{version}")


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _interned(row[key]) for key in SHOWN if key in row}


def _interned(value: Any) -> Any:
    """A JSON table whose keys take memory once for all runs; other values as they are."""
    return {sys.intern(key): number for key, number in value.items()} if isinstance(value, dict) else value


def clean_bill(bill: Any) -> dict[str, Any]:
    """A bill whose counts are all numbers, as the tables expect; empty if ``bill`` is not a table of counts."""
    if not isinstance(bill, dict):
        return {}
    flat = {sys.intern(key): _number(value) for key, value in bill.items() if not isinstance(value, dict)}
    nested = {sys.intern(key): _interned(value) for key, value in bill.items() if isinstance(value, dict)}
    return flat | {key: {name: _number(count) for name, count in value.items()} for key, value in nested.items()}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
