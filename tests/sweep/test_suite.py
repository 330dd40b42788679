"""Suite files: what ships is sound, and what is wrong is refused in words before anything is written."""

import subprocess
import sys
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from suite_files import SUITE, finish, leave_scores, write_suite

from sdpo_bench.cli.entry import main
from sdpo_bench.errors import UsageError
from sdpo_bench.settings import Runtime
from sdpo_bench.sweep.plan import filter_jobs, make_plan, record_of
from sdpo_bench.sweep.suite import find_suite, read_suite, shipped_suites
from sdpo_bench.sweep.worker import Task

ABLATIONS = ("normalisation", "updates", "rewards")
NORMALISATIONS = ("per-step-prompt", "per-prompt", "per-step", "batch", "none")
NAMES = {"smoke", "embedded-methods", "embedded-ablation-rates", "embedded-ablation-groups"}
LONG = {"embedded-long", "embedded-long-native", "embedded-long-t20", "embedded-long-t20-native"}
LONG |= {"embedded-long-t50"}
LONG_ABLATIONS = {f"embedded-long-{what}" for what in ABLATIONS}
NAMES |= (
    LONG | LONG_ABLATIONS | {"paper-figure", "embedded-flow"} | {f"{where}-main" for where in ("paper", "embedded")}
)
NEWER = {"embedded-newer", "embedded-flow-newer", "embedded-long-newer", "embedded-short"}
NAMES |= NEWER
NAMES |= {f"{where}-ablation-{what}" for where in ("paper", "embedded") for what in ABLATIONS}


@pytest.fixture(scope="module")
def plans():
    return {name: make_plan(suite, Path("/nowhere")) for name, suite in shipped_suites().items()}


def test_every_suite_ships_and_says_what_it_reproduces_and_departs_from(plans):
    assert set(plans) == NAMES
    for plan in plans.values():
        assert all((plan.suite.description, plan.suite.reproduces, plan.suite.departs))
    package_data = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "sweep/suites/*.toml" in package_data["sdpo_bench"]


def test_the_example_of_the_page_is_a_suite(tmp_path):
    page = Path("docs/suites.md").read_text(encoding="utf-8")
    jobs = make_plan(read_suite(write_suite(tmp_path, page.split("```toml\n")[1].split("```")[0])), tmp_path).jobs
    assert sum(job.role == "reported" for job in jobs) == 2 * 2 * 3  # methods, variants, seeds
    assert sum(job.role == "tuning" for job in jobs) == 2 * (3 * 2 + 3)  # variants; rates, SDPO's with two clip ranges


def test_the_main_suites_are_the_papers_table(plans):
    paper = plans["paper-main"].jobs
    assert len(paper) == 5 * 4 * 3
    assert {job.settings["schedule.steps"] for job in paper} == {50}
    assert {tuple(job.settings["eval.steps"]) for job in paper} == {(1, 2, 4, 8, 16, 50)}
    assert {job.method for job in paper} == {"sdpo", "ddpo", "d3po", "rebel", "sparse_dpo"}
    # By the official configurations: DDPO 2 updates an epoch of 256 images, D3PO one a pair, SDPO 2 a denoising step.
    updates = {job.method: job.work.optimiser_steps for job in paper if job.reward == "aesthetic"}
    assert updates == {"sdpo": 10_000, "ddpo": 200, "d3po": 12_800, "rebel": 200, "sparse_dpo": 200}
    assert {job.settings["budget.amount"] for job in plans["paper-figure"].jobs} == {29_184}
    paper_methods = {job.method for job in paper}
    assert paper_methods < {job.method for job in plans["embedded-main"].jobs}
    assert {job.seed for job in plans["embedded-main"].jobs} == set(range(5))
    assert {c.settings["budget.axis"] for c in plans["embedded-main"].jobs} == {"images"}


