"""A report says what the run folders say: numbers by hand, damage listed, unlike things apart, equal bytes."""

import csv
import io
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_factory import (
    PROMPTS,
    SAMPLER,
    STEPS,
    base_frame,
    edit_scores,
    frame,
    make_base,
    make_run,
    spread,
)
from scipy import stats as scipy_stats

import sdpo_bench
from sdpo_bench.errors import UsageError
from sdpo_bench.library.reports import render
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.reporting.assemble import Request, build_report
from sdpo_bench.reporting.content import Report
from sdpo_bench.reporting.markdown import as_csv, as_json
from sdpo_bench.results.comparability import amount
from sdpo_bench.results.endpoints import parse_metric
from sdpo_bench.results.read_results import load_results
from sdpo_bench.results.run_list import list_runs
from sdpo_bench.results.select_runs import parse_select
from sdpo_bench.statistics.eval_table import PanelKey, reduced, stack
from sdpo_bench.statistics.score_reader import read_scores

ETA_0 = "ddim trailing eta=0 guidance=1 sample bank=0"
"""A sampler whose name sorts before that of the runs' own, eta 1."""


def report_of(out: Path, *select: str, **options) -> Report:
    return build_report(load_results(out), Request(parse_select(select), **options))


def table_of(report: Report, ending: str):
    """The one table whose name ends so."""
    found = [table for _, table in report.tables if table.name.endswith(ending)]
    assert len(found) == 1, [table.name for _, table in report.tables]
    return found[0]


def cell(table, label: str, column: str):
    """The cell of a row by its name (any cell of the row has it as text)."""
    rows = [row for row in table.rows if any(c.text == label for c in row.cells)]
    assert len(rows) == 1, [r.cells for r in table.rows]
    return rows[0].cells[[c.key for c in table.columns].index(column)]


