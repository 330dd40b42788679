"""Studies of the newer methods: what they train, what they leave out, and what they conclude from known numbers."""

import json
import re
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pandas as pd
import pytest
from report_factory import base_frame, make_base, make_run, spread
from scipy import stats
from scipy.optimize import brentq
from study_factory import findings, finished, has, request

from sdpo_bench.config.presets import find_preset
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import CannotTrain, UsageError
from sdpo_bench.plugins.registry import find
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.statistics.contrasts import Contrast
from sdpo_bench.statistics.intervals import Estimate
from sdpo_bench.statistics.matrices import Matrix
from sdpo_bench.studies import dense_rewards, nft_on_distilled, one_step
from sdpo_bench.studies.shared import one_step_arms as oa
from sdpo_bench.studies.shared import picture_measures, reward_budgets, step_rewards
from sdpo_bench.studies.shared.contract import StudyRequest
from sdpo_bench.studies.shared.reward_view import RewardView
from sdpo_bench.studies.shared.training_tables import unsearched
from sdpo_bench.studies.shared.trainings import Trainings
from sdpo_bench.sweep.plan import make_plan


def design(name, asked=None):
    return find("studies", name).load()().design(asked or StudyRequest())


def jobs(name, out, **asked):
    return [job for suite in design(name, StudyRequest(**asked)).suites for job in make_plan(suite, out).jobs]


def table(found, name):
    return next(one for one in found.tables if one.name == name)


# -- one step ------------------------------------------------------------------------------------------------


def left_out(**asked):
    return oa.left_out(StudyRequest(**asked))


def test_what_cannot_train_at_one_step_is_what_the_engine_refuses(tmp_path):
    """The flow sampler's only step draws no noise; DDIM's does, and reaches the sample but not its prediction."""
    refused = left_out().refused
    flow = {place: reason for place, reason in refused.items() if place.model == "emoji-flow"}
    assert set(flow) == {("emoji-flow", method, 1) for method in ("sdpo", "grpo")}
    assert set(flow.values()) == {"one denoising step is the last one, which is never random"}
    assert refused.keys() - flow.keys() == {("emoji-turbo", "sdpo", 1)}
    with pytest.raises(CannotTrain, match="sdpo learns from log-probabilities, and one denoising step is the last one"):
        resolve(Request("sdpo", None, "emoji-flow", None, 0, {"schedule.steps": 1}))
    facts = dict(design("one-step").facts)
    assert facts["cannot train (emoji-flow)"].startswith("sdpo and grpo at T = 1: one denoising step")
    assert facts["cannot train (emoji-turbo)"].startswith("sdpo at T = 1: the noise of one denoising step does not")
    trained = {
        (job.model, job.method, job.settings["schedule.steps"]) for job in jobs("one-step", tmp_path, seeds=(0,))
    }
    assert trained == set(product(oa.MODELS, oa.METHODS, oa.STEPS)) - set(refused) - {("emoji-flow", "draft", 1)}


def test_refl_and_draft_are_trained_once_where_they_are_one_algorithm():
    """Both differentiate the only step; the flow model's draws nothing, DDIM's does. At T >= 2 DRaFT takes two."""
    assert left_out().twins == {("emoji-flow", "draft", 1): "refl"}
    words = dict(design("one-step").facts)["trained once (emoji-flow)"]
    assert words.startswith("draft at T = 1 is the same algorithm as refl: ") and "draws nothing" in words


@pytest.mark.parametrize(
    ("model", "steps", "refl", "draft", "same"),
    [
        ("emoji-flow", 1, {}, {"method.steps": 1}, True),
        ("emoji-flow", 4, {}, {"method.steps": 1}, True),
        ("emoji-flow", 4, {}, {"method.steps": 2}, False),
        ("emoji-flow", 4, {"method.window": 0.5}, {"method.steps": 1}, False),  # one of the last two steps
        ("emoji-flow", 1, {"method.target": 1.0}, {"method.steps": 1}, False),
        ("emoji-flow", 1, {"update.lr": 1e-3}, {"method.steps": 1}, False),
        ("emoji-turbo", 1, {}, {"method.steps": 1}, False),
        ("emoji-turbo", 1, {"schedule.eta": 0}, {"method.steps": 1, "schedule.eta": 0}, False),
        ("emoji-turbo", 1, {"schedule.sampler": "lcm"}, {"method.steps": 1, "schedule.sampler": "lcm"}, True),
    ],
)
def test_one_algorithm_is_known_by_its_steps_and_the_last_draw(model, steps, refl, draft, same):
    own = {"refl": refl, "draft": draft}
    a, b = (resolve(Request(m, None, model, None, 0, {"schedule.steps": steps, **s})) for m, s in own.items())
    assert oa.same_training(a, b) == oa.same_training(b, a) == same