def test_the_leaderboard_of_methods_has_them_all_and_shares_its_runs_with_the_main_table(plans):
    """SDPO's named variants included; a job of both suites is run once.

    Methods without a section of their own in the preset have not been searched yet: a row of theirs would be unfair.
    """
    from sdpo_bench.plugins.registry import plugins

    jobs = plans["embedded-methods"].jobs
    unsearched = {"awm", "dense_grpo", "dgpo", "drpo", "nft"}
    assert set(plans["embedded-newer"].suite.methods) == unsearched
    built_in = {n for n, p in plugins("methods").items() if p.owner == "built-in"}
    assert {job.method for job in jobs} == built_in - unsearched
    main = {job.run_id for job in plans["embedded-main"].jobs if job.reward == "emoji-align"}
    assert main < {job.run_id for job in jobs}


@pytest.mark.parametrize("where", ["paper", "embedded"])
@pytest.mark.parametrize(
    ("what", "key", "values"),
    [
        ("normalisation", "advantage.normalisation", {"per-step-prompt", "per-prompt", "batch"}),
        ("updates", "update.order", {"step-shuffled", "accumulated"}),
        ("rewards", "method.reward", {"predicted", "full", "sparse"}),
    ],
)
def test_an_ablation_varies_one_setting(plans, where, what, key, values):
    plan = plans[f"{where}-ablation-{what}"]
    assert plan.suite.variant_keys == (key,)
    assert values <= {job.settings[key] for job in plan.jobs}
    others = [{k: v for k, v in job.settings.items() if k not in (key, "seed")} for job in plan.jobs]
    assert all(other == others[0] for other in others)
    assert len({job.seed for job in plan.jobs}) == (5 if where == "embedded" else 3)


@pytest.mark.parametrize(("name", "steps", "updates"), [("embedded-long", 5, 10), ("embedded-long-t20", 20, 40)])
def test_long_trainings_are_equal_in_images_and_optimiser_steps_and_search(plans, name, steps, updates):
    """SDPO takes two optimiser steps a denoising step (officially 128 pairs an epoch, 64 a step); DDPO natively two an
    epoch."""
    jobs = plans[name].jobs
    assert {job.settings["schedule.steps"] for job in jobs} == {steps}
    epochs = {job.work.images / 240 for job in jobs if job.role == "reported"}
    assert epochs == {jobs[-1].settings["budget.amount"] / 240}
    assert {job.work.optimiser_steps for job in jobs if job.role == "reported"} == {updates * epochs.pop()}
    assert {
        job.method: sum(j.role == "tuning" and j.method == job.method for j in jobs) for job in jobs
    } == dict.fromkeys(("sdpo", "ddpo", "d3po", "rebel"), 10)
    native = [job for job in plans[f"{name}-native"].jobs if job.role == "reported"]
    assert {job.work.optimiser_steps for job in native} == {2 * native[0].work.images / 240}


def test_at_fifty_steps_each_method_has_its_official_number_of_updates(plans):
    """Of 256 images, so 16 epochs: SDPO 2 at each of 50 steps for 128 pairs, DDPO 2 an epoch; searches alike."""
    jobs = plans["embedded-long-t50"].jobs
    reported = [job for job in jobs if job.role == "reported"]
    assert {(job.method, job.work.images, job.work.optimiser_steps) for job in reported} == {
        ("sdpo", 4096, 16 * 100),
        ("ddpo", 4096, 16 * 2),
    }
    assert [sum(j.role == "tuning" and j.method == name for j in jobs) for name in ("sdpo", "ddpo")] == [10, 10]