def notices(report: Report) -> str:
    return "\n".join(f"{notice.where}: {notice.text}" for notice in report.notices)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Base model at 0 everywhere; sdpo +1, +2, +3 and ddpo +0.5, +0.4, +0.6 by seed, alike at all step counts."""
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    for seed, (a, b) in enumerate([(1, 0.5), (2, 0.4), (3, 0.6)]):
        make_run(tmp_path, "sdpo", seed, spread([a, a, a]))
        make_run(tmp_path, "ddpo", seed, spread([b, b, b]))
    return tmp_path


# -- numbers -------------------------------------------------------------------------------------------------


def test_a_link_to_itself_among_the_runs_stops_nothing(out):
    (out / "runs" / "loop").symlink_to(out / "runs" / "loop")
    assert len(load_results(out).runs) == 6


def test_leaderboard_by_hand(out):
    table = table_of(report_of(out), "leaderboard-1")
    # Gains are 1, 2, 3 by seed and alike over prompts: mean 2, variance of the mean 1/3, df 2.
    gain = cell(table, "sdpo", "gain")
    half = scipy_stats.t.ppf(0.975, 2) * np.sqrt(1 / 3)
    assert (gain.value, gain.low, gain.high) == pytest.approx((2, 2 - half, 2 + half))
    assert gain.text == f"+2.000 ±{half:.3f}"
    # Scores also vary over prompts by -0.3, 0, 0.3. Mean squares: seeds 3 * 1, prompts 3 * 0.09, residual 0.
    score = cell(table, "sdpo", "steps_2")
    variance = (3 + 0.27) / 9
    df = variance**2 / ((3 / 9) ** 2 / 2 + (0.27 / 9) ** 2 / 2)
    assert score.high - score.value == pytest.approx(scipy_stats.t.ppf(0.975, df) * np.sqrt(variance))
    # Without differences between prompts the crossed p is that of a t test of 1, 2, 3 and of 0.5, 0.4, 0.6; Holm.
    p = [scipy_stats.ttest_1samp(x, 0).pvalue for x in ([1, 2, 3], [0.5, 0.4, 0.6])]
    assert cell(table, "ddpo", "adjusted_p").value == pytest.approx(2 * p[1])
    assert cell(table, "sdpo", "adjusted_p").value == pytest.approx(p[0])
    # Minus sdpo: -0.5, -1.6, -2.4 for ddpo and -1, -2, -3 for the base model.
    assert cell(table, "ddpo", "difference").value == pytest.approx(-1.5)
    p = [scipy_stats.ttest_1samp(x, 0).pvalue for x in ([-0.5, -1.6, -2.4], [-1, -2, -3])]
    adjusted = [2 * min(p), max(*p, 2 * min(p))]
    assert sorted(cell(table, label, "difference_p").value for label in ("ddpo", "base model")) == adjusted
    assert cell(table, "sdpo", "difference_p").value is None
    assert cell(table, "base model", "steps_1").value == pytest.approx(0)


def test_summaries_over_step_counts(tmp_path):
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    make_run(tmp_path, "sdpo", 0, spread([1, 2, 6]))
    table = table_of(report_of(tmp_path), "leaderboard-1")
    assert cell(table, "sdpo", "mean").value == pytest.approx(3)
    # log2 of 1, 2, 4 is 0, 1, 2: the trapezoid weights are 1/4, 1/2, 1/4.
    assert cell(table, "sdpo", "area").value == pytest.approx(0.25 + 1 + 1.5)


def test_metric_moves_the_primary_endpoint(tmp_path):
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    for seed in (0, 1, 2):
        make_run(tmp_path, "sdpo", seed, spread([1, 5, 5]) + 0.01 * seed)
        make_run(tmp_path, "ddpo", seed, spread([3, 3, 3]) + 0.01 * seed)
    first = {}
    for metric in ("mean", "1"):
        table = table_of(report_of(tmp_path, endpoint=parse_metric(metric)), "leaderboard-1")
        first[metric] = table.rows[0].cells[0].text
        gain = cell(table, "sdpo", "gain").value
        assert gain == pytest.approx(11 / 3 + 0.01 if metric == "mean" else 1.01)
    assert first == {"mean": "sdpo", "1": "ddpo"}


def test_a_base_model_with_more_prompts_is_paired_by_prompt(tmp_path):
    base = spread([0, 0, 0], prompts=4) + np.arange(4)[:, None, None] * 10
    make_base(tmp_path, base_frame(base, prompts=("ant", *PROMPTS)))
    for seed in (0, 1):
        make_run(tmp_path, "sdpo", seed, base[1:] + 1 + seed)
    table = table_of(report_of(tmp_path), "leaderboard-1")
    assert cell(table, "sdpo", "gain").value == pytest.approx(1.5)
    assert cell(table, "base model", "mean").value == pytest.approx(20, abs=0.2)  # without the ant


def test_rows_stand_by_score_and_the_base_model_has_no_letter(tmp_path):
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    for seed in (0, 1, 2):
        make_run(tmp_path, "sdpo", seed, spread([5 + 0.01 * seed] * 3))
        make_run(tmp_path, "d3po", seed, spread([-1 - 0.01 * seed] * 3))
    table = table_of(report_of(tmp_path), "leaderboard-1")
    assert [(row.cells[0].text, row.cells[1].text) for row in table.rows] == [
        ("sdpo", "a"),
        ("base model", "-"),
        ("d3po", "b"),
    ]
    assert {c.key for c, found in zip(table.columns, table.rows[0].cells) if found.strong} == {"method", "mean"}


def test_equal_methods_share_a_letter(tmp_path):
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    rng = np.random.default_rng(0)
    for seed in range(5):
        for method in ("ddpo", "sdpo"):
            make_run(tmp_path, method, seed, spread([5, 5, 5]) + rng.normal(0, 0.3, (3, 3, 2)))
    report = report_of(tmp_path)
    table = table_of(report, "leaderboard-1")
    assert [row.cells[1].text for row in table.rows] == ["a", "a", "-"]
    assert table.rows[2].base
    assert "not significantly different from it" in report.sections[0].parts[0].finding


def test_main_table_has_base_methods_and_a_block_a_reward(out):
    for seed in (0, 1, 2):
        make_run(out, "sdpo", seed, spread([9, 9, 9]), reward="jpeg", version="3")
    make_base(out, base_frame(spread([8, 8, 8]), reward="jpeg", version="3"), name="base-z")
    report = report_of(out)
    table = table_of(report, "main-1")
    assert [[row.cells[0].text for row in group.rows] for group in table.groups] == [
        ["base model", "ddpo", "sdpo"],
        ["base model", "sdpo"],
    ]
    columns = ["method", "steps_1", "steps_2", "steps_4", "mean", "gain", "adjusted_p", "diversity"]
    assert [column.key for column in table.columns] == columns
    across = table_of(report, "across-1")
    assert cell(across, "sdpo", "seeds").value == 3
    # Gains 1, 2, 3 in the base model's standard deviation and 1, 1, 1 likewise: IQM of 6 values cuts one at each end.
    sd = np.std(spread([0])[:, 0], ddof=1)
    assert cell(across, "sdpo", "iqm").value == pytest.approx(np.mean([1, 1, 1, 2]) / sd)


def test_diversity_is_that_of_the_last_epoch_and_the_base_models_of_the_first(out):
    for seed, folder in enumerate(sorted((out / "runs").glob("sdpo-*"))):
        rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        rows[0]["pictures"]["diversity"], rows[-1]["pictures"]["diversity"] = 0.6, 0.1 * seed
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("leaderboard-1", "main-1"):
        table = table_of(report_of(out), name)
        assert cell(table, "sdpo", "diversity").value == pytest.approx(0.1)  # mean of 0, 0.1 and 0.2
        assert cell(table, "base model", "diversity").value == pytest.approx(0.45)  # three runs at 0.6, three at 0.3


def test_rewards_under_unlike_budgets_are_not_summed_up(out):
    for seed in (0, 1, 2):
        make_run(out, "sdpo", seed, spread([9, 9, 9]), reward="jpeg", version="3", **{"budget.amount": 256})
    make_base(out, base_frame(spread([8, 8, 8]), reward="jpeg", version="3"), name="base-z")
    report = report_of(out)
    assert len(table_of(report, "main-1").groups) == 2
    assert not any("across" in table.name for _, table in report.tables)


def test_bill_is_the_last_line_of_the_log(out):
    table = table_of(report_of(out), "bill")
    values = {column.key: cell(table, "sdpo", column.key).value for column in table.columns}
    assert values == {
        "method": "sdpo",
        "images": 128,
        "denoiser_calls": 3840,
        "forward": 2560,
        "backward": 1280,
        "reward_calls_emoji-align": 384,
        "optimiser_steps": 20,
        "minutes": 1.0,
    }


def test_variety_stands_beside_the_score_and_disagrees_with_no_reward(out):
    """The base model is at .5, d3po near .2 with both seeds; of the other methods it was not measured."""
    kept = {"reward": "variety:emoji-accuracy", "version": "1:1"}
    make_base(out, base_frame(spread([0.5, 0.5, 0.5]), **kept), name="base-variety")
    for seed, low in ((5, 0.201), (6, 0.199)):
        make_run(out, "d3po", seed, spread([1] * 3), frames=[partial(frame, spread([low] * 3), **kept)])
    report = report_of(out)
    table = table_of(report, "leaderboard-1")
    assert cell(table, "d3po", "variety").value == pytest.approx(0.2)
    assert cell(table, "d3po", "variety_gain").value == pytest.approx(-0.3)
    assert cell(table, "base model", "variety").value == pytest.approx(0.5)
    assert cell(table, "sdpo", "variety").value is None
    assert any(note.startswith("variety:emoji-accuracy, version 1:1: mean cosine distance") for note in table.notes)
    assert cell(table_of(report, "main-1"), "d3po", "variety_gain").value == pytest.approx(-0.3)
    assert "disagree" not in report.sections[0].parts[0].finding
    assert "variety" not in {column.key for column in table_of(report_of(out, "method=sdpo"), "leaderboard-1").columns}


def test_held_out_rewards_have_a_table_of_their_own(out):
    held = {"reward": "emoji-accuracy", "version": "2"}
    make_base(out, base_frame(spread([0.5] * 3), **held), name="base-held")
    make_run(out, "d3po", 0, spread([1, 1, 1]), frames=[lambda **who: frame(spread([0.75] * 3), **who, **held)])
    report = report_of(out)
    table = table_of(report, "held-out")
    assert table.title == "Held-out rewards, trained on emoji-align, train prompts"
    assert table.groups[0].title == "emoji-accuracy (version 2), not trained on"
    assert cell(table, "d3po", "gain").value == pytest.approx(0.25)
    assert cell(table_of(report, "pictures"), "d3po", "contrast").value == pytest.approx(0.2)


def test_arrays_agree_with_the_rows_of_the_file(tmp_path):
    rng = np.random.default_rng(1)
    blocks, frames = {}, []
    key = PanelKey(SAMPLER, "train", "emoji-align", "1")
    for seed in (3, 7):
        rows = frame(rng.normal(size=(3, 3, 2)), run=f"r{seed}", method="sdpo", seed=seed).sample(
            frac=1, random_state=seed
        )
        rows.to_parquet(tmp_path / f"{seed}.parquet")
        blocks[seed] = read_scores(tmp_path / f"{seed}.parquet").blocks[key]
        frames.append(rows.pivot_table("score", "prompt", "steps"))
    mine = stack(blocks, key, "sdpo")
    for steps in (1, 4):
        assert np.allclose(reduced(mine, steps).values, [means[steps] for means in frames], rtol=1e-15)
    assert np.allclose(reduced(mine, "mean").values, [means.mean(axis=1) for means in frames], rtol=1e-15)
    assert (mine.seeds, mine.prompts) == ((3, 7), tuple(frames[0].index))


# -- one edit, one cell --------------------------------------------------------------------------------------


def csv_cells(report: Report) -> dict[tuple[str, str, str], str]:
    rows = csv.DictReader(io.StringIO(as_csv(report)))
    return {
        (r["table"], r["row"], r["column"]): "|".join([r["text"], r["value"], r["low"], r["high"]])
        for r in rows
        if r["column"] != "note"
    }


def test_editing_one_score_changes_its_cells_and_nothing_else(out):
    folder = next((out / "runs").glob("ddpo-*-s1-*"))
    before = csv_cells(report_of(out))

    def change(rows):
        place = rows.index[(rows.prompt == "dog") & (rows.steps == 2) & (rows.image == 1)]
        rows.loc[place, "score"] += 0.9

    edit_scores(folder, change)
    report = report_of(out)
    after = csv_cells(report)
    assert before.keys() == after.keys()
    changed = {key for key in before if before[key] != after[key]}
    tables = {table for table, _, _ in changed}
    assert tables == {"main-1", "setting-1-1-leaderboard-1"}
    assert {row for _, row, _ in changed} == {"ddpo"}
    columns = {column for _, _, column in changed}
    assert columns == {"steps_2", "gain", "mean", "area", "adjusted_p", "difference"}
    # One of 3 prompts, 2 images and 3 seeds: the mean of 2 steps rises by 0.9 / 18.
    found = cell(table_of(report, "leaderboard-1"), "ddpo", "steps_2").value
    assert found == pytest.approx(0.5 + 0.9 / 18)


@pytest.mark.parametrize("style", ["terminal", "markdown", "csv", "latex", "json", "html"])
def test_two_renderings_are_equal_bytes_wherever_the_folder_is(out, tmp_path_factory, style):
    copy = tmp_path_factory.mktemp("elsewhere") / "results"
    shutil.copytree(out, copy)
    first, second = (render(report_of(place), style) for place in (out, copy))
    assert first == second
    assert str(out) not in first


# -- what must not share a table -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget.amount": 256}, "budget.amount is 256 here and 128 there"),
        ({"schedule.steps": 50}, "schedule.steps is 50 here and 10 there"),
        ({"model.name": "sd-turbo"}, "model.name is sd-turbo here and emoji-turbo there"),
        ({"sample.prompts": "mine"}, "sample.prompts is mine here and simple-animals there"),
        ({"version": "2"}, "reward.version is emoji-align/2 here and emoji-align/1 there"),
        ({"record": {"model_digest": "0a"}}, "model.digest is 0a here and none there"),
        ({"reward": "jpeg"}, "reward.name is jpeg here and emoji-align there"),
    ],
)
def test_unlike_runs_are_kept_apart_with_the_reason(out, changes, words):
    make_run(out, "sdpo", 9, spread([1, 1, 1]), **changes)
    report = report_of(out)
    assert len(report.sections) == 2
    assert words in report.sections[0].reason + report.sections[1].reason
    for _, table in report.tables:
        if table.name.endswith("leaderboard-1"):
            assert sum(c.text == "sdpo" for row in table.rows for c in row.cells) == 1


def test_an_empty_list_is_no_reason_against_a_missing_setting(out):
    """Flow models have ``schedule.sigmas``, empty unless set; other models have no such setting."""
    make_run(out, "sdpo", 9, spread([1, 1, 1]), **{"schedule.sigmas": [], "schedule.steps": 50})
    reasons = {section.reason.split(": ")[1] for section in report_of(out).sections}
    assert reasons == {"schedule.steps is 50 here and 10 there.", "schedule.steps is 10 here and 50 there."}


def test_minutes_of_a_short_run_are_not_rounded_to_nothing(tmp_path):
    folder = make_run(tmp_path, scores=spread([1, 1, 1]))
    (folder / "timing.jsonl").write_text('{"epoch": 1, "seconds": 1.2}\n')
    assert cell(table_of(report_of(tmp_path), "bill"), "sdpo", "minutes").text == "0.02"


def test_a_score_equal_to_the_base_models_is_no_negative_zero(tmp_path):
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    make_run(tmp_path, "sdpo", 0, spread([-1e-9] * 3))
    assert str(list_runs(tmp_path)[1][0][8]) == "0.0"


@pytest.mark.parametrize(
    "other", [{"sampler": SAMPLER.replace("eta=1", "eta=0")}, {"split": "unseen"}, {"prompts": ("cat", "dog", "owl")}]
)
def test_unlike_evaluations_are_kept_apart(out, other):
    make_run(out, "d3po", 0, None, frames=[lambda **who: frame(spread([1, 1, 1]), **who, **other)])
    parts = report_of(out).sections[0].parts
    methods = [{c.text for row in part.tables[0].rows for c in row.cells} & {"sdpo", "ddpo", "d3po"} for part in parts]
    assert sorted(methods, key=len) == [{"d3po"}, {"sdpo", "ddpo"}]


OWN = load_prompts("simple-animals")
"""The 45 prompts that the configuration of :func:`make_run` names."""
MORE = [f"animal {number}" for number in range(60)]


@pytest.mark.parametrize("later", [{"prompts": OWN, "sampler": ETA_0}, {"prompts": MORE}], ids=["sampler", "prompts"])
def test_the_first_sentence_is_about_the_runs_own_evaluation(tmp_path, later):
    """One of three runs was judged later by a sampler whose name sorts first, or on more prompts; it lost 5 there."""
    make_base(tmp_path, base_frame(spread([0, 0, 0], prompts=len(OWN)), prompts=OWN))
    lost = partial(frame, spread([-5, -5, -5], prompts=len(later["prompts"])), **later)
    for seed, gain in enumerate((1, 2, 3)):
        own = partial(frame, spread([gain] * 3, prompts=len(OWN)), prompts=OWN)
        make_run(tmp_path, "sdpo", seed, frames=[own, lost] if seed == 0 else [own])
    report = report_of(tmp_path)
    sentence = report.sections[0].answer.sentence
    assert sentence.startswith("sdpo gains +2 [") and "3 seeds" in sentence and "45 train prompts" in sentence
    assert len(report.sections[0].parts) == 2  # the later evaluation has a part of its own
    assert sdpo_bench.compare("sdpo", "base", results=tmp_path).difference == pytest.approx(2)


def test_arms_of_one_method_are_named_by_what_differs(out):
    for seed in (0, 1):
        make_run(out, "sdpo", seed, spread([4, 4, 4]), **{"method.reward": "full"})
    names = [row.cells[0].text for row in table_of(report_of(out), "leaderboard-1").rows]
    assert set(names) == {"sdpo (reward=full)", "sdpo (reward=predicted)", "ddpo", "base model"}


def test_arms_whose_values_are_shown_alike_are_two_rows(tmp_path):
    """Six digits of a learning rate are shown; the second arm took the place of the first under its label."""
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    for rate, gain in ((0.001234567, 1), (0.001234568, 2)):
        for seed in (0, 1):
            make_run(tmp_path, "ddpo", seed, spread([gain] * 3), **{"update.lr": rate})
    rows = table_of(report_of(tmp_path), "leaderboard-1").rows
    assert [row.cells[2].text for row in rows] == ["2", "2", "-"]
    assert len({row.cells[0].text for row in rows}) == 3


def test_ablation_pairs_with_the_default(out):
    for seed in (0, 1, 2):
        change = {"advantage.gamma": 0.0, "you": ("advantage.gamma",)}
        make_run(out, "sdpo", seed, spread([seed + 2] * 3) + 0.5, **change)
    table = table_of(report_of(out), "ablation-1")
    assert [row.cells[0].text for row in table.rows] == ["0.99", "0"]
    assert table.rows[0].base
    assert "Rows differ in advantage.gamma alone" in table.notes[0]
    difference = cell(table, "0", "difference")
    assert (difference.value, difference.low, difference.high) == pytest.approx((1.5, 1.5, 1.5))


def test_group_by_makes_an_ablation_of_any_key(out):
    for seed in (0, 1, 2):
        make_run(out, "ddpo", seed, spread([1, 1, 1]), **{"update.lr": 0.1})
        make_run(out, "ddpo", seed, spread([2, 2, 2]), **{"update.lr": 0.1, "advantage.gamma": 0.5})
    tables = [table for _, table in report_of(out, group_by=("update.lr",)).tables if "update.lr" in table.title]
    assert [[row.cells[0].value for row in table.rows] for table in tables] == [[0.001, 0.1]]
    with pytest.raises(UsageError, match=r"no run has a setting 'update.rl'. Did you mean 'update.lr'"):
        report_of(out, group_by=("update.rl",))
    with pytest.raises(UsageError, match="leaderboard"):
        report_of(out, group_by=("method",))


def test_a_setting_that_records_lack_while_it_has_its_default_is_compared_with_other_values(tmp_path):
    """``advantage.std`` came later: the runs with its default, which is "group", do not record it."""
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    for seed in (0, 1, 2):
        make_run(tmp_path, "grpo", seed, spread([1, 1, 1]))
        make_run(tmp_path, "grpo", seed, spread([2, 2, 2]), **{"advantage.std": "batch"})
    report = report_of(tmp_path, group_by=("advantage.std",))
    labels = ["grpo (advantage.std=batch)", "grpo (advantage.std=default)", "base model"]
    assert [row.cells[0].text for row in table_of(report, "leaderboard-1").rows] == labels
    ablation = table_of(report, "ablation-1")
    assert [row.cells[0].text for row in ablation.rows] == ["default", "batch"]
    assert cell(ablation, "batch", "difference").value == pytest.approx(1)


def test_group_by_a_setting_that_keeps_runs_apart_says_so(out):
    for seed in (0, 1, 2):
        make_run(out, "ddpo", seed, spread([1, 1, 1]), **{"budget.amount": 256})
    tables = [t for _, t in report_of(out, group_by=("budget.amount",)).tables if "budget.amount" in t.title]
    assert [row.cells[0].value for row in tables[0].rows] == [128, 256]
    assert "must not be ranked" in " ".join(tables[0].notes)


# -- bad input -----------------------------------------------------------------------------------------------


def test_empty_results_say_what_to_do(tmp_path):
    for place in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UsageError, match="sdpo-bench run"):
            load_results(place)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UsageError, match="no runs in"):
        load_results(tmp_path)


def damage_parquet(folder: Path) -> None:
    (folder / "eval.parquet").write_bytes(b"PAR1 not really")


def cut_parquet(folder: Path) -> None:
    path = folder / "eval.parquet"
    path.write_bytes(path.read_bytes()[:-40])


def drop_column(folder: Path) -> None:
    import pandas as pd

    pd.read_parquet(folder / "eval.parquet").drop(columns="image").to_parquet(folder / "eval.parquet")


def repeat_rows(folder: Path) -> None:
    rows = pd.read_parquet(folder / "eval.parquet")
    pd.concat([rows, rows[:1]]).to_parquet(folder / "eval.parquet")


def put(section: str, key: str, value: object):
    """Replace one setting in ``run.json``."""

    def harm(folder: Path) -> None:
        record = json.loads((folder / "run.json").read_text())
        record["config"][section][key] = value
        (folder / "run.json").write_text(json.dumps(record))

    return harm


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage_parquet, "eval.parquet is damaged"),
        (cut_parquet, "eval.parquet is damaged"),
        (drop_column, "lacks the columns image"),
        (repeat_rows, "scored more than once"),
        (lambda folder: (folder / "eval.parquet").unlink(), "it has no evaluation. sdpo-bench eval"),
        (lambda folder: (folder / "run.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "run.json").write_text("[1]"), "is damaged"),
        (lambda folder: (folder / "run.json").write_text('{"kind": "run", "config": {"seed": NaN}}'), "is damaged"),
        (lambda folder: (folder / "run.json").write_text('{"kind": "run"}'), "lacks method.name"),
        (lambda folder: (folder / "run.json").write_text('{"kind": "x", "config": {}}'), "kind is 'x'"),
        (put("model", "name", {}), "is damaged: its settings are not those of run 'd3po-"),
        (put("budget", "amount", {"images": 1}), "is damaged: its settings are not those of run 'd3po-"),
        (lambda folder: (folder / "run.json").unlink(), "is not a run folder"),
        (lambda folder: (folder / "status").write_text("?"), "state is 'unknown'"),
        (lambda folder: (folder / "status").write_text('{"state": "running", "message": ""}'), "state is 'killed'"),
    ],
)
def test_a_damaged_run_is_listed_and_the_others_are_reported(out, harm, words):
    whole = cell(table_of(report_of(out), "leaderboard-1"), "sdpo", "gain")
    folder = make_run(out, "d3po", 0, spread([1, 1, 1]))
    harm(folder)
    report = report_of(out)
    assert folder.name in notices(report)
    assert words in notices(report)
    table = table_of(report, "leaderboard-1")
    assert cell(table, "sdpo", "gain") == whole
    assert not any(c.text == "d3po" for row in table.rows for c in row.cells)
    json.loads(as_json(report))
    assert sum(row[0].startswith("sdpo") for row in list_runs(out)[1]) == 3


def test_a_copy_of_the_base_models_folder_counts_once_and_is_named(out):
    whole = cell(table_of(report_of(out), "leaderboard-1"), "sdpo", "gain")
    original = next((out / "runs").glob("base-*"))
    copy = original.with_name("a-copy")
    shutil.copytree(original, copy)
    edit_scores(copy, lambda rows: rows.__setitem__("score", rows.score - 1))
    report = report_of(out)
    assert cell(table_of(report, "leaderboard-1"), "sdpo", "gain") == whole
    assert f"a copy of the base model's folder {original.name}: not used" in notices(report)


@pytest.mark.parametrize("name", ["train.jsonl", "timing.jsonl"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]\n7\n", b'{"bill": 3, "seconds": "x"}\n'])
def test_damaged_logs_cost_the_bill_only(out, name, content):
    folder = next((out / "runs").glob("ddpo-*-s1-*"))
    (folder / name).write_bytes(content)
    report = report_of(out)
    assert cell(table_of(report, "leaderboard-1"), "ddpo", "seeds").text == "3"
    assert cell(table_of(report, "bill"), "ddpo", "images").value == 128
    if content.startswith(b"[1]") and name == "train.jsonl":  # drawing is slow; once is enough
        assert all(figure.draw() for figure in report.sections[0].figures)


def test_the_bill_survives_a_last_line_that_was_cut(out):
    folder = next((out / "runs").glob("ddpo-*-s1-*"))
    with open(folder / "train.jsonl", "a") as stream:
        stream.write('{"epoch": 3, "bill": {"ima')
    assert cell(table_of(report_of(out), "bill"), "ddpo", "images").value == 128


def test_only_unfinished_runs_make_a_report_without_tables(tmp_path):
    make_run(tmp_path, "sdpo", 0, None, state="interrupted", message="stopped by the user")
    report = report_of(tmp_path)
    assert "state is 'interrupted' (stopped by the user)" in notices(report)
    assert report.tables == []
    assert "No run of this setting has usable scores" in render(report, "html")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_diverged_and_failed_runs_are_counted(out, bad):
    make_run(out, "ddpo", 3, np.where(np.arange(18).reshape(3, 3, 2) == 4, bad, 1.0))
    make_run(out, "ddpo", 4, None, state="failed", message="black images")
    report = report_of(out)
    table = table_of(report, "leaderboard-1")
    assert cell(table, "ddpo", "seeds").text == "3 of 5"
    assert cell(table, "ddpo", "mean").value == pytest.approx(0.5)
    assert any(
        "ddpo: 3 of 5 runs scored, 1 diverged" in note and "1 without a result" in note for note in table.cautions
    )
    assert "1 of its scores are NaN or infinite" in notices(report)
    assert "state is 'failed' (black images)" in notices(report)


def test_one_seed_has_no_interval_and_no_letter(tmp_path):
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    make_run(tmp_path, "sdpo", 0, spread([1, 1, 1]))
    make_run(tmp_path, "ddpo", 0, spread([2, 2, 2]))
    report = report_of(tmp_path)
    table = table_of(report, "leaderboard-1")
    assert cell(table, "sdpo", "seeds").text == "1 seed, no interval"
    gain = cell(table, "sdpo", "gain")
    assert (gain.text, gain.low, gain.high) == ("+1.000", None, None)
    assert all(row.cells[1].text == "-" for row in table.rows)
    assert cell(table, "sdpo", "adjusted_p").value is None
    assert "1 seed, no interval" in " ".join(table.all_notes)
    assert "1 seed: no difference" in " ".join(table.cautions)


def test_one_seed_beside_several_has_no_letter(out):
    make_run(out, "d3po", 0, spread([9, 9, 9]))
    table = table_of(report_of(out), "leaderboard-1")
    assert cell(table, "d3po", "letters").value is None
    assert cell(table, "sdpo", "letters").value == "a"
    assert "No letter, because of fewer than two seeds at this endpoint: d3po." in table.cautions


def test_missing_base_model_leaves_gains_out(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path, "sdpo", seed, spread([1, 1, 1]) + 0.1 * seed)
    table = table_of(report_of(tmp_path), "leaderboard-1")
    assert cell(table, "sdpo", "gain").value is None
    assert any("base model has no scores here" in note for note in table.notes)


def test_the_diversity_that_methods_start_from_is_named_where_it_differs(out):
    """All methods have .3 in all epochs, ddpo .26 in the first one: the base model's row is .28."""
    start = "Diversity of the first epoch"
    assert not any(start in note for note in table_of(report_of(out), "leaderboard-1").notes)
    for log in (out / "runs").glob("ddpo-*/train.jsonl"):
        first, *others = log.read_text().splitlines(keepends=True)
        log.write_text("".join([first.replace('"diversity": 0.3', '"diversity": 0.26'), *others]))
    report = report_of(out)
    table = table_of(report, "leaderboard-1")
    assert cell(table, "base model", "diversity").value == pytest.approx(0.28)
    assert any(note.startswith(f"{start}: 0.260 for ddpo; 0.300 for sdpo. ") for note in table.notes)
    assert sum(start in note for note in table_of(report, "main-1").notes) == 1


