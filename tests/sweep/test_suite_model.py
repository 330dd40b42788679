"""A suite on another model: its jobs, its record, its errors; and one suite of two models."""

import json

import pandas as pd
import pytest
from suite_files import SEARCH, SUITE, write_suite

from sdpo_bench.cli.commands import sweep as sweep_command
from sdpo_bench.cli.entry import main
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import UsageError
from sdpo_bench.reporting.assemble import Request as ReportRequest
from sdpo_bench.reporting.assemble import build_report
from sdpo_bench.reporting.tables.suite_tables import suite_tables
from sdpo_bench.results.read_results import load_results
from sdpo_bench.results.suite_records import read_records
from sdpo_bench.sweep.plan import make_plan, record_of
from sdpo_bench.sweep.suite import find_suite, read_suite
from sdpo_bench.sweep.suite_model import on_model

SMALL = """
[cells]
method = ["ddpo"]
reward = ["emoji-align"]
model = "emoji-turbo"
seed = [0]
[schedule]
steps = 3
[sample]
images_per_epoch = 8
[update]
minibatch = 8
accumulation = 1
[budget]
images = 8
[eval]
train = "few-animals"
steps = [1, 2]
images_per_prompt = 1
rewards = []
"""
MODELS = ("emoji-turbo", "emoji-flow")


def call(*words):
    """Exit code of ``sdpo-bench sweep``."""
    with pytest.raises(SystemExit) as stop:
        main(["sweep", *(str(word) for word in words)])
    return stop.value.code


@pytest.fixture
def planned(capsys, monkeypatch, tmp_path):
    """The plan that ``--dry-run --json`` prints."""
    monkeypatch.setattr(sweep_command, "measured_rates", lambda *arguments: ({}, "not measured"))

    def plan(*words):
        assert call(*words, "--dry-run", "--json", "--results", tmp_path / "out") == 0
        return json.loads(capsys.readouterr().out)

    return plan


# -- the plan ------------------------------------------------------------------------------------------------


def test_a_suite_on_another_model_runs_what_run_would_run_there(planned):
    """With the preset of that model: the ids are those of ``run --model emoji-flow`` with the suite's settings."""
    own, moved = planned("embedded-main"), planned("embedded-main", "--model", "emoji-flow")
    assert moved["suite"] == "embedded-main-on-emoji-flow"
    assert len(moved["cells"]) == len(own["cells"]) == 7 * 2 * 5
    assert {job["model"] for job in moved["cells"]} == {"emoji-flow"}
    assert {job["run"] for job in moved["cells"]}.isdisjoint(job["run"] for job in own["cells"])
    settings = dict(find_suite("embedded-main").common)
    found = {(job["method"], job["reward"], job["seed"]): job["run"] for job in moved["cells"]}
    for method, reward, seed in (("sdpo", "emoji-align", 0), ("grpo", "jpeg-compressibility", 4)):
        alone = resolve(Request(method, reward, "emoji-flow", None, seed, settings))
        assert alone.preset == "embedded-flow"
        assert found[method, reward, seed] == alone.run_id


def test_the_model_of_the_suite_changes_nothing(planned):
    assert planned("embedded-main", "--model", "emoji-turbo") == planned("embedded-main")


def test_the_own_reward_of_the_suites_model_becomes_that_of_the_model():
    """hpsv2 is SD-Turbo's; the other rewards of the suite are nobody's own."""
    moved = on_model(find_suite("paper-main"), "emoji-turbo")
    assert moved.rewards == ("aesthetic", "imagereward", "emoji-align", "pickscore")
    assert moved.departs.endswith(
        "; model emoji-turbo in place of sd-turbo; its own reward emoji-align in place of hpsv2"
    )
    kept = on_model(find_suite("paper-main"), "sdxl-turbo")
    assert kept.rewards == find_suite("paper-main").rewards, "hpsv2 is SDXL-Turbo's own too"


def test_a_reward_that_is_there_already_is_not_named_twice(tmp_path):
    path = write_suite(tmp_path, reward='["emoji-align", "jpeg-compressibility"]')
    folder = tmp_path / "no-known-pipeline"
    folder.mkdir()
    assert on_model(read_suite(path), str(folder)).rewards == ("jpeg-compressibility",)