def test_other_settings_that_do_not_fit_are_errors_and_no_refusals():
    with pytest.raises(UsageError, match="update.lr"):
        left_out(overrides={"update.lr": -1})


def test_the_budgets_and_optimiser_steps_of_one_step_are_equal(tmp_path):
    """4 optimiser steps for 64 images; SDPO at T = 4 of the flow model, of which 3 are random, 3 for 48."""
    sizes = {}
    for job in jobs("one-step", tmp_path, seeds=(0,)):
        if job.settings["budget.axis"] == "images":
            assert job.work.images == 2048
        else:
            assert 0.98 * 24576 < job.work.denoiser_calls <= 24576
        assert job.work.optimiser_steps == pytest.approx(job.work.images / 16, abs=3)
        if job.method == "sdpo":
            size = job.settings["update.minibatch"], job.settings["sample.images_per_epoch"]
            sizes[job.model, job.settings["schedule.steps"]] = size
        else:
            assert job.settings["sample.images_per_epoch"] == 64
    assert sizes == {
        ("emoji-turbo", 2): (16, 64),
        ("emoji-turbo", 4): (32, 64),
        ("emoji-flow", 2): (8, 64),
        ("emoji-flow", 4): (24, 48),
    }
    facts = dict(design("one-step").facts)
    assert facts["seeds"] == "0, 1, 2, 3, 4 (training)" and facts["trainings"] == "380"  # 38 arms at two budgets
    assert facts["optimiser steps"] == "4 for every 64 images, alike for all methods and T"
    assert facts["shorter epochs (emoji-flow)"] == "sdpo at T = 4: 48 images and 3 optimiser steps"


def test_draft_has_one_step_at_t_1_alone(tmp_path):
    steps = {
        (job.model, job.settings["schedule.steps"], job.settings["method.steps"])
        for job in jobs("one-step", tmp_path, seeds=(0,))
        if job.method == "draft"
    }
    flow = {("emoji-flow", k, 2) for k in (2, 4)}
    assert steps == {("emoji-turbo", 1, 1)} | {("emoji-turbo", k, 2) for k in (2, 4)} | flow


def test_one_step_says_where_settings_come_from_and_who_shares_a_start():
    one = design("one-step")
    facts = dict(one.facts)
    turbo, flow = (facts[f"settings ({model})"] for model in oa.MODELS)
    assert "from a search" in turbo and "no section" not in turbo
    assert "made at T = 5, for nft, awm, drpo, refl, draft, sdpo and grpo" in turbo
    assert "settings by hand" in flow and "made at T = 4, for refl, draft, sdpo and grpo; " in flow
    assert "no section for nft, awm and drpo: not searched" in flow
    assert any("groups with a shared start (sdpo and grpo) have many more" in text for text in one.statistics)


def test_methods_without_a_section_in_the_preset_take_as_many_optimiser_steps_as_the_others():
    assert unsearched(StudyRequest(), oa.METHODS, "emoji-turbo") == {}, "its preset has them all"
    found = unsearched(StudyRequest(), oa.METHODS, "emoji-flow")
    assert found == {
        "nft": {"update": {"minibatch": 2}},
        "awm": {"update": {"minibatch": 2}},
        "drpo": {"update": {"minibatch": 1}},
    }
    asked = StudyRequest(overrides={"update.minibatch": 4})
    assert unsearched(asked, ["nft", "sdpo"], "emoji-flow") == {"nft": {}}, "the user's own is used"
    suite = design("one-step", asked).suites[0]
    assert suite.overrides("nft", next(iter(suite.variants)))["update.minibatch"] == 4
    assert dict(design("one-step", asked).facts)["optimiser steps"] == "not held equal: set by the user"


