"""Methods at equal training reward, in reports: what unseen prompts show when the trained reward has risen alike."""

import json
from functools import partial

import pytest
from report_factory import add_curve, base_frame, frame, make_base, make_run, spread
from scipy import stats

from sdpo_bench.cli.commands.report import render
from sdpo_bench.reporting.assemble import Request, build_report
from sdpo_bench.reporting.report_parts import only
from sdpo_bench.results.read_results import load_results


def train(folder, method, seed, rises, unseen):
    add_curve(make_run(folder, method, seed, spread([-0.5] * 3)), rises, steps=(1,), unseen=unseen)


@pytest.fixture
def results(tmp_path):
    """At the end sdpo is ahead on unseen prompts by far; where the trained reward has risen by .02 ddpo is, by .005.

    One step count, so ten times the rises: sdpo ends at .4, ddpo at .8 and half of that is .4.
    """
    make_base(tmp_path, base_frame(spread([-1.0] * 3)))
    train(tmp_path, "sdpo", 0, [0, 0.01, 0.03], [0, 0.01, 0.03])
    train(tmp_path, "sdpo", 1, [0, 0.02, 0.05], [0, 0.02, 0.05])
    train(tmp_path, "ddpo", 0, [0, 0.02, 0.08], [0, 0.02, -0.09])
    train(tmp_path, "ddpo", 1, [0, 0.04, 0.08], [0, 0.06, -0.05])
    return tmp_path


def judge_by_another(folder):
    """Every point also has scores of a held-out reward, the same ones."""
    points = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    for point in points:
        point["scores"] += [{**entry, "reward": "emoji-accuracy"} for entry in point["scores"]]
    (folder / "curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))


def table_of(results, **options):
    data = json.loads(render(build_report(load_results(results), Request(**options)), "json"))
    (section,) = data["settings"]
    tables = [table for table in section["tables"] if "equal-reward" in table["name"]]
    if not tables:
        return None, {}
    (group,) = tables[0]["groups"]
    return tables[0], {row["method"]["text"]: row for row in group["rows"]}


def test_each_run_is_read_where_its_own_training_reward_has_risen_by_x(results):
    """X = .3, as seed 0 of sdpo never rises above it. There sdpo's unseen rise is .3 on both seeds. ddpo's seed 0 is a
    sixth of the way from .2 to -.9, its seed 1 three quarters of the way from 0 to .6."""
    table, rows = table_of(results)
    assert table["title"].endswith("risen by X = +0.300, the largest that every run reaches")
    assert rows["sdpo"]["rise"]["value"] == pytest.approx(0.3)
    ddpo = [0.2 + (-0.9 - 0.2) / 6, 0.75 * 0.6]
    assert rows["ddpo"]["rise"]["value"] == pytest.approx(sum(ddpo) / 2)
    assert rows["ddpo"]["reach"]["value"] == pytest.approx((64 + 64 / 6 + 48) / 2)
    assert rows["ddpo"]["final_rise"]["value"] == pytest.approx(-0.7)
    assert rows["sdpo"]["final_rise"]["value"] == pytest.approx(0.4)


def test_the_difference_to_the_reference_is_paired_by_seed(results):
    _, rows = table_of(results)
    gaps = [0.2 - 1.1 / 6 - 0.3, 0.45 - 0.3]
    found = rows["ddpo"]["difference"]
    assert found["value"] == pytest.approx(sum(gaps) / 2)
    low, high = stats.t.interval(0.95, 1, sum(gaps) / 2, stats.sem(gaps))
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert rows["ddpo"]["difference_p"]["value"] == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue)
    assert rows["sdpo"]["difference"]["value"] is None
    _, rows = table_of(results, reference="ddpo")
    assert rows["sdpo"]["difference"]["value"] == pytest.approx(-sum(gaps) / 2)


def test_the_change_of_the_difference_goes_from_x_to_the_end_of_each_run(results):
    """At the end ddpo is at -.9 and -.5, sdpo at .3 and .5 on unseen prompts."""
    _, rows = table_of(results)
    changes = [-0.9 - 0.3 - (0.2 - 1.1 / 6 - 0.3), -0.5 - 0.5 - (0.45 - 0.3)]
    found = rows["ddpo"]["change"]
    assert found["value"] == pytest.approx(sum(changes) / 2)
    low, high = stats.t.interval(0.95, 1, sum(changes) / 2, stats.sem(changes))
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert rows["ddpo"]["change_p"]["value"] == pytest.approx(stats.ttest_1samp(changes, 0).pvalue)
    assert rows["sdpo"]["change"]["value"] is None
    _, rows = table_of(results, reach=0.45)
    assert rows["ddpo"]["change"]["value"] is None, "seed 0 of sdpo never gets there"


def test_the_finding_on_unseen_prompts_says_who_differs_there(tmp_path):
    """Gaps of ddpo of -.100 and -.101 at X = .2 (t = 201, p = .003), of rebel of 0 and .1; none at the end."""
    base = spread([-1.0] * 3)
    make_base(tmp_path, base_frame(base), base_frame(base, split="unseen"))
    unseen = partial(frame, spread([-0.5] * 3), split="unseen")
    for method, at_x in (("sdpo", (0.02, 0.02)), ("ddpo", (0.01, 0.0099)), ("rebel", (0.02, 0.03))):
        for seed in (0, 1):
            folder = make_run(tmp_path, method, seed, spread([-0.5] * 3), frames=(unseen,))
            add_curve(folder, [0, 0.02, 0.04], steps=(1,), unseen=[0, at_x[seed], 0.05])
            judge_by_another(folder)
    (section,) = build_report(load_results(tmp_path), Request()).sections
    train_part, unseen_part = section.parts
    assert unseen_part.finding.endswith(
        "At equal training reward (emoji-align on train prompts risen by 0.200, by the learning curves): significantly "
        "behind sdpo: ddpo; no significant difference to sdpo for rebel. From there to the end of training the "
        "difference to sdpo rises significantly for ddpo; it does not change significantly for rebel."
    )
    assert "equal training reward" not in train_part.finding


