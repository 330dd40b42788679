"""The plan: what it says a run will cost is what the ledger counts, and it knows how far everything has come."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from report_factory import frame
from suite_files import SEARCH, SUITE, finish, finish_job, leave_scores, write_suite

from factories import METHODS, make_resolved, make_trainer, mostly_slow
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import MissingError
from sdpo_bench.estimates.time_estimate import (
    Rates,
    choice_work,
    cost_of_group,
    epoch_work,
    evaluation_work,
    make_method,
    run_work,
    seconds,
    single_key,
    trained_steps,
    training_work,
)
from sdpo_bench.plugins.registry import find
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.settings import ModelSettings, Runtime, ScheduleSettings
from sdpo_bench.statistics.score_reader import read_scores
from sdpo_bench.sweep.plan import JOB_SECONDS, later_jobs, make_plan, record_of
from sdpo_bench.sweep.suite import find_suite, read_suite
from sdpo_bench.sweep.worker import Task

TWELVE = {"budget.images": 12}
WAYS = ("forward", "backward")


def ledger_of(resolved, tmp_path):
    trainer = make_trainer(resolved, tmp_path)
    trainer.train()
    return trainer.ledger.bill()


@pytest.mark.parametrize(
    ("name", "extra"),
    mostly_slow(
        [
            *((name, TWELVE) for name in METHODS),
            ("sdpo", {"budget.reward_calls": 31}),
            ("sparse_dpo", {"budget.denoiser_calls": 150, "update.inner_epochs": 2}),
            ("sparse_dpo", {"budget.optimiser_steps": 3}),
        ],
        quick=[(name, TWELVE) for name in ("sdpo", "sparse_dpo", "best_of_n")],
    ),
)
def test_the_estimate_is_the_bill(tiny_pipe, tmp_path, name, extra):
    """Also where the last epoch is cut: 12 images are an epoch of 8 and one of 4."""
    resolved = make_resolved(tiny_pipe, name, **{"schedule.steps": 2, **extra})
    bill, work = ledger_of(resolved, tmp_path), training_work(resolved)
    assert work.images == bill["images"]
    assert (work.reward_calls, work.optimiser_steps) == (bill["reward_calls"], bill["optimiser_steps"])
    if "budget.optimiser_steps" in extra:  # ends inside an epoch, so its calls are an estimate
        assert bill["optimiser_steps"] == extra["budget.optimiser_steps"]
    else:
        assert (work.forward, work.backward) == (sum(bill["forward"].values()), bill["backward"])


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("nft", {}),  # asks the policy that sampled and the base model in every update
        ("dgpo", {"method.clip_range": 0.1}),
        ("dpok", {"update.minibatch": 2}),  # asks the base model
        ("sparse_dpo", {}),  # asks the base model before the updates, and each step twice in them
        ("draft", {"update.minibatch": 4, "reward.name": "emoji-align"}),  # asks the reward in the updates alone
        ("drpo", {"method.features": "scorer", "reward.name": "emoji-align"}),
        ("drpo", {"method.features": "pixels"}),
    ],
)
def test_updates_that_a_budget_of_optimiser_steps_leaves_out_cost_nothing(tiny_pipe, tmp_path, name, own):
    """Half of the updates of the second epoch are done, and all of its sampling."""
    settings = {"schedule.steps": 2, "update.order": "accumulated", "update.minibatch": 1} | own
    epoch = epoch_work(make_resolved(tiny_pipe, name, **settings))["optimiser_steps"]
    assert epoch % 2 == 0
    resolved = make_resolved(tiny_pipe, name, **settings, **{"budget.optimiser_steps": epoch + epoch // 2})
    bill, work = ledger_of(resolved, tmp_path), training_work(resolved)
    assert (work.images, work.optimiser_steps) == (bill["images"], bill["optimiser_steps"]) == (16, 3 * epoch // 2)
    assert (work.forward, work.backward) == (sum(bill["forward"].values()), bill["backward"])
    assert work.reward_calls == bill["reward_calls"]
    assert work.seen == bill.get("decoded", 0) + bill.get("decoded_backward", 0)


@pytest.mark.parametrize("axis", ["images", "reward_calls", "denoiser_calls", "optimiser_steps"])
@pytest.mark.parametrize("epochs", [1, 2, 5, 10**12])
def test_epochs_are_alike_but_for_the_cut_one(axis, epochs):
    """However many there are, they are not gone through one by one."""

    def work(**budget):
        settings = {"sample.images_per_epoch": 64, "update.minibatch": 16, "schedule.steps": 4}
        budget = {f"budget.{name}": amount for name, amount in budget.items()}
        return training_work(resolve(Request("sdpo", "emoji-align", overrides={**budget, **settings})))

    whole = work(images=64)
    each = int(whole.used(axis))
    cut = work(**{axis: each // 2})
    assert work(**{axis: epochs * each + each // 2}) == whole.times(epochs) + cut


def moving(rule, **overrides):
    """GRPO on emoji-flow: 4 groups of 4 an epoch, 5 steps, the first state of a group shared."""
    method = {"method.group_size": 4, "method.shared_noise": True}
    settings = {"sample.images_per_epoch": 16, "update.minibatch": 4, "update.inner_epochs": 1}
    schedule = {"schedule.steps": 5, "schedule.sde_steps": rule}
    return resolve(Request("grpo", "emoji-align", "emoji-flow", overrides=method | settings | schedule | overrides))


@pytest.mark.parametrize(
    ("rule", "backward"),
    [
        ("first:2", 4 * 5),  # 1 shared state and 4 states
        ("window:2:1", 4 * (5 + 8 + 8) // 3),  # three places among the first four steps, of which one has step 0
        ("random:2:3", 4 * (5 + 8) // 2),  # two places
    ],
)
def test_one_epoch_of_a_moving_window_is_the_mean_of_its_places(rule, backward):
    assert epoch_work(moving(rule))["denoiser_backward"] == backward
    assert epoch_work(moving(rule))["denoiser_forward"] == 4 * (1 + 4 * 4) + 2 * 9 + backward  # the KL of two pairs


@pytest.mark.parametrize("rule", ["window:2:1", "random:2:3"])
@pytest.mark.parametrize("axis", ["images", "denoiser_calls"])
def test_a_long_run_with_a_moving_window_costs_the_mean_of_its_places(monkeypatch, rule, axis):
    """1,500 epochs by the mean, against the same counted one by one. A window is at each place for a third of them; a
    random one's two places have half each within 3 sigma = 58 epochs, whose 12 calls are 1.8 % of 1,500 times 26."""
    amount = 1500 * (16 if axis == "images" else sum(epoch_work(moving(rule))[f"denoiser_{w}"] for w in WAYS))
    resolved = moving(rule, **{f"budget.{axis}": amount})
    by_mean = training_work(resolved)
    monkeypatch.setattr("sdpo_bench.estimates.time_estimate.ONE_BY_ONE", 10**6)
    exact = training_work(resolved)
    assert by_mean.backward == pytest.approx(exact.backward, rel=2e-3 if rule.startswith("window") else 2e-2)
    assert by_mean.images == pytest.approx(exact.images, rel=1e-2) and by_mean != exact


