"""Ablation tables and the summary over rewards by hand: which runs make a family, and what is tested in it."""

import json

import numpy as np
import pytest
from report_factory import SAMPLER, base_frame, frame, make_base, make_run, spread
from scipy import stats as scipy_stats

from sdpo_bench.reporting.assemble import Request, build_report
from sdpo_bench.results.read_results import load_results

BY_PROMPT = np.array([-0.5, 0.0, 0.5])[:, None, None]
"""What a variant adds to the prompts, zero on average: in crossed intervals, and not in a test of seed means."""


def ablations(out, key, **options):
    report = build_report(load_results(out), Request(group_by=(key,), **options))
    return [table for _, table in report.tables if f"by {key}" in table.title]


def shown(table, label):
    (row,) = (row for row in table.rows if row.cells[0].text == label)
    return dict(zip([column.key for column in table.columns], row.cells))


def make_variant(out, value, gains, **options):
    for seed, gain in enumerate(gains):
        options["update.lr"] = value
        make_run(
            out,
            "ddpo",
            seed,
            spread([gain] * 3) + BY_PROMPT * (value != 0.001),
            you=("update.lr",) * (value != 0.001),
            **options,
        )


def test_differences_to_the_reference_are_one_family_of_paired_tests(tmp_path):
    """Seed by seed 1, 2, 3 and 1, 1.1, 1.2; a third variant has one seed and counts in Holm's correction all the same.

    Mean squares of the first: seeds 3 * 1, prompts 3 * 0.25, residual 0.
    """
    make_variant(tmp_path, 0.001, (0.0, 10.0, 20.0))
    make_variant(tmp_path, 10, (1.0, 12.0, 23.0))
    make_variant(tmp_path, 2, (1.0, 11.1, 21.2))
    make_variant(tmp_path, 0.5, (7.0,))
    (table,) = ablations(tmp_path, "update.lr", level=0.8)
    assert [row.cells[0].text for row in table.rows] == ["0.001", "0.5", "2", "10"], "the default, then by size"
    variance = (3 + 0.75) / 9
    df = variance**2 / ((3 / 9) ** 2 / 2 + (0.75 / 9) ** 2 / 2)
    half = scipy_stats.t.ppf(0.9, df) * variance**0.5
    found = shown(table, "10")["difference"]
    assert (found.low, found.value, found.high) == pytest.approx((2 - half, 2, 2 + half))
    # The p of each crossed interval; seeds of the second: 3 * 0.01.
    p10 = 2 * scipy_stats.t.sf(2 / variance**0.5, df)
    variance2 = (0.03 + 0.75) / 9
    df2 = variance2**2 / ((0.03 / 9) ** 2 / 2 + (0.75 / 9) ** 2 / 2)
    p2 = 2 * scipy_stats.t.sf(1.1 / variance2**0.5, df2)
    first, second = sorted((p2, p10))
    adjusted = {first: 3 * first, second: max(3 * first, 2 * second)}
    assert shown(table, "2")["adjusted_p"].value == pytest.approx(adjusted[p2])
    assert shown(table, "10")["adjusted_p"].value == pytest.approx(adjusted[p10])
    assert shown(table, "0.5")["difference"].value == pytest.approx(7)
    assert shown(table, "0.5")["adjusted_p"].value is None


@pytest.mark.parametrize(
    "judged", [{"prompts": ("cat", "dog", "owl")}, {"sampler": SAMPLER.replace("eta=1", "eta=0")}, {}]
)
def test_variants_that_were_judged_differently_make_no_family(tmp_path, judged):
    for seed in range(2):
        make_run(tmp_path, "ddpo", seed, spread([1, 1, 1]))
        other = lambda **who: frame(spread([2, 2, 2]), **who, **judged)  # noqa: E731
        make_run(tmp_path, "ddpo", seed, None, frames=[other], **{"update.lr": 0.1})
    assert len(ablations(tmp_path, "update.lr")) == (not judged)


def test_variants_in_tables_of_their_own_are_paired_over_the_same_images_only(tmp_path):
    """Scores under another budget stand in another panel, which may have fewer images a prompt."""
    for seed in range(2):
        make_run(tmp_path, "ddpo", seed, spread([1, 1, 1]))
        make_run(tmp_path, "ddpo", seed, spread([2, 2, 2]), **{"budget.amount": 256})
        make_run(tmp_path, "ddpo", seed, spread([3, 3, 3])[:, :, :1], **{"budget.amount": 512})
    (table,) = ablations(tmp_path, "budget.amount")
    assert shown(table, "256")["difference"].value == pytest.approx(1)
    assert shown(table, "512")["difference"].value is None


