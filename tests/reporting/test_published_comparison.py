"""``report --against``: shares, directions and orders by hand, scales kept apart, bad files named."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from report_factory import base_frame, edit_scores, frame, make_base, make_run, spread
from scipy import stats

from sdpo_bench.cli.report_commands import report as report_cli
from sdpo_bench.errors import UsageError
from sdpo_bench.library.reports import find_sides_against, render
from sdpo_bench.reporting.assemble import Request, build_report
from sdpo_bench.reporting.report_parts import only
from sdpo_bench.reporting.tables.against_sides import Reading
from sdpo_bench.results.published_numbers import paper, read_published
from sdpo_bench.results.read_results import load_results

# sdpo: +1, +2, +3; ddpo: +0.5, +0.4, -0.3; d3po: +0.02 each, which two readings off by 0.05 cannot tell from nothing.
FILE = """
publication = "A paper"
source = "its figure 1"
digitised = true
tolerance = 0.05
model = "emoji-turbo"
reward = "emoji-align"
steps = [1, 2, 4]
notes = ["read at night"]
[scores]
base = [1.0, 1.0, 1.0]
sdpo = [2.0, 3.0, 4.0]
ddpo = [1.5, 1.4, 0.7]
d3po = [1.02, 1.02, 1.02]
"""


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "them.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Gains by step count, alike for two seeds up to 0.01: sdpo +2, +1, -1; ddpo +0.5 each; a method of one's own."""
    out = tmp_path / "mine"
    make_base(out, base_frame(spread([0, 0, 0])))
    for seed, shift in enumerate((-0.01, 0.01)):
        for method, gains in (("sdpo", (2, 1, -1)), ("ddpo", (0.5,) * 3), ("grpo", (0.1,) * 3)):
            make_run(out, method, seed, spread([gain + shift for gain in gains]))
    return out


def tables(out: Path, *against: object, **request) -> dict[str, object]:
    sides = tuple(side for name in against for side in find_sides_against(str(name)))
    report = build_report(load_results(out), Request(against=sides, **request))
    return {table.name: table for table in report.main if table.name.startswith("against")}


def row(table, group: str, source: str) -> dict[str, object]:
    (rows,) = [g.rows for g in table.groups if g.title == group]
    (found,) = [r for r in rows if r.cells[0].text == source]
    return {column.key: cell for column, cell in zip(table.columns, found.cells)}


def test_gains_are_shares_of_the_largest_mean_gain_of_their_side(out, published):
    table = tables(out, published)["against-1-shape"]
    # Here: mean gains are 2/3 (sdpo) and 1/2 (ddpo), so 100 % is 2/3. There: 2 (sdpo), 0.2 and 0.02, so it is 2.
    here, there = row(table, "sdpo", "here"), row(table, "sdpo", "them")
    assert [here[f"steps_{k}"].value for k in (1, 2, 4)] == pytest.approx([3, 1.5, -1.5])
    assert [there[f"steps_{k}"].value for k in (1, 2, 4)] == pytest.approx([0.5, 1, 1.5])
    assert (here["mean"].value, row(table, "ddpo", "here")["mean"].value) == pytest.approx((1, 0.75))
    assert there["steps_1"].text == "50 % ±5", "a gain is two readings, each off by up to 0.05, of 2"
    # Gains of 2 -+ 0.01 by two seeds: 12.706 standard errors of 0.01 to either side, in units of 2/3.
    half = stats.t.ppf(0.975, 1) * 0.01 / (2 / 3)
    assert (here["steps_4"].low, here["steps_4"].high) == pytest.approx((-1.5 - half, -1.5 + half))
    assert here["steps_1"].text == f"300 % ±{100 * half:.0f}"


def test_a_number_as_large_as_its_error_has_no_direction():
    found = [Reading(value, half).direction for value, half in ((0.5, 0.5), (-0.5, 0.5), (0.6, 0.5), (-0.6, 0.5))]
    assert found == [0, 0, 1, -1]
    assert [Reading(value).direction for value in (0.1, 0.0, -0.1)] == [0, 0, 0]