@pytest.mark.parametrize("rule", ["official", "skip-last", "equal-gain", "noise-level"])
@pytest.mark.parametrize(("sampler", "std_floor"), [("ddim", 1e-3), ("lcm", 1e-3), ("lcm", 0.0)])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_trained_steps_are_those_with_a_weight(rule, sampler, std_floor, steps):
    """The last step of a consistency model draws nothing, so it is not trained."""
    from sdpo_bench.rollout.schedule import make_schedule, step_weights

    settings = ScheduleSettings(steps=steps, sampler=sampler, std_floor=std_floor)
    weights = step_weights(make_schedule({}, steps, sampler=sampler, std_floor=std_floor), rule)
    assert trained_steps(settings, rule) == (weights > 0).float().tolist()


@pytest.mark.parametrize("rule", ["official", "skip-last", "equal-gain", "noise-level"])
@pytest.mark.parametrize("window", ["all", "first:2", "random:2", "random:2:3", "window:2:1"])
def test_trained_steps_of_a_flow_model_are_those_of_the_epochs_window(rule, window):
    from sdpo_bench.config.training_schedule import schedule_options
    from sdpo_bench.rollout.schedule import make_schedule, step_weights

    settings = ScheduleSettings(steps=5, sampler="flow", eta=0.7, sde_steps=window)
    for epoch in range(4):
        options = schedule_options(settings, seed=3, epoch=epoch)
        schedule = make_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler"}, 5, sampler="flow", **options)
        weights = step_weights(schedule, rule)
        assert trained_steps(settings, rule, seed=3, epoch=epoch) == (weights > 0).float().tolist()
    still = ScheduleSettings(steps=5, sampler="flow", sde="ode")
    assert trained_steps(still, rule) == [0.0] * 5