def test_the_power_is_that_of_each_block(results):
    """Two seeds, so noncentral t with one degree of freedom at the standard error of the two gaps."""
    table, _ = table_of(results)
    (note,) = [note for note in table["notes"] if note.startswith("Power")]
    size = float(note.split("(median over the methods) of ")[1].split(" for ")[0])
    gaps = [0.2 - 1.1 / 6 - 0.3, 0.45 - 0.3]
    critical = stats.t.ppf(0.975, 1)
    assert 1 - stats.nct.cdf(critical, 1, size / stats.sem(gaps)) == pytest.approx(0.8, abs=0.01)
    assert "for emoji-align, unseen prompts." in note


def test_the_level_can_be_stated_and_a_method_that_misses_it_has_no_value(results):
    """Seed 0 of sdpo ends at .3."""
    table, rows = table_of(results, reach=0.45)
    assert table["title"].endswith("risen by X = +0.450, as stated")
    assert rows["sdpo"]["reached_by"]["text"] == "1 of 2"
    assert rows["sdpo"]["rise"]["value"] is None and rows["sdpo"]["reach"]["value"] is None
    assert rows["ddpo"]["difference"]["value"] is None, "its difference would be to half of the reference's seeds"
    assert list(rows) == ["ddpo", "sdpo"], "what has no value stands last"


def test_unseen_prompts_alone_are_read_by_the_curve_on_training_prompts(tmp_path):
    """As without a selection: X = .2, where ddpo is at .1 and sdpo at .2."""
    base = spread([-1.0] * 3)
    make_base(tmp_path, base_frame(base), base_frame(base, split="unseen"))
    unseen = partial(frame, spread([-0.5] * 3), split="unseen")
    for method, at_x in (("sdpo", 0.02), ("ddpo", 0.01)):
        folder = make_run(tmp_path, method, 0, spread([-0.5] * 3), frames=(unseen,))
        add_curve(folder, [0, 0.02, 0.04], steps=(1,), unseen=[0, at_x, 0.05])
    table, rows = table_of(tmp_path, selection={"split": ["unseen"]})
    assert table["title"].endswith("X = +0.200, half of ddpo's final rise")
    assert rows["ddpo"]["difference"]["value"] == pytest.approx(-0.1)
    assert table_of(tmp_path, selection={"split": ["train"]}) == (None, {})


def test_half_of_the_best_final_rise_is_the_level_where_every_run_gets_there(tmp_path):
    train(tmp_path, "sdpo", 0, [0, 0.04, 0.06], [0, 0.04, 0.06])
    train(tmp_path, "ddpo", 0, [0, 0.02, 0.08], [0, 0.02, 0.02])
    table, rows = table_of(tmp_path)
    assert table["title"].endswith("X = +0.400, half of ddpo's final rise")
    assert rows["ddpo"]["difference"]["value"] == pytest.approx(0.2 - 0.4)
    assert rows["ddpo"]["difference_p"]["value"] is None, "one seed has no test"


def test_the_finding_names_a_method_without_a_value(tmp_path):
    """Seed 1 of rebel never rises, so X is half of sdpo's final rise. Gaps of ddpo at X = .2: 0 and -.1."""
    base = spread([-1.0] * 3)
    make_base(tmp_path, base_frame(base), base_frame(base, split="unseen"))
    unseen = partial(frame, spread([-0.5] * 3), split="unseen")
    ends = {"sdpo": (0.04, 0.04), "ddpo": (0.03, 0.03), "rebel": (0.03, -0.01)}
    for method, at_x in (("sdpo", (0.02, 0.02)), ("ddpo", (0.02, 0.01)), ("rebel", (0.02, 0.02))):
        for seed in (0, 1):
            folder = make_run(tmp_path, method, seed, spread([-0.5] * 3), frames=(unseen,))
            end = ends[method][seed]
            add_curve(folder, [0, min(end, 0.02), end], steps=(1,), unseen=[0, at_x[seed], 0.05])
    (section,) = build_report(load_results(tmp_path), Request()).sections
    assert section.parts[1].finding.endswith(
        "no significant difference to sdpo for ddpo; no value for rebel, since not every seed rises so far. From there "
        "to the end of training the difference to sdpo does not change significantly for ddpo."
    )


@pytest.mark.parametrize(("rises", "unseen"), [([0, -0.01], [0, 0.02]), ([0, 0.01], None)])
def test_without_a_rise_or_another_curve_there_is_no_table(tmp_path, rises, unseen):
    train(tmp_path, "sdpo", 0, rises, unseen)
    assert table_of(tmp_path) == (None, {})


def test_the_figure_and_its_data_have_a_line_a_method(results):
    report = build_report(load_results(results), Request())
    (section,) = report.sections
    (figure,) = [figure for figure in section.figures if "equal-reward" in figure.name]
    (chart,) = figure.charts()
    assert {line.label: line.x[-1] for line in chart.series} == pytest.approx({"ddpo": 0.8, "sdpo": 0.3})
    assert chart.x_label == "rise of emoji-align, train prompts" and figure.draw().startswith(b"<?xml")
    titles = [title for title, _ in section.charts]
    assert "unseen prompts, emoji-align, against the rise of emoji-align, train prompts" in titles


def test_it_is_a_kind_of_table_of_its_own(results):
    report = only(build_report(load_results(results), Request()), ["equal-reward"])
    assert [table.name for _, table in report.tables] == ["setting-1-equal-reward-1"]
