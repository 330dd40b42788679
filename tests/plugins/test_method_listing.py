"""What ``sdpo-bench list methods`` says of each method, and that docs/methods.md says the same."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from sdpo_bench.cli.main import cli
from sdpo_bench.errors import UsageError
from sdpo_bench.plugins.registry import BUILT_IN, find, plugins

ROOT = Path(__file__).parents[2]
BUILT_IN_METHODS = [p for p in plugins("methods").values() if p.owner == BUILT_IN]
UNDOCUMENTED = """from sdpo_bench.api import Loss, Method


class Plain(Method):
    \"\"\"Moves all images alike.\"\"\"

    formula = "-" + " mean lp"

    def loss(self, batch):
        return Loss(-batch.log_probs.mean())
"""


def listed(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["list", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("plugin", BUILT_IN_METHODS, ids=lambda plugin: plugin.name)
def test_every_method_has_a_formula_and_a_source_which_the_class_has_too(plugin):
    assert plugin.formula and "\n" not in plugin.formula
    assert re.search(r"arXiv \d{4}\.\d{5}", plugin.source)
    loaded = plugin.load()
    assert (loaded.formula, loaded.source) == (plugin.formula, plugin.source)


@pytest.mark.parametrize("plugin", BUILT_IN_METHODS, ids=lambda plugin: plugin.name)
def test_papers_are_cited_in_the_docstrings_of_the_file_too(plugin):
    text = plugin.path.read_text()
    for number in re.findall(r"\d{4}\.\d{5}", plugin.source):
        assert text.count(number) >= 2, number


def test_the_page_has_formula_and_source_of_each_method():
    table = (ROOT / "docs" / "methods.md").read_text().split("## The losses")[1].split("\n\n")[1]
    rows = [re.split(r"(?<!\\\\) \| ", line.strip("| ")) for line in table.splitlines()[2:]]
    page = {name.strip("`"): (_plain(formula), source) for name, formula, source in rows}
    assert page == {p.name: (p.formula, p.source) for p in BUILT_IN_METHODS}


def _plain(cell: str) -> str:
    """A cell without links, code marks and escapes."""
    return re.sub(r" \(\[.*?\]\(.*?\)\)", "", cell).replace("\\|", "|").replace("`", "")


def test_the_list_is_short_as_a_table_and_has_formula_and_source_as_json():
    rows = {row["name"]: row for row in json.loads(listed("methods", "--json"))}
    assert rows["sdpo"]["source"] == "arXiv 2411.11727, eq. 13; code ZiyiZhang27/sdpo"
    assert rows["dpok"]["formula"] == "PG(A, c) + kl_weight KL(policy, base) of each trained step"
    table = listed("methods")
    assert "2411.11727" not in table and "sdpo-bench list methods NAME" in table


def test_one_method_is_shown_with_the_cost_that_a_dry_run_counts():
    planned = json.loads(CliRunner().invoke(cli, ["run", "--method", "nft", "--dry-run", "--json"]).stdout)
    epoch = planned["cost_per_epoch"]
    calls = (epoch["denoiser_forward"] + epoch["denoiser_backward"]) / epoch["images"]
    cost = json.loads(listed("methods", "nft", "--json"))["cost"]
    assert f"{calls:.4g} denoiser calls" in cost
    assert f"{epoch['optimiser_steps']} optimiser steps for {epoch['images']} images" in cost
    assert "2509.16117" in listed("methods", "nft")


@pytest.mark.parametrize(
    ("name", "modes"),
    [
        ("sdpo", "predicted, sparse, full, completion, turning-point, branch (method.reward)"),
        ("ddpo", "sparse, predicted, full, completion, turning-point (method.reward)"),  # one image of a prompt
        ("dense_grpo", "completion"),
        ("nft", "sparse"),
        ("draft", ""),
    ],
)
def test_one_method_is_shown_with_the_rewards_that_it_can_learn_from(name, modes):
    assert json.loads(listed("methods", name, "--json"))["rewards"] == modes


def test_a_search_costs_its_candidates_for_every_image():
    cost = json.loads(listed("methods", "best_of_n", "--json"))["cost"]
    assert cost == "8 samples and reward calls for every image that is delivered"  # n = 8, its default


def test_a_method_without_plain_texts_is_shown_with_empty_cells(tmp_path):
    file = tmp_path / "plain.py"
    file.write_text(UNDOCUMENTED)
    plugin = find("methods", str(file))
    assert (plugin.summary, plugin.formula, plugin.source) == ("Moves all images alike.", "", "")
    shown = json.loads(listed("methods", str(file), "--json"))
    assert (shown["formula"], shown["source"]) == ("", "") and "denoiser calls" in shown["cost"]


@pytest.mark.parametrize(
    ("what", "name", "told"),
    [("rewards", "pickscore", "sdpo-bench list rewards"), ("methods", "sdop", "Did you mean 'sdpo'?")],
)
def test_a_name_that_cannot_be_shown_is_refused_with_what_to_type(what, name, told):
    with pytest.raises(UsageError, match=re.escape(told)):
        CliRunner().invoke(cli, ["list", what, name], catch_exceptions=False, standalone_mode=False)