def test_guidance_as_an_input_of_the_network_has_one_branch():
    """A consistency model is told its guidance; others are called twice, with and without the prompt."""
    for name, branches in (("lcm-dreamshaper-v7", 1), ("sd-turbo", 2)):
        sampler = {"schedule.sampler": "lcm"} if branches == 1 else {}
        overrides = {"model.guidance_scale": 8, "schedule.steps": 4, "sample.images_per_epoch": 128, **sampler}
        resolved = resolve(Request("ddpo", "aesthetic", name, overrides=overrides))
        assert cost_of_group(resolved).forward == branches * (4 + 4 - (branches == 1))


def test_only_the_clock_knows_what_a_budget_of_seconds_buys():
    judged = {"eval.steps": "1,2,4,8,16,50", "eval.images_per_prompt": 4, "eval.rewards": ""}
    resolved = resolve(Request("sdpo", "emoji-align", overrides={"budget.seconds": 100, **judged}))
    assert training_work(resolved) is None
    # 45 prompts x 4 images at 1, 2, 4, 8, 16 and 50 steps: 14,580 calls and 1,080 images.
    assert seconds(resolved, None, Rates(0.01, 1, 0.1, 1, {single_key("emoji-align", {}): 0.2})) == pytest.approx(
        100 + 145.8 + 324
    )


def test_time_is_counts_times_rates():
    """DDPO, 8 images, T = 10: 80 sampling, 80 training calls and 20 to measure the KL; 8 rewards; one window."""
    overrides = {
        "budget.images": 8,
        "sample.images_per_epoch": 8,
        "update.minibatch": 8,
        "update.accumulation": 1,
        "update.step_weight": "official",
        "schedule.steps": 10,
        "eval.steps": "1",
        "eval.images_per_prompt": 1,
        "eval.rewards": "",
    }
    resolved = resolve(Request("ddpo", "emoji-align", overrides=overrides))
    work = training_work(resolved)
    assert (work.forward, work.backward, work.reward_calls, work.optimiser_steps) == (180, 80, 8, 1)
    assert seconds(resolved, work, Rates(1, 0, 0, 0)) == 100
    assert seconds(resolved, work, Rates(0, 1, 0, 0)) == 80
    assert seconds(resolved, work, Rates(0, 0, 1, 0, {single_key("emoji-align", {}): 2})) == 8 * 3
    assert seconds(resolved, work, Rates(0, 0, 0, 5)) == 5
    outside = evaluation_work(resolved)
    assert (outside.outside_forward, outside.outside_images) == (45, 45)


def test_choosing_a_checkpoint_is_paid_for():
    """2,560 images are 40 epochs: candidates at 15, 30 and 40; each prompt x 2 images at 1 and 4 steps each."""
    resolved = resolve(
        Request(
            "sdpo",
            "emoji-align",
            overrides={
                "checkpoint.choose": "validation",
                "checkpoint.every": 15,
                "checkpoint.images_per_prompt": 2,
                "budget.images": 2560,
                "sample.images_per_epoch": 64,
            },
        )
    )
    prompts = len([x for x in Path("sdpo_bench/prompts/emoji-validation.txt").read_text().splitlines() if x[:1] != "#"])
    work = choice_work(resolved.config, training_work(resolved), make_method(resolved))
    assert work.outside_images == 3 * prompts * 2 * 2
    assert work.outside_forward == 3 * prompts * 2 * 5


def test_the_points_of_a_learning_curve_are_counted():
    """24 images are three epochs: points at the base model, after two epochs and after the last one."""
    settings = {"eval.every": 2, "eval.curve_steps": "1,4", "eval.curve_images_per_prompt": 3, "eval.curve_prompts": 5}
    common = {"budget.images": 24, "sample.images_per_epoch": 8, "update.minibatch": 4, "eval.unseen": "few-animals"}
    with_curve, without = (resolve(Request("sdpo", "emoji-align", overrides=common | more)) for more in (settings, {}))
    extra_images = run_work(with_curve).outside_images - run_work(without).outside_images
    extra_calls = run_work(with_curve).outside_forward - run_work(without).outside_forward
    assert extra_images == 3 * (5 + 5) * 3 * 2
    assert extra_calls == 3 * (5 + 5) * 3 * (1 + 4)
    assert with_curve.run_id == without.run_id


