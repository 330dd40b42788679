"""``compare`` pairs like with like, refuses the rest by name, and says no more than the data show."""

import json
import re
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner
from report_factory import SAMPLER, base_frame, edit_scores, frame, make_base, make_run, spread
from scipy import stats as scipy_stats

from sdpo_bench.cli.report_commands import compare as compare_cli
from sdpo_bench.errors import UsageError
from sdpo_bench.library.comparisons import compare_names
from sdpo_bench.reporting.tables.compare import compare_sides
from sdpo_bench.results.compare_names import find_sides
from sdpo_bench.results.read_results import load_results
from sdpo_bench.results.select_runs import parse_select

A = {0: 1.0, 1: 2.0, 2: 3.0}
B = {0: 0.5, 1: 0.4, 2: 0.6}


@pytest.fixture
def out(tmp_path):
    """Base model at 0; by seed sdpo is at 1, 2, 3 with +1 at 1 step, ddpo at 0.5, 0.4, 0.6; alike over prompts."""
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    for seed in A:
        make_run(tmp_path, "sdpo", seed, spread([A[seed] + 1, A[seed], A[seed]]))
        make_run(tmp_path, "ddpo", seed, spread([B[seed]] * 3))
    return tmp_path


def compared(out, a, b, *select, endpoint="mean", **options):
    selection = parse_select(select)
    results = load_results(out)
    return compare_sides(results, *find_sides(results, a, b, selection), endpoint, **options)


def outcomes(comparison):
    return {outcome.endpoint: outcome for outcome in comparison.duels[0].outcomes}


def run(*arguments):
    return CliRunner().invoke(compare_cli, [str(a) for a in arguments], standalone_mode=False, catch_exceptions=False)


# -- numbers -------------------------------------------------------------------------------------------------


def test_differences_by_hand(out):
    found = outcomes(compared(out, "sdpo", "ddpo"))
    # Differences by seed at 2 and 4 steps: 0.5, 1.6, 2.4, alike over prompts: a t interval over the seeds.
    gaps = np.array([0.5, 1.6, 2.4])
    interval = scipy_stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert found[2].difference.value == pytest.approx(1.5)
    assert (found[2].difference.low, found[2].difference.high) == pytest.approx(tuple(interval))
    assert found[1].difference.value == pytest.approx(2.5)
    assert (found[1].a, found[1].b) == pytest.approx((3.0, 0.5))
    # Mean over the three step counts: one third more than at 2 steps.
    assert found["mean"].difference.value == pytest.approx(1.5 + 1 / 3)


def test_the_primary_endpoint_keeps_its_p_and_the_others_are_one_exploratory_family(out):
    found = outcomes(compared(out, "sdpo", "ddpo"))
    gaps = np.array([0.5, 1.6, 2.4])
    p1, p2, pm = (scipy_stats.ttest_1samp(gaps + shift, 0).pvalue for shift in (1, 0, 1 / 3))
    assert found["mean"].adjusted_p == found["mean"].p == pytest.approx(pm)
    # Benjamini-Hochberg over three step counts, of which those at 2 and 4 steps are equal: 3/1 p1, 3/3 p2 (and 3/2 p2).
    assert p1 < p2 < 3 * p1
    assert [found[k].adjusted_p for k in (1, 2, 4)] == pytest.approx([p2, p2, p2])
    found = outcomes(compared(out, "sdpo", "ddpo", endpoint=2))
    assert found[2].adjusted_p == pytest.approx(p2)
    assert [found[k].adjusted_p for k in (1, 4)] == pytest.approx([min(2 * p1, p2), p2])


def test_the_test_is_of_the_primary_endpoint(out):
    gaps = np.array([0.5, 1.6, 2.4])
    for endpoint, shift in (("mean", 1 / 3), (1, 1), (4, 0)):
        (duel,) = compared(out, "sdpo", "ddpo", endpoint=endpoint).duels
        assert duel.primary.p == pytest.approx(scipy_stats.ttest_1samp(gaps + shift, 0).pvalue), endpoint


