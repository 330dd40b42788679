"""The reference results are whole, belong to the settings of the committed code, and the README shows what they say."""

import json
import re
from pathlib import Path

import pytest

from sdpo_bench.sweep.plan import Plan, filter_jobs, make_plan
from sdpo_bench.sweep.suite import find_suite
from tools.shown_output import BLOCK, PAGES, refreshed

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference"
ABLATIONS = ("normalisation", "rewards", "updates", "rates", "groups")
LONG_ABLATIONS = ("rewards", "updates", "normalisation")
SUITES = {"embedded-main": REFERENCE, "embedded-methods": REFERENCE}
SUITES |= {"embedded-flow": REFERENCE / "flow", "embedded-long": REFERENCE / "long"}
SUITES |= {"embedded-long-native": REFERENCE / "long", "embedded-newer": REFERENCE / "newer"}
SUITES |= {f"embedded-ablation-{what}": REFERENCE / "ablations" for what in ABLATIONS}
SUITES |= dict.fromkeys(("embedded-long-t20", "embedded-long-t20-native"), REFERENCE / "t20")
SUITES |= {f"embedded-long-{what}": REFERENCE / "long-ablations" / what for what in LONG_ABLATIONS}
PARTS = {"embedded-long-t20": ["sdpo", "ddpo"]}
"""Methods of a suite whose other ones were not trained yet."""


def plan_of(name: str) -> Plan:
    plan = make_plan(find_suite(name), SUITES[name])
    return filter_jobs(plan, {"method.name": PARTS[name]}) if name in PARTS else plan


@pytest.mark.parametrize("name", SUITES)
def test_every_cell_of_a_suite_is_there_with_the_settings_of_this_code(name):
    """A change of a preset, default or version would give other run ids: the results would no longer be this code's."""
    plan = plan_of(name)
    missing = [cell.run_id for cell in plan.jobs if cell.state != "done"]
    assert plan.jobs and not missing


def test_nothing_is_there_that_no_suite_asks_for():
    for folder in set(SUITES.values()):
        wanted = {cell.run_id for name, place in SUITES.items() if place == folder for cell in plan_of(name).jobs}
        present = {path.name for path in (folder / "runs").iterdir() if not path.name.startswith("base-")}
        assert present == wanted


def test_no_weights_and_no_path_of_a_machine_are_in_it():
    files = [path for path in REFERENCE.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {"", ".json", ".jsonl", ".parquet", ".png", ".md", ".svg"}
    for path in files:
        if path.suffix in (".json", ".jsonl", ".md") or path.name == "status":
            assert not re.search(r"/(opt|home|tmp|root|work|Users)/", path.read_text(encoding="utf-8")), path


def test_tdpo_s_critic_explains_as_little_as_the_page_says():
    """1 - mean (V - A)^2 / mean A^2, of each half of the epochs."""
    paths = list((REFERENCE / "runs").glob("tdpo-*/train.jsonl"))
    halves: tuple[list[str], list[str]] = ([], [])
    for path in paths:
        epochs = [json.loads(line) for line in path.read_text().splitlines()]
        for half, part in zip(halves, (epochs[:16], epochs[16:]), strict=True):
            left = sum(epoch["critic_error"] for epoch in part)
            square = sum(epoch["advantage_mean"] ** 2 + epoch["advantage_std"] ** 2 for epoch in part)
            half.append(f"{100 * abs(1 - left / square):.1f}")
    assert len(paths) == 5
    assert set(halves[0]) == {"0.0"} and (min(halves[1]), max(halves[1])) == ("0.4", "1.8")
    assert "0.0 % of the square of the advantages" in (REFERENCE / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_a_page_shows_what_its_commands_print(page):
    text = page.read_text(encoding="utf-8")
    assert BLOCK.findall(text)
    for found in BLOCK.finditer(text):
        assert f"sdpo-bench {found[4]}" in text.replace(found[0], ""), "the command stands beside it, for readers"
    assert refreshed(text) == text


def test_a_number_that_no_command_prints_is_found():
    page = "<!-- first 1 lines of: sdpo-bench list presets -->\n\n```text\n42\n```\n\n<!-- end -->"
    assert "42" not in refreshed(page)
