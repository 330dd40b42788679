"""A plugin whose source changed under its version never adds numbers beside those of its first source."""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import preload  # noqa: F401  # what the commands need, imported once for all of them
import pytest

import forked
from sdpo_bench.runs.run_folder import RunFolder

SOURCE = Path(__file__).parents[1] / "support" / "plugin_package" / "sdpo_bench_reinforce"


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The third-party package as an installation that can be edited."""
    place = tmp_path / "site"
    folder = Path(shutil.copytree(SOURCE, place / SOURCE.name, ignore=shutil.ignore_patterns("__pycache__")))
    told = place / "sdpo_bench_reinforce-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: sdpo-bench-reinforce\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text(
        "[sdpo_bench.methods]\nreinforce-example = sdpo_bench_reinforce.method:Reinforce\n"
        "[sdpo_bench.rewards]\nredness-example = sdpo_bench_reinforce.reward:Redness\n"
    )
    monkeypatch.syspath_prepend(str(place))
    for name in [name for name in sys.modules if name.partition(".")[0] == SOURCE.name]:  # of another test, elsewhere
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # edits within a second have the same time
    return folder


@pytest.fixture
def call(tmp_path, tiny_pipe, plugin):
    """``run`` of four images with more words, or another command, in a process of its own: exit code and words."""
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    settings = {
        "schedule.steps": 2,
        "sample.images_per_epoch": 4,
        "update.minibatch": 2,
        "update.accumulation": 1,
        "sample.prompts": tmp_path / "two.txt",
        "eval.train": tmp_path / "two.txt",
        "eval.steps": 1,
        "eval.images_per_prompt": 1,
    }
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    quick = ["--model", tiny_pipe, "--budget", "images=4", *sets]
    own = ["--method", "reinforce-example", "--reward", "redness-example"]

    def made(command, *more):
        words = [command, *more, *([*quick, *([] if "--reward" in more else own)] if command == "run" else [])]
        said = tmp_path / "said"
        said.unlink(missing_ok=True)
        words = [str(word) for word in [*words, "--out", tmp_path / "results", "--device", "cpu"]]
        return forked.exit_code(lambda: forked.command(words), said, said), said.read_text()

    return made


def edit(path, before="", after="# another\n"):
    text = path.read_text()
    path.write_text(text.replace(before, after) if before else text + after)


def the_run(tmp_path, beginning="reinforce"):
    return RunFolder(next((tmp_path / "results" / "runs").glob(f"{beginning}*")))


def content(tmp_path):
    return {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.parquet")}


def undo_judging(run):
    """As if it had been stopped in training: one epoch is done, the adapter not yet exported."""
    run.evaluation.unlink()
    shutil.rmtree(run.lora)
    run.set_status("interrupted")


@pytest.mark.parametrize(("name", "what"), [("method.py", "method 'reinforce-example'"), ("reward.py", "reward 'red")])
def test_a_training_does_not_go_on_with_another_source(tmp_path, plugin, call, name, what):
    assert call("run")[0] == 0
    undo_judging(the_run(tmp_path))
    before, text = content(tmp_path), (plugin / name).read_text()
    edit(plugin / name)
    code, said = call("run")
    assert code == 2 and f"the source of {what}" in said and "(sdpo-bench-reinforce) has changed" in said, said
    assert "Put the file back" in said and "--out FOLDER" in said and content(tmp_path) == before
    (plugin / name).write_text(text)
    code, said = call("run")
    assert code == 0, said


def test_what_is_complete_is_shown_whatever_the_source(tmp_path, plugin, call):
    assert call("run")[0] == 0
    for name in ("method.py", "reward.py"):
        edit(plugin / name)
    code, said = call("run")
    assert code == 0 and "The training of this run was done before" in said, said
    code, said = call("eval", the_run(tmp_path).path)
    assert code == 0, said


def test_scores_of_two_sources_never_meet(tmp_path, plugin, call):
    """Neither in the folder of a run nor in that of the base model, which is shared."""
    assert call("run")[0] == 0
    run, before = the_run(tmp_path), content(tmp_path)
    edit(plugin / "reward.py", "means[:, 0] -", "2 * means[:, 0] -")
    for words in (["eval", run.path, "--steps", "1,2"], ["run", "--seed", "1"]):
        code, said = call(*words)
        assert code == 2 and "reward 'redness-example' (sdpo-bench-reinforce) has changed" in said, said
        assert "its version is still 1" in said and "version of its own" in said
        assert content(tmp_path) == before
    code, said = call("eval", run.path, "--rewards", "jpeg-compressibility")
    assert code == 0, said
    edit(plugin / "reward.py", 'version = "1"', 'version = "2"')
    code, said = call("eval", run.path, "--steps", "1,2")
    assert code == 0, said
    rows = pd.read_parquet(run.path / "eval.parquet")
    assert set(rows.version[rows.reward == "redness-example"]) == {"1", "2"}


def test_a_reward_that_judges_is_held_to_as_well_as_a_part_of_a_sum(tmp_path, plugin, call):
    assert call("run", "--reward", "jpeg-compressibility", "--set", "eval.rewards=redness-example")[0] == 0
    run, before = the_run(tmp_path, "sdpo"), content(tmp_path)
    edit(plugin / "reward.py")
    for reward in ("redness-example", "redness-example+jpeg-compressibility"):
        code, said = call("eval", run.path, "--rewards", reward, "--steps", "1,2")
        assert code == 2 and "reward 'redness-example'" in said and content(tmp_path) == before, said
    for path in before:
        path.unlink()
    code, said = call("eval", run.path)
    assert code == 0, said  # with nothing left of the first source
    edit(plugin / "reward.py")
    assert call("eval", run.path, "--steps", "1,2")[0] == 2, "and now the second is held to"


def test_a_plugin_is_mended_after_a_failed_start(tmp_path, plugin, call):
    text = (plugin / "reward.py").read_text()
    edit(plugin / "reward.py", "means = ", "raise ValueError; means = ")
    code, said = call("run")
    assert code == 1 and "ValueError" in said
    first = the_run(tmp_path).record()["plugin_sha256"]
    (plugin / "reward.py").write_text(text)
    code, said = call("run")
    assert code == 0, said
    assert the_run(tmp_path).record()["plugin_sha256"]["reward"] != first["reward"], "the one that made the numbers"


def test_a_reward_that_failed_to_judge_is_mended(tmp_path, plugin, call):
    text = (plugin / "reward.py").read_text()
    edit(plugin / "reward.py", "means = ", "raise ValueError; means = ")
    asked = ["run", "--reward", "jpeg-compressibility", "--set", "eval.rewards=redness-example"]
    assert call(*asked)[0] == 1
    (plugin / "reward.py").write_text(text)
    code, said = call(*asked)
    assert code == 0, said


def test_a_built_in_plugin_that_changed_is_said_and_used(tmp_path, call):
    """As after an update of this package."""
    asked = ["run", "--reward", "jpeg-compressibility"]
    assert call(*asked)[0] == 0
    run = the_run(tmp_path, "sdpo")
    for folder in (tmp_path / "results" / "runs").iterdir():
        path = folder / "inputs.json"
        known = json.loads(path.read_text())
        path.write_text(json.dumps(known | {"rewards": dict.fromkeys(known["rewards"], "0" * 64)}))
    code, said = call(*asked)
    assert code == 0 and "has changed" not in said, "nothing is added"
    code, said = call("eval", run.path, "--steps", "1,2")
    assert code == 0 and said.count("warning: the source of reward 'jpeg-compressibility' (built-in) has changed") == 1
    undo_judging(run)
    record = run.record()
    record["plugin_sha256"]["method"] = "0" * 64
    (run.path / "run.json").write_text(json.dumps(record))
    code, said = call(*asked)
    assert code == 0 and "source of method 'sdpo' (built-in) has changed" in said, said