def test_incomplete_step_counts_are_left_out(out):
    folder = next((out / "runs").glob("ddpo-*-s1-*"))
    rows = pd.read_parquet(folder / "eval.parquet")
    gone = (rows.steps == 4) & (rows.prompt == "cat")
    rows[~gone].to_parquet(folder / "eval.parquet")
    report = report_of(out)
    table = table_of(report, "leaderboard-1")
    assert "2 of 18 images have no score; left out: 4 steps" in notices(report)
    assert cell(table, "ddpo", "steps_4").value is None
    assert cell(table, "sdpo", "steps_4").value == pytest.approx(2)
    assert any(note.startswith("mean and area: over 1, 2 steps, which every row has.") for note in table.notes)


@pytest.mark.parametrize("more", [{"steps": (1,)}, {"images": 1}], ids=["fewer step counts", "fewer images"])
def test_another_set_of_prompts_of_the_base_model_changes_nothing(out, more):
    """The base folder is shared: another run was judged on these prompts, which score 9 below the others."""
    before = table_of(report_of(out), "leaderboard-1")
    steps, images = more.get("steps", STEPS), more.get("images", 2)
    other = base_frame(spread([-9] * len(steps), images=images), prompts=("fox", "owl", "yak"), steps=steps)
    base = next((out / "runs").glob("base-*")) / "eval.parquet"
    pd.concat([pd.read_parquet(base), other]).assign(run=base.parent.name).to_parquet(base, index=False)
    after = table_of(report_of(out), "leaderboard-1")
    assert after == before
    assert cell(after, "sdpo", "gain").value == pytest.approx(2)