def test_a_method_of_one_seed_moves_in_no_direction(out, published):
    make_run(out, "d3po", 0, spread([-0.9, 0.9, 0.9]))
    published.write_text(published.read_text().replace("[1.02, 1.02, 1.02]", "[2.0, 2.0, 2.0]"))
    table = tables(out, published)["against-1-shape"]
    assert row(table, "d3po", "here")["direction"].text == "open at 3"


def test_order_there_needs_more_than_the_error_of_two_readings(out, published):
    """There ddpo gains 0.2 and d3po 0.14, two readings each off by up to 0.05 against the same base model."""
    published.write_text(FILE.replace("[1.02, 1.02, 1.02]", "[1.14, 1.14, 1.14]"))
    for seed in (0, 1):
        make_run(out, "d3po", seed, spread([0.9 + seed / 100] * 3))
    order = next(note for note in tables(out, published)["against-1-shape"].all_notes if note.startswith("Order"))
    assert "of 3 pairs, 1 the same way round" in order
    assert "1 the other way round (d3po and sdpo), 1 without a significant" in order


def test_only_step_counts_that_every_row_has_are_compared(out, published):
    for seed, shift in enumerate((-0.01, 0.01)):
        one = lambda shift=shift, **who: frame(spread([0.5 + shift] * 2), **who, steps=(1, 4))  # noqa: E731
        make_run(out, "d3po", seed, None, frames=[one])
    table = tables(out, published)["against-1-shape"]
    assert [column.key for column in table.columns] == ["from", "steps_1", "steps_4", "mean", "direction"]
    # The mean gain of sdpo there, over these two, is 2, and ddpo's 0.1.
    assert row(table, "ddpo", "them")["mean"].value == pytest.approx(0.05)


def test_numbers_of_another_split_are_no_match(out, published):
    published.write_text(FILE.replace("[scores]", 'split = "unseen"\n[scores]'))
    with pytest.raises(UsageError, match="no method and number of steps in common"):
        tables(out, published)


def test_directions_and_orders(out, published):
    table = tables(out, published)["against-1-shape"]
    assert row(table, "sdpo", "here")["direction"].text == "same at 2, opposite at 1"
    assert row(table, "ddpo", "here")["direction"].text == "same at 2, opposite at 1"
    notes = " ".join(table.all_notes)
    assert "of 1 pair, 1 the same way round" in notes
    assert "only here: grpo; only them: d3po" in notes
    assert "A paper" in notes and "its figure 1" in notes and "read at night" in notes and "Digitised" in notes


def test_the_order_of_two_methods_is_that_of_their_shared_seeds(tmp_path, published):
    """sdpo is ahead by 1 over seeds 0 to 2, two further seeds of ddpo lift its own mean above sdpo's."""
    out = tmp_path / "mine"
    make_base(out, base_frame(spread([0, 0, 0])))
    for method, gains in (("ddpo", (0.9, 1.0, 1.1, 5, 5)), ("sdpo", (1.9, 2.0, 2.1))):
        for seed, gain in enumerate(gains):
            make_run(out, method, seed, spread([gain] * 3))
    notes = " ".join(tables(out, published)["against-1-shape"].all_notes)
    assert "of 1 pair, 1 the same way round" in notes


def test_what_a_reading_cannot_tell_from_nothing_is_open(out, published):
    make_run(out, "d3po", 0, spread([0.9, 0.9, 0.9]))
    make_run(out, "d3po", 1, spread([0.91, 0.91, 0.91]))
    table = tables(out, published)["against-1-shape"]
    assert row(table, "d3po", "here")["direction"].text == "open at 3"
    # Here d3po (.905) is ahead of ddpo (.5) and sdpo (.67); there sdpo is ahead, ddpo too (.2 against .02).
    order = next(note for note in table.all_notes if note.startswith("Order"))
    assert "of 3 pairs, 1 the same way round" in order
    assert "2 the other way round (d3po and ddpo; d3po and sdpo), 0 without a significant" in order


def test_scores_stand_beside_each_other_only_on_one_scale(out, published):
    found = tables(out, published)
    assert set(found) == {"against-1-shape", "against-2-scores"} or set(found) == {
        "against-1-shape",
        "against-1-scores",
    }
    scores = next(table for name, table in found.items() if name.endswith("scores"))
    assert row(scores, "base model", "them")["steps_1"].text == "1.000 ±0.050"
    assert row(scores, "sdpo", "here")["steps_1"].value == pytest.approx(2)
    published.write_text(FILE.replace("emoji-align", "another"))
    other = tables(out, published)
    assert set(other) == {"against-1-shape"}
    assert any(note.startswith("Scales differ: emoji-align") for note in other["against-1-shape"].cautions)