def test_states_are_facts_about_folders(tmp_path):
    suite = read_suite(write_suite(tmp_path))
    jobs = make_plan(suite, tmp_path).jobs
    assert [job.state for job in jobs] == ["new"] * 4
    for job, state in zip(jobs, ("done", "running", "failed", "interrupted")):
        finish_job(tmp_path, job, state, "because" if state == "failed" else "")
    again = make_plan(suite, tmp_path)
    assert [job.state for job in again.jobs] == ["done", "unfinished", "failed", "unfinished"]
    assert again.jobs[2].message == "because"
    (tmp_path / "runs" / jobs[0].run_id / "status").write_text("{")
    assert make_plan(suite, tmp_path).jobs[0].state == "unfinished"


LOST = {
    "its scores": (lambda run: (run / "eval.parquet").unlink(), "its eval.parquet is gone"),
    "half of its scores": (lambda run: os.truncate(run / "eval.parquet", 100), "eval.parquet is damaged"),
    "its record": (lambda run: (run / "run.json").unlink(), "it has no run.json"),
    "what its record says": (lambda run: (run / "run.json").write_text("{}"), "run.json' is damaged"),
}


@pytest.mark.parametrize("lost", LOST)
def test_a_job_that_has_lost_its_results_is_not_done(tmp_path, lost):
    """Whatever its status says; with them it is again."""
    suite = read_suite(write_suite(tmp_path))
    first = make_plan(suite, tmp_path).jobs[0]
    finish_job(tmp_path, first, "done")
    run = tmp_path / "runs" / first.run_id
    kept = {path: path.read_bytes() for path in run.iterdir()}
    harm, said = LOST[lost]
    harm(run)
    job = make_plan(suite, tmp_path).jobs[0]
    assert job.state == "unfinished" and said in job.message
    for path, content in kept.items():
        path.write_bytes(content)
    assert make_plan(suite, tmp_path).jobs[0].state == "done"


def test_a_job_judged_on_more_prompts_later_stays_done(tmp_path):
    """``eval RUN --set eval.train=FILE --steps 1`` adds prompts to those that its configuration names."""
    suite = read_suite(write_suite(tmp_path, SUITE + "[eval]\nsteps = [1, 4]\nimages_per_prompt = 2\nrewards = []\n"))
    first = make_plan(suite, tmp_path).jobs[0]
    finish_job(tmp_path, first, "done")
    scores, who = tmp_path / "runs" / first.run_id / "eval.parquet", {"run": first.run_id, "method": "sdpo", "seed": 0}
    own = load_prompts(first.settings["eval.train"])
    parts = [((1, 4), own, np.zeros((len(own), 2, 2))), ((1,), ("an owl", "a yak"), np.zeros((2, 1, 2)))]
    frames = [frame(cells, **who, prompts=prompts, steps=steps) for steps, prompts, cells in parts]
    pd.concat(frames).to_parquet(scores, index=False)
    assert make_plan(suite, tmp_path).jobs[0].state == "done"
    pd.concat([frames[0].iloc[1:], frames[1]]).to_parquet(scores, index=False)  # one of its own scores is gone
    job = make_plan(suite, tmp_path).jobs[0]
    missing = "it lacks scores by emoji-align on train prompts (1, 4 steps, 2 images a prompt)"
    assert (job.state, job.message) == ("unfinished", missing)


JUDGED = {"steps": "[1, 4]", "images_per_prompt": "1", "rewards": "[]", "unseen": '""', "eta": "1"}
ASKED_LATER = {
    "unseen": '"emoji-unseen"',
    "steps": "[1, 4, 8]",
    "images_per_prompt": "2",
    "rewards": '["emoji-accuracy"]',
    "eta": "0",
    "train": '"emoji-validation"',
}


@pytest.mark.parametrize("key", ASKED_LATER)
def test_a_finished_job_is_unfinished_where_the_suite_asks_for_scores_that_it_lacks(tmp_path, key):
    """No setting of the evaluation is part of its id."""
    before, after = (
        read_suite(write_suite(tmp_path, f"{SUITE}[eval]\n" + "\n".join(f"{k} = {v}" for k, v in table.items())))
        for table in (JUDGED, JUDGED | {key: ASKED_LATER[key]})
    )
    first = make_plan(before, tmp_path).jobs[0]
    finish_job(tmp_path, first, "done")
    job = make_plan(after, tmp_path).jobs[0]
    assert (job.run_id, job.state) == (first.run_id, "unfinished")
    assert job.message.startswith("it lacks scores by emoji-")
    finish_job(tmp_path, job, "done", rescored=True)
    assert make_plan(after, tmp_path).jobs[0].state == "done"


