"""The Python API: what ``import sdpo_bench`` offers, and that it says and does what the command line does."""

import json
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
from finished_run import call, words_of
from report_factory import base_frame, frame, make_base, make_run, spread

import sdpo_bench as sb
from sdpo_bench.errors import UsageError
from sdpo_bench.runs.run_folder import RunFolder

FUNCTIONS = ("run", "load_results", "load_policy", "compare", "report")


@pytest.fixture
def out(tmp_path):
    """Two methods on two seeds, the one 2 better than the base model and the other 1, and the base model."""
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    for seed in (0, 1):
        make_run(tmp_path, "sdpo", seed, spread([2, 2, 2]), epochs=3)
        make_run(tmp_path, "ddpo", seed, spread([1, 1, 1]))
    return tmp_path


@pytest.fixture
def settings(tmp_path):
    """A run of four images of two prompts."""
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    prompts = str(tmp_path / "two.txt")
    return {
        "schedule.steps": 2,
        "sample.images_per_epoch": 4,
        "update.minibatch": 2,
        "update.accumulation": 1,
        "sample.prompts": prompts,
        "eval.train": prompts,
        "eval.steps": [1],
        "eval.images_per_prompt": 1,
    }


def do(settings, tiny_pipe, tmp_path, **more):
    return sb.run(
        model=str(tiny_pipe),
        reward="jpeg-incompressibility",
        budget="images=4",
        settings=settings,
        results=tmp_path / "out",
        progress=False,
        **more,
    )