def test_a_seed_judged_on_another_set_of_prompts_stays_in_its_table(tmp_path):
    """The configuration of every run names simple-animals; seed 1 was judged on three more prompts of that split."""
    own = tuple(load_prompts("simple-animals"))

    def animals(level):
        return spread([level] * 3, prompts=len(own))

    make_base(tmp_path, base_frame(animals(0), prompts=own))
    for seed in (0, 1, 2):
        frames = [partial(frame, animals(1 + 0.1 * seed), prompts=own)]
        if seed == 1:
            frames.append(partial(frame, spread([-5]), prompts=("xylophone", "yarn", "zip"), steps=(1,)))
        make_run(tmp_path, "sdpo", seed, frames=frames)
    report = report_of(tmp_path)
    table = table_of(report, "1-1-leaderboard-1")
    assert cell(table, "sdpo", "seeds").text == "3"
    assert cell(table, "sdpo", "mean").value == pytest.approx(1.1)
    assert cell(table, "sdpo", "steps_4").value == pytest.approx(1.1)
    other = table_of(report, "1-2-leaderboard-1")
    assert (cell(other, "sdpo", "seeds").text, cell(other, "sdpo", "steps_1").value) == (
        "1 of 3, no interval",
        pytest.approx(-5),
    )
    assert "have no score" not in notices(report)
    row = next(row for row in list_runs(tmp_path)[1] if "-s1-" in row[0])
    assert row[8] == pytest.approx(1.1)