def test_the_effect_is_in_the_base_models_spread_at_the_primary_endpoint(tmp_path):
    # The base model's images at 1 step lie at +-0.4, +-0.2, +-0.1: variance 0.42 / 5. At 4 steps: ten times as far.
    base = spread([0, 0, 0])
    base[:, 2] *= 10
    make_base(tmp_path, base_frame(base))
    for seed in A:
        make_run(tmp_path, "sdpo", seed, spread([A[seed] + 1, A[seed], A[seed]]))
        make_run(tmp_path, "ddpo", seed, spread([B[seed]] * 3))
    for endpoint, gap, sd in ((1, 2.5, 0.084**0.5), (4, 1.5, 10 * 0.084**0.5)):
        (duel,) = compared(tmp_path, "sdpo", "ddpo", endpoint=endpoint).duels
        low, high = duel.primary.difference.low, duel.primary.difference.high
        found = (duel.effect.value, duel.effect.low, duel.effect.high)
        assert found == pytest.approx((gap / sd, low / sd, high / sd))


def test_intervals_have_the_level_asked_for_and_one_is_over_seeds_alone(tmp_path):
    # Differences are 1, 2, 3 by seed plus 0, 0.3, 0.6 by prompt: seed means 1.3, 2.3, 3.3. Mean squares: seeds
    # 3 * 1, prompts 3 * 0.09, residual 0.
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    for seed in range(3):
        make_run(tmp_path, "sdpo", seed, spread([1 + seed] * 3) + np.array([0, 0.3, 0.6])[:, None, None])
        make_run(tmp_path, "ddpo", seed, spread([0, 0, 0]))
    variance = (3 + 0.27) / 9
    df = variance**2 / ((3 / 9) ** 2 / 2 + (0.27 / 9) ** 2 / 2)
    (duel,) = compared(tmp_path, "sdpo", "ddpo", level=0.8).duels
    for found, half in (
        (duel.primary.difference, scipy_stats.t.ppf(0.9, df) * variance**0.5),
        (duel.seed_level, scipy_stats.t.ppf(0.9, 2) / 3**0.5),
    ):
        assert (found.low, found.value, found.high) == pytest.approx((2.3 - half, 2.3, 2.3 + half))
        assert found.level == 0.8
    assert duel.primary.win_rate.level == duel.effect.level == 0.8


def test_one_step_count_is_no_summary(tmp_path):
    """The mean over one step count would be the same test once more, in the table and in its correction."""
    one = lambda gain: lambda **who: frame(spread([gain]), **who, steps=(2,))  # noqa: E731
    for seed in A:
        make_run(tmp_path, "sdpo", seed, None, frames=[one(A[seed])])
        make_run(tmp_path, "ddpo", seed, None, frames=[one(B[seed])])
    (duel,) = compared(tmp_path, "sdpo", "ddpo").duels
    assert [outcome.endpoint for outcome in duel.outcomes] == [2]
    assert duel.primary.difference.value == pytest.approx(1.5)
    assert duel.primary.adjusted_p == duel.primary.p


def test_win_rate_counts_paired_images(out):
    folder = next((out / "runs").glob("ddpo-*-s0-*"))

    def change(rows):
        place = (rows.steps == 2) & (rows.prompt == "cat")
        rows.loc[place & (rows.image == 0), "score"] = 99.0
        rows.loc[place & (rows.image == 1), "score"] = spread([1])[0, 0, 1]  # exactly sdpo's score: a tie

    edit_scores(folder, change)
    # 3 seeds x 3 prompts x 2 images: one loss and one tie of 18.
    assert outcomes(compared(out, "sdpo", "ddpo"))[2].win_rate.value == pytest.approx(16.5 / 18)


def test_swapping_the_sides_mirrors_everything(out):
    ab, ba = outcomes(compared(out, "sdpo", "ddpo")), outcomes(compared(out, "ddpo", "sdpo"))
    for key, outcome in ab.items():
        assert ba[key].difference.value == pytest.approx(-outcome.difference.value)
        assert ba[key].difference.low == pytest.approx(-outcome.difference.high)
        assert ba[key].win_rate.value == pytest.approx(1 - outcome.win_rate.value)
        assert ba[key].adjusted_p == pytest.approx(outcome.adjusted_p)


