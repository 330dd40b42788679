"""The studies in ``results/studies`` are whole, can be repeated by the command beside them, and can be shown."""

import json
import re
from pathlib import Path

import pytest

from sdpo_bench.plugins.registry import plugins

FOLDER = Path(__file__).parents[2] / "results" / "studies"
RECORDS = sorted(FOLDER.glob("*/*.json"))


def seeds_of(record: dict) -> list[str]:
    (text,) = (value for name, value in record["facts"] if name == "seeds")
    return re.findall(r"\d+", text)


def test_every_study_of_the_package_is_there_or_named_as_not_run():
    """Under "Not run yet" in the list, each by its command."""
    done = {path.parent.name for path in RECORDS}
    _, _, rest = (FOLDER / "README.md").read_text().partition("## Not run yet")
    open_ones = set(re.findall(r"`sdpo-bench study (\S+)`", rest))
    assert done | open_ones == set(plugins("studies"))
    assert not done & open_ones


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_it_has_seeds_enough_and_its_command_stands_in_the_list(path):
    record = json.loads(path.read_text())
    assert len(seeds_of(record)) >= 3
    assert record["findings"]["conclusion"]
    command = record["command"].replace(" --size default", "")
    assert f"`{command}`" in (FOLDER / "README.md").read_text()
    assert path.with_suffix(".csv").exists()


def test_a_report_shows_them_all(tmp_path):
    from sdpo_bench.cli.commands.report import report_command

    (tmp_path / "studies").symlink_to(FOLDER)
    page = tmp_path / "report.html"
    report_command(
        results=tmp_path,
        select=(),
        group_by=(),
        metric="mean",
        style="html",
        out=page,
    )
    text = page.read_text()
    for path in RECORDS:
        assert path.parent.name in text, path