def test_one_step_says_who_gains_where_and_at_which_t_to_train(four, tmp_path, monkeypatch):
    monkeypatch.setattr(oa, "METHODS", ("nft", "awm", "sdpo", "grpo"))

    def gain(cell, reward, k):
        trained, images = cell.settings["schedule.steps"], cell.settings["budget.axis"] == "images"
        if cell.method == "nft" and cell.model == "emoji-turbo":
            return (0.9 if trained == 1 else 0.3) if k == 1 else -5.0
        if cell.method == "grpo":
            return -0.5 if images and trained == 4 else 0.0
        return 0.0

    found = findings("one-step", request(four, seeds=(0, 1, 2)), tmp_path, gain)
    assert has(found, "emoji-turbo, equal images: one-step pictures gain significantly with nft (T = 1, 2 and 4).")
    assert has(found, "emoji-turbo, equal images: one-step pictures get significantly worse with grpo (T = 4).")
    assert not has(found, "equal denoiser calls: one-step pictures get significantly worse")
    (unclear,) = (line for line in found.conclusion if "emoji-flow, equal denoiser calls: no significant" in line)
    assert re.search(r"for nft \(T = 1 \[0\.0\d+\], 2 \[0\.0\d+\] and 4 \[0\.0\d+\]\), awm", unclear)
    assert unclear.endswith("; [x]: a change of x is found with a power of 80 % before adjustment.")
    own = table(found, "own")
    assert [c.title for c in own.columns][5:9] == ["images", "denoiser calls", "reward calls", "optimiser steps"]
    better = "training at T = 1 rather than 4 is significantly better for one-step pictures with"
    assert has(found, f"emoji-turbo, equal images: {better} nft and grpo.")
    assert not has(found, f"emoji-flow, equal images: {better}")
    assert has(found, "emoji-flow: sdpo and grpo at T = 1: one denoising step", "so nothing trains there.")
    rows = {(g.title, r.cells[0].text, r.cells[1].value): r.cells for g in table(found, "own").groups for r in g.rows}
    nft = rows["emoji-turbo, equal images", "nft", 1]
    assert nft[2].value == pytest.approx(0.9, abs=0.05) and nft[2].strong
    assert nft[4].value == pytest.approx(-5.0, abs=0.05)
    assert rows["emoji-flow, equal images", "sdpo", 1][2].text == "cannot train"
    length = {r.cells[0].text: r.cells for r in table(found, "length").rows}
    assert length["nft"][1].value == pytest.approx(0.6, abs=0.05)
    assert [length["sdpo"][i].text for i in (5, 7)] == ["-", "-"], "it cannot train at T = 1 of the flow model"


def test_the_family_of_one_step_is_all_trainings_of_a_model_at_one_budget(four, tmp_path, monkeypatch):
    """Five: NFT at three T and SDPO at two. DRaFT at T = 1 is ReFL and no sixth of four."""
    for methods, size in ((("nft", "sdpo"), 5), (("refl", "draft"), 5)):
        monkeypatch.setattr(oa, "METHODS", methods)
        asked = request(four, model="emoji-flow", seeds=(0, 1, 2))
        out = tmp_path / methods[0]
        bench = finished("one-step", asked, out, lambda cell, reward, k: 0.2)
        arms = {cell: oa.arm(cell, "emoji-align") for cell in oa.cells(asked, oa.left_out(asked))}
        own = one_step.own_gains(bench.trainings, arms)
        found = [c for cell, c in own.items() if cell.axis == "images"]
        assert len(found) == size
        assert min(c.adjusted_p for c in found) == pytest.approx(min(size * c.estimate.p_value() for c in found))