def test_the_chance_of_a_higher_gain_is_that_of_the_rows_own_method(tmp_path):
    """sdpo gains 1, 2, 3, ddpo 0.5, 1.5, 2.5: of nine pairs sdpo wins six. Alike under a reward ten times as large."""
    for reward, scale in (("emoji-align", 1), ("jpeg", 10)):
        make_base(tmp_path, base_frame(spread([0, 0, 0]), reward=reward), name=f"base-{reward}")
        for seed, gain in enumerate((1, 2, 3)):
            make_run(tmp_path, "sdpo", seed, spread([scale * gain] * 3), reward=reward)
            make_run(tmp_path, "ddpo", seed, spread([scale * (gain - 0.5)] * 3), reward=reward)
    report = build_report(load_results(tmp_path), Request())
    (table,) = (table for _, table in report.tables if table.name == "across-1")
    assert shown(table, "sdpo")["improvement"].value == pytest.approx(6 / 9)
    assert shown(table, "ddpo")["improvement"].value == pytest.approx(3 / 9)


def two_rewards(out, method, gains):
    """Runs of a method: gains by seed under each of two rewards, the second ten times as large."""
    for (reward, scale), by_seed in zip((("emoji-align", 1), ("jpeg", 10)), gains, strict=True):
        for seed, gain in by_seed.items():
            make_run(out, method, seed, spread([scale * gain] * 3), reward=reward)


def test_a_method_with_unequal_seeds_is_compared_over_those_that_its_rewards_share(tmp_path):
    """ddpo's third seed, 9, is missing under jpeg: over seeds 0 and 1 it gains .5 and 1.5, against 1, 2 and 3 of sdpo.

    Of six pairs sdpo wins five: 1 > .5; 2 > .5, 1.5; 3 > .5, 1.5. d3po's rewards share no seed at all.
    """
    for reward in ("emoji-align", "jpeg"):
        make_base(tmp_path, base_frame(spread([0, 0, 0]), reward=reward), name=f"base-{reward}")
    two_rewards(tmp_path, "sdpo", [{0: 1, 1: 2, 2: 3}] * 2)
    two_rewards(tmp_path, "ddpo", [{0: 0.5, 1: 1.5, 2: 9}, {0: 0.5, 1: 1.5}])
    two_rewards(tmp_path, "d3po", [{0: 50, 1: 50}, {2: 50}])
    report = build_report(load_results(tmp_path), Request())
    (table,) = (table for _, table in report.tables if table.name == "across-1")
    assert [row.cells[0].text for row in table.rows] == ["ddpo", "sdpo"]
    assert (shown(table, "ddpo")["seeds"].value, shown(table, "sdpo")["seeds"].value) == (2, 3)
    assert shown(table, "sdpo")["improvement"].value == pytest.approx(5 / 6)
    assert shown(table, "ddpo")["improvement"].value == pytest.approx(1 / 6)
    assert table.cautions == (
        "d3po: seeds 2 under emoji-align and 1 under jpeg; left out, since its rewards share no seed.",
        "ddpo: seeds 3 under emoji-align and 2 under jpeg; used: 0 and 1, which all rewards have.",
    )


def test_an_ablation_of_the_normalisation_says_how_often_it_fell_back(tmp_path):
    """All of the first epoch's samples and half of the second's; the other mode has no such rule."""
    for value, shares in (("per-step-prompt", (1.0, 0.5)), ("batch", (None, None))):
        for seed in range(2):
            folder = make_run(tmp_path, "sdpo", seed, spread([0.0] * 3), **{"advantage.normalisation": value})
            rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
            for row, share in zip(rows, shares, strict=True):
                row |= {} if share is None else {"normalisation_fallback": share}
            (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (table,) = ablations(tmp_path, "advantage.normalisation")
    assert shown(table, "per-step-prompt")["fallback"].value == 0.75
    assert shown(table, "per-step-prompt")["fallback"].text == "75 %"
    assert shown(table, "batch")["fallback"].text == "-"
    assert any(note.startswith("fallback: share of an arm's training samples") for note in table.notes)


def test_other_ablations_have_no_column_for_it(tmp_path):
    make_variant(tmp_path, 0.001, (0.0,))
    make_variant(tmp_path, 10, (1.0,))
    (table,) = ablations(tmp_path, "update.lr")
    assert "fallback" not in [column.key for column in table.columns]
