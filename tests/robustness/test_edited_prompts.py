"""A prompt file that is edited while a run trains, or after it, never puts other prompts under the run's name."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from factories import make_resolved
from sdpo_bench.cli.commands import run as run_command
from sdpo_bench.cli.entry import main
from sdpo_bench.errors import UsageError
from sdpo_bench.prompts.prompt_sets import load_prompts, prompt_cache
from sdpo_bench.running.run_one import run_job
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.settings import Runtime
from sdpo_bench.system.progress import Watcher


def call(capsys, *arguments):
    """Exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in arguments])
    said = capsys.readouterr()
    return stop.value.code, said.out, said.err


def words(model, out, train, unseen, *more, reward="jpeg-incompressibility", **settings):
    """A run of eight images that trains on one file and is judged on another besides."""
    settings = {
        "schedule.steps": 2,
        "sample.images_per_epoch": 4,
        "update.minibatch": 2,
        "update.accumulation": 1,
        "sample.prompts": train,
        "eval.train": train,
        "eval.unseen": unseen,
        "eval.steps": 1,
        "eval.images_per_prompt": 1,
    } | settings
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    start = ["run", "--model", model, "--reward", reward, "--budget", "images=8", "--out", out]
    return [*start, *sets, *more]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Prompts of training, and others."""
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "train.txt").write_text("cat\ndog\n")
    (folder / "unseen.txt").write_text("bee\n")
    return folder


@pytest.fixture(scope="module")
def made(files, tiny_pipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "results"
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words(tiny_pipe, out, files / "train.txt", files / "unseen.txt")])
    assert stop.value.code == 0
    return out


@pytest.fixture
def unseen(files):
    """The file of unseen prompts, which is put back."""
    yield files / "unseen.txt"
    (files / "unseen.txt").write_text("bee\n")
    (files / "train.txt").write_text("cat\ndog\n")


@pytest.fixture
def results(made, tmp_path):
    out = Path(shutil.copytree(made, tmp_path / "results"))
    return out, the_run(out)


def the_run(out):
    (run,) = (path for path in (out / "runs").iterdir() if not path.name.startswith("base-"))
    return RunFolder(run)


def judged(folder, split="train"):
    rows = pd.read_parquet(folder / "eval.parquet")
    return set(rows.prompt[rows.split == split])


def test_a_file_that_is_edited_while_its_run_trains_is_not_read_again(tiny_pipe, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("cat\ndog\n")
    settings = {"sample.prompts": str(path), "eval.train": str(path), "eval.steps": "1"}
    resolved = make_resolved(tiny_pipe, **settings)
    before = resolved.run_id
    edited = Watcher(train=lambda tick: path.write_text("horse\n"))
    outcome = run_job(resolved, Runtime(tmp_path / "out", "cpu"), edited)
    assert outcome.run.run_id == before and outcome.run.record()["run"] == before
    (base,) = (tmp_path / "out" / "runs").glob("base-*")
    assert judged(outcome.run.path) == judged(base) == {"cat", "dog"}
    assert [row["images"] for row in outcome.table] == [2]
    assert load_prompts(str(path)) == ["horse"], "of which the next run hears"


def test_a_command_reads_a_file_once(tiny_pipe, tmp_path, capsys, monkeypatch):
    """Also between the moment that gives the run its id and its beginning."""
    path = tmp_path / "mine.txt"
    path.write_text("cat\ndog\n")
    monkeypatch.setattr(run_command, "_show_needed_memory", lambda *_: path.write_text("horse\n"))
    code, _, said = call(capsys, *words(tiny_pipe, tmp_path / "out", path, ""))
    assert code == 0, said
    run = the_run(tmp_path / "out")
    assert judged(run.path) == {"cat", "dog"} and run.record()["run"] == run.run_id


@pytest.mark.parametrize("command", ["run", "eval"])
def test_a_file_that_was_edited_after_its_run_is_refused(results, files, unseen, tiny_pipe, capsys, command):
    out, run = results
    before = (run.path / "eval.parquet").read_bytes()
    asked = ["eval", run.run_id, "--out", out, "--steps", "1,2"]
    if command == "run":
        asked = words(tiny_pipe, out, files / "train.txt", unseen)
    unseen.write_text("bee\nant\n")
    code, _, said = call(capsys, *asked)
    assert code == 2 and f"'{unseen}' are not those that run '{run.run_id}' used before" in said
    assert "Put it back, or begin a new run" in said and "save them as another file and name that one" in said
    assert (run.path / "eval.parquet").read_bytes() == before and run.state == "done"
    other = unseen.with_name("changed.txt")
    unseen.rename(other)
    code, _, said = call(capsys, "eval", run.run_id, "--out", out, "--unseen", other)
    assert code == 0 and judged(run.path, "unseen") == {"bee", "ant"}, said
    unseen.write_text("# the same prompts\nbee\n")
    code, _, said = call(capsys, *asked)
    assert code == 0 and judged(run.path, "unseen") == {"bee", "ant"}, said


def test_a_file_that_eval_named_is_held_to_as_well(results, tmp_path, capsys):
    out, run = results
    other = tmp_path / "other.txt"
    other.write_text("ant\n")
    asked = ["eval", run.run_id, "--out", out, "--unseen", other]
    assert call(capsys, *asked)[0] == 0
    assert judged(run.path, "unseen") == {"bee", "ant"}, "as was asked for"
    other.write_text("wolf\n")
    code, _, said = call(capsys, *asked)
    assert code == 2 and f"the prompts in '{other}'" in said
    assert judged(run.path, "unseen") == {"bee", "ant"}
    assert call(capsys, "eval", run.run_id, "--out", out)[0] == 0, "without it"


def test_a_training_goes_on_with_the_prompts_that_it_began_with(results, files, unseen, tiny_pipe, capsys):
    """Before any score: other runs of a sweep may have been judged on the first content."""
    out, run = results
    (run.path / "eval.parquet").unlink()
    shutil.rmtree(run.lora)
    run.set_status("interrupted")
    unseen.write_text("ant\n")
    code, _, said = call(capsys, *words(tiny_pipe, out, files / "train.txt", unseen))
    assert code == 2 and "used before" in said
    unseen.write_text("bee\n")
    code, _, said = call(capsys, *words(tiny_pipe, out, files / "train.txt", unseen))
    assert code == 0, said


def test_a_mistake_is_mended_before_anything_was_made(results, files, unseen, tiny_pipe, capsys):
    out, run = results
    for path in (*run.path.glob("*.parquet"), *run.path.glob("*.jsonl")):
        path.unlink()
    shutil.rmtree(run.lora)
    shutil.rmtree(run.checkpoints)
    unseen.write_text("ant\n")
    code, _, said = call(capsys, *words(tiny_pipe, out, files / "train.txt", unseen))
    assert code == 0 and judged(run.path, "unseen") == {"ant"}, said
    unseen.write_text("bee\n")
    assert call(capsys, *words(tiny_pipe, out, files / "train.txt", unseen))[0] == 2


def test_the_prompts_that_a_sum_is_standardised_over_are_held_to(files, unseen, tiny_pipe, tmp_path, capsys):
    out, sum_ = tmp_path / "results", "jpeg-incompressibility+jpeg-compressibility*0.5"
    asked = words(tiny_pipe, out, files / "train.txt", "", reward=sum_, **{"reward.reference_images": 2})
    assert call(capsys, *asked)[0] == 0
    run = the_run(out)
    (files / "train.txt").write_text("cat\nhorse\n")
    code, _, said = call(capsys, "eval", run.run_id, "--out", out)
    assert code == 2 and f"'{files / 'train.txt'}' are not those" in said


def test_the_edited_file_begins_another_run(results, files, unseen, tiny_pipe, capsys):
    out, run = results
    (files / "train.txt").write_text("cat\nhorse\n")
    code, shown, said = call(capsys, *words(tiny_pipe, out, files / "train.txt", unseen), "--json")
    assert code == 0, said
    other = json.loads(shown)
    assert other["run"] != run.run_id and judged(out / "runs" / other["run"]) == {"cat", "horse"}
    assert judged(run.path) == {"cat", "dog"}


def test_a_damaged_record_of_inputs_is_said(results, files, unseen, tiny_pipe, capsys):
    out, run = results
    for content in ("{", "[]", "[" * 100_000):
        (run.path / "inputs.json").write_text(content)
        code, _, said = call(capsys, *words(tiny_pipe, out, files / "train.txt", unseen))
        assert code == 2 and "inputs.json' is damaged" in said and "delete it" in said


def test_what_is_held_ends_with_its_block(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("cat\n")
    with prompt_cache():
        assert load_prompts(str(path)) == ["cat"]
        path.write_text("dog\n")
        with pytest.raises(UsageError, match="used before"), prompt_cache({str(path): "0" * 10}, "r"):
            load_prompts(str(path))
        assert load_prompts(str(path)) == ["cat"]
    assert load_prompts(str(path)) == ["dog"]