@pytest.mark.parametrize(
    ("name", "like", "updates"),
    [
        ("embedded-newer", "embedded-methods", 4),
        ("embedded-flow-newer", "embedded-flow", 6),
        ("embedded-long-newer", "embedded-long", 10),
    ],
)
def test_the_newer_methods_get_the_budget_of_the_older_ones_and_one_search(plans, name, like, updates):
    """As many images, optimiser steps and tuning runs for every method that trains, judged as the older ones are."""
    plan, older = plans[name], plans[like]
    searched = {job.method for job in plan.jobs if job.role == "tuning"}
    assert searched == set(plan.suite.methods) - {"best_of_n", "random_search"}
    trained = [job for job in plan.jobs if job.role == "reported" and job.method in searched]
    epochs = {job.settings["budget.amount"] / job.settings["sample.images_per_epoch"] for job in trained}
    assert {job.work.optimiser_steps for job in trained} == {updates * epochs.pop()} and not epochs
    for method in searched:
        assert sum(job.role == "tuning" and job.method == method for job in plan.jobs) == 10
    reported = [job for job in older.jobs if job.role == "reported"]
    keys = (
        "budget.amount",
        "schedule.steps",
        "sample.images_per_epoch",
        "eval.steps",
        "eval.every",
        "eval.unseen",
        "seed",
    )
    as_reported = lambda jobs: {tuple(map(str, (job.settings[key] for key in keys))) for job in jobs}  # noqa: E731
    assert as_reported(trained) == as_reported(job for job in reported if job.method == "sdpo")
    assert plan.suite.search.settings == plans["embedded-flow"].suite.search.settings
    assert plan.suite.search.require == plans["embedded-flow"].suite.search.require


def test_the_short_suite_searches_every_method_alike_and_shares_the_newer_methods_runs(plans):
    from sdpo_bench.plugins.registry import plugins

    plan, newer = plans["embedded-short"], plans["embedded-newer"]
    built_in = {n for n, p in plugins("methods").items() if p.owner == "built-in"}
    assert set(plan.suite.methods) == built_in
    tuning = Counter(job.method for job in plan.jobs if job.role == "tuning")
    assert tuning == dict.fromkeys(built_in - {"best_of_n", "random_search"}, 10)
    for part in ("settings", "require", "rounds", "grid"):
        assert getattr(plan.suite.search, part) == getattr(newer.suite.search, part), part
    found = {job.run_id for job in newer.jobs if job.role == "tuning"} & {job.run_id for job in plan.jobs}
    missed = [j for j in newer.jobs if j.role == "tuning" and j.run_id not in found]
    assert {(j.method, j.settings["method.clip_range"]) for j in missed} == {("awm", 1e-5)}, "it lost there"


def test_the_flow_suites_have_every_method_between_them(plans):
    from sdpo_bench.plugins.registry import plugins

    older, newer = (set(plans[name].suite.methods) for name in ("embedded-flow", "embedded-flow-newer"))
    assert not older & newer
    assert older | newer == {n for n, p in plugins("methods").items() if p.owner == "built-in"}


def test_smoke_is_every_method_with_every_embedded_reward_it_can_use(plans):
    """Methods that follow the reward's gradient are left out where there is none."""
    from sdpo_bench.plugins.registry import plugins

    jobs = plans["smoke"].jobs
    pairs = {(job.method, job.reward) for job in jobs}
    differentiable = {"emoji-align", "emoji-style"}
    embedded = differentiable | {"emoji-accuracy", "jpeg-compressibility", "jpeg-incompressibility"}
    by_gradient = {"draft", "refl"}
    assert pairs == {(m, r) for m in plugins("methods") for r in (differentiable if m in by_gradient else embedded)}
    assert all(job.work.images <= 64 for job in jobs)


def test_common_settings_reach_the_methods_that_use_them(tmp_path):
    """A learning rate for all is no learning rate for one that trains nothing, nor anything to tune; its own are."""
    text = SEARCH.replace('["sdpo", "ddpo"]', '["ddpo", "best_of_n"]') + "[update]\nminibatch = 4\n"
    suite = read_suite(write_suite(tmp_path, text))
    assert suite.overrides("ddpo", "")["update.minibatch"] == 4
    assert "update.minibatch" not in suite.overrides("best_of_n", "")
    plan = make_plan(suite, tmp_path)
    assert {job.method for job in plan.jobs if job.role == "tuning"} == {"ddpo"}
    assert {job.state for job in plan.jobs if job.method == "best_of_n"} == {"new"}
    own = read_suite(write_suite(tmp_path, text + "[for.best_of_n.update]\nminibatch = 4\n"))
    with pytest.raises(UsageError, match="does not use update.minibatch"):
        make_plan(own, tmp_path)