def test_verdict_in_words(tmp_path):
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    rng = np.random.default_rng(0)
    for seed in range(5):
        make_run(tmp_path, "sdpo", seed, spread([5, 5, 1]) + rng.normal(0, 0.2, (3, 3, 2)))
        make_run(tmp_path, "ddpo", seed, spread([1, 1, 1]) + rng.normal(0, 0.2, (3, 3, 2)))
    comparison = compared(tmp_path, "sdpo", "ddpo")
    expected = "sdpo is better at 1, 2 steps and on the mean over step counts; no significant difference at 4 steps"
    assert comparison.duels[0].verdict == expected
    printed = run("sdpo", "ddpo", "--results", tmp_path).stdout
    assert printed.startswith(f"emoji-align (trained on), train prompts: {expected}.")
    for row in outcomes(comparison).values():  # the column says the same as the words
        assert (row.adjusted_p < 0.05) == (row.endpoint != 4)


def test_a_difference_that_is_not_significant_comes_with_its_power(tmp_path):
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    rng = np.random.default_rng(0)
    for seed in range(5):
        for method in ("sdpo", "ddpo"):
            make_run(tmp_path, method, seed, spread([1, 1, 1]) + rng.normal(0, 0.2, (3, 3, 2)))
    (duel,) = compared(tmp_path, "sdpo", "ddpo").duels
    size = duel.primary.difference.detectable()
    text = " ".join(run("sdpo", "ddpo", "--results", tmp_path).stdout.split())
    assert f"would find a difference of {size:.2g} with probability .8" in text


def test_sentence_table_and_json_have_one_p_value_of_the_primary_endpoint(out):
    gaps = np.array([0.5, 1.6, 2.4]) + 1 / 3
    p = scipy_stats.ttest_1samp(gaps, 0).pvalue  # .080
    printed = run("sdpo", "ddpo", "--results", out).stdout
    text = " ".join(printed.split())
    assert f"base model's standard deviations; p = {p:.3f} No significant difference" in text
    row, *_ = [line for line in printed.splitlines() if line.strip().startswith("mean ")]
    assert row.split()[-1] == f"{p:.3f}"
    (panel,) = json.loads(run("sdpo", "ddpo", "--results", out, "--json").stdout)["panels"]
    own = [
        panel["test"]["p"],
        *(panel["primary"][key] for key in ("p", "adjusted_p")),
        panel["endpoints"][-1]["adjusted_p"],
    ]
    assert own == pytest.approx([p] * 4) and "exploratory_p" not in panel["primary"]
    assert "The primary endpoint (mean) is one test declared beforehand, without correction; the other 3 rows" in text
    assert "On this prompt set, over seeds alone: [" in text and "t test p" not in text
    assert "wins: how often an image of the first side scores higher than the second side's image of the same" in text


def test_the_few_step_mean_is_a_row_where_more_was_judged(tmp_path):
    steps = (1, 2, 4, 8)
    for seed in A:
        make_run(tmp_path, "sdpo", seed, frames=[partial(frame, spread([3, 3, 3, 7]) + A[seed], steps=steps)])
        make_run(tmp_path, "ddpo", seed, frames=[partial(frame, spread([1, 2, 3, 0]) + B[seed], steps=steps)])
    found = outcomes(compared(tmp_path, "sdpo", "ddpo"))
    assert list(found) == [1, 2, 4, 8, "few", "mean"]
    assert found["few"].difference.value == pytest.approx(1.5 + 1)  # 2, 1 and 0 more at 1, 2 and 4 steps
    assert found["mean"].difference.value == pytest.approx(1.5 + 2.5)


def test_base_model_as_a_side(out):
    found = outcomes(compared(out, "sdpo", "base"))
    assert found[2].difference.value == pytest.approx(2)
    assert found[2].difference.n_seeds == 3
    mirrored = outcomes(compared(out, "base", "sdpo"))
    assert mirrored[2].difference.value == pytest.approx(-2)
    assert mirrored[2].win_rate.value == 0