def test_one_step_compares_each_method_at_its_smallest_t_with_sdpo_at_t_4(four, tmp_path, monkeypatch):
    monkeypatch.setattr(oa, "METHODS", ("drpo", "sdpo", "grpo"))

    def gain(cell, reward, k):
        if cell.method == "drpo" and cell.settings["budget.axis"] == "images":
            return 0.9 if cell.settings["schedule.steps"] == 1 else -9.0
        if cell.method == "sdpo" and cell.settings["schedule.steps"] == 2:
            return 5.0  # not the reference
        return 0.5 + (0.1 * (cell.seed % 2) if cell.method == "drpo" else 0.0)

    found = findings("one-step", request(four, seeds=(0, 1, 2)), tmp_path, gain)
    pair = "drpo (T = 1) against sdpo (T = 4)"
    for model in oa.MODELS:
        assert has(found, f"{model}, equal images, one-step pictures, {pair}: significantly better (+0.4")
    unclear = f"emoji-flow, equal denoiser calls, one-step pictures, {pair}: no significant difference"
    assert has(found, unclear, "would be found with a power of 80 % before adjustment")
    rows = {(g.title, r.cells[0].text): r.cells for g in table(found, "against").groups for r in g.rows}
    turbo = rows["emoji-turbo, equal images", "drpo"]
    assert turbo[2].value == pytest.approx(0.4, abs=0.05) and turbo[2].strong
    assert [rows[f"{model}, equal images", "grpo"][1].value for model in oa.MODELS] == [1, 2]
    calls = rows["emoji-flow, equal denoiser calls", "drpo"]
    assert not calls[2].strong and 0 < calls[4].value < 0.5
    assert [c.title for c in table(found, "against").columns][2] == "minus sdpo at T = 4"


def test_what_is_trained_once_stands_in_tables_and_conclusion(four, tmp_path, monkeypatch):
    monkeypatch.setattr(oa, "METHODS", ("refl", "draft", "sdpo"))
    found = findings("one-step", request(four, model="emoji-flow", seeds=(0, 1, 2)), tmp_path, lambda *_: 0.5)
    assert has(found, "emoji-flow: draft at T = 1 is the same algorithm as refl, which is trained once.")
    group = table(found, "own").groups[0]
    texts = {(r.cells[0].text, r.cells[1].value): r.cells[2].text for r in group.rows}
    assert (texts["draft", 1], texts["sdpo", 1]) == ("same as refl", "cannot train")
    against = {r.cells[0].text: r.cells[1].value for r in table(found, "against").groups[0].rows}
    assert against == {"refl": 1, "draft": 2}


@pytest.mark.parametrize(("name", "steps"), [("one-step", "1,4"), ("nft-on-distilled", "4,10")])
def test_an_evaluation_without_the_endpoint_is_refused(name, steps):
    with pytest.raises(UsageError, match=f"Keep them: eval.steps={steps}"):
        design(name, StudyRequest(overrides={"eval.steps": "4,16"}))
    design(name, StudyRequest(overrides={"eval.steps": f"{steps},16"}))


# -- dense rewards -------------------------------------------------------------------------------------------


def test_kinds_that_cost_no_more_are_trained_once(tmp_path):
    """A state's completion costs denoiser calls, a query of the reward does not; every kind's queries differ."""
    by_axis = {}
    for job in jobs("dense-rewards", tmp_path):
        key = job.model, job.settings["budget.axis"]
        by_axis.setdefault(key, {})[job.settings["method.reward"]] = job.work
    for model in reward_budgets.MODELS:
        equal = by_axis[model, "images"]
        assert set(equal) == set(reward_budgets.KINDS)
        assert {work.images for work in equal.values()} == {5120}
        assert set(by_axis[model, "denoiser_calls"]) == {"completion", "branch"}
        assert set(by_axis[model, "reward_calls"]) == {"full", "completion", "branch", "sparse"}
        for axis in ("denoiser_calls", "reward_calls"):
            bill = equal["predicted"].used(axis)
            assert all(0.99 * bill < work.used(axis) <= bill for work in by_axis[model, axis].values())
        calls = equal["predicted"].denoiser_calls
        assert calls == equal["full"].denoiser_calls == equal["sparse"].denoiser_calls
        # Three queries, of which the pair shares the first: 2.5 an image. The final reward alone is one.
        assert (equal["predicted"].reward_calls, equal["sparse"].reward_calls) == (2.5 * 5120, 5120)
        assert by_axis[model, "reward_calls"]["sparse"].images == 2.5 * 5120