def test_a_reward_without_a_gradient_is_refused_where_it_was_asked_for(tmp_path):
    suite = read_suite(
        write_suite(tmp_path, SUITE.replace('["sdpo", "ddpo"]', '["draft"]').replace("emoji-align", "emoji-accuracy"))
    )
    with pytest.raises(UsageError, match="follows the gradient of the reward, and 'emoji-accuracy' has none"):
        make_plan(suite, tmp_path)


def test_planning_an_embedded_suite_never_imports_torch():
    script = (
        "import sys, pathlib\n"
        "from sdpo_bench.sweep.plan import make_plan\n"
        "from sdpo_bench.sweep.suite import find_suite, shipped_suites\n"
        "import sdpo_bench.cli.commands.sweep, sdpo_bench.cli.sweep_view\n"
        "shipped_suites()\n"
        "assert len(make_plan(find_suite('embedded-main'), pathlib.Path('none')).jobs) == 70\n"
        "heavy = {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


SEARCH = (
    SUITE + "[search]\nseed = 9\nsteps = [1]\n[search.budget]\nimages = 64\n[search.grid.update]\nlr = [1e-3, 2e-3]\n"
)

BAD = {
    "an empty model": ({"model": '""'}, "cells.model: got ''", 'model = "emoji-turbo"'),
    "an empty preset": ({"preset": '""'}, "cells.preset: got ''", 'preset = "embedded"'),
    "an unknown method": ({"method": '["sdpoo"]'}, "unknown method 'sdpoo'", "Did you mean 'sdpo'"),
    "an unknown reward": ({"reward": '["emoji-alin"]'}, "unknown reward", "Did you mean 'emoji-align'"),
    "an unknown model": ({"model": '"emoji"'}, "unknown model 'emoji'", "emoji-turbo"),
    "an unknown key": ({"images": "128\n[updates]\nlr = 1"}, "unknown key 'updates'", "Did you mean 'update'"),
    "an unknown setting": ({"images": "128\n[update]\nlrr = 1"}, "unknown setting 'update.lrr'", "'update.lr'"),
    "an unknown job key": ({"seed": "[0]\nseeds = [1]"}, "unknown key cells.'seeds'", "Did you mean 'seed'"),
    "a wrong value": ({"images": "128\n[update]\nlr = -1"}, "update.lr: got -1", "greater than 0"),
    "a value that does not fit": ({"images": "127"}, "not a multiple of 2", "images="),
    "no methods": ({"method": "[]"}, "nothing to run: cells.method is empty", "sdpo"),
    "no seeds": ({"seed": "[]"}, "nothing to run: cells.seed is empty", "seed = "),
    "a seed twice": ({"seed": "[0, 1, 0]"}, "names 0 twice", "once"),
    "too large a seed": ({"seed": f"[{2**63}]"}, f"cells.seed: got {2**63}", "from 0 to 2**63 - 1"),
    "a seed that is text": ({"seed": '["0"]'}, "cells.seed: got '0'", "seed = "),
    "a job twice": ({"images": "128\n[variants.a]\n[variants.b.update]\nlr = 4e-3"}, "the same run", "emoji-align b"),
    "no TOML": ({"images": "= 1"}, "not valid TOML", "line"),
    "a budget for one method": ({"images": "128\n[for.ddpo.budget]\nimages = 64"}, "sets budget.images", "top"),
    "a table for no job": ({"images": "128\n[for.d3po.update]\nlr = 1"}, "for.d3po: that method", "Valid: sdpo, ddpo"),
    "an evaluation for one variant": ({"images": "128\n[variants.a.eval]\nsteps = [1]"}, "sets eval.steps", "top"),
    "two budgets": ({"images": "128\nreward_calls = 3"}, "one budget axis", "images, reward_calls"),
    "a preset that is no name": ({"preset": "5"}, "cells.preset: got 5", 'preset = "embedded"'),
    "a number that is none": ({"images": "128\n[update]\nlr = nan"}, "not valid TOML: the number nan", "not finite"),
    "an endless number": ({"images": "inf"}, "the number inf", "not finite"),
    "a list with a number that is none": (
        {"images": "128\n[update]\nbetas = [0.9, nan]"},
        "the number nan",
        "not finite",
    ),
    "a date": ({"images": "128\n[update]\nlr = 2020-01-01"}, "not a configuration value", "datetime.date(2020, 1, 1)"),
    "tables without end": ({"images": f"{'[' * 3000}{']' * 3000}"}, "nested too deeply", "mine.toml"),
    "a second method": ({"images": '128\n[method]\nname = "d3po"'}, "method.name = 'd3po'", "cells.method"),
    "a variant's model": ({"images": '128\n[variants.a.model]\nname = "sd-turbo"'}, "model.name", "cells.model"),
    "a seed beside the jobs'": ({"images": "128\n[variants.a]\nseed = 7"}, "sets seed = 7", "cells.seed"),
}

BAD_SEARCH = {
    "a reported tuning seed": ({"cells.seed": "[0, 9]"}, "among the reported seeds", "1009"),
    "nothing to try": ({"lr": "[]"}, "no list of values", "update.lr"),
    "an unknown search key": ({"steps": "[1]\nwhy = 1"}, "unknown key search.'why'", "Valid"),
    "prompts without validation": ({"steps": '[1]\nprompts = "emoji-validation"'}, "both or neither", "validation"),
    "reported validation prompts": (
        {"steps": '[1]\nby = "validation"\nprompts = "simple-animals"'},
        "shares 45 prompts with eval.train",
        "report",
    ),
    "a search for nobody": (
        {"lr": "[1e-3]\n[search.for.d3po.method]\nbeta = [0.1]"},
        "not among the methods of [cells]",
        "d3po",
    ),
    "a searched method": (
        {"lr": '[1e-3]\n[search.grid.method]\nname = ["d3po"]'},
        "method.name = ['d3po']",
        "cells.method",
    ),
    "no tuning seed": ({"seed = 9": ""}, "search.seed is missing", "seed = 1000"),
    "a round beside a seed": (
        {"steps": "[1]\n[[search.rounds]]\nseeds = [9]\nimages = 64"},
        "say the same",
        "leave one",
    ),
    "an unknown required reward": (
        {"steps": '[1]\n[search.require]\nreward = "emoji-acuracy"\ndrop = 0.1'},
        "unknown reward 'emoji-acuracy'",
        "Did you mean 'emoji-accuracy'",
    ),
    "a list without a next value": (
        {"steps": '[1]\nextend = ["update.lr"]', "lr": "[1e-3]"},
        "no next value",
        "update.lr",
    ),
    "a key to extend that is not tried": ({"steps": '[1]\nextend = ["update.lrr"]'}, "does not try", "update.lrr"),
    "a variant of what is searched": (
        {"lr": '[1e-3]\n[variants.a]\n[variants.b.update]\norder = "accumulated"\nlr = 4e-3'},
        "variants.b sets update.lr, which the search chooses for sdpo",
        "Take update.lr out",
    ),
    "a searched budget": ({"lr": "[1e-3]\n[search.grid.budget]\nimages = [4]"}, "not a hyperparameter", "budget"),
}


@pytest.mark.parametrize("what", [*BAD, *BAD_SEARCH])
def test_a_wrong_suite_is_refused_before_anything_is_written(tmp_path, capsys, what):
    changes, said, hint = (BAD | BAD_SEARCH)[what]
    text = SUITE
    if what in BAD_SEARCH:
        text = SEARCH.replace("seed = [0, 1]", f"seed = {changes.get('cells.seed', '[0, 1]')}")
        changes = {key: value for key, value in changes.items() if key != "cells.seed"}
    for given in [key for key in changes if " = " in key]:
        text = text.replace(given, changes.pop(given))
    path = write_suite(tmp_path, text, **changes)
    with pytest.raises(SystemExit) as stop:
        main(["sweep", str(path), "--out", str(tmp_path / "out")])
    message = capsys.readouterr().err
    assert stop.value.code == 2, message
    assert said in message
    assert hint in message
    assert not (tmp_path / "out").exists()


ROUNDS = """
[[search.rounds]]
seeds = [9]
images = 64
[[search.rounds]]
keep = 2
seeds = [9, 10]
images = 64
[[search.rounds]]
keep = 1
seeds = [9]
images = 128
"""
BAD_ROUNDS = {
    "no seeds": ("seeds = [9]", "", "round 1: got seeds = None", "seeds = [1000, 1001]"),
    "a seed twice": ("seeds = [9, 10]", "seeds = [9, 9]", "round 2: got seeds = [9, 9]", "seeds ="),
    "a reported seed": ("seeds = [9, 10]", "seeds = [9, 1]", "among the reported seeds", "1001"),
    "nothing kept": ("keep = 2", "keep = 0", "round 2: got keep = 0", "keep = 4"),
    "no keep": ("keep = 2", "", "round 2: keep says how many", "all but the first"),
    "as many as before": ("keep = 1", "keep = 2", "round 3: keep = 2 leaves out nobody", "has 2"),
    "no budget": ("images = 128", "", "round 3 names one axis, got {}", "images"),
    "an unknown key": (
        "images = 128",
        "images = 128\nwhy = 1",
        "unknown key in search.rounds, round 3: 'why'",
        "images",
    ),
    "a misspelt keep": ("keep = 2", "kep = 1", "unknown key in search.rounds, round 2: 'kep'", "Did you mean 'keep'?"),
    "two axes": ("images = 128", "images = 128\nreward_calls = 1", "round 3 names one axis", "images"),
    "more than there are": ("keep = 2", "keep = 5", "round 2: keep = 5, but no method has more than 2 candidates", ""),
    "a seed that others avoid": ("seeds = [9, 10]", "seeds = [1001, 1]", "round 2: seed 1 is among the", "e.g. 1002."),
}


@pytest.mark.parametrize("what", BAD_ROUNDS)
def test_wrong_rounds_of_a_search_are_refused(tmp_path, what):
    old, new, said, hint = BAD_ROUNDS[what]
    own = SEARCH.replace("seed = 9\n", "").replace("[search.budget]\nimages = 64\n", "")
    assert read_suite(write_suite(tmp_path, own + ROUNDS)).search.seeds == (9, 10)
    with pytest.raises(UsageError) as refused:
        read_suite(write_suite(tmp_path, own + ROUNDS.replace(old, new, 1)))
    assert said in str(refused.value) and hint in str(refused.value)


def test_methods_that_would_stop_at_different_budgets_are_refused(tmp_path):
    """Without a [budget] each preset brings its own; D3PO's here is smaller."""
    (tmp_path / "own.toml").write_text("[budget]\nimages = 128\n[for.ddpo.budget]\nimages = 64\n")
    text = SUITE.replace("[budget]\nimages = 128", "")
    with pytest.raises(UsageError, match=r"stops at 128 images but .*ddpo.* at 64 images.*Add \[budget\]"):
        make_plan(read_suite(write_suite(tmp_path, text, preset=f'"{tmp_path / "own.toml"}"')), tmp_path)


def test_as_many_of_something_else_is_no_equal_budget(tmp_path):
    (tmp_path / "own.toml").write_text("[for.sdpo.budget]\nimages = 128\n[for.ddpo.budget]\nreward_calls = 128\n")
    text = SUITE.replace("[budget]\nimages = 128", "")
    with pytest.raises(UsageError, match=r"stops at 128 images but .*ddpo.* at 128 reward calls"):
        make_plan(read_suite(write_suite(tmp_path, text, preset=f'"{tmp_path / "own.toml"}"')), tmp_path)


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [("embedded-man", 2, "Did you mean 'embedded-main'"), ("no/where.toml", 3, "cannot be read")],
)
def test_a_suite_that_is_not_there(capsys, name, code, said):
    with pytest.raises(SystemExit) as stop:
        main(["sweep", name, "--dry-run"])
    assert stop.value.code == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [("metod=sdpo", "no job has a key 'metod'"), ("method=sdp", "Did you mean 'sdpo'"), ("method", "--filter takes")],
)
def test_a_filter_that_fits_nothing(capsys, tmp_path, text, said):
    with pytest.raises(SystemExit) as stop:
        main(["sweep", str(write_suite(tmp_path)), "--filter", text, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_a_filter_takes_the_class_of_a_plugin_file(tmp_path):
    plan = make_plan(read_suite(write_suite(tmp_path)), tmp_path)
    jobs = [
        replace(job, settings={**job.settings, "method.name": f"{job.method.title()}@83cb9656"}) for job in plan.jobs
    ]
    found = filter_jobs(replace(plan, jobs=tuple(jobs)), {"method.name": ["sdpo"]})
    assert {job.method for job in found.jobs} == {"sdpo"}


def test_a_filter_takes_names_values_and_any_setting(tmp_path):
    plan = make_plan(read_suite(write_suite(tmp_path)), tmp_path)
    assert {job.method for job in filter_jobs(plan, {"method.name": ["sdpo"]}).jobs} == {"sdpo"}
    assert len(filter_jobs(plan, {"seed": ["1"], "budget.amount": ["128"]}).jobs) == 2
    assert len(filter_jobs(plan, {"state": ["new"]}).jobs) == 4
    assert len(filter_jobs(plan, {"advantage.std": ["group"]}).jobs) == 4, "a default that no record holds"


def test_for_and_variants_set_what_they_say(tmp_path):
    more = "[for.ddpo.update]\nlr = 2e-3\n[variants.plain]\n[variants.slow.update]\nlr = 1e-5\n"
    plan = make_plan(read_suite(write_suite(tmp_path, SUITE + more)), tmp_path)
    rates = {(job.method, job.variant): job.settings["update.lr"] for job in plan.jobs}
    assert rates == {("sdpo", "plain"): 4e-3, ("ddpo", "plain"): 2e-3, ("sdpo", "slow"): 1e-5, ("ddpo", "slow"): 1e-5}
    assert [job.seed for job in plan.jobs] == [0] * 4 + [1] * 4, "one seed of everything, then the next"


def test_a_job_is_a_plain_run(tmp_path):
    """The command in a job's log makes the same run."""
    import click

    from sdpo_bench.cli.main import cli
    from sdpo_bench.config.resolve import Request, resolve
    from sdpo_bench.plugins.parse_settings import parse_set

    more = (
        "[variants.a.eval]\n".replace(".eval", ".update")
        + 'order = "accumulated"\n[eval]\nsteps = [1, 4]\nrewards = []\n'
    )
    for job in make_plan(read_suite(write_suite(tmp_path, SUITE + more)), tmp_path).jobs:
        command = cli.get_command(click.Context(cli), "run")
        words = command.make_context("run", job.command()[1:]).params
        again = resolve(
            Request(
                words["method"],
                words["reward"],
                words["model"],
                words["preset"],
                words["seed"],
                parse_set(words["sets"]),
            )
        )
        assert again.run_id == job.run_id
        assert again.config == resolve(job.request).config


def test_suites_are_listed_and_completed(capsys):
    with pytest.raises(SystemExit):
        main(["list", "suites", "--json"])
    said = capsys.readouterr().out
    assert all(f'"{name}"' in said for name in NAMES)
    assert find_suite("smoke").name == "smoke"


def test_a_description_is_a_text(tmp_path):
    path = write_suite(tmp_path, description="{a = 1}")
    with pytest.raises(UsageError, match=r"description: got {'a': 1}, expected a text"):
        read_suite(path)


def test_a_description_ends_once():
    from sdpo_bench.reporting.tables.suite_tables import _sentence

    assert (_sentence("Who wins?"), _sentence("Who wins"), _sentence("It wins.")) == (
        "Who wins?",
        "Who wins.",
        "It wins.",
    )


@pytest.mark.parametrize(
    ("name", "long", "seeds", "updates"),
    [
        ("embedded-long-rewards", "embedded-long-t20", 5, {"predicted": 40, "full": 40, "sparse": 40}),
        ("embedded-long-normalisation", "embedded-long", 5, dict.fromkeys(NORMALISATIONS, 10)),
        (
            "embedded-long-updates",
            "embedded-long",
            8,
            {"step-shuffled": 10, "accumulated": 2, "accumulated-equal-steps": 10},
        ),
    ],
)
def test_the_long_ablations_are_in_the_regime_of_the_long_comparison(plans, name, long, seeds, updates):
    """The same budget, evaluation and search; the variant as in the comparison shares its runs."""
    plan, comparison = plans[name], plans[long]
    reported = [job for job in plan.jobs if job.role == "reported"]
    assert {job.seed for job in reported} == set(range(seeds))
    epochs = plan.suite.common["budget.images"] / plan.suite.common["sample.images_per_epoch"]
    assert {job.variant: job.work.optimiser_steps / epochs for job in reported} == updates
    assert plan.suite.common == comparison.suite.common
    tuning = [
        [job.run_id for job in p.jobs if job.role == "tuning" and job.method == "sdpo"] for p in (plan, comparison)
    ]
    assert tuning[0] == tuning[1] and len(set(tuning[0])) == len(tuning[0])


BORROWING = (
    SUITE.replace('method = ["sdpo", "ddpo"]', 'method = ["sdpo"]')
    + """
[variants.dense]
[variants.sparse.method]
reward = "sparse"
[search]
suite = "SEARCHED"
"""
)


@pytest.fixture
def borrowing(tmp_path):
    """A suite of two variants that takes the search of another one."""
    other = write_suite(tmp_path, SEARCH, "searched")
    return read_suite(write_suite(tmp_path, BORROWING.replace("SEARCHED", str(other)), "borrowing"))


def test_a_suite_can_take_the_search_of_another(borrowing, tmp_path):
    """All variants wait for the other suite's tuning runs, each of which is there once, and get what they choose."""
    plan = make_plan(borrowing, tmp_path)
    searched = make_plan(find_suite(str(tmp_path / "searched.toml")), tmp_path)
    tuning = [job for job in plan.jobs if job.role == "tuning"]
    assert [job.run_id for job in tuning] == [
        job.run_id for job in searched.jobs if job.role == "tuning" and job.method == "sdpo"
    ]
    assert {job.state for job in plan.jobs if job.role == "reported"} == {"waiting"}
    for i, job in enumerate(tuning):
        task = Task(job.label, job.run_id, job.request, Runtime(out=tmp_path), "")
        leave_scores(task, float(i))
        finish(task)
    done = [job for job in make_plan(borrowing, tmp_path).jobs if job.role == "reported"]
    assert {job.variant for job in done} == {"dense", "sparse"} and all(job.run_id for job in done)
    assert {job.settings["update.lr"] for job in done} == {2e-3}, "the second of two candidates"
    record = record_of(make_plan(borrowing, tmp_path))
    assert record["search"]["suite"] == "searched"
    assert [choice["variant"] for choice in record["choices"]] == [""], "its cost stands there once"


def test_a_filtered_variant_brings_the_tuning_runs_that_it_needs(borrowing, tmp_path):
    plan = filter_jobs(make_plan(borrowing, tmp_path), {"variant": ["sparse"]})
    assert {job.variant for job in plan.jobs if job.role == "reported"} == {"sparse"}
    assert sum(job.role == "tuning" for job in plan.jobs) == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('suite = "smoke"', "'smoke' has no search of its own"),
        ('suite = "embedded-long"\nsteps = [1]', "leave out steps"),
        ("suite = 3", "Example: suite = "),
        ('suite = "embedded-longest"', "unknown suite"),
        ('suite = "embedded-long-native"', "searches no settings for method sdpo"),
        (
            'suite = "embedded-long"\n[variants.slow.update]\nlr = 1e-4',
            "variants.slow sets update.lr, which the search",
        ),
    ],
)
def test_a_search_that_cannot_be_taken_is_refused(tmp_path, more, said):
    text = BORROWING.replace('suite = "SEARCHED"', more)
    with pytest.raises(UsageError, match=said):
        read_suite(write_suite(tmp_path, text))