def test_scores_by_an_earlier_version_of_a_held_out_reward_are_not_the_asked_ones(tmp_path, monkeypatch):
    """The version of the trained reward is part of the run's id, that of a held-out one is not."""
    text = SUITE + '[eval]\nsteps = [1, 4]\nimages_per_prompt = 1\nrewards = ["emoji-accuracy"]\n'
    suite = read_suite(write_suite(tmp_path, text))
    first = make_plan(suite, tmp_path).jobs[0]
    finish_job(tmp_path, first, "done", rescored=True)
    assert make_plan(suite, tmp_path).jobs[0].state == "done"
    monkeypatch.setattr(find("rewards", "emoji-accuracy").load(), "version", "2")
    job = make_plan(suite, tmp_path).jobs[0]
    lacks = "it lacks scores by emoji-accuracy (version 2) on train prompts (1, 4 steps, 1 images a prompt)"
    assert (job.run_id, job.state, job.message) == (first.run_id, "unfinished", lacks)
    leave_scores(Task(job.label, job.run_id, job.request, Runtime(out=tmp_path), ""), 0.5, add=True)
    job = make_plan(suite, tmp_path).jobs[0]
    scores = read_scores(tmp_path / "runs" / job.run_id / "eval.parquet", pictures=False)
    (key, block) = job.asked.block(scores, "train", "emoji-accuracy")
    assert job.state == "done" and (key.version, block.scores.mean()) == ("2", 0.5)


def test_stored_scores_by_a_reward_that_is_not_here_count_whatever_their_version(tmp_path, monkeypatch):
    text = SUITE + '[eval]\nsteps = [1, 4]\nimages_per_prompt = 1\nrewards = ["emoji-accuracy"]\n'
    suite = read_suite(write_suite(tmp_path, text))
    finish_job(tmp_path, make_plan(suite, tmp_path).jobs[0], "done", rescored=True)

    def absent(self, *_):
        raise MissingError("its package is not here")

    monkeypatch.setattr(find("rewards", "emoji-accuracy").load(), "__init__", absent)
    job = make_plan(suite, tmp_path).jobs[0]
    assert job.state == "done" and "emoji-accuracy" not in job.asked.versions


# -- search --------------------------------------------------------------------------------------------------


@pytest.fixture
def searching(tmp_path):
    return read_suite(write_suite(tmp_path, SEARCH))


def jobs(plan, role="tuning"):
    from sdpo_bench.settings import Runtime
    from sdpo_bench.sweep.worker import Task

    return [(c, Task(c.label, c.run_id, c.request, Runtime(out=plan.out), "")) for c in plan.jobs if c.role == role]


def test_every_method_is_tuned_with_the_same_grid_and_budget(searching, tmp_path):
    plan = make_plan(searching, tmp_path)
    tuning = [job for job in plan.jobs if job.role == "tuning"]
    assert [job.method for job in tuning] == ["sdpo"] * 6 + ["ddpo"] * 2
    assert plan.jobs[: len(tuning)] == tuple(tuning), "tuning comes first"
    assert {(job.seed, job.settings["budget.amount"], job.settings["eval.unseen"]) for job in tuning} == {(9, 64, "")}
    assert {(c.settings["update.lr"], c.settings["method.clip_range"]) for c in tuning if c.method == "sdpo"} == {
        (lr, clip) for lr in (1e-3, 2e-3) for clip in (1e-4, 1e-3, 1e-2)
    }
    reported = [job for job in plan.jobs if job.role == "reported"]
    assert [(job.state, job.run_id) for job in reported] == [("waiting", "")] * 4
    assert all(job.work is not None for job in plan.jobs), "costs are known before anything is chosen"


def test_the_best_mean_score_is_chosen_and_its_cost_recorded(searching, tmp_path):
    plan = make_plan(searching, tmp_path)
    scores = iter([0.1, 0.2, 0.9, 0.3, 0.4, 0.5, 0.8, 0.7])
    for _, task in jobs(plan):
        leave_scores(task, next(scores))
        finish(task)
    plan = make_plan(searching, tmp_path)
    reported = {c.method: c for c in plan.jobs if c.role == "reported" and c.seed == 0}
    sdpo, ddpo = reported["sdpo"], reported["ddpo"]
    assert (sdpo.settings["update.lr"], sdpo.settings["method.clip_range"], sdpo.state) == (1e-3, 1e-2, "new")
    assert ddpo.settings["update.lr"] == 1e-3
    assert sdpo.settings["budget.amount"] == 128
    assert [choice.cost["images"] for choice in plan.choices] == [6 * 64, 2 * 64]
    record = record_of(plan)
    assert record["choices"][0]["chosen"] == {"update.lr": 1e-3, "method.clip_range": 1e-2}
    assert set(record["tuning"]).isdisjoint(record["reported"])


