"""Learning curves in reports: who gets to a level with how much training, in every format."""

import csv
import io
import json

import pytest
from report_factory import add_curve, base_frame, make_base, make_run, spread

from sdpo_bench.cli.commands.report import render, report_command
from sdpo_bench.errors import UsageError
from sdpo_bench.reporting.assemble import Request, build_report
from sdpo_bench.reporting.report_parts import only
from sdpo_bench.results.read_results import load_results

STEPS = (1, 2, 4)


@pytest.fixture
def results(tmp_path):
    """sdpo rises early, ddpo to a tenth of it, rebel's second seed late; d3po measured no curve, refl failed.

    With 64 images between points, at 1 step: sdpo's final rise is 0.4, so X = 0.2.
    """
    curves = {
        ("sdpo", 0): [0, 0.2, 0.4],
        ("sdpo", 1): [0, 0.1, 0.4],
        ("ddpo", 0): [0, 0.02, 0.04],
        ("ddpo", 1): [0, 0.02, 0.04],
        ("rebel", 0): [0, 0.4, 0.4],
        ("rebel", 1): [0, 0.0, 0.1],
    }
    make_base(tmp_path, base_frame(spread([-1.0] * 3)))
    for (method, seed), rises in curves.items():
        add_curve(make_run(tmp_path, method, seed, spread([-0.5] * 3)), rises)
    make_run(tmp_path, "d3po", 0, spread([-0.5] * 3))
    make_run(tmp_path, "ddpo", 2, state="failed", message="NaN")
    return tmp_path


def table_of(results, **options):
    data = json.loads(render(build_report(load_results(results), Request(**options)), "json"))
    (section,) = data["settings"]
    (table,) = [table for table in section["tables"] if "learning-curve" in table["name"]]
    return table, section


def rows_of(table, words):
    (group,) = [group for group in table["groups"] if words in group["title"]]
    return group["title"], {row["method"]["text"]: row for row in group["rows"]}


def test_the_level_is_half_of_the_best_final_rise(results):
    """0.4 at 1 step and 4.0 at 4 steps, 2.2 on their mean; all by sdpo."""
    table, _ = table_of(results)
    titles = [group["title"] for group in table["groups"]]
    assert titles == [
        "emoji-align, mean over 1 and 4 steps: X = +1.100, half of sdpo's final rise",
        "emoji-align, at 1 step: X = +0.200, half of sdpo's final rise",
        "emoji-align, at 4 steps: X = +2.000, half of sdpo's final rise",
    ]


def test_images_to_reach_the_level_on_each_seeds_curve(results):
    """sdpo: 64, and 64 + 64 / 3 on the other seed."""
    _, rows = rows_of(table_of(results)[0], "at 1 step:")
    reach = rows["sdpo"]["reach"]
    assert reach["value"] == pytest.approx((64 + 64 + 64 / 3) / 2)
    assert reach["low"] < reach["value"] < reach["high"]
    assert rows["sdpo"]["reached_by"]["text"] == "2 of 2"
    assert rows["sdpo"]["area"]["value"] == pytest.approx((0.2 + 0.15) / 2)


def test_a_method_that_never_gets_there_has_a_row_that_says_so(results):
    _, rows = rows_of(table_of(results)[0], "at 1 step:")
    assert rows["ddpo"]["reach"]["text"] == "not reached in 128 images"
    assert rows["ddpo"]["reach"]["value"] is None and rows["ddpo"]["reached_by"]["text"] == "0 of 2"
    assert rows["ddpo"]["seeds"]["text"] == "2 of 3", "the failed run counts"
    # 32 on one seed, never in 128 on the other: the mean is at least 80.
    assert rows["rebel"]["reach"]["text"] == "≥80"
    assert rows["rebel"]["reach"]["value"] is None and rows["rebel"]["reach"]["low"] == 80
    assert rows["rebel"]["reached_by"]["text"] == "1 of 2"


