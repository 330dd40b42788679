"""A finished study on disk: one JSON file that a report can draw without the study's code, and its tables as CSV.

``<out>/studies/NAME/SIZE.json`` holds question, design, statistics, conclusion, tables and the data of the plots,
with the command that made it. Another size, model or reward has a file of its own, so a quick try never replaces a
real result. The runs of its trainings lie in ``<out>/studies/NAME/runs`` and are not needed for anything here.
"""

import json
import math
import shlex
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from sdpo_bench.errors import MissingError, RunFailed
from sdpo_bench.results.study_findings import Findings
from sdpo_bench.statistics.chart import Chart
from sdpo_bench.statistics.table import Table
from sdpo_bench.system.files import atomic_write
from sdpo_bench.system.json_toml import parse_json

FORMAT = 1
"""Raised when the form of the file changes."""


@dataclass(frozen=True)
class StudyRecord:
    """A study's results with everything that a reader needs."""

    study: str
    variant: str
    """Name of the file: size, and model or rewards where they are not the study's own."""
    question: str
    facts: tuple[tuple[str, str], ...]
    statistics: tuple[str, ...]
    findings: Findings
    command: str
    seconds: float
    """Of the call that finished it, waiting included."""
    runs: dict[str, int]
    """Trainings by state."""
    versions: dict[str, Any]
    hardware: dict[str, Any]
    format: int = FORMAT

    @property
    def slug(self) -> str:
        """Unique name in a report."""
        return f"study-{self.study}-{self.variant}"

    @property
    def unfinished(self) -> int:
        """Trainings without a result; one that diverged has one."""
        return sum(count for state, count in self.runs.items() if state not in ("done", "diverged"))


_ADAPTER = TypeAdapter(StudyRecord)


def study_folder(out: Path, name: str) -> Path:
    return out / "studies" / name


def study_file(out: Path, name: str, variant: str) -> Path:
    """The record of one size, model and so on (``study.variant_of``)."""
    return study_folder(out, name) / f"{variant}.json"


def write_study(out: Path, record: StudyRecord, tables: str) -> Path:
    """Write a record and its tables as CSV; returns the path of the record.

    Raises:
        RunFailed: more trainings failed than in the record that is there, which stays.
        MissingError: the folder cannot be written.
    """
    path = study_file(out, record.study, record.variant)
    earlier = read_study(out, record.study, record.variant)
    if earlier and record.unfinished > earlier.unfinished:
        raise RunFailed(
            f"{record.unfinished} of {sum(record.runs.values())} trainings failed, so '{path}' is unchanged; there "
            f"{earlier.unfinished} of {sum(earlier.runs.values())} had failed. Repeat the command to retry; reasons: "
            f"sdpo-bench list runs --results {shlex.quote(str(path.parent))}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_plain(asdict(record)), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        atomic_write(path.with_suffix(".csv"), tables)
        atomic_write(path, text + "\n")
    except OSError as error:
        raise MissingError(f"'{path}' cannot be written: {error.strerror}. Choose another --results FOLDER.") from error
    return path


def _plain(data: Any) -> Any:
    """JSON data; a number that is not finite becomes null, other floats keep nine digits."""
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(item) for item in data]
    if hasattr(data, "item"):  # a number of numpy's
        data = data.item()
    if isinstance(data, float):
        return float(f"{data:.9g}") if math.isfinite(data) else None
    return data


def read_studies(out: Path) -> tuple[list[StudyRecord], list[tuple[str, str]]]:
    """Records of a results folder by study and size, and (place, problem) for each unreadable or missing record."""
    records, problems = [], []
    root = out / "studies"
    for folder in sorted(runs.parent for runs in root.glob("*/runs")):
        if not list(folder.glob("*.json")):
            again = f"sdpo-bench study {folder.name} --results {shlex.quote(str(out))}"
            problems.append((f"studies/{folder.name}", f"unfinished in every size. Resume it with: {again}"))
    for path in sorted(root.glob("*/*.json")):
        try:
            records.append(_read(path))
        except (OSError, ValueError) as error:  # pydantic's is a ValueError
            reason = str(error).splitlines()[0]
            problems.append((f"studies/{path.parent.name}/{path.name}", f"damaged ({reason}); run the study again"))
    return records, problems


def read_study(out: Path, name: str, variant: str) -> StudyRecord | None:
    """The record on disk; None if it is missing or cannot be read."""
    with suppress(OSError, ValueError):
        return _read(study_file(out, name, variant))
    return None


def _read(path: Path) -> StudyRecord:
    data = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"not a study record of format {FORMAT}")
    record = _ADAPTER.validate_python(data)
    if not all(plot.charts and all(map(_drawable, plot.charts)) for plot in record.findings.plots):
        raise ValueError("a plot whose lines lack points")
    if not all(map(_complete, record.findings.tables)):
        raise ValueError("a table whose rows lack cells")
    return record


def _complete(table: Table) -> bool:
    """Whether every row has a cell for every column."""
    return all(len(row.cells) == len(table.columns) for group in table.groups for row in group.rows)


def _drawable(chart: Chart) -> bool:
    return all(len(s.x) == len(s.y) and len(s.low) == len(s.high) and len(s.low) in (0, len(s.x)) for s in chart.series)