def test_importing_the_package_is_cheap_and_needs_no_torch():
    script = (
        "import sys, time; start = time.perf_counter(); import sdpo_bench; seconds = time.perf_counter() - start\n"
        "heavy = {'torch', 'pandas', 'numpy', 'diffusers', 'matplotlib'} & set(sys.modules)\n"
        "print(seconds < 0.5, sorted(heavy), sorted(dir(sdpo_bench)))"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.startswith("True [] ")
    assert all(repr(name) in said for name in (*FUNCTIONS, "Run", "Results", "Comparison", "Policy"))


def test_reading_results_needs_no_torch(out):
    script = (
        "import sys, sdpo_bench as sb\n"
        f"found = sb.load_results({str(out)!r}); found.scores; found.curves; found.bills\n"
        f"sb.compare('sdpo', 'ddpo', results={str(out)!r}); sb.report({str(out)!r})\n"
        "print('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said == "False\n"


def test_nothing_else_is_public():
    assert set(sb.__all__) == {*FUNCTIONS, "Run", "Results", "Policy", "Comparison", "ReportText"}
    for name in sb.__all__:
        assert getattr(sb, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        sb.runn  # noqa: B018


def test_scores_of_prompts_judged_at_fewer_step_counts_are_there_without_gaps(tmp_path):
    make_base(
        tmp_path, base_frame(spread([0, 0, 0])), base_frame(spread([5]), prompts=("fox", "owl", "yak"), steps=(1,))
    )
    make_run(tmp_path, "sdpo", 0, spread([1, 1, 1]))
    base = sb.load_results(tmp_path).scores.query("method == 'base model'")
    assert base.groupby(["prompt", "steps"]).size().tolist() == [2] * (3 * 3 + 3)
    assert base[base.prompt == "owl"].score.mean() == pytest.approx(5)


def test_scores_are_one_row_an_image(out):
    scores = sb.load_results(out).scores
    assert list(scores.columns[:5]) == ["run", "method", "trained_on", "model", "seed"]
    sdpo = scores[scores.method == "sdpo"]
    assert len(sdpo) == 2 * 3 * 3 * 2  # seeds x prompts x step counts x images
    assert not sdpo.duplicated(["run", "reward", "split", "prompt", "steps", "image"]).any()
    assert sdpo.groupby("steps").score.mean().tolist() == pytest.approx([2, 2, 2])
    base = scores[scores.method == "base model"]
    assert base.seed.isna().all() and base.score.mean() == pytest.approx(0)
    rows = pd.read_parquet(next((out / "runs").glob("sdpo*")) / "eval.parquet")
    one = rows.iloc[3]
    same = scores[
        (scores.run == one.run)
        & (scores.prompt == one.prompt)
        & (scores.steps == one.steps)
        & (scores.image == one.image)
    ]
    assert same.score.tolist() == [pytest.approx(one.score)]


def test_curves_and_bills_are_one_row_a_number(out):
    found = sb.load_results(out)
    rewards = found.curves.query("metric == 'reward_mean' and method == 'sdpo' and seed == 0")
    assert rewards.value.tolist() == pytest.approx([-0.9, -0.8, -0.7])
    assert rewards.images.tolist() == [64, 128, 192]
    bills = found.bills.query("method == 'sdpo' and seed == 0").set_index("item").amount
    assert bills["images"] == 192 and bills["forward.rollout"] == 1920 and bills["training_seconds"] == 90


def test_points_of_a_learning_curve_are_rows_too(out, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(out, folder)
    scores = [{"split": "train", "steps": 4, "reward": "emoji-align", "version": "1", "mean": -1.25}]
    point = {"epoch": 2, "images": 128, "denoiser_calls": 900, "seconds": 3.5, "cost": {}, "scores": scores}
    run = next((folder / "runs").glob("sdpo*-s0*"))
    (run / "curve.jsonl").write_text(json.dumps(point) + "\n")
    curves = sb.load_results(folder).curves.query("metric == 'eval/emoji-align/train/4'")
    assert curves[["epoch", "images", "denoiser_calls", "value"]].values.tolist() == [[2, 128, 900, -1.25]]


def test_a_run_has_its_table_settings_and_state(out):
    run = sb.load_results(out).run("sdpo-emoji_align-emoji_turbo-s1")
    assert (run.method, run.reward, run.seed, run.state) == ("sdpo", "emoji-align", 1, "done")
    assert run.table.difference.tolist() == pytest.approx([2, 2, 2])
    assert run.settings["update.lr"] == run.own_settings.get("update.lr", run.settings["update.lr"])
    assert "update.betas" not in run.own_settings


def test_what_cannot_be_read_is_a_notice(out):
    (next((out / "runs").glob("ddpo*")) / "run.json").write_text("{")
    found = sb.load_results(out)
    assert len(found.runs) == 3 and len(found.notices) == 1 and "damaged" in found.notices[0]
    assert set(found.scores.method) == {"sdpo", "ddpo", "base model"}


def test_compare_is_the_command(out, capsys):
    found = sb.compare("sdpo", "ddpo", results=out)
    data = json.loads(call(capsys, "compare", "sdpo", "ddpo", "--results", out, "--json")[1])
    assert json.loads(json.dumps(found.data)) == data
    assert found.difference == pytest.approx(1) and found.seeds == (0, 1) and found.prompts == 3
    assert found.verdict in str(found)
    assert found.table.difference.tolist() == pytest.approx([1] * len(found.table))
    sdpo = sb.load_results(out).run("sdpo-emoji_align-emoji_turbo-s0")
    assert sb.compare(sdpo).difference == pytest.approx(2)
    with pytest.raises(UsageError, match="sdpp"):
        sb.compare("sdpp", results=out)


def test_compare_is_under_the_trained_reward_on_whatever_prompts_it_judged(tmp_path):
    """A later evaluation on training prompts by a held-out reward comes first in the list and is not the answer."""
    unseen, train = {"split": "unseen"}, {"reward": "hpsv2"}
    make_base(tmp_path, base_frame(spread([0, 0, 0]), **unseen), base_frame(spread([0, 0, 0]), **train))
    for seed in (0, 1):
        frames = [partial(frame, spread([2, 2, 2]), **unseen), partial(frame, spread([9, 9, 9]), **train)]
        make_run(tmp_path, "sdpo", seed, frames=frames, **{"eval.train": "", "eval.unseen": "emoji-unseen"})
    found = sb.compare("sdpo", results=tmp_path)
    assert [panel["trained"] for panel in found.data["panels"]] == [False, True]
    assert found.difference == pytest.approx(2)


def test_runs_of_two_folders_are_not_compared(out, tmp_path):
    """The second one was looked up by its name in the first one's folder."""
    here = sb.load_results(out).run("sdpo-emoji_align-emoji_turbo-s0")
    there = sb.load_results(shutil.copytree(out, tmp_path / "there")).run("ddpo-emoji_align-emoji_turbo-s0")
    with pytest.raises(UsageError, match="two results folders"):
        sb.compare(here, there)


def test_report_is_the_command(out, capsys, tmp_path):
    text = call(capsys, "report", "--results", out, "--format", "markdown")[1]
    found = sb.report(out)
    assert str(found) == text and found._repr_markdown_() == text and found._repr_html_() is None
    assert sb.report(out, style="csv", out=tmp_path / "r.csv").path.read_text() == sb.report(out, style="csv").text
    with pytest.raises(UsageError, match="Did you mean 'markdown'"):
        sb.report(out, style="markdwon")


def test_run_is_the_run_of_the_command_line(settings, tiny_pipe, tmp_path, capsys):
    run = do(settings, tiny_pipe, tmp_path, seed=1)
    assert run.state == "done" and run.bill["images"] == 4 and len(run.table) == 1
    assert capsys.readouterr() == ("", "")
    words = words_of(tmp_path, tiny_pipe, "jpeg-incompressibility", 4)
    code, out, _ = call(capsys, *words, "--seed", 1, "--out", tmp_path / "out")
    assert code == 0 and "The training of this run was done before" in out and out.splitlines()[-1] == str(run.folder)
    assert sb.run(config=run.folder, results=tmp_path / "out", progress=False).id == run.id


def test_wrong_requests_are_the_package_s_own_errors(settings, tiny_pipe, tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'sdpo'"):
        sb.run(method="sdppo")
    with pytest.raises(UsageError, match="contradict"):
        sb.run(seed=1, settings={"seed": 2})
    with pytest.raises(UsageError, match="contradict"):
        sb.run(budget="images=300", settings={"budget.images": 100})
    with pytest.raises(UsageError, match="no run 'nothing'"):
        sb.load_policy("nothing", results=tmp_path)


def test_a_policy_samples_the_tuned_and_the_base_model(settings, tiny_pipe, tmp_path):
    run = do(settings | {"update.lr": 0.1}, tiny_pipe, tmp_path)
    policy = sb.load_policy(run, device="cpu")
    tuned = policy.sample(["cat", "dog"], steps=2, images=2)
    assert len(tuned) == 4 and tuned[0].size == (tuned[0].width, tuned[0].width)
    base = policy.sample(["cat", "dog"], steps=2, images=2, base=True)
    assert not np.array_equal(np.asarray(tuned[0]), np.asarray(base[0]))
    again = sb.load_policy(run.id, results=tmp_path / "out", device="cpu").sample("dog", steps=2)
    assert np.array_equal(np.asarray(again[0]), np.asarray(tuned[2]))


def test_a_run_that_is_not_finished_is_refused_in_the_words_of_the_command_line(out, capsys):
    folder = RunFolder(make_run(out, "d3po", 0, state="interrupted"))
    with pytest.raises(UsageError) as refused:
        sb.load_policy(folder.run_id, results=out)
    code, _, err = call(capsys, "sample", folder.run_id, "--results", out, "--prompt", "cat")
    assert code == 2 and err == f"Error: {refused.value}\n"
    assert "has no trained adapter yet (state: interrupted). Finish it first" in str(refused.value)