def test_a_level_that_no_seed_reaches_is_not_held_against_the_largest_budget(tmp_path):
    """Seeds that were trained for 64 and for 128 images: none is there after 64, and the mean is at least 96."""
    for seed, rises in enumerate(([0, 0.1], [0, 0.1, 0.2])):
        add_curve(make_run(tmp_path, "ddpo", seed, spread([-0.5] * 3)), rises)
    _, rows = rows_of(table_of(tmp_path, reach=9.0)[0], "at 1 step:")
    assert rows["ddpo"]["reach"]["text"] == "not reached in 64 images"
    assert rows["ddpo"]["reach"]["low"] == 96 and rows["ddpo"]["reach"]["value"] is None


def test_runs_without_a_curve_are_named(results):
    table, _ = table_of(results)
    assert "d3po: 1 run without this curve." in table["notes"]
    assert "ddpo: 1 run without this curve." in table["notes"]


def test_the_axis_and_the_level_can_be_chosen(results):
    table, _ = table_of(results, axis="denoiser_calls", reach=0.1)
    title, rows = rows_of(table, "at 1 step:")
    assert title.endswith("X = +0.100, as stated")
    assert [column["title"] for column in table["columns"]][3] == "denoiser calls to reach X"
    assert rows["sdpo"]["reach"]["value"] == pytest.approx((960 + 1920) / 2)
    assert rows["ddpo"]["reach"]["text"] == "not reached in 3,840 denoiser calls"


def test_where_no_method_has_risen_there_is_no_level(tmp_path):
    add_curve(make_run(tmp_path, "sdpo", 0, spread([-0.5] * 3)), [0, -0.1, -0.2])
    table, _ = table_of(tmp_path)
    title, rows = rows_of(table, "at 1 step:")
    assert "no method ends above the base model" in title
    assert rows["sdpo"]["reach"]["text"] == "-" and rows["sdpo"]["area"]["value"] == pytest.approx(-0.1)


def test_every_curve_is_in_the_json_as_data(results):
    _, section = table_of(results)
    assert len(section["charts"]) == 3, "the mean over step counts, 1 step and 4 steps"
    (one,) = [group for group in section["charts"] if group["title"].endswith("emoji-align, at 1 step")]
    assert [chart["x_label"] for chart in one["charts"]] == [
        "images sampled",
        "denoiser calls",
        "optimiser steps",
        "seconds of training",
    ]
    series = {line["label"]: line for line in one["charts"][0]["series"]}
    assert set(series) == {"sdpo", "ddpo", "rebel"}
    assert series["sdpo"]["x"] == [0, 64, 128]
    assert series["sdpo"]["y"] == pytest.approx([0, 0.15, 0.4])
    assert len(series["sdpo"]["low"]) == 3


@pytest.mark.parametrize("style", ["terminal", "markdown", "csv", "latex", "html"])
def test_every_format_has_the_table(results, style):
    text = render(build_report(load_results(results), Request()), style)
    assert "Learning curves, train prompts" in text or style == "csv"
    assert "not reached in 128 images" in " ".join(text.split())
    if style == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        area = [r for r in rows if r["column"] == "area" and r["row"] == "sdpo" and "at 1 step" in r["group"]]
        assert float(area[0]["value"]) == pytest.approx(0.175)
    if style == "html":
        assert "rise of emoji-align over the base model" in text


def test_only_the_learning_curves(results):
    report = only(build_report(load_results(results), Request()), ["learning-curve"])
    assert [table.name for _, table in report.tables] == ["setting-1-learning-curve-1"]