def test_step_counts_that_only_some_seeds_have_are_named(tmp_path):
    """Seed 0 was judged at 8 and 16 steps later; the base model too, so the columns are there."""
    make_base(tmp_path, base_frame(spread([0] * 5), steps=(1, 2, 4, 8, 16)))
    make_run(tmp_path, "sdpo", 0, spread([1] * 3), frames=[partial(frame, spread([9, 9]), steps=(8, 16))])
    make_run(tmp_path, "sdpo", 1, spread([1] * 3))
    make_run(tmp_path, "d3po", 0, spread([1] * 3))
    table = table_of(report_of(tmp_path), "leaderboard-1")
    assert cell(table, "sdpo", "steps_8").text == cell(table, "d3po", "steps_8").text == "-"
    assert [note for note in table.notes if "leaves out" in note] == [
        "The row of sdpo leaves out its scores at 8, 16 steps, which training seed 1 lacks; sdpo-bench eval RUN "
        "--steps 8,16 adds them."
    ]


def test_fewer_images_of_one_run_are_used_for_all(out):
    make_run(out, "d3po", 0, spread([1, 1, 1], images=3)[:, :, :1])
    table = table_of(report_of(out), "leaderboard-1")
    assert any(note.startswith("1 of up to 2 images a prompt are used") for note in table.notes)
    # The first of two images lies 0.1 below the mean.
    assert cell(table, "sdpo", "mean").value == pytest.approx(2 - 0.1)
    assert cell(table, "sdpo", "gain").value == pytest.approx(2)