def test_gains_of_single_steps_are_not_summed(tmp_path):
    """DenseGRPO and TempFlow-GRPO give a step its own reward: the discount of later ones is 0 at every budget."""
    found = {}
    for job in jobs("dense-rewards", tmp_path):
        found.setdefault(job.settings["method.reward"], set()).add(job.settings["advantage.gamma"])
    assert found == {"predicted": {0.99}, "full": {0.99}, "sparse": {0.99}, "completion": {0.0}, "branch": {0.0}}
    discount = dict(design("dense-rewards").facts)["discount"]
    assert "advantage.gamma = 0 for completion and branch" in discount and "0.99 (emoji-turbo)" in discount


def test_dense_rewards_say_with_which_rewards_their_settings_were_found():
    facts = dict(design("dense-rewards").facts)
    assert facts["settings of every kind (emoji-turbo)"] == (
        "learning rate 0.001, clip range 0.001: searched with predicted rewards alone"
    )
    assert "not searched" in facts["settings of every kind (emoji-flow)"]
    assert "settings by hand" in find_preset("embedded-flow").description, "the words above are out of date"
    own = dict(design("dense-rewards", StudyRequest(overrides={"update.lr": 0.002})).facts)
    assert own["settings of every kind (emoji-turbo)"].endswith(
        "learning rate 0.002, clip range 0.001: set by the user"
    )


def test_what_another_budget_makes_of_a_difference_is_tested_itself(four, tmp_path):
    """On emoji-turbo completion leads sparse by .5 and predicted by .2 at equal images, by 0 and -.3 at equal denoiser
    calls. On emoji-flow its lead is significant at equal images alone, which is no significant change."""

    def gain(cell, reward, k):
        kind, axis = cell.settings["method.reward"], cell.settings["budget.axis"]
        if cell.model == "emoji-flow":
            uncertain = 0.1 * (-1) ** cell.seed - 0.05 if axis == "denoiser_calls" else 0.0
            return 0.55 + uncertain if kind == "completion" else 0.5
        if kind == "sparse":
            return 0.9 if axis == "reward_calls" else 0.5
        completion = {"images": 1.0, "denoiser_calls": 0.5, "reward_calls": 0.5}[axis]
        return {"completion": completion, "predicted": 0.8, "full": 0.8, "branch": 0.2}[kind]

    found = findings("dense-rewards", request(four, seeds=(0, 1, 2, 3, 4)), tmp_path, gain)
    more, less = "emoji-turbo: significantly more is learnt than with", "emoji-turbo: significantly less is learnt than"
    assert has(
        found, f"{more} sparse by predicted at equal images, full at equal images and completion at equal images."
    )
    assert has(found, f"{less} with sparse by", "predicted at equal reward calls", "branch at equal denoiser calls")
    change = "emoji-turbo: the difference to {} is {} that at equal images for"
    lower = next(one for one in found.conclusion if one.startswith(change.format("sparse", "significantly lower than")))
    assert "completion at equal denoiser calls (-0.5, interval [" in lower
    assert "predicted at equal reward calls (-0.4, interval [" in lower
    assert has(
        found, change.format("predicted", "significantly lower than"), "completion at equal denoiser calls (-0.5"
    )
    assert has(found, "emoji-flow: significantly more is learnt than with sparse by completion at equal images")
    assert has(found, "emoji-flow: no significant difference to sparse", "completion at equal denoiser calls")
    assert has(
        found,
        "emoji-flow: the difference to sparse is not significantly different from that at equal images for",
        "completion at equal denoiser calls (-0.03, interval [",
        "would be found with a power of 80 % before adjustment)",
    )
    assert not has(found, "emoji-flow: the difference", "significantly lower than that")
    minus = table(found, "minus-sparse").groups[0].rows
    assert [r.cells[3].text for r in minus if r.cells[0].text in ("predicted", "full")] == ["same runs"] * 2
    rows = {r.cells[0].text: r.cells for r in table(found, "change-sparse").groups[0].rows}
    assert rows["completion"][1].value == pytest.approx(-0.5, abs=0.05) and rows["completion"][1].strong
    assert rows["predicted"][1].text == "same runs" and rows["predicted"][3].value == pytest.approx(-0.4, abs=0.05)
    assert has(found, "emoji-turbo: every kind has the same learning rate and clip range (searched with predicted")
    assert has(found, "emoji-flow: every kind has", "(not searched", "none is compared at its own best ones")