def test_splits_have_tables_of_their_own_and_can_be_selected(tmp_path):
    add_curve(make_run(tmp_path, "sdpo", 0, spread([-0.5] * 3)), [0, 0.1], splits=("train", "unseen"))
    report = build_report(load_results(tmp_path), Request())
    titles = [table.title for _, table in report.tables if "learning-curve" in table.name]
    assert titles == ["Learning curves, train prompts", "Learning curves, unseen prompts"]
    report = build_report(load_results(tmp_path), Request({"split": ("train",)}))
    assert [t.title for _, t in report.tables if "learning-curve" in t.name] == ["Learning curves, train prompts"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.split("\n", 1)[1], "begins at epoch 5, without the base model"),
        (lambda text: text.replace('"images": 64', '"images": null'), "its curve.jsonl is damaged"),
        (lambda text: text.replace('"scores"', '"scars"'), "its curve.jsonl is damaged"),
        # Training was resumed without a curve after the first point, or with other prompts in a point.
        (lambda text: text.split("\n", 1)[0] + "\n", "ends at epoch 0 of 2, since a resumed training measured none"),
        (lambda text: text.replace("0123456789", "9876543210", 2), "no score stands at all of its points"),
    ],
)
def test_a_curve_that_cannot_be_used_is_a_notice(tmp_path, change, said):
    folder = make_run(tmp_path, "sdpo", 0, spread([-0.5] * 3))
    add_curve(folder, [0, 0.1, 0.2])
    (folder / "curve.jsonl").write_text(change((folder / "curve.jsonl").read_text()))
    report = build_report(load_results(tmp_path), Request())
    assert any(said in notice.text for notice in report.notices)
    assert not [table for _, table in report.tables if "learning-curve" in table.name]


def test_curves_of_other_pictures_are_never_put_together(tmp_path):
    """Here the second run has other prompts: two panels, and each says that a run is missing."""
    for seed, digest in ((0, "0123456789"), (1, "9876543210")):
        folder = make_run(tmp_path, "sdpo", seed, spread([-0.5] * 3))
        add_curve(folder, [0, 0.1])
        text = (folder / "curve.jsonl").read_text()
        (folder / "curve.jsonl").write_text(text.replace("0123456789", digest))
    table, _ = table_of(tmp_path)
    _, rows = rows_of({"groups": table["groups"][:1]}, "mean over")
    assert rows["sdpo"]["seeds"]["text"] == "1 of 2, no interval"
    assert len(table["groups"]) == 6


def test_the_mean_rise_says_how_far_the_curves_of_its_own_block_go(tmp_path):
    """Seed 1 has other pictures and 64 images, where seed 0 has 128: at 1 step the areas are 0.2 and 0.05."""
    for seed, rises in ((0, [0, 0.2, 0.4]), (1, [0, 0.1])):
        folder = make_run(tmp_path, "sdpo", seed, spread([-0.5] * 3))
        add_curve(folder, rises)
        text = (folder / "curve.jsonl").read_text()
        (folder / "curve.jsonl").write_text(text.replace("0123456789", f"{seed}123456789"))
    table, _ = table_of(tmp_path)
    found = {g["title"]: g["rows"][0]["area"]["value"] for g in table["groups"] if "at 1 step" in g["title"]}
    assert found == pytest.approx(
        {
            "emoji-align, at 1 step: X = +0.200, half of sdpo's final rise; mean rise up to 128 images": 0.2,
            "emoji-align, at 1 step: X = +0.050, half of sdpo's final rise; mean rise up to 64 images": 0.05,
        }
    )
    area = next(note for note in table["notes"] if note.startswith("Mean rise"))
    assert area == (
        "Mean rise: area under the curve up to the images in its block's title, which every curve covers, divided by "
        "them."
    )


def test_a_report_without_curves_is_the_one_before(tmp_path):
    make_run(tmp_path, "sdpo", 0, spread([-0.5] * 3))
    data = json.loads(render(build_report(load_results(tmp_path), Request()), "json"))
    assert "charts" not in data["settings"][0]
    assert not [t for t in data["settings"][0]["tables"] if "learning-curve" in t["name"]]


@pytest.mark.parametrize("rise", [0.0, -1.0, float("inf")])
def test_a_level_below_the_base_model_is_refused(tmp_path, rise):
    with pytest.raises(UsageError, match=r"--reach .* is a positive number"):
        report_command(results=tmp_path, select=(), group_by=(), metric="mean", style=None, out=None, reach=rise)