def test_another_results_folder_and_its_reward_version(out, tmp_path):
    table = tables(out, out)["against-1-shape"]
    assert row(table, "sdpo", "here")["direction"].text == "same at 3"
    assert {group.title for group in table.groups} == {"sdpo", "ddpo", "grpo"}
    assert "against-1-scores" in tables(out, out)
    second = tmp_path / "second"
    make_base(second, base_frame(spread([0, 0, 0]), version="2"))
    make_run(second, "sdpo", 0, spread([1, 1, 1]), version="2")
    found = tables(out, second)
    assert set(found) == {"against-1-shape"}, "scores of another version never share a table"
    assert any("1 seed" in note for note in found["against-1-shape"].cautions)


CURVE = FILE.replace("notes =", "images = 100\nagreement = [0.3, 0.15, 0.15]\nnotes =")


@pytest.fixture
def points(tmp_path):
    """Two points of a learning curve: at 100 images and, with one more for sdpo, at 3,000."""
    paths = [tmp_path / "early.toml", tmp_path / "late.toml"]
    late = CURVE.replace("images = 100", "images = 3000").replace("[2.0, 3.0, 4.0]", "[3.0, 4.0, 5.0]")
    for path, text in zip(paths, (CURVE, late)):
        path.write_text(text)
    return paths


def test_the_verdict_counts_what_is_reproduced(out, points):
    """By hand, as `out` has gains sdpo +2, +1, -1 and ddpo +.5 each over a base model at 0: the base model is 1 off
    everywhere; sdpo has 2, 1, -1 against 2, 3, 4 there, so it is within tolerance at 1 step; ddpo has .5 against 1.5,
    1.4, .7, within none (.7 - .5 = .2 > .15). There sdpo gains more than ddpo and d3po; here sdpo and ddpo are not told
    apart with two seeds."""
    sides = tuple(find_sides_against(str(points[0])))
    (verdict,) = build_report(load_results(out), Request(against=sides)).verdicts
    assert verdict.startswith("Verdict against early at 100 images, emoji-align on emoji-turbo, train prompts: ")
    assert ": base model within tolerance at 0 of 3 step counts; " in verdict
    assert "sdpo within tolerance at 1 of 3 step counts" in verdict
    assert "ddpo within tolerance at 0 of 3 step counts" in verdict
    assert verdict.endswith("Tolerance by steps: 0.3 at 1, 0.15 at 2, 0.15 at 4.")
    assert "of 1 pairs of methods" in verdict


def test_the_verdict_is_the_last_line_of_every_format_after_notes_and_notices(out, points):
    make_run(out, "rebel", 0, state="failed", message="out of memory")
    sides = tuple(find_sides_against(str(points[0])))
    report = build_report(load_results(out), Request(against=sides))
    assert report.notices
    (verdict,) = report.verdicts
    assert render(report, "terminal").splitlines()[-1] == verdict
    last = {style: render(report, style).splitlines()[-1] for style in ("markdown", "csv", "latex")}
    assert last["markdown"].startswith("- Verdict against ")
    assert last["csv"] == f',against,,,verdict,"{verdict}",,,,'
    assert last["latex"].startswith(r"\noindent Verdict against ") and last["latex"].endswith(r"\par")
    data = json.loads(render(report, "json"))
    assert list(data)[-1] == "verdicts" and data["verdicts"] == [verdict]
    *_, article = render(report, "html").partition("</main>")[0].split("<article")
    assert article.startswith(' id="reproduced">') and verdict in article
    assert not only(report, ["leaderboard"]).verdicts and only(report, ["against"]).verdicts == (verdict,)