def test_metric_chooses_the_primary_endpoint(out):
    comparison = compared(out, "sdpo", "ddpo", endpoint=1)
    assert comparison.duels[0].primary.endpoint == 1
    assert list(outcomes(comparison)) == [1, 2, 4]
    with pytest.raises(UsageError, match=r"share no scores at 3 steps.*sdpo has 1, 2, 4 steps"):
        compared(out, "sdpo", "ddpo", endpoint=3)


def test_an_unknown_split_is_named_with_those_that_there_are(out):
    with pytest.raises(UsageError, match=r"^no scores of split test\. Valid: train\.$"):
        compared(out, "sdpo", "ddpo", splits=("test",))


def test_two_runs_of_one_seed_have_no_verdict(out):
    names = [next((out / "runs").glob(f"{method}-*-s1-*")).name for method in ("sdpo", "ddpo")]
    comparison = compared(out, *names)
    duel = comparison.duels[0]
    assert duel.primary.difference.low is None
    assert duel.primary.adjusted_p is None
    assert "1 seed, no interval, so no verdict" in duel.verdict
    # Differences over 18 images: 2.6 at 1 step, 1.6 at the others; their mean 1.6 + 1/3 is alike for all 6 images.
    assert duel.image_error == pytest.approx(0, abs=1e-12)
    assert "It says nothing about the methods" in run(*names, "--results", out).stdout


def test_a_run_beside_a_method_uses_the_shared_seed(out):
    name = next((out / "runs").glob("sdpo-*-s1-*")).name
    comparison = compared(out, name[:-3], "ddpo")
    assert comparison.a.name == name
    assert comparison.duels[0].primary.difference.n_seeds == 1
    assert comparison.duels[0].seeds_left_out == "seeds that only one of them has are left out: 0, 2"


def test_seeds_without_a_partner_are_left_out_and_named(out):
    make_run(out, "sdpo", 7, spread([100, 100, 100]))
    comparison = compared(out, "sdpo", "ddpo")
    assert comparison.duels[0].seeds_left_out == "seeds that only one of them has are left out: 7"
    assert outcomes(comparison)[2].difference.value == pytest.approx(1.5)


def test_held_out_rewards_and_other_splits_follow(out):
    for method, value in (("sdpo", 0.9), ("ddpo", 0.4)):
        held = lambda value=value, **who: frame(spread([value] * 3), **who, reward="zz", version="1")  # noqa: E731
        unseen = lambda value=value, **who: frame(spread([value] * 3), **who, split="unseen")  # noqa: E731
        for seed in (0, 1):
            make_run(out, method, seed, spread([1] * 3), frames=[held, unseen], **{"budget.amount": 9})
    comparison = compared(out, "sdpo", "ddpo", "budget.amount=9")
    keys = [(duel.panel.key.split, duel.panel.key.reward) for duel in comparison.duels]
    assert keys == [("train", "emoji-align"), ("train", "zz"), ("unseen", "emoji-align")]
    assert [duel.primary.difference.value for duel in comparison.duels] == pytest.approx([0, 0.5, 0.5])
    (unseen,) = compared(out, "sdpo", "ddpo", "budget.amount=9", splits=("unseen",)).duels
    assert unseen.panel.key.split == "unseen"


def test_json_and_bills(out):
    data = json.loads(run("sdpo", "ddpo", "--results", out, "--json").stdout)
    panel = data["panels"][0]
    assert panel["seeds"] == [0, 1, 2]
    assert panel["prompts"] == 3
    assert panel["primary"]["difference"] == pytest.approx(1.5 + 1 / 3)
    assert panel["test"] == {"name": "t test over seeds and prompts", "p": panel["primary"]["p"], "smallest_p": 0.0}
    rows = data["bill"]["groups"][0]["rows"]
    assert [row["method"]["text"] for row in rows] == ["sdpo", "ddpo"]
    assert rows[0]["denoiser_calls"]["value"] == 3840
    assert {"key": "method.reward", "a": "predicted", "b": "none"} in data["differing"]


def test_settings_that_differ_are_listed(out):
    for seed in A:
        make_run(out, "d3po", seed, spread([1, 1, 1]), **{"update.lr": 0.5})
    text = run("ddpo", "d3po", "--results", out).stdout
    assert "update.lr: 0.001 against 0.5" in text


