"""Studies of trainings: what they conclude from runs with known numbers, and one that really trains."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import preload  # noqa: F401  (forked processes then have it)
import pytest
import torch
from study_factory import findings, finished, has, request, row

from sdpo_bench.cli.entry import main
from sdpo_bench.errors import UsageError
from sdpo_bench.plugins.conflicts import refuse_what_a_study_owns
from sdpo_bench.plugins.registry import find
from sdpo_bench.results.study_record import read_studies
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.statistics.contrasts import Contrast
from sdpo_bench.statistics.intervals import Estimate
from sdpo_bench.statistics.letters import letter_display
from sdpo_bench.studies import budget, extreme_steps, normalisation, over_optimisation, update_order
from sdpo_bench.studies.shared import diversity
from sdpo_bench.studies.shared.contract import StudyRequest
from sdpo_bench.studies.shared.trainings import Arm, reopen
from sdpo_bench.sweep import local_executor
from sdpo_bench.sweep.plan import make_plan


def table(found, name):
    return next(one for one in found.tables if one.name == name)


def contrast(label, value, shown):
    return Contrast(label, Estimate(value, None, None, 0.95, 3, 4, None, None, "", ""), 0.01 if shown else 1.0)


# -- update order --------------------------------------------------------------------------------------------


def by_variant(**gains):
    return lambda cell, reward, k: gains[cell.variant.replace("-", "_")] + (0.5 if k == 4 else 0)


def test_a_lead_that_vanishes_at_equal_optimiser_steps_is_not_the_orders(four, tmp_path):
    gain = by_variant(shuffled=1.0, accumulated=0.4, accumulated_small=1.0, shuffled_early=0.4)
    found = findings("update-order", request(four), tmp_path, gain)
    assert has(found, "At equal images the step-shuffled order learns more: 0.6")
    assert has(found, "At equal images and optimiser steps", "does not differ significantly")
    assert has(found, "the number of optimiser steps may be all there is to it")
    rows = {r.cells[0].text: r.cells for r in table(found, "comparisons").rows}
    assert rows["equal images"][1].value == pytest.approx(0.6)
    assert rows["equal images"][1].strong
    assert rows["equal images"][3].value == pytest.approx(0.0, abs=1e-9)  # both gain 0.5 less away from T = 4


def test_a_lead_that_remains_is_the_orders(four, tmp_path):
    gain = by_variant(shuffled=1.0, accumulated=0.4, accumulated_small=0.5, shuffled_early=0.9)
    assert has(findings("update-order", request(four), tmp_path, gain), "The order itself helps")


@pytest.mark.parametrize(
    ("images", "both", "said"),
    [
        (1, 1, "The order itself helps"),
        (1, 0, "Its lead at equal images is not significant when the optimiser steps are equal too"),
        (-1, 0, "The accumulated order's lead at equal images is not significant when the optimiser steps are equal"),
        (0, 1, "With equal images and optimiser steps the step-shuffled order is the better one, though not signif"),
        (0, 0, "The two orders do not differ significantly when images are equal."),
        (0, -1, "With equal images and optimiser steps the accumulated order is the better one."),
        (1, -1, "With equal images and optimiser steps the accumulated order is the better one."),
        (-1, -1, "With equal images and optimiser steps the accumulated order is the better one."),
        (-1, 1, "The order matters, but not in one direction."),
    ],
)
def test_what_two_comparisons_say_together_follows_from_both(images, both, said):
    labels = {"equal images": images, "equal images and optimiser steps": both}
    found = update_order.conclusion({label: contrast(label, sign or 0.1, sign != 0) for label, sign in labels.items()})
    assert found[2].startswith(said)


def test_what_only_the_interval_tells_apart_has_its_numbers_in_the_sentence_on_both_comparisons():
    estimate = Estimate(0.3, 0.1, 0.5, 0.95, 3, 4, None, None, "", "")
    near = Contrast("near", estimate, 0.08)
    numbers = "(+0.3, interval [0.1, 0.5], but adjusted p = 0.08)"
    found = update_order.conclusion({"equal images": near, "equal images and optimiser steps": near})
    assert found[0] == (
        "At equal images the step-shuffled order does not differ significantly, though the interval excludes 0 "
        "(adjusted p = 0.080): 0.3 [0.1, 0.5] (95 %, 3 seeds x 4 prompts)."
    )
    assert found[2] == f"The two orders do not differ significantly when images are equal {numbers}."
    found = update_order.conclusion({"equal images": near, "equal images and optimiser steps": contrast("b", 1, True)})
    assert found[2].endswith(f"though not significantly with equal images alone {numbers}.")
    found = update_order.conclusion({"equal images": contrast("a", 1, True), "equal images and optimiser steps": near})
    assert f"when the optimiser steps are equal too {numbers}, so the number" in found[2]


def test_the_arms_of_update_order_are_equal_where_they_say_so(four):
    g = update_order.geometry(StudyRequest())
    suites = find("studies", "update-order").load()().design(StudyRequest()).suites
    work = {c.variant: c.work for suite in suites for c in make_plan(suite, four.parent).jobs}
    images = {name: w.images for name, w in work.items()}
    steps = {name: w.optimiser_steps for name, w in work.items()}
    assert images["shuffled"] == images["accumulated"] == images["accumulated-small"] == g.images
    assert steps["shuffled"] == steps["accumulated-small"] == 4 * steps["accumulated"]
    assert steps["shuffled-early"] == steps["accumulated"] == g.optimiser_steps
    with pytest.raises(UsageError, match="must divide the 32 pairs"):
        update_order.geometry(StudyRequest(overrides={"schedule.steps": 5}))


# -- budget --------------------------------------------------------------------------------------------------


def test_a_ranking_that_turns_round_is_said_to_change(four, tmp_path):
    def gain(cell, reward, k):
        lead = -1 if cell.variant == "reward_calls" else 1
        return {"sdpo": 0.5 * lead, "ddpo": 0.0, "d3po": -2.0}[cell.method]

    found = findings("budget", request(four), tmp_path, gain)
    assert has(found, "At equal reward calls: ddpo a, sdpo b, d3po c.")
    assert has(found, "CHANGES: sdpo is ahead of ddpo", "behind it at equal reward calls.")
    assert sum("CHANGES" in line for line in found.conclusion) == 1


def test_seconds_are_what_the_reference_took(four, tmp_path):
    bench = finished("budget", request(four, seeds=(0, 1)), tmp_path, lambda *_: 0.1)
    cells = [run.job for run in bench.trainings.runs if run.job.variant == "seconds"]
    assert {cell.settings["budget.amount"] for cell in cells} == {12.5}
    assert len(cells) == 6
    found = find("studies", "budget").load()().findings(bench)
    assert has(found, "The same is significant on every axis, which does not say that the axis makes no difference.")
    assert [r.cells[0].text for r in table(found, "pairs").rows] == ["sdpo - ddpo", "sdpo - d3po", "ddpo - d3po"]


def budget_conclusion(**axes):
    """Of significant differences (1, -1) and others (0.1, -0.1) by axis: sdpo - ddpo, sdpo - d3po, ddpo - d3po."""
    pairs, letters = {}, {}
    for axis, (order, *values) in axes.items():
        for pair, value in zip(("sdpo - ddpo", "sdpo - d3po", "ddpo - d3po"), values):
            pairs[f"{axis}: {pair}"] = contrast(f"{axis}: {pair}", value, abs(value) == 1)
        apart = {frozenset(p.partition(": ")[2].split(" - ")) for p, c in pairs.items() if c.shown and axis in p}
        letters[axis] = letter_display(order.split(), apart)
    return budget.conclusion(letters, pairs)


def test_another_order_of_methods_that_do_not_differ_is_no_difference_between_axes():
    found = budget_conclusion(images=("sdpo ddpo d3po", 0.1, 1, 1), seconds=("ddpo sdpo d3po", -0.1, 1, 1))
    assert found == [
        "At equal images: sdpo a, ddpo a, d3po b.",
        "At equal seconds: ddpo a, sdpo a, d3po b.",
        "The same is significant on every axis, which does not say that the axis makes no difference.",
    ]
    less = budget_conclusion(images=("sdpo ddpo d3po", 0.1, 1, 1), seconds=("ddpo sdpo d3po", -0.1, 1, 0.1))
    assert less[-1].startswith("What is significant differs between axes")


def test_what_is_not_told_apart_reads_alike_whoever_happens_to_lead():
    same = budget.order({"m": "a", "k": "a", "l": "a"})
    assert same == budget.order({"l": "a", "m": "a", "k": "a"}) == "k, l and m do not differ significantly"
    assert budget.order({"k": "a", "m": "ab", "l": "b"}) == "k a, m ab, l b"


def test_budgets_are_the_references_bill():
    amounts = budget._amounts(StudyRequest())
    assert amounts["images"] == 640
    assert amounts["optimiser_steps"] == 10 * 5  # ten epochs of one window at five steps
    assert amounts["reward_calls"] == 320 * 5  # a pair shares its first step


# -- reward kinds --------------------------------------------------------------------------------------------


def test_kinds_are_judged_by_the_clean_reward(four, tmp_path):
    def gain(cell, reward, k):
        if reward == "altered":
            return 50.0  # what the training saw decides nothing
        if reward == "jpeg-compressibility":
            return 0.8 if cell.variant == "jpeg" else 0.0
        return {"noisy": 0.0 if cell.method == "d3po" else 0.5, "thresholded": -0.5, "jpeg": -3.0}.get(
            cell.variant, 1.0
        )

    found = findings("reward-kinds", request(four), tmp_path, gain)
    assert has(found, "A noisy reward: works for sdpo and ddpo; no significant gain for d3po")
    assert has(found, "A thresholded reward: makes the pictures of sdpo, ddpo and d3po worse")
    assert has(found, "A jpeg reward: works for sdpo, ddpo and d3po")
    assert has(found, "A delayed reward: works for sdpo.")
    assert has(found, "sdpo with 5 of 6, ddpo with 4 of 5, d3po with 3 of 5")
    noisy = next(r for r in table(found, "kinds").rows if r.cells[0].text == "noisy")
    assert noisy.cells[3].value == pytest.approx(0.5, abs=0.02)  # both a little off by the seeds' own noise


def altered(**settings):
    from sdpo_bench.scoring.reward_expression import choose

    return choose("altered").make({"of": "jpeg-compressibility", **settings})


def test_altered_rewards():
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompts = ["cat"] * 6
    plain = altered()(images, prompts)
    assert (altered(scale=2.0, offset=1.0)(images, prompts) == 2 * plain + 1).all()
    middle = float(plain.sort().values[3])
    assert altered(threshold=middle)(images, prompts).sum() == 3
    noisy = altered(noise=0.5)
    assert (noisy(images, prompts) == noisy(images.flip(0), prompts).flip(0)).all(), "asking again changes nothing"
    assert noisy(images, prompts)[0] != noisy(images, ["dog"] * 6)[0]
    many = torch.rand(400, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = noisy(many, ["cat"] * 400) - altered()(many, ["cat"] * 400)
    assert float(noise.std()) == pytest.approx(0.5, rel=0.1)
    assert abs(float(noise.mean())) < 0.1
    versions = {altered(**s).full_version for s in ({}, {"noise": 0.5}, {"threshold": 0.5}, {"scale": 0.5})}
    assert len(versions) == 4
    assert "1:jpeg-compressibility/1:noise=0.5" in versions
    with pytest.raises(UsageError, match="cannot be altered"):
        altered(of="altered")


# -- extreme steps -------------------------------------------------------------------------------------------


def test_every_way_of_failing_is_listed(four, tmp_path):
    def gain(cell, reward, k):
        trained = cell.settings["schedule.steps"]
        if trained == 1:
            return 0.0 if k == 1 else 0.5
        return -0.5 if k == 1 else 0.5

    def fail(cell):
        return "the loss is nan" if (cell.method, cell.variant, cell.seed) == ("ddpo", "T10", 2) else ""

    flat = lambda cell: 0.05 if cell.variant == "T10" and cell.method == "sdpo" else 0.2  # noqa: E731
    shares = lambda cell: [row(share=[0.1, 0.1, 0.8])]  # noqa: E731
    asked = StudyRequest(overrides={"eval.train": str(four), "eval.steps": "1,10"})
    found = findings("extreme-steps", asked, tmp_path, gain, fail=fail, contrast=flat, log=shares)
    assert has(found, "sdpo gains significantly, trained and judged at T = 10.")
    assert has(found, "ddpo, trained and judged at T = 1: no significant gain or loss.")
    assert has(found, "sdpo at T = 1: the noise of one denoising step does not reach the scored picture")
    cannot, trained = table(found, "own").groups[0].rows
    assert [cannot.cells[i].text for i in (1, 2)] == ["cannot train", "-"] and trained.cells[1].value > 0
    grid = table(found, "grid-sdpo").rows
    assert [(r.cells[0].value, r.cells[1].value < 0 < r.cells[2].value) for r in grid] == [(10, True)]
    assert not has(found, "fails")
    assert has(found, "sdpo, trained at T = 10: worse than the base model at 1 steps.")
    assert has(found, "sdpo, trained at T = 10: flat pictures (contrast 0.05, base model 0.2).")
    assert has(found, "ddpo, trained at T = 10: 1 of 3 runs gave no scores (failed: the loss is nan).")
    assert has(found, "sdpo: one step has most of the gradient at T = 10.")
    assert any("the loss is nan" in caution for caution in table(found, "own").cautions)
    assert extreme_steps._largest_share(()) == (0.0, 0)


def test_trainings_have_equal_images_up_to_50_steps_and_fewer_above():
    design = find("studies", "extreme-steps").load()().design(StudyRequest())
    images = {method: {} for method in extreme_steps.METHODS}
    for suite in design.suites:
        for method, settings in product(suite.methods, suite.variants.values()):
            images[method][settings["schedule.steps"]] = suite.common["budget.images"]
    assert images["ddpo"] == {1: 2048, 2: 2048, 4: 2048, 10: 2048, 20: 2048, 50: 2048, 100: 512, 200: 512}
    assert images["sdpo"] == {k: amount for k, amount in images["ddpo"].items() if k > 1}
    short = find("studies", "extreme-steps").load()().design(StudyRequest(overrides={"eval.steps": "2,50"}))
    assert len(short.suites) == 1


def test_a_t_that_the_engine_refuses_is_left_out_and_named():
    study = find("studies", "extreme-steps").load()()
    turbo = dict(study.design(StudyRequest()).facts)
    assert turbo["cannot train"].startswith("sdpo at T = 1: the noise of one denoising step does not reach")
    flow = study.design(StudyRequest(model="emoji-flow", overrides={"eval.steps": "1,4"}))
    assert [(suite.methods, list(suite.variants)) for suite in flow.suites] == [(("sdpo", "ddpo"), ["T4"])]
    assert dict(flow.facts)["cannot train"].startswith("sdpo and ddpo at T = 1: one denoising step is the last one")
    with pytest.raises(UsageError, match=r"sdpo and ddpo at T = 1: .* Use --set eval.steps=1,4"):
        study.design(StudyRequest(model="emoji-flow", overrides={"eval.steps": "1"}))
    assert "cannot train" not in dict(study.design(StudyRequest(overrides={"eval.steps": "2,4"})).facts)


def test_the_family_of_extreme_steps_is_a_method_at_one_number_of_images(four, tmp_path):
    asked = StudyRequest(overrides={"eval.train": str(four), "eval.steps": "2,10,100"})
    bench = finished("extreme-steps", asked, tmp_path, lambda cell, reward, k: 0.2)
    arms = {(m, k): Arm(m, "emoji-align", f"T{k}") for m in extreme_steps.METHODS for k in (2, 10, 100)}
    own = extreme_steps.own_gains(bench.trainings, arms)
    for method in extreme_steps.METHODS:
        p = {k: own[f"{method} at T = {k}"].estimate.p_value() for k in (2, 10, 100)}
        assert own[f"{method} at T = 100"].adjusted_p == pytest.approx(p[100])  # alone in its family
        assert min(own[f"{method} at T = {k}"].adjusted_p for k in (2, 10)) == pytest.approx(2 * min(p[2], p[10]))


# -- normalisation -------------------------------------------------------------------------------------------


def test_variance_shares_by_hand():
    step = np.zeros((3, 4, 2)) + np.array([0.0, 2.0])  # only steps differ
    assert normalisation.shares(step) == pytest.approx([1, 0, 0, 0])
    prompt = np.zeros((3, 4, 2)) + np.array([0.0, 1.0, 2.0])[:, None, None]
    assert normalisation.shares(prompt) == pytest.approx([0, 1, 0, 0])
    inner = np.zeros((3, 4, 2)) + np.array([-1.0, 1.0, -1.0, 1.0])[None, :, None]
    assert normalisation.shares(inner) == pytest.approx([0, 0, 0, 1])
    both = step + prompt + inner  # variances 1, 2/3 and 1
    assert normalisation.shares(both) == pytest.approx(np.array([3, 2, 0, 3]) / 8)


def test_what_a_normalisation_leaves():
    values = np.random.default_rng(0).normal(size=(5, 16, 3)) * np.array([1.0, 2.0, 4.0])
    values += 10 * np.arange(5)[:, None, None] + 5 * np.arange(3)
    left = normalisation._after("per-step-prompt", values)
    assert normalisation.shares(left)[3] == pytest.approx(1, abs=1e-6)
    assert normalisation.imbalance(left) == pytest.approx((1, 1), abs=1e-4)
    assert normalisation.shares(normalisation._after("per-step", values))[1] > 0.5
    assert normalisation.imbalance(values)[0] == pytest.approx(4, rel=0.3)


def test_the_normalisation_study_says_which_mode_learns_less(four, tmp_path, monkeypatch):
    returns = np.random.default_rng(0).normal(size=(4, 16, 3)) + 5 * np.arange(3)
    monkeypatch.setattr(normalisation, "sample_returns", lambda bench: [returns, returns + 0.01])
    gain = lambda cell, reward, k: 0.2 if cell.variant == "none" else 1.0  # noqa: E731
    found = findings("normalisation", request(four), tmp_path, gain)
    assert has(found, "SDPO gains more than with none")
    assert has(
        found, "Between per-step-prompt and per-prompt, per-step and batch there is no significant difference in gain"
    )
    assert has(found, "Steps and prompts are taken out", "per-step-prompt")


# -- over-optimisation ---------------------------------------------------------------------------------------


def test_pairwise_distances_by_hand():
    latents = np.array([[[0.0, 0.0], [2.0, 2.0], [0.0, 0.0]]])
    features = np.array([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]])
    found = diversity.pairwise(latents, features)
    assert found.latents.tolist() == pytest.approx([4 / 3])  # 2, 0 and 2
    assert found.features.tolist() == pytest.approx([2 / 3])  # 1, 0 and 1
    # Two alike and one at a right angle: eigenvalues 2/3, 1/3 and 0.
    assert found.vendi.tolist() == pytest.approx([(2 / 3) ** (-2 / 3) * (1 / 3) ** (-1 / 3)])


def test_the_onset_of_hacking_is_marked(four, tmp_path, monkeypatch):
    def gain(cell, reward, k):
        if reward == cell.reward:
            return 1.0
        return -1.0 if cell.reward == "jpeg-compressibility" and int(cell.variant) >= 4096 else 0.3

    prompts = 4

    def measured(bench, steps):
        found = {"": diversity.Spread(np.full(prompts, 2.0), np.full(prompts, 1.0), np.full(prompts, 3.0))}
        for run in bench.trainings.runs:
            lost = np.array([-0.5, -0.6, -0.5, -0.4]) if run.job.variant == "16384" else np.array([0.1, -0.1, 0, 0.0])
            latents = 2 + lost + 0.01 * run.job.seed
            found[run.job.run_id] = diversity.Spread(latents, np.full(prompts, 1.0), np.full(prompts, 3.0))
        return found

    monkeypatch.setattr(over_optimisation, "measure_all", measured)
    found = findings("over-optimisation", request(four), tmp_path, gain)
    assert has(found, "jpeg-compressibility: HACKED from 4,096 images on")
    assert has(found, "emoji-align: no significant onset of hacking", "held-out rewards are significantly up")
    assert has(found, "emoji-align: diversity is significantly lower in latent distance from 16,384 images on")
    rows = table(found, "budget-jpeg-compressibility").rows
    assert [r.cells[-2].text for r in rows] == ["-", "-", "onset of hacking", "-", "-"]
    charts = next(p for p in found.plots if p.name == "jpeg-compressibility").charts
    assert [s.x for s in charts[0].series if s.label == "onset of hacking"] == [[4096]]
    matrix = table(found, "matrix").rows[2]
    assert matrix.cells[3].value > 0 > matrix.cells[1].value


def test_a_budget_stands_for_later_ones_only_where_these_agree():
    """Trained: up, unclear, up. Held-out: unclear, unclear, down at the last two budgets."""
    budgets = [1024, 2048, 4096, 8192]
    gains = {}
    for images, own, others in zip(budgets, (1, 0.1, 1, 1), (-0.1, -1, -1, -1)):
        for name, value in (("trained", own), ("held-out", others)):
            gains[f"{name} {images}"] = contrast(name, value, abs(value) == 1)
    assert over_optimisation.hacked(gains, budgets) == [4096, 8192]
    assert over_optimisation.onset(gains, budgets) == 4096
    assert over_optimisation.budget_words([4096, 8192], budgets) == "from 4,096 images on"
    assert over_optimisation.budget_words([1024, 4096, 8192], budgets) == "at 1,024, 4,096 and 8,192 images"
    assert over_optimisation.budget_words([8192], budgets) == "from 8,192 images on"


def test_a_rise_that_is_lost_again_is_said_of_its_budgets_alone(four, tmp_path, monkeypatch):
    def gain(cell, reward, k):
        last = int(cell.variant) == 16384
        return 0.0 if reward == cell.reward and last else 1.0 if reward == cell.reward else -1.0

    monkeypatch.setattr(over_optimisation, "measure_all", lambda bench, steps: {})
    found = findings("over-optimisation", request(four), tmp_path, gain)
    budgets = "at 1,024, 2,048, 4,096 and 8,192 images"
    assert has(found, f"emoji-align: trained on, it rises significantly {budgets}.")
    assert has(found, f"emoji-align: HACKED {budgets}: the held-out rewards")


def test_nothing_can_be_held_out_from_a_single_foreign_reward():
    with pytest.raises(UsageError, match="nothing is held out"):
        over_optimisation._judges(StudyRequest(rewards=("aesthetic",)))
    assert over_optimisation._held_out("emoji-align", ["emoji-align", "emoji-style", "emoji-accuracy"]) == [
        "emoji-accuracy"
    ]


# -- trainings -----------------------------------------------------------------------------------------------


def test_a_study_owns_what_it_compares():
    for key in ("budget.images", "seed"):
        with pytest.raises(UsageError, match=f"--set {key}"):
            refuse_what_a_study_owns({key: 1})
    study = find("studies", "normalisation").load()()
    with pytest.raises(UsageError, match="--set advantage.normalisation"):
        study.design(StudyRequest(overrides={"advantage.normalisation": 1}))
    with pytest.raises(UsageError, match="one reward"):
        study.design(StudyRequest(rewards=("emoji-align", "emoji-style")))


def test_a_failed_run_is_counted_and_its_seed_left_out(four, tmp_path):
    fail = lambda cell: "killed" if (cell.variant, cell.seed) == ("accumulated", 1) else ""  # noqa: E731
    bench = finished("update-order", request(four), tmp_path, lambda *_: 0.5, fail=fail)
    arm = Arm("sdpo", "emoji-align", "accumulated")
    assert bench.trainings.gain(arm).seeds == (0, 2)
    assert [run.why_not for run in bench.trainings.failures()] == ["failed: killed"]
    assert math.isfinite(bench.trainings.spread(arm))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_pipe):
    """``update-order`` on the smallest pipeline, with real processes."""
    out = tmp_path_factory.mktemp("trained")
    (out / "two.txt").write_text("cat\ndog\n")
    words = ["study", "update-order", "--size", "tiny", "--model", tiny_pipe, "--reward", "jpeg-incompressibility"]
    words += ["--seeds", "0", "--threads", "1", "--results", out]
    for setting in (
        "schedule.steps=2",
        "sample.images_per_epoch=8",
        "eval.steps=1,2",
        "eval.images_per_prompt=1",
        f"sample.prompts={out / 'two.txt'}",
        f"eval.train={out / 'two.txt'}",
    ):
        words += ["--set", setting]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_executor, "START_METHOD", "fork")
        patch.setenv("OMP_NUM_THREADS", "1")
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
    assert stop.value.code == 0
    return out, words


def test_a_study_trains_and_its_record_says_what_it_rests_on(trained):
    out, _ = trained
    (record,), _ = read_studies(out)
    assert record.runs == {"done": 4}
    bill = next(one for one in record.findings.tables if one.name == "bill")
    used = {r.cells[0].text: [cell.value for cell in r.cells[1:3]] for r in bill.rows}
    assert used["shuffled"] == used["accumulated-small"] == [16, 4]
    assert used["accumulated"] == [16, 2]
    assert used["shuffled-early"] == [8, 2]


def test_asking_for_more_scores_reopens_finished_trainings(trained):
    out, words = trained
    study = find("studies", "update-order").load()()
    asked = StudyRequest(
        0.02,
        str(words[5]),
        ("jpeg-incompressibility",),
        None,
        (0,),
        {
            "schedule.steps": 2,
            "sample.images_per_epoch": 8,
            "eval.images_per_prompt": 1,
            "eval.steps": "1,2",
            "sample.prompts": str(out / "two.txt"),
            "eval.train": str(out / "two.txt"),
        },
    )
    folder = out / "studies" / "update-order"
    plan = make_plan(study.design(asked).suites[0], folder)
    assert {cell.state for cell in plan.jobs} == {"done"}
    assert reopen(plan) == 0
    for harm in (lambda path: path.write_bytes(b""), Path.unlink):  # the base model's scores are needed beside them
        (base,) = (folder / "runs").glob("base-*/eval.parquet")
        kept = base.read_bytes()
        harm(base)
        assert reopen(plan) == 3
        base.write_bytes(kept)
        for cell in plan.jobs:
            RunFolder(folder / "runs" / cell.run_id).set_status("done")
    asked.overrides["eval.steps"] = "1,2,3"
    more = make_plan(study.design(asked).suites[0], folder)
    assert [cell.run_id for cell in more.jobs] == [cell.run_id for cell in plan.jobs]
    assert {cell.state for cell in more.jobs} == {"unfinished"}