def test_the_nearest_point_of_a_learning_curve_is_compared(out, points):
    from sdpo_bench.reporting.tables.published_comparison import nearest_points

    early, late = (find_sides_against(str(path))[0] for path in points)
    own = replace(early, name="here", publication="", agreement={})
    other = replace(late, publication="Another paper")
    assert nearest_points([early, late, other], replace(own, images=1000)) == [early, other]
    assert nearest_points([early, late], replace(own, images=1000)) == [early]
    assert nearest_points([early, late], replace(own, images=2000)) == [late]
    assert nearest_points([early, late], replace(own, images=None)) == [late]
    assert nearest_points([early, late], replace(own, images=1000, model="another")) == [late], "shapes: the last"
    titles = [table.title for table in tables(out, *points).values()]
    assert len(titles) == 2 and all("images" in title for title in titles)


def test_where_nothing_gains_there_are_no_shares(out, published):
    for folder in (out / "runs").glob("*dpo*"):
        edit_scores(folder, lambda rows: rows.__setitem__("score", rows["score"] - 5))
    table = tables(out, published)["against-1-shape"]
    assert row(table, "sdpo", "here")["steps_1"].text == "-"
    assert any(note.startswith("here: no method gains") for note in table.cautions)


def test_nothing_in_common_is_an_error_that_names_both(out, published):
    published.write_text(FILE.replace("sdpo =", "xyz =").replace("ddpo =", "zyx ="))
    with pytest.raises(UsageError, match=r"Methods here: ddpo, grpo, sdpo; there: d3po, xyz, zyx"):
        tables(out, published)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("digitised = true", "", "digitised"),
        ("[1, 2, 4]", "[1, 2]", "3 scores for 2"),
        ("[1, 2, 4]", "[1, 2, 2]", "twice"),
        ("base =", "start =", "needs 'base'"),
        ("2.0, 3.0", "nan, 3.0", "finite"),
        ("tolerance", "tollerance", "tolerance"),
        ("notes", "agreement = [0.1]\nnotes", "1 numbers for 3"),
        ("[scores]", "[scores", "not TOML"),
    ],
)
def test_a_file_that_is_wrong_says_where(published, old, new, said):
    published.write_text(FILE.replace(old, new, 1))
    with pytest.raises(UsageError, match=said):
        read_published(published)


def test_a_mark_that_an_editor_put_at_the_beginning_is_no_error(published):
    before = read_published(published)
    published.write_text(FILE, encoding="utf-8-sig")
    assert read_published(published) == before


def test_the_shipped_numbers_name_their_source_and_their_error():
    """Four points of the learning curves in figures/reward_curves.png at 0723ae8."""
    points = {one.images: one for one in paper()}
    assert sorted(points) == [10_000, 20_000, 25_600, 29_184]
    assert all("0723ae8" in one.source and one.digitised for one in points.values())
    assert {one.agreement for one in points.values()} == {(0.3, 0.15, 0.15, 0.15, 0.15, 0.15)}
    assert points[10_000].methods == ("sdpo", "ddpo"), "the other two curves were not read there"
    assert points[25_600].scores["sdpo"] == (7.05, 7.79, 7.94, 8.02, 8.04, 7.97)
    found = points[29_184]
    assert found.tolerance == 0.05
    # End points of the official figure: SD-Turbo, aesthetic, T steps in evaluation.
    assert dict(zip(found.steps, found.scores["base"])) == {1: 6.10, 2: 6.04, 4: 5.90, 8: 5.80, 16: 5.66, 50: 5.48}
    assert found.scores["sdpo"][-1] == 8.18 and found.methods == ("sdpo", "ddpo", "rebel", "d3po")


def test_every_format_has_the_comparison(out):
    sides = tuple(find_sides_against("paper"))
    # Without the settings' own sections, whose figures take their time to draw.
    report = replace(build_report(load_results(out), Request(against=sides)), sections=())
    for style in ("terminal", "markdown", "csv", "latex", "json", "html"):
        text = re.sub(r"\s+", " ", render(report, style))
        assert "shape" in text and "2411.11727" in text, style


def test_command_line(out, tmp_path):
    done = CliRunner().invoke(report_cli, ["--results", str(out), "--against", "paper"])
    assert done.exit_code == 0 and "Against paper at 29,184 images: shape of the gains" in done.output
    wrong = CliRunner().invoke(report_cli, ["--results", str(out), "--against", "papers"])
    assert isinstance(wrong.exception, UsageError) and "Valid: paper, FILE.toml, a results folder" in str(
        wrong.exception
    )