def test_a_setting_that_one_side_does_not_record_is_listed_with_its_default(out):
    """``advantage.std`` came later: runs with its default, which is "group", do not record it."""
    for seed in A:
        make_run(out, "ddpo", seed, spread([1, 1, 1]), **{"advantage.std": "batch"})
    assert "advantage.std: batch against default" in run("ddpo,advantage.std=batch", "ddpo", "--results", out).stdout
    assert "temporal_discount" not in run("sdpo", "ddpo,advantage.std=batch", "--results", out).stdout  # SDPO's own


def test_costs_that_differ_are_listed(out):
    # The logs have 64 images, 1,920 denoiser calls and 10 optimiser steps an epoch.
    for seed in A:
        make_run(out, "d3po", seed, spread([1, 1, 1]), epochs=5)
    text = run("ddpo", "d3po", "--results", out).stdout
    assert "  optimiser steps: 20 against 50\n" in text and "  denoiser calls: 3,840 against 9,600\n" in text
    assert "  images: 128 against 320\n" in text and "forward:" not in text
    assert "optimiser steps:" not in run("ddpo", "sdpo", "--results", out).stdout
    assert "optimiser steps:" not in run("ddpo", "base", "--results", out).stdout


# -- variants of a method ------------------------------------------------------------------------------------


def test_a_method_with_several_arms_must_be_narrowed(out):
    for seed in A:
        make_run(out, "sdpo", seed, spread([A[seed] + 5] * 3), **{"method.reward": "full"})
    with pytest.raises(UsageError, match=r"'sdpo' means 2 things here.* e.g. sdpo,method.reward=full.$"):
        compared(out, "sdpo", "ddpo")  # --select method.reward=full would leave out ddpo, which has no such setting
    comparison = compared(out, "sdpo,method.reward=full", "sdpo,method.reward=predicted")
    assert outcomes(comparison)[2].difference.value == pytest.approx(5)
    assert comparison.differing == (("method.reward", "full", "predicted"),)


def test_a_method_in_several_settings_is_narrowed_by_select(out):
    for seed in A:
        for method in ("sdpo", "ddpo"):
            make_run(out, method, seed, spread([1, 1, 1]), **{"budget.amount": 256})
    with pytest.raises(UsageError, match="e.g. --select budget.amount=.*, or write sdpo,budget.amount="):
        compared(out, "sdpo", "ddpo")
    assert outcomes(compared(out, "sdpo", "ddpo", "budget.amount=128"))[2].difference.value == pytest.approx(1.5)


def test_the_words_that_choose_can_be_typed(out):
    """The model before a list of modules, which --select would read as several values."""
    flow = {"model.name": "emoji-flow", "model.lora_targets": ("to_q", "to_k"), "schedule.eta": 0.5}
    for seed in A:
        for method in ("sdpo", "ddpo"):
            make_run(out, method, seed, spread([1, 1, 1]), **flow)
            make_run(out, method, seed, spread([1, 1, 1]), **flow, **{"budget.amount": 256})
    with pytest.raises(UsageError) as refused:
        compared(out, "sdpo", "ddpo")
    first, second = re.search(r"e.g. (--select .*), or write (.*)\.$", str(refused.value)).groups()
    assert first in ("--select model=emoji-turbo", "--select model=emoji-flow --select budget.amount=128")
    select = first.replace("--select ", "").split()
    chosen = [compared(out, "sdpo", "ddpo", *select), compared(out, second, "ddpo")]
    one, other = ([run.id for run in comparison.a.arm.runs] for comparison in chosen)
    assert one == other and len(one) == 3


def test_settings_that_nobody_can_type_are_told_apart_by_a_run(out):
    run_ids = {}
    for name, targets in (("q", ("to_q", "to_k")), ("v", ("to_v", "to_k"))):
        run_ids[name] = make_run(out, "d3po", 0, spread([1, 1, 1]), **{"model.lora_targets": targets}).name
    with pytest.raises(UsageError, match="'d3po' means 2 things") as refused:
        compared(out, "d3po", "ddpo")
    named = str(refused.value).rpartition(" ")[2].removesuffix(".")
    assert named in run_ids.values() and compared(out, named, "ddpo").a.name == named