def test_what_was_chosen_goes_before_what_the_suite_says(tmp_path):
    suite = read_suite(write_suite(tmp_path, f"{SEARCH}\n[for.ddpo.update]\nlr = 5e-3\n"))
    plan = make_plan(suite, tmp_path)
    for i, (_, task) in enumerate(jobs(plan)):
        leave_scores(task, float(i))
        finish(task)
    reported = {c.method: c.settings["update.lr"] for c in make_plan(suite, tmp_path).jobs if c.role == "reported"}
    assert reported["ddpo"] == 2e-3


def test_tuning_runs_choose_no_checkpoint(tmp_path):
    """Even where the reported runs do: their last one is judged, and settings of a choice would have no effect."""
    choosing = '\n[checkpoint]\nchoose = "validation"\nprompts = "emoji-validation"\nevery = 1\n'
    jobs = make_plan(read_suite(write_suite(tmp_path, SEARCH + choosing)), tmp_path).jobs
    found = {(c.role, c.settings.get("checkpoint.choose", "last")) for c in jobs}
    assert found == {("tuning", "last"), ("reported", "validation")}


def test_tuning_runs_measure_no_curve_and_keep_their_ids(tmp_path):
    """The suite of a search that has ended can ask for learning curves of the reported runs."""
    plain = make_plan(read_suite(write_suite(tmp_path, SEARCH)), tmp_path).jobs
    curved = make_plan(read_suite(write_suite(tmp_path, SEARCH + "\n[eval]\nevery = 10\n")), tmp_path).jobs
    assert [job.run_id for job in curved] == [job.run_id for job in plain]
    assert {(job.role, job.settings["eval.every"]) for job in curved} == {("tuning", 0), ("reported", 10)}


@pytest.mark.parametrize(("name", "points"), [("embedded-long", 12), ("embedded-long-t20", 12)])
def test_the_long_suites_measure_about_eleven_points(name, points):
    """The base model, every tenth or fifth of 107 or 54 epochs, and the last one."""
    suite = find_suite(name)
    assert find_suite(f"{name}-native").common == suite.common
    epochs = suite.common["budget.images"] / suite.common["sample.images_per_epoch"]
    assert 1 + epochs // suite.common["eval.every"] + 1 == points


def test_a_failed_candidate_is_never_chosen_and_all_failed_is_said(searching, tmp_path):
    plan = make_plan(searching, tmp_path)
    for job, task in jobs(plan):
        if job.method == "ddpo" or job.settings["update.lr"] == 1e-3:
            finish(task, "failed", "the loss is NaN")
        else:
            leave_scores(task, -5.0)
            finish(task)
    plan = make_plan(searching, tmp_path)
    sdpo, ddpo = (c for c in plan.jobs if c.role == "reported" and c.seed == 0)
    assert sdpo.settings["update.lr"] == 2e-3
    assert (ddpo.state, ddpo.run_id) == ("failed", "")
    assert "all its tuning runs failed" in ddpo.message


def test_a_choice_on_validation_prompts_reads_that_split(tmp_path):
    text = SEARCH.replace("seed = 9", 'seed = 9\nby = "validation"\nprompts = "emoji-validation"')
    suite = read_suite(write_suite(tmp_path, text))
    plan = make_plan(suite, tmp_path)
    tuning = jobs(plan)
    assert {(c.settings["eval.train"], c.settings["eval.validation"]) for c, _ in tuning} == {("", "emoji-validation")}
    for i, (_, task) in enumerate(tuning):
        leave_scores(task, float(i))
        leave_scores(task, -float(i), add=True, prompts={"train": tuple(load_prompts("simple-animals"))})
        finish(task)
    lrs = [c.chosen.settings["update.lr"] for c in make_plan(suite, tmp_path).choices]
    assert lrs == [2e-3, 2e-3], "the highest on the validation prompts, not on those of training"