def test_a_repeated_seed_counts_once(out):
    folder = next((out / "runs").glob("ddpo-*-s1-*"))
    shutil.copytree(folder, folder.with_name("zz-copy"))
    report = report_of(out)
    assert "zz-copy: same settings and seed as run" in notices(report)
    assert cell(table_of(report, "leaderboard-1"), "ddpo", "seeds").text == "3"


@pytest.mark.parametrize("metric", ["speed", "0", "1001", "-1", "", "1.5", "²"])
def test_unknown_metric(metric):
    with pytest.raises(UsageError, match="unknown metric"):
        parse_metric(metric)


def test_metric_without_scores(out):
    with pytest.raises(UsageError, match=r"no run has scores at 3 steps. Valid: mean, few, area, 1, 2, 4"):
        report_of(out, endpoint=3)


def test_the_class_of_a_plugin_file_chooses_reference_and_selection(out):
    make_run(out, "Winner@83cb9656", 0, spread([2, 2, 2]))
    table = table_of(report_of(out, "method=winner,sdpo", reference="winner"), "leaderboard-1")
    # The reference has seed 0 alone, where sdpo is at 1.
    assert cell(table, "sdpo", "difference").value == pytest.approx(-1)
    assert "ddpo" not in [c.text for row in table.rows for c in row.cells]


