"""What somebody does to a run's folder while it trains neither ends as "done" with half a log nor goes unsaid."""

import os
import shutil

import pytest

from factories import make_resolved
from sdpo_bench.errors import Unwritable, UsageError
from sdpo_bench.reporting.assemble import Request, build_report
from sdpo_bench.results.read_results import load_results
from sdpo_bench.running.run_one import run_job
from sdpo_bench.runs.adapter import log_changed
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.settings import Runtime
from sdpo_bench.system.progress import Watcher
from sdpo_bench.training import collapse_guards

LOGS = ("train.jsonl", "validation.jsonl")


def choosing(tiny_pipe, folder):
    """A run of three epochs with a candidate after each."""
    (folder / "few.txt").write_text("cat\ndog\n")
    (folder / "held.txt").write_text("bee\n")
    few = str(folder / "few.txt")
    return make_resolved(
        tiny_pipe,
        "ddpo",
        **{
            "sample.prompts": few,
            "eval.train": few,
            "eval.steps": 1,
            "schedule.steps": 2,
            "sample.images_per_epoch": 4,
            "budget.images": 12,
            "checkpoint.choose": "validation",
            "checkpoint.prompts": str(folder / "held.txt"),
            "checkpoint.every": 1,
            "checkpoint.steps": 1,
            "update.lr": 3e-2,
        },
    )


def run(resolved, out, watcher=None):
    return run_job(resolved, Runtime(out=out, device="cpu"), watcher).run


@pytest.fixture(scope="module")
def whole(tiny_pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    resolved = choosing(tiny_pipe, folder)
    return resolved, run(resolved, folder)


def at(moment, act):
    """Who acts once: at (epoch, phase) of training, or at the first evaluation whose text begins so."""
    done, told = [], []

    def once():
        if not done:
            done.append(act())

    def watch(tick):
        if (tick.epoch, tick.phase) == moment:
            once()
        if tick.phase == "warning":
            told.append(tick.metrics["warning"])

    return Watcher(watch, lambda text, *_: once() if isinstance(moment, str) and moment in text else None), told


def append_garbage(path):
    with open(path, "a") as stream:
        stream.write("garbage\n")


def change_byte(path):
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "gone": os.remove,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "longer": append_garbage,
    "byte": change_byte,
}


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize(
    ("moment", "damage"), [((2, "scoring"), "gone"), ((2, "scoring"), "cut"), ((2, "scoring"), "byte")]
)
def test_a_log_that_is_changed_while_the_run_works_stops_it(whole, tmp_path, name, moment, damage):
    resolved, expected = whole
    folder = RunFolder(tmp_path / "runs" / resolved.run_id)
    before = []

    def act():
        before.append((folder.path / name).read_bytes())
        DAMAGE[damage](folder.path / name)

    with pytest.raises(UsageError, match=f"{name}' is not what it was .* from a backup"):
        run(resolved, tmp_path, at(moment, act)[0])
    assert folder.state == "failed" and not folder.lora.exists()
    (folder.path / name).write_bytes(before[0])
    again = run(resolved, tmp_path)
    for file in (*LOGS, "eval.parquet", "lora/pytorch_lora_weights.safetensors"):
        assert (again.path / file).read_bytes() == (expected.path / file).read_bytes(), file


def test_lines_that_somebody_adds_while_the_run_works_are_cut_off(whole, tmp_path):
    resolved, expected = whole
    log = tmp_path / "runs" / resolved.run_id / "train.jsonl"
    run(resolved, tmp_path, at((2, "scoring"), lambda: append_garbage(log))[0])
    assert log.read_bytes() == (expected.path / "train.jsonl").read_bytes()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_log_that_is_changed_after_the_end_is_told_of(whole, tmp_path, damage):
    resolved, expected = whole
    folder = RunFolder(shutil.copytree(expected.path.parents[1], tmp_path / "copy") / "runs" / resolved.run_id)
    DAMAGE[damage](folder.path / "train.jsonl")
    assert log_changed(folder)
    notices = [notice.text for notice in build_report(load_results(tmp_path / "copy"), Request()).notices]
    assert [text for text in notices if "train.jsonl" in text and "from a backup" in text]


@pytest.mark.parametrize("moment", [(1, "scoring"), "ddpo"])
def test_a_run_whose_folder_is_removed_stops_and_leaves_nothing_that_reads_as_a_run(whole, tmp_path, moment):
    resolved, _ = whole
    folder = RunFolder(tmp_path / "runs" / resolved.run_id)
    with pytest.raises(Unwritable, match=f"{folder.path}.* cannot be written: No such file or directory") as stopped:
        run(resolved, tmp_path, at(moment, lambda: shutil.rmtree(folder.path))[0])
    assert stopped.value.exit_code == 3 and not folder.path.exists()


def test_a_lock_that_is_removed_stops_nothing(whole, tmp_path):
    resolved, _ = whole
    folder = RunFolder(tmp_path / "runs" / resolved.run_id)
    again = run(resolved, tmp_path, at((1, "scoring"), lambda: os.remove(folder.path / "lock"))[0])
    assert again.state == "done" and not collapse_guards.warnings(again)