def test_the_preset_of_the_suite_is_left_behind_and_said_to_be(tmp_path):
    suite = read_suite(write_suite(tmp_path))
    moved = on_model(suite, "emoji-flow")
    assert suite.preset.endswith("plain.toml") and moved.preset is None
    assert f"the preset that fits it in place of {suite.preset}" in moved.departs


def test_a_suite_of_several_models_keeps_its_settings_for_one_of_them(tmp_path):
    suite = read_suite(write_suite(tmp_path, model='["emoji-turbo", "emoji-flow"]', preset='"embedded-flow"'))
    moved = on_model(suite, "emoji-flow")
    assert (moved.models, moved.preset, moved.name) == (("emoji-flow",), "embedded-flow", "mine-on-emoji-flow")
    ids = {job.run_id for job in make_plan(suite, tmp_path).jobs if job.model == "emoji-flow"}
    assert {job.run_id for job in make_plan(moved, tmp_path).jobs} == ids


def test_a_search_moves_with_its_suite_and_a_borrowed_one_too(tmp_path):
    own = make_plan(on_model(read_suite(write_suite(tmp_path, SEARCH)), "emoji-flow"), tmp_path)
    assert {job.model for job in own.jobs} == {"emoji-flow"} and {job.role for job in own.jobs} == {
        "tuning",
        "reported",
    }
    plan = make_plan(on_model(find_suite("embedded-long-updates"), "emoji-flow"), tmp_path)
    assert {job.model for job in plan.jobs} == {"emoji-flow"}
    assert record_of(plan)["search"]["suite"] == "embedded-long-on-emoji-flow"


def test_models_of_one_last_name_have_records_of_their_own(tmp_path):
    suite = read_suite(write_suite(tmp_path))
    names = [on_model(suite, name).name for name in ("one/turbo", "other/turbo")]
    assert len(set(names)) == 2 and all(name.startswith("mine-on-turbo-") for name in names)


# -- errors --------------------------------------------------------------------------------------------------


def test_an_unknown_model_has_its_nearest_name(capsys):
    assert call("embedded-main", "--model", "emoji-flo", "--dry-run") == 2
    assert "unknown model 'emoji-flo'" in (said := capsys.readouterr().err) and "Did you mean 'emoji-flow'?" in said


def test_settings_of_another_sampler_are_one_clear_line(tmp_path, capsys):
    """Nothing is written before it."""
    path = write_suite(tmp_path, SUITE + '[schedule]\nsampler = "ddim"\n')
    assert call(path, "--model", "emoji-flow", "--results", tmp_path / "out") == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "schedule.sampler = ddim needs noise levels (betas), and this is a flow-matching model" in said
    assert (
        "The suite was written for emoji-turbo: give a suite file of your own for emoji-flow, or leave --model" in said
    )
    assert not (tmp_path / "out").exists()


def test_the_same_error_without_the_option_names_no_option(tmp_path):
    path = write_suite(tmp_path, SUITE + '[schedule]\nsampler = "flow"\n')
    with pytest.raises(UsageError, match="flow needs a flow-matching model") as error:
        make_plan(read_suite(path), tmp_path)
    assert "leave --model out" not in str(error.value)


# -- records and reports -------------------------------------------------------------------------------------


def test_a_report_says_how_to_go_on(tmp_path):
    """A shipped suite by its name, a file of one's own as a file, and both with the model."""
    out = tmp_path / "out"
    (out / "suites").mkdir(parents=True)
    for suite in (find_suite("embedded-main"), read_suite(write_suite(tmp_path))):
        for one in (suite, on_model(suite, "emoji-flow")):
            (out / "suites" / f"{one.name}.json").write_text(json.dumps(record_of(make_plan(one, out))))
    records, problems = read_records(out)
    assert not problems
    ends = {one.name: suite_tables(one, [], lambda runs: [])[0].cautions[0].partition(": ")[2] for one in records}
    assert ends == {
        "embedded-main": "sdpo-bench sweep embedded-main",
        "embedded-main-on-emoji-flow": "sdpo-bench sweep embedded-main --model emoji-flow",
        "mine": "sdpo-bench sweep FILE, with the file that it was swept from",
        "mine-on-emoji-flow": "sdpo-bench sweep FILE --model emoji-flow, with the file that it was swept from",
    }