def test_the_reference_is_chosen_by_name(out):
    table = table_of(report_of(out, reference="ddpo"), "leaderboard-1")
    assert cell(table, "sdpo", "difference").value == pytest.approx(1.5)
    assert next(c.title for c in table.columns if c.key == "difference") == "minus ddpo"
    with pytest.raises(UsageError, match="--reference: no table has a method 'dppo'. Did you mean 'sdpo'"):
        report_of(out, reference="dppo")


def test_the_reference_is_chosen_by_its_settings(out):
    """As in compare; a label is the same row."""
    for value, lr in ((3, 0.5), (4, 0.25)):
        make_run(out, "rebel", 0, spread([value] * 3), **{"update.lr": lr})
    for name in ("rebel,update.lr=0.5", "rebel (update.lr=0.5)"):
        table = table_of(report_of(out, reference=name), "leaderboard-1")
        assert next(c.title for c in table.columns if c.key == "difference") == "minus rebel (update.lr=0.5)"
        assert cell(table, "rebel (update.lr=0.25)", "difference").value == pytest.approx(1)
    with pytest.raises(UsageError, match="'rebel' means 2 things here.*rebel,update.lr="):
        report_of(out, reference="rebel")
    with pytest.raises(UsageError, match="no table has a method 'rebel,update.lr=1'"):
        report_of(out, reference="rebel,update.lr=1")


def test_all_tables_of_a_setting_have_the_reference_of_the_training_prompts(tmp_path):
    """Without SDPO it is the best there, also where another method is best on unseen prompts, and alone selected."""
    base = spread([0, 0, 0])
    make_base(tmp_path, base_frame(base), base_frame(base, split="unseen"))
    for method, train, unseen in (("ddpo", 2, 1), ("rebel", 1, 2)):
        unseen_scores = partial(frame, spread([unseen] * 3), split="unseen")
        make_run(tmp_path, method, 0, spread([train] * 3), frames=(unseen_scores,))
    for tables in (2, 1):
        report = report_of(tmp_path, *(["split=unseen"] if tables == 1 else []))
        boards = [table for _, table in report.tables if "leaderboard" in table.name]
        titles = [column.title for board in boards for column in board.columns if column.key == "difference"]
        assert titles == ["minus ddpo"] * tables


def test_the_few_step_mean_stands_beside_the_mean_over_all_step_counts(tmp_path):
    steps = (1, 2, 4, 8)
    make_base(tmp_path, base_frame(spread([0, 0, 0, 0]), steps=steps))
    for seed in (0, 1, 2):
        make_run(tmp_path, "sdpo", seed, frames=[partial(frame, spread([1, 2, 6, 11]), steps=steps)])
    table = table_of(report_of(tmp_path), "leaderboard-1")
    assert (cell(table, "sdpo", "few").value, cell(table, "sdpo", "mean").value) == pytest.approx((3, 5))
    assert any("Not comparable with means over other step counts; the few-step mean" in note for note in table.notes)
    few = table_of(report_of(tmp_path, endpoint="few"), "leaderboard-1")
    assert cell(few, "sdpo", "gain").value == pytest.approx(3)


def test_each_column_of_the_main_table_has_its_own_bold(tmp_path):
    """sdpo is ahead on the few steps, ddpo at 8 steps and so on the mean over all."""
    steps = (1, 2, 4, 8)
    make_base(tmp_path, base_frame(spread([0, 0, 0, 0]), steps=steps))
    for seed in (0, 1, 2):
        for method, scores in (("sdpo", [3, 3, 3, 3]), ("ddpo", [2, 2, 2, 20])):
            means = [score + 0.01 * seed for score in scores]
            make_run(tmp_path, method, seed, frames=[partial(frame, spread(means), steps=steps)])
    table = table_of(report_of(tmp_path), "main-1")
    bold = {m: [k for k in ("steps_1", "few", "mean") if cell(table, m, k).strong] for m in ("sdpo", "ddpo")}
    assert bold == {"sdpo": ["steps_1", "few"], "ddpo": ["mean"]}


def test_the_few_step_mean_is_refused_without_its_step_counts(tmp_path):
    make_base(tmp_path, base_frame(spread([0, 0]), steps=(2, 4)))
    make_run(tmp_path, "sdpo", 0, frames=[partial(frame, spread([1, 2]), steps=(2, 4))])
    with pytest.raises(UsageError, match="--metric few: no table has scores at 1, 2 and 4 steps"):
        report_of(tmp_path, endpoint="few")


# -- select --------------------------------------------------------------------------------------------------


def test_select_by_method_seed_and_setting(out):
    table = table_of(report_of(out, "method=sdpo", "seed=0,2"), "leaderboard-1")
    assert cell(table, "sdpo", "gain").value == pytest.approx(2)
    assert cell(table, "sdpo", "seeds").text == "2"
    assert not any(c.text == "ddpo" for row in table.rows for c in row.cells)
    assert len(report_of(out, "update.lr=1e-3").runs.rows) == 6
    assert len(report_of(out, "method.temporal_discount=0.99").runs.rows) == 3