def test_a_pair_of_runs_counts_once_in_a_family_of_dense_rewards(four, tmp_path):
    bench = finished("dense-rewards", request(four), tmp_path, lambda cell, reward, k: 0.2)
    bills = reward_budgets.bills(bench.request)
    arms = reward_budgets.arms("emoji-turbo", "emoji-align", bills["emoji-turbo"])

    def labels(made_by):
        return {one: list(made_by(bench.trainings, arms, one)) for one in dense_rewards.REFERENCES}

    costs = [
        *(f"{kind} at equal denoiser calls" for kind in ("completion", "branch")),
        *(f"{kind} at equal reward calls" for kind in ("full", "completion", "branch")),
    ]
    with_sparse = [*costs[:2], "predicted at equal reward calls", *costs[2:]]
    assert labels(dense_rewards._changes) == {"sparse": with_sparse, "predicted": costs}
    assert labels(dense_rewards._differences) == {
        "sparse": [
            *(f"{kind} at equal images" for kind in ("predicted", "full", "completion", "branch")),
            *with_sparse,
        ],
        "predicted": [*(f"{kind} at equal images" for kind in ("full", "completion", "branch")), *costs],
    }


@pytest.mark.parametrize("key", ["method.reward", "advantage.gamma"])
def test_dense_rewards_own_the_kind_of_reward_and_its_discount(key):
    with pytest.raises(UsageError, match=f"--set {key}: this study varies"):
        design("dense-rewards", StudyRequest(overrides={key: "sparse"}))


# -- nft on distilled ----------------------------------------------------------------------------------------


def test_nft_has_the_same_training_on_both_models(tmp_path):
    by_model = {}
    for job in jobs("nft-on-distilled", tmp_path):
        settings = {key: value for key, value in job.settings.items() if key != "model.name"}
        by_model.setdefault(job.model, []).append(settings)
    distilled, undistilled = by_model["emoji-flow"], by_model["emoji-flow-base"]
    assert distilled == undistilled and len(distilled) == 2 * 5
    assert {settings["schedule.steps"] for settings in distilled} == {4, 10}


def test_nft_samples_without_noise_as_its_pictures_are_judged(tmp_path):
    """DiffusionNFT, config/nft.py: deterministic. The preset's own sampler is Flow-CPS at eta 1."""
    every = [job.settings for job in jobs("nft-on-distilled", tmp_path)]
    assert {settings["schedule.sde"] for settings in every} == {"ode"}
    assert {settings["eval.eta"] for settings in every} == {0.0}
    sampler = dict(design("nft-on-distilled").facts)["sampler in training"]
    assert "schedule.sde = ode" in sampler and "judged by flow ode" in sampler
    with pytest.raises(UsageError, match=r"--set schedule\.sde: this study varies"):
        design("nft-on-distilled", StudyRequest(overrides={"schedule.sde": "cps"}))