def test_conditions_that_no_run_meets_are_named_with_the_values_that_there_are(out):
    for seed in A:
        make_run(out, "sdpo", seed, spread([1, 1, 1]), **{"update.lr": 0.25})
    for typed, words in (
        ("sdpo,update.lr=0.75", "no run of sdpo has update.lr = 0.75. Here it is 0.001 or 0.25."),
        ("sdpo,update.lr=0.25,model=sd-turbo", "no run of sdpo has model.name = sd-turbo. Here it is emoji-turbo."),
        ("sdpo,update.lrr=1", "no run of sdpo has a key 'update.lrr'. Did you mean 'update.lr'?"),
        ("sdpo,seed=1", "seed chooses among the seeds or evaluations of sdpo. Write METHOD and --select seed=1"),
    ):
        with pytest.raises(UsageError) as refused:
            compared(out, "ddpo", typed)
        assert str(refused.value) == words


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget.amount": 256}, "budget.amount is 128 for the first and 256 for the second"),
        ({"budget.axis": "seconds"}, "budget.axis is images for the first and seconds"),
        ({"schedule.eta": 0.5}, "schedule.eta is 1 for the first and 0.5"),
        ({"model.name": "sd-turbo"}, "model.name is emoji-turbo for the first and sd-turbo"),
        ({"sample.prompts": "mine"}, "sample.prompts is simple-animals for the first and mine"),
        ({"version": "2"}, "reward.version is emoji-align/1 for the first and emoji-align/2"),
        ({"reward": "jpeg"}, "reward.name is emoji-align for the first and jpeg"),
    ],
)
def test_unlike_settings_are_refused_by_key(out, changes, words):
    for seed in A:
        make_run(out, "d3po", seed, spread([1, 1, 1]), **changes)
    with pytest.raises(UsageError, match=words) as caught:
        compared(out, "sdpo", "d3po")
    assert caught.value.exit_code == 2


def test_unlike_budgets_come_with_the_command_that_trains_both_alike(out):
    make_run(out, "Winner@83cb9656", 0, spread([1, 1, 1]), **{"budget.amount": 512})
    command = "sdpo-bench run --config {}/run.json --budget images={}{} --out {}"
    (winner,) = (out / "runs").glob("Winner*-s0-*")
    sdpo, *_ = sorted((out / "runs").glob("sdpo-*-s0-*"))
    for a, b, words in (
        ("sdpo", "winner", (winner, 128, "", out)),
        ("winner", "sdpo", (sdpo, 512, " --seeds 0,1,2", out)),
    ):
        with pytest.raises(UsageError) as refused:
            compared(out, a, b)
        assert str(refused.value).endswith(f" for the second. Train both alike: {command.format(*words)}")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"sampler": SAMPLER.replace("eta=1", "eta=0")}, "the evaluation's sampler is 'ddim trailing eta=1"),
        ({"split": "unseen"}, "the evaluation's split is 'train' for the first and 'unseen'"),
        ({"version": "2"}, "the evaluation's version is '1' for the first and '2'"),
        ({"prompts": ("cat", "dog", "owl")}, "the evaluation's prompts differ"),
        ({"steps": (3, 5, 7)}, "share no scores on the mean"),
    ],
)
def test_unlike_evaluations_are_refused_by_key(out, other, words):
    for seed in A:
        make_run(out, "d3po", seed, None, frames=[lambda **who: frame(spread([1, 1, 1]), **who, **other)])
    with pytest.raises(UsageError, match=words):
        compared(out, "sdpo", "d3po")


def test_seeds_that_never_meet_are_refused(out):
    make_run(out, "d3po", 8, spread([1, 1, 1]))
    with pytest.raises(UsageError, match="seed is 0, 1, 2 for the first and 8 for the second"):
        compared(out, "sdpo", "d3po")
    with pytest.raises(UsageError, match="cannot be compared: seed is 0 for the first and 1 for the second"):
        compared(out, *(next((out / "runs").glob(f"sdpo-*-s{seed}-*")).name for seed in (0, 1)))