def test_the_record_of_a_suite_without_the_option_is_as_it_was(tmp_path):
    record = record_of(make_plan(read_suite(write_suite(tmp_path)), tmp_path))
    assert set(record) == {
        *("name", "texts", "variant_keys", "reported", "tuning", "waiting", "search", "choices"),
    }


def test_a_plan_of_two_models_names_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep_command, "measured_rates", lambda *arguments: ({}, "not measured"))
    path = tmp_path / "small.toml"
    path.write_text(SMALL.replace('"emoji-turbo"', '["emoji-turbo", "emoji-flow"]'))
    assert call(path, "--dry-run", "--results", tmp_path / "out") == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "ddpo" in line]
    assert [[model in row for model in MODELS] for row in rows] == [[True, False], [False, True]]
    labels = [job.label for job in make_plan(read_suite(path), tmp_path).jobs]
    assert labels == [f"ddpo emoji-align {model} seed 0" for model in MODELS]
    path.write_text(SMALL)
    assert [job.label for job in make_plan(read_suite(path), tmp_path).jobs] == ["ddpo emoji-align seed 0"]


def base_means(out):
    """Mean score of each base model over prompts and step counts, from its own folder."""
    means = {}
    for folder in (out / "runs").glob("base-*"):
        model = json.loads((folder / "run.json").read_text())["config"]["model"]["name"]
        means[model] = pd.read_parquet(folder / "eval.parquet")["score"].mean()
    return means


def reported_means(out, suite, models):
    """By model: mean of the base model's and of the method's row, and the gain, in the suite's tables of a report."""
    found = {}
    for table in build_report(load_results(out), ReportRequest()).main:
        if not table.name.startswith(f"suite-{suite}-") or "gain" not in (keys := [c.key for c in table.columns]):
            continue
        for group in table.groups:
            (model,) = [model for model in models if f" on {model}," in group.title]
            rows = {row.cells[0].text: dict(zip(keys, row.cells)) for row in group.rows}
            found[model] = rows["base model"]["mean"].value, rows["ddpo"]["mean"].value, rows["ddpo"]["gain"].value
    return found


def run_means(out):
    """Mean score of each model's only run."""
    means = {}
    for folder in (out / "runs").glob("ddpo-*"):
        model = json.loads((folder / "run.json").read_text())["config"]["model"]["name"]
        means[model] = pd.read_parquet(folder / "eval.parquet")["score"].mean()
    return means


@pytest.mark.slow
@pytest.mark.parametrize(
    ("models", "way"),
    [
        (("emoji-flow", "emoji-flow-base"), "axis"),
        (("emoji-flow", "emoji-flow-base"), "option"),
    ],
    ids=["axis", "option"],
)
def test_runs_of_two_models_are_each_compared_with_their_own_base_model(tmp_path, models, way):
    """Trained and reported, by an axis of one suite, or by ``--model`` beside the suite's own model.

    The two flow models have one sampler, prompts and rewards: the model alone tells their scores apart.
    """
    path, out = tmp_path / "small.toml", tmp_path / "out"
    first, second = models
    if way == "axis":
        path.write_text(SMALL.replace('"emoji-turbo"', json.dumps(models)))
        assert call(path, "--results", out) == 0
        means = reported_means(out, "small", models)
    else:
        path.write_text(SMALL.replace('"emoji-turbo"', f'"{first}"'))
        assert call(path, "--results", out) == 0
        before = (out / "suites" / "small.json").read_bytes()
        assert call(path, "--model", second, "--results", out) == 0
        assert (out / "suites" / "small.json").read_bytes() == before, "the suite's own record stays"
        assert sorted(one.name for one in (out / "suites").iterdir()) == [f"small-on-{second}.json", "small.json"]
        ids = [set(one.reported) for one in load_results(out).suites]
        assert [len(own) for own in ids] == [1, 1] and ids[0].isdisjoint(ids[1])
        means = reported_means(out, "small", models) | reported_means(out, f"small-on-{second}", models)
    bases, trained = base_means(out), run_means(out)
    assert set(means) == set(bases) == set(trained) == set(models)
    assert abs(bases[first] - bases[second]) > 0.02, "or a mistaken base model would not show"
    for model, (base, score, gain) in means.items():
        assert base == pytest.approx(bases[model], abs=1e-6)
        assert score == pytest.approx(trained[model], abs=1e-6)
        assert gain == pytest.approx(trained[model] - bases[model], abs=1e-6)