def test_a_model_that_blurs_while_its_reward_rises_is_said_to_by_name_of_the_measure(four, tmp_path):
    """At T = 4 both models lose a fifth of their sharpness, the undistilled one with a fifth of its contrast."""

    def gain(cell, reward, k):
        if reward == "emoji-accuracy":
            return 0.0
        return 0.5 if k == cell.settings["schedule.steps"] else -3.0

    def sharpness(cell, steps):
        return 0.04 if steps == cell.settings["schedule.steps"] == 4 else 0.05  # the base models' are 0.05

    def contrast(cell):
        return 0.16 if cell.variant == "undistilled T4" else 0.2  # the base models' are 0.2

    found = findings("nft-on-distilled", request(four), tmp_path, gain, sharpness=sharpness, contrast=contrast)
    sentences = {line.partition(":")[0]: line for line in found.conclusion}
    blurred = sentences["The distilled model at T = 4 BLURS by sharpness and by sharpness/contrast"]
    assert "sharpness falls significantly (-0.2, interval [" in blurred
    assert "sharpness/contrast falls significantly (-0.2, interval [" in blurred
    assert "reward rises significantly (+0.5" in blurred
    assert "emoji-accuracy does not change significantly" in blurred
    paler = sentences["The undistilled model at T = 4 BLURS by sharpness, not significantly by sharpness/contrast"]
    assert "; contrast falls significantly (-0.2" in paler
    same = sentences[
        "The undistilled model at T = 10 does not blur significantly by sharpness or by sharpness/contrast"
    ]
    numbers = r": sharpness does not change significantly \(\S+, interval \[[^]]*\], adjusted p = 1.00; (\S+) would be"
    findable = float(re.search(numbers, same)[1])
    assert has(found, "Significant difference: sharpness/contrast at T = 4 falls more, or rises less, on the distilled")
    assert has(found, "Significant difference: contrast at T = 4 falls less, or rises more, on the distilled model.")
    assert has(found, "Between the models there is no significant difference in reward at T = 4", "sharpness at T = 4,")
    rows = {(g.title, r.cells[0].text): r.cells for g in table(found, "changes").groups for r in g.rows}
    assert rows["distilled, trained and judged at T = 4", "sharpness/contrast"][2].value == pytest.approx(
        -0.2, abs=0.01
    )
    assert rows["undistilled, trained and judged at T = 10", "reward"][2].value == pytest.approx(0.5, abs=0.05)
    unchanged = rows["undistilled, trained and judged at T = 10", "sharpness"]
    assert unchanged[4].value == pytest.approx(findable, rel=0.01) and 0 < findable < 0.02
    away = next(r for r in table(found, "steps-reward").rows if r.cells[0].text == "distilled")
    assert away.cells[2].value == pytest.approx(-3.0, abs=0.05)  # judged at one step, trained at four


def test_pictures_without_contrast_have_no_sharpness_by_contrast(four, tmp_path):
    flat = finished("nft-on-distilled", request(four), tmp_path, lambda *_: 0.0, contrast=lambda cell: 0.0)
    arm = next(iter(flat.trainings.arms))
    assert picture_measures.change(flat.trainings, arm, 4, "sharpness/contrast") is None
    assert (picture_measures.change(flat.trainings, arm, 4, "contrast").values == -1).all()


def test_a_change_that_is_not_significant_has_the_one_that_would_be_found():
    """Three seeds and four prompts, a standard error of .1 with 2 degrees of freedom."""
    near = Contrast("reward", Estimate(0.255, 0.01, 0.5, 0.95, 3, 4, 0.1, 2.0, ""), 0.09)
    clear = Contrast("sharpness", Estimate(-0.2, -0.3, -0.1, 0.95, 3, 4, 0.1, 2.0, ""), 0.001)
    cell = nft_on_distilled._cells()[0]
    sentence = nft_on_distilled._cell_sentence(cell, {"reward": near, "sharpness": clear})
    assert (
        "BLURS by sharpness: sharpness falls significantly (-0.2, interval [-0.3, -0.1], adjusted p = 0.001); "
        in sentence
    )
    assert "reward does not change significantly (+0.255, interval [0.01, 0.5], adjusted p = 0.090; " in sentence
    assert float(re.search(r"0\.090; (\S+) would be found with a power of 80 %", sentence)[1]) == pytest.approx(
        findable_by_scipy(0.1, 2), abs=2e-3
    )


def findable_by_scipy(error, df):
    """The mean whose test at 5 % has a power of 80 %, from the noncentral t distribution."""
    critical = stats.t.ppf(0.975, df)
    return brentq(lambda mean: stats.nct.sf(critical, df, mean / error) - 0.8, error, 100 * error)