def test_names_that_mean_nothing_or_the_same(out):
    with pytest.raises(UsageError, match=r"'sdop' is neither a method nor a run here. Did you mean 'sdpo'"):
        compared(out, "sdop", "ddpo")
    for a, b in (("sdpo", "sdpo"), ("base", "base")):
        with pytest.raises(UsageError, match="same runs|both names are the base model"):
            compared(out, a, b)
    run_name = next((out / "runs").glob("sdpo-*-s0-*")).name
    with pytest.raises(UsageError, match="same runs"):
        compared(out, run_name, run_name)
    with pytest.raises(UsageError, match="fits 2 runs"):
        make_run(out, "d3po", 0, None)
        make_run(out, "d3po", 1, None)
        compared(out, "d3po-", "ddpo")


def test_a_method_without_a_run_comes_with_the_command_that_trains_it(out):
    for a, b in (("sdpo", "drpo"), ("drpo,update.lr=0.1", "ddpo")):
        with pytest.raises(UsageError) as refused:
            compared(out, a, b)
        command = f"sdpo-bench run --method drpo --out {out}"
        assert str(refused.value) == f"'drpo' has no run in '{out}'. Train it: {command}"
    with pytest.raises(UsageError, match="'ddpo' has no run in '.*' that fits --select. Train it"):
        compare_names(out, "sdpo", "ddpo", ["method=sdpo"], "mean")


# -- plugins of single files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["Winner", "winner", "Winner@83cb9656"])
def test_the_method_of_a_plugin_file_is_named_by_its_class(out, typed):
    make_run(out, "Winner@83cb9656", 0, spread([4] * 3))
    make_run(out, "Winner@83cb9656", 1, spread([4] * 3))
    assert compared(out, typed, "ddpo").duels[0].primary.difference.n_seeds == 2
    shown = run(typed, "ddpo", "--results", out).output
    assert "Winner - ddpo" in shown and "@83cb9656" not in shown
    assert compared(out, "base", typed).b.name == "Winner"
    assert compared(out, typed, "ddpo", f"method={typed},ddpo").a.name == "Winner"


def test_versions_of_a_plugin_file_are_told_apart_by_their_digests(out):
    for digest, score in (("83cb9656", 4), ("0aa1b2c3", 5)):
        make_run(out, f"Winner@{digest}", 0, spread([score] * 3))
    for a, b, select in (("winner", "ddpo", ()), ("sdpo", "ddpo", ("method=winner",))):
        with pytest.raises(UsageError, match="'winner' means 2 methods here: Winner@0aa1b2c3, Winner@83cb9656"):
            compared(out, a, b, *select)
    comparison = compared(out, "Winner@83cb9656", "Winner@0aa1b2c3")
    assert (comparison.a.name, comparison.b.name) == ("Winner@83cb9656", "Winner@0aa1b2c3")
    assert "Winner@83cb9656" in run("Winner@83cb9656", "Winner@0aa1b2c3", "--results", out).output


def test_sides_without_usable_scores_are_refused(out):
    make_run(out, "d3po", 0, None, state="interrupted")
    with pytest.raises(UsageError, match="d3po has no finished run .*is interrupted"):
        compared(out, "d3po", "sdpo")
    make_run(out, "d3po", 1, None)
    with pytest.raises(UsageError, match="d3po has no usable evaluation. Score it first: sdpo-bench eval"):
        compared(out, "d3po", "sdpo")
    make_run(out, "sparse_dpo", 0, np.full((3, 3, 2), np.nan))
    with pytest.raises(UsageError, match="sparse_dpo has no finite scores"):
        compared(out, "sparse_dpo", "sdpo")


def test_without_a_base_model_methods_still_compare(tmp_path):
    for seed in A:
        make_run(tmp_path, "sdpo", seed, spread([A[seed]] * 3))
        make_run(tmp_path, "ddpo", seed, spread([B[seed]] * 3))
    comparison = compared(tmp_path, "sdpo", "ddpo")
    assert comparison.duels[0].primary.difference.value == pytest.approx(1.5)
    assert comparison.duels[0].effect is None
    with pytest.raises(UsageError, match="share no scores"):
        compared(tmp_path, "sdpo", "base")
