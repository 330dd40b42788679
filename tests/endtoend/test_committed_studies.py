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


def test_studies_stand_folded_at_the_end_of_a_page_of_runs(tmp_path):
    """Those of the repository lie beside a user's own runs, which come first."""
    from report_factory import base_frame, make_base, make_run, spread

    from sdpo_bench.reporting.assemble import Request, build_report
    from sdpo_bench.reporting.html import html
    from sdpo_bench.results.read_results import load_results

    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    make_run(tmp_path, "sdpo", 0, spread([1, 1, 1]))
    (tmp_path / "studies").symlink_to(FOLDER)
    page = html(build_report(load_results(tmp_path), Request()))
    navigation, _, body = page.partition("<nav")[2].partition("</nav>")
    own, _, folded = navigation.partition('<details class="studies"><summary>Studies ')
    assert 'href="#study-' not in own and folded.count('href="#study-') == len(RECORDS)
    assert "#setting-1" in own and "#all-versions" in own
    assert body.index('id="all-versions"') < body.index('id="study-')
    for record in map(json.loads, map(Path.read_text, RECORDS)):
        assert f"<dt>recorded with</dt><dd><bdi>sdpo-bench {record['versions']['sdpo-bench']}</bdi>" in body
    assert body.count("<dt>recorded with</dt><dd><bdi>sdpo-bench ") == len(RECORDS)