def test_pictures_are_compared_with_the_base_models_of_the_same_prompts_steps_and_images(four, tmp_path):
    """The base model's pictures of three more prompts, of 50 steps and of image 9 have ten times the contrast, and so
    has everything that another sampler made of it."""
    bench = finished("extreme-steps", request(four), tmp_path, lambda *_: 0.0, contrast=lambda cell: 0.05)
    (base,) = (tmp_path / "runs").glob("base-*")
    path = base / "eval.parquet"
    rows = pd.read_parquet(path)
    more = [
        rows.assign(prompt="more " + rows["prompt"]),
        rows[rows["steps"] == rows["steps"].min()].assign(steps=51),
        rows[rows["image"] == 0].assign(image=99),
        rows.assign(sampler="another"),
    ]
    pd.concat([rows, *(one.assign(contrast=2.0) for one in more)]).to_parquet(path, index=False)
    arm = next(iter(bench.trainings.arms))
    assert bench.trainings.pictures(arm, "contrast") == pytest.approx((0.05, 0.2))


def test_scores_by_different_versions_of_a_held_out_reward_are_not_stacked(four, tmp_path):
    """Seed 1 was judged by version 0. Without the present version, nobody can say which scores are asked for."""
    asked = StudyRequest(overrides={"eval.train": str(four), "eval.rewards": "emoji-accuracy"})
    bench = finished("extreme-steps", asked, tmp_path, lambda *_: 0.5)
    arm, runs = next(iter(bench.trainings.arms.items()))
    path = next(run.folder.evaluation for run in runs if run.job.seed == 1)
    rows = pd.read_parquet(path)
    rows.loc[rows["reward"] == "emoji-accuracy", "version"] = "0"
    rows.to_parquet(path, index=False)
    of_present, _ = bench.trainings.grids(arm, "emoji-accuracy")
    assert of_present.seeds == (0, 2)
    unknown = [replace(run, job=replace(run.job, asked=replace(run.job.asked, versions={}))) for run in runs]
    with pytest.raises(UsageError, match=r"has version 1 by .*; run .* has version 0 by .*another --results FOLDER"):
        Trainings(tmp_path, tuple(unknown)).grids(arm, "emoji-accuracy")


def test_an_arm_is_compared_with_its_own_base_model(tmp_path):
    """Another one of the same name, at another resolution, was judged in the same folder by the same sampler."""
    small = make_base(tmp_path, base_frame(spread([-1.0, -1.0, -1.0])), name="base-emoji_turbo-1")
    record = json.loads((small / "run.json").read_text())
    record["config"]["model"]["resolution"] = 16
    (small / "run.json").write_text(json.dumps(record))
    make_base(tmp_path, base_frame(spread([-2.0, -2.0, -2.0])), name="base-emoji_turbo-2")
    run = SimpleNamespace(folder=RunFolder(make_run(tmp_path)), why_not="")
    trainings = Trainings(tmp_path, ())
    vars(trainings)["arms"] = {"arm": (run,)}
    assert [base.folder.run_id for base in trainings.bases_of("arm")] == ["base-emoji_turbo-2"]


def test_the_models_of_nft_on_distilled_are_the_study_s_own():
    with pytest.raises(UsageError, match="this study compares emoji-flow and emoji-flow-base"):
        design("nft-on-distilled", StudyRequest(model="sd-turbo"))


@pytest.mark.parametrize(
    ("official", "said"),
    [
        ({4: 0.504, 10: 0.496}, "change the error by less than 0.005."),
        ({4: 0.52, 10: 0.51}, "have a larger error at T = 4 and 10."),
        ({4: 0.48, 10: 0.5}, "have a smaller error at T = 4."),
        ({4: 0.48, 10: 0.52}, "have a larger error at T = 10 and a smaller error at T = 4."),
    ],
)
def test_official_weights_that_lower_the_error_are_said_to(official, said):
    """SDPO's error is .5 at T = 4 and 10."""
    rules = step_rewards.OFFICIAL, step_rewards.SDPO
    errors = {n: dict(zip(rules, (error, 0.5))) for n, error in official.items()}
    view = SimpleNamespace(
        sampled=official,
        accuracy={n: {step_rewards.OFFICIAL: SimpleNamespace(not_finite=0)} for n in official},
        matrices={n: {rule: Matrix([[e]], (0,), ("cat",)) for rule, e in own.items()} for n, own in errors.items()},
    )
    assert RewardView._official(view) == f"the official weights, which may be negative, {said}"