ON_A, ON_B = (f'seed = 9\nby = "validation"\nprompts = "{name}"' for name in ("emoji-validation", "emoji-unseen"))
CHANGED_SEARCHES = {
    "other prompts": (ON_A, ON_B),
    "more images and another step count": ("seed = 9", "seed = 9\nimages_per_prompt = 2"),
    "validation prompts instead of training ones": ("seed = 9", ON_A),
    "scores in which each lacks what the other has": ("seed = 9\nimages_per_prompt = 2", "seed = 9"),
}


@pytest.mark.parametrize("change", CHANGED_SEARCHES)
def test_a_changed_search_judges_its_old_runs_again_and_chooses_by_what_it_asks_for(tmp_path, change):
    """The ids of the tuning runs stay; first the last candidate scores best, then the first."""
    before, after = (SEARCH.replace("seed = 9", lines) for lines in CHANGED_SEARCHES[change])
    after = after.replace("steps = [1, 4]", "steps = [1, 8]")
    first = read_suite(write_suite(tmp_path, before))
    for i, (_, task) in enumerate(jobs(make_plan(first, tmp_path))):
        leave_scores(task, float(i))
        finish(task)
    assert [c.chosen.settings["update.lr"] for c in make_plan(first, tmp_path).choices] == [2e-3, 2e-3]
    second = read_suite(write_suite(tmp_path, after, "changed"))
    plan = make_plan(second, tmp_path)
    assert [job.state for job in plan.jobs] == ["unfinished"] * 8 + ["waiting"] * 4
    assert [choice.settled for choice in plan.choices] == [False, False]
    for i, (_, task) in enumerate(jobs(plan)):
        leave_scores(task, -3.0 * i, add=True)
    assert [c.chosen.settings["update.lr"] for c in make_plan(second, tmp_path).choices] == [1e-3, 1e-3]
    assert [job.state for job in make_plan(first, tmp_path).jobs[:8]] == ["done"] * 8, "no score was lost"


def test_old_candidates_compete_with_a_new_one_only_after_they_were_judged_like_it(tmp_path):
    first = read_suite(write_suite(tmp_path, SEARCH))
    for _, task in jobs(make_plan(first, tmp_path)):
        leave_scores(task, 1.0)
        finish(task)
    longer = SEARCH.replace("steps = [1, 4]", "steps = [1, 4, 8]").replace("[1e-3, 2e-3]", "[1e-3, 2e-3, 4e-3]")
    second = read_suite(write_suite(tmp_path, longer))
    for job, task in jobs(make_plan(second, tmp_path)):
        if job.state == "new":
            leave_scores(task, 0.5)
            finish(task)
    assert [choice.chosen for choice in make_plan(second, tmp_path).choices] == [None, None]
    for job, task in jobs(make_plan(second, tmp_path)):
        if job.state == "unfinished":
            leave_scores(task, 1.0, add=True)
    assert [c.chosen.settings["update.lr"] for c in make_plan(second, tmp_path).choices] == [1e-3, 1e-3]


def test_what_a_search_has_found_is_said_in_a_line(searching, tmp_path):
    from sdpo_bench.cli.sweep_view import found_settings

    plan = make_plan(searching, tmp_path)
    assert found_settings(plan) == []
    for i, (_, task) in enumerate(jobs(plan)):
        leave_scores(task, float(i))
        finish(task)
    sdpo, _ = found_settings(make_plan(searching, tmp_path))
    edge = "edge of its values: update.lr, method.clip_range"
    assert sdpo == f"search for sdpo, emoji-align: update.lr = 0.002, method.clip_range = 0.01 (best of 6; {edge})"


def test_a_value_between_others_is_at_no_edge(searching, tmp_path):
    """Of sdpo's six the third, whose clip_range is the middle one, wins; ddpo's rates have no value between."""
    from sdpo_bench.cli.sweep_view import found_settings, plan_data

    tried = list(jobs(make_plan(searching, tmp_path)))
    best = next(job.run_id for job, _ in tried if job.settings.get("method.clip_range") == 1e-3)
    for job, task in tried:
        leave_scores(task, 1.0 if job.run_id == best else 0.0)
        finish(task)
    plan = make_plan(searching, tmp_path)
    assert found_settings(plan)[0].endswith("method.clip_range = 0.001 (best of 6; edge of its values: update.lr)")
    assert [c["edge_of_values"] for c in plan_data(plan)["choices"]] == [("update.lr",), ("update.lr",)]