@pytest.mark.parametrize(
    ("select", "words"),
    [
        ("methd=sdpo", "no run has a key 'methd'. Did you mean 'method'"),
        ("method=spdo", r"no run has method.name = spdo. Did you mean 'sdpo'. Valid: ddpo, sdpo"),
        ("seed=9", "no run has seed = 9"),
        ("split=test", r"no scores of split test. Valid: train"),
        ("method", "--select takes key=value"),
        ("=x", "--select takes key=value"),
    ],
)
def test_select_refusals(out, select, words):
    with pytest.raises(UsageError, match=words):
        report_of(out, select)


def test_a_setting_that_a_record_lacks_is_selected_by_its_default(out):
    """Runs from before the setting, and runs since then that leave it alone; a run without advantages has none."""
    make_run(out, "ddpo", 3, spread([1, 1, 1]), **{"advantage.std": "batch"})
    make_run(out, "draft", 0, spread([1, 1, 1]), **{"advantage": None})
    assert len(report_of(out, "advantage.std=group").runs.rows) == 6
    assert len(report_of(out, "advantage.std=group,batch").runs.rows) == 7
    assert len(report_of(out, "model.text_tokens=none").runs.rows) == 8
    # SDPO's record says method.reward = predicted; DDPO's and DRaFT's learn from the final image.
    assert len(report_of(out, "method.reward=sparse").runs.rows) == 5


def test_a_setting_without_the_selected_split_is_left_out(out):
    """Of two budgets only the runs of one were judged on unseen prompts."""
    make_run(out, "d3po", 0, spread([1, 1, 1]), frames=[lambda **who: frame(spread([2] * 3), **who, split="unseen")])
    make_run(out, "d3po", 1, spread([1, 1, 1]), **{"budget.amount": 256})
    assert len(report_of(out).sections) == 2
    (section,) = report_of(out, "split=unseen").sections
    assert [part.title for part in section.parts] == ["3 unseen prompts"]


def test_select_split(out):
    make_run(out, "d3po", 0, spread([1, 1, 1]), frames=[lambda **who: frame(spread([2] * 3), **who, split="unseen")])
    parts = report_of(out, "split=unseen").sections[0].parts
    assert [part.title for part in parts] == ["3 unseen prompts"]


# -- list runs -----------------------------------------------------------------------------------------------


def test_list_runs_gives_state_budget_and_headline(out):
    created = {"created": "2026-01-02T03:04:05Z"}
    make_run(out, "d3po", 0, None, state="failed", message="black images", record=created)
    damaged = make_run(out, "d3po", 1, spread([1, 1, 1]))
    (damaged / "run.json").write_text("{")
    columns, rows = list_runs(out)
    assert columns[:7] == ["run", "state", "date", "training time", "method", "reward", "seed"]
    assert columns[7:] == ["budget used", "score - base", "judged by", "message"]
    assert rows[0][2:7] == ["2026-01-02 03:04", "60 s", "d3po", "emoji-align", 0]
    assert rows[-1][2:7] == [None, "60 s", "sdpo", "emoji-align", 2]
    by_run = {row[0].rsplit("-", 1)[0]: [row[1], *row[7:]] for row in rows}
    prefix = "-emoji_align-emoji_turbo-s"
    assert by_run[f"sdpo{prefix}1"] == ["done", "128 of 128 images", 2.0, "emoji-align, train, steps 1, 2, 4", ""]
    assert by_run[f"d3po{prefix}0"] == ["failed", "128 of 128 images", None, None, "black images"]
    assert by_run[f"d3po{prefix}1"][0] == "damaged"
    assert list_runs(out / "nowhere")[1] == []


@pytest.mark.parametrize(
    ("seconds", "limit", "shown"),
    [(0.00123, 0.25, "0.00246 of 0.25"), (30.4, 1e6, "60.8 of 1,000,000"), (617.3, 1234.5, "1,235 of 1,234.5")],
)
def test_budgets_of_seconds_are_not_rounded_away(tmp_path, seconds, limit, shown):
    folder = make_run(tmp_path, **{"budget.axis": "seconds", "budget.amount": limit})
    (folder / "timing.jsonl").write_text(f'{{"epoch": 1, "seconds": {seconds}}}\n' * 2)
    assert list_runs(tmp_path)[1][0][7] == f"{shown} seconds"
    run = load_results(tmp_path).runs[0]
    assert amount(run.settings) == f"{shown.split()[-1]} seconds"


def test_headline_is_the_mean_over_the_runs_own_step_counts(tmp_path):
    """Without the 8 steps of a later evaluation, at which this run gained 9."""
    make_base(tmp_path, base_frame(spread([0, 0, 0, 0]), steps=(1, 2, 4, 8)))
    later = [lambda **who: frame(spread([9]), **who, steps=(8,))]
    make_run(tmp_path, "sdpo", 0, spread([1, 2, 6]), frames=later)
    assert list_runs(tmp_path)[1][0][8:10] == [3.0, "emoji-align, train, steps 1, 2, 4"]


def test_headline_is_by_the_runs_own_sampler(tmp_path):
    """Without a later evaluation at eta 0, by which this run gained 9."""
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    make_base(tmp_path, base_frame(spread([0, 0, 0]), sampler=ETA_0), name="base-emoji_turbo-1")
    later = [lambda **who: frame(spread([9, 9, 9]), **who, sampler=ETA_0)]
    make_run(tmp_path, "sdpo", 0, spread([1, 2, 6]), frames=later)
    make_run(tmp_path, "sdpo", 1, frames=later)
    assert [row[8] for row in list_runs(tmp_path)[1]] == [3.0, None]


def test_headline_needs_the_same_prompts_and_images(tmp_path):
    # Without the ant, which the run was not judged on, the base model is one lower everywhere.
    base = np.concatenate([np.full((1, 3, 2), 50.0), spread([0, 1, 2])])
    make_base(tmp_path, base_frame(base, prompts=("ant", *PROMPTS), steps=STEPS))
    folder = make_run(tmp_path, "sdpo", 0, spread([1, 2, 3]))
    assert list_runs(tmp_path)[1][0][8] == pytest.approx(1)
    edit_scores(folder, lambda rows: rows.loc.__setitem__((rows.index[0], "score"), float("nan")))
    row = list_runs(tmp_path)[1][0]
    assert row[8] is None
    assert "diverged: 1 scores" in row[10]
