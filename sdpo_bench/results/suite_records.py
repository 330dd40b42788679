"""Suites of a results folder: the runs of each suite, and how their settings were chosen.

One file a suite, ``<out>/suites/NAME.json``, and ``NAME-on-MODEL.json`` for a suite on another model than its own,
written by ``sweep`` whenever its plan changes, so that a report shows the suite's table without an option. A run may
belong to several suites, or to none.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_bench.errors import MissingError, Unwritable
from sdpo_bench.hashing import canonical
from sdpo_bench.system.files import atomic_write
from sdpo_bench.system.json_toml import parse_json

DAMAGE = (ValueError, KeyError, TypeError, AttributeError)
"""What reading a damaged record raises."""


@dataclass(frozen=True)
class SuiteRecord:
    """A suite as it was swept."""

    name: str
    texts: dict[str, str]
    """``description``, ``reproduces``, ``departs``."""
    variant_keys: tuple[str, ...]
    reported: dict[str, str]
    """Variant by run id."""
    tuning: tuple[str, ...]
    waiting: int
    """Reported jobs whose settings are not chosen yet."""
    search: dict[str, Any] | None
    choices: tuple[dict[str, Any], ...]
    suite: str = ""
    """The suite that ``--model`` took to another model; else empty."""
    model: str = ""
    """That model."""
    former_tuning: tuple[str, ...] = ()
    """Tuning runs of earlier texts of the suite: settings were chosen by them, so no table may take them for seeds."""

    @property
    def swept_by(self) -> tuple[str, str]:
        """Name and model of the command that swept it; no model where the suite's file says it."""
        return self.suite or self.name, self.model


def write_record(out: Path, name: str, data: Mapping[str, Any]) -> bool:
    """Record a suite; ``data`` as :func:`_record` reads it. True if the replaced record had none of these runs.

    The tuning runs of the replaced record stay known as such.

    Raises:
        MissingError: the folder cannot be written.
    """
    path = out / "suites" / f"{name}.json"
    earlier_runs, former = set[str](), set[str]()
    with suppress(OSError, *DAMAGE):
        earlier = parse_json(path.read_text(encoding="utf-8"))
        earlier_runs = _runs(earlier)
        former = {*earlier["tuning"], *earlier.get("former_tuning", ())} - set(data["tuning"])
    if former:
        data = {**data, "former_tuning": sorted(former)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(canonical(data), indent=1, sort_keys=True) + "\n")
    except (OSError, Unwritable) as error:
        raise MissingError(f"'{path}' cannot be written: {error.strerror}. Choose another --out FOLDER.") from error
    return bool(earlier_runs) and earlier_runs.isdisjoint(_runs(data))


def _runs(data: Mapping[str, Any]) -> set[str]:
    return {*data["reported"], *data["tuning"]}


def read_records(out: Path) -> tuple[list[SuiteRecord], list[tuple[str, str]]]:
    """Suites of a results folder by name, and (file, problem) for each record that cannot be read."""
    records, problems = [], []
    for path in sorted((out / "suites").glob("*.json")) if (out / "suites").is_dir() else []:
        try:
            records.append(_record(parse_json(path.read_text(encoding="utf-8"))))
        except PermissionError as error:  # not readable is not damaged
            problems.append((path.name, f"this suite's record cannot be read: {error.strerror}. Ask whose it is"))
        except (OSError, *DAMAGE) as error:
            problems.append((path.name, f"this suite's record is damaged ({error}); sweep it again to repair it"))
    return records, problems


def _record(data: dict[str, Any]) -> SuiteRecord:
    texts = {key: str(data["texts"].get(key, "")) for key in ("description", "reproduces", "departs")}
    choices: Sequence[dict[str, Any]] = data["choices"]
    return SuiteRecord(
        str(data["name"]),
        texts,
        tuple(map(str, data["variant_keys"])),
        {str(run): str(variant) for run, variant in data["reported"].items()},
        tuple(map(str, data["tuning"])),
        int(data["waiting"]),
        data["search"],
        tuple(dict(c) for c in choices),
        str(data.get("suite", "")),
        str(data.get("model", "")),
        tuple(map(str, data.get("former_tuning", ()))),
    )