def test_a_plan_can_be_written_as_json(searching, tmp_path):
    from sdpo_bench.cli.sweep_view import plan_data, plan_table, plan_text, totals

    plan = make_plan(searching, tmp_path, lambda resolved: Rates(0.01, 0.02, 0.001, 0.01, {}))
    assert json.dumps(plan_data(plan))
    columns, rows = plan_table(plan)
    assert all(len(row) == len(columns) for row in rows)
    purposes = [row[columns.index("for")] for row in rows]
    assert purposes[0] == "tuning: update.lr = 0.001, method.clip_range = 0.0001"
    assert purposes[6:9] == ["tuning: update.lr = 0.001", "tuning: update.lr = 0.002", "reported"]
    sums = totals(plan.jobs)
    assert sums["images"] == 8 * 64 + 4 * 128
    assert sums["seconds"] == pytest.approx(sum(job.seconds for job in plan.jobs))
    assert "8 new, 4 waiting" in plan_text(plan, 2, "")[0]
    unknown = replace(plan, jobs=(*plan.jobs[:-1], replace(plan.jobs[-1], seconds=None, work=None)))
    assert totals(unknown.jobs)["seconds"] is None and totals(unknown.jobs)["images"] is None
    assert "not known: no weights" in plan_text(unknown, 1, "no weights")[-1]


ROUNDS = f"""{SUITE}
[search]
steps = [1, 4]
extend = ["update.lr"]
[search.grid.update]
lr = [1e-3, 2e-3, 4e-3]
[[search.rounds]]
seeds = [9]
images = 64
[[search.rounds]]
seeds = [9, 10]
images = 64
keep = 2
[[search.rounds]]
seeds = [9]
images = 128
keep = 1
"""


def test_later_rounds_and_longer_lists_are_counted_before_they_are_known(tmp_path):
    """By hand, for each of two methods: the second round needs seed 10 of two candidates, the third one run.

    Two extensions add two rates, each with a run of the first two rounds and one of the third.
    """
    from sdpo_bench.cli.sweep_view import plan_data, plan_text

    suite = read_suite(write_suite(tmp_path, ROUNDS))
    plan = make_plan(suite, tmp_path)
    later = later_jobs(plan)
    assert [(job.method, job.seed, job.work.images) for job in later] == [
        (method, seed, images) for method in ("sdpo", "ddpo") for seed, images in ((10, 64), (10, 64), (9, 128))
    ]
    assert not {job.run_id for job in later} & {job.run_id for job in plan.jobs}
    data = plan_data(plan, later)
    assert (data["later_jobs"], data["most_jobs_by_extension"]) == (6, 12)
    assert data["left"]["images"] == 2 * (3 * 64 + 2 * 128) + 2 * (2 * 64 + 128)
    text = "\n".join(plan_text(plan, 1, "", later))
    assert "6 more jobs at most in later rounds" in text and "up to 12 more jobs where a list is extended" in text
    assert "later rounds included" in text
    for left in (2, 0, 0):  # after a round, its successor is in the plan; the middle rate wins, so no list grows
        for job, task in jobs(plan):
            if job.state != "done":
                leave_scores(task, 1.0 if job.settings["update.lr"] == 2e-3 else 0.0)
                finish(task)
        plan = make_plan(suite, tmp_path)
        assert len(later_jobs(plan)) == left
    assert plan_data(plan)["most_jobs_by_extension"] == 0 and all(choice.settled for choice in plan.choices)


def test_a_job_takes_its_own_time_besides_its_work(tmp_path):
    """Nothing takes time here but the process of the job."""
    plan = make_plan(read_suite(write_suite(tmp_path)), tmp_path, lambda resolved: Rates(0, 0, 0, 0, {}))
    assert [job.seconds for job in plan.jobs] == [JOB_SECONDS] * 4


def test_weights_that_are_not_here_are_named_where_no_time_is_known(monkeypatch, tmp_path):
    from sdpo_bench.cli.commands import sweep

    answer = json.dumps({"m": {"error": "ConnectError: [Errno -2]"}})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(sweep.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=answer, stderr=""))
    rewards = {json.dumps([name, {}]) for name in ("hpsv2", "jpeg-compressibility")}
    said = "the weights of sd-turbo, hpsv2 are not on this machine: sdpo-bench fetch sd-turbo hpsv2"
    assert sweep.measured_rates({"m": (ModelSettings("sd-turbo"), rewards)}, "cpu", 0, 4) == ({}, said)
    embedded = ModelSettings("emoji-turbo"), {json.dumps(["jpeg-compressibility", {}])}
    assert sweep.measured_rates({"m": embedded}, "cpu", 0, 4) == ({}, "ConnectError: [Errno -2]")
