"""A run with a second process has the bytes of a run without one, whether that process lives, fails or dies."""

import multiprocessing
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import preload  # noqa: F401  (forked processes then have it)
import pytest
import torch

from factories import make_resolved
from sdpo_bench.errors import UsageError
from sdpo_bench.evaluation import evaluate as ev
from sdpo_bench.running import evaluation_process
from sdpo_bench.running.evaluation_process import EvaluationProcess, half, use_second_process
from sdpo_bench.running.run_one import run_job
from sdpo_bench.settings import Runtime
from sdpo_bench.sweep import local_executor
from sdpo_bench.system.distributed import ALONE
from sdpo_bench.system.progress import Watcher


@pytest.fixture(scope="module")
def resolved(tiny_pipe, tmp_path_factory):
    """A training of one epoch, judged at 1, 2 and 3 steps on prompts in a file."""
    prompts = tmp_path_factory.mktemp("prompts") / "two.txt"
    prompts.write_text("cat\ndog\n")
    settings = {"sample.prompts": str(prompts), "eval.train": str(prompts), "eval.steps": "1,2,3", "budget.images": 8}
    return make_resolved(tiny_pipe, **settings)


def job(resolved, out, processes, watch=lambda tick: None):
    return run_job(resolved, Runtime(out, "cpu", processes=processes), Watcher(train=watch)).run


def files(out):
    """What the numbers of a results folder are in."""
    names = ("eval.parquet", "train.jsonl", "inputs.json", "grid.png")
    return {p.relative_to(out): p.read_bytes() for p in sorted(out.rglob("*")) if p.name in names}


@pytest.fixture(scope="module")
def alone(resolved, tmp_path_factory):
    """Files of the run of one process."""
    out = tmp_path_factory.mktemp("alone")
    job(resolved, out, 1)
    assert len(files(out)) == 6
    return files(out)


@pytest.fixture
def second(monkeypatch):
    """The second process is forked from one with the libraries; how many steps each block has that it took."""
    context = multiprocessing.get_context(local_executor.START_METHOD)
    if local_executor.START_METHOD == "forkserver":
        context.set_forkserver_preload(["preload"])
    monkeypatch.setattr(evaluation_process.multiprocessing, "get_context", lambda method: context)
    taken, original = [], EvaluationProcess.take

    def take(self, *arguments):
        self._receive()  # a training of one epoch is over before the process has scored the base model
        blocks = original(self, *arguments)
        taken.append((self, [block.steps for block in blocks]))
        return blocks

    monkeypatch.setattr(EvaluationProcess, "take", take)
    return taken


def test_a_run_of_two_processes_has_the_bytes_of_one(resolved, alone, tmp_path, monkeypatch, second):
    scored, original = [], ev._rows

    def rows(policy, schedule, *arguments):
        scored.append(schedule.num_steps)
        return original(policy, schedule, *arguments)

    monkeypatch.setattr(ev, "_rows", rows)
    job(resolved, tmp_path, 2)
    (process, blocks) = second[0]
    assert blocks == [2, 1], "of 3, 2 and 1 steps, the second process takes 3 steps in two blocks"
    assert scored == [3], "this process has scored neither the base model nor the blocks of the other one"
    assert process.failure == ""
    assert files(tmp_path) == alone


def test_a_process_that_dies_loses_no_row(resolved, alone, tmp_path, monkeypatch, second):
    take, warnings = EvaluationProcess.take, []

    def kill(self, *arguments):
        blocks = take(self, *arguments)
        os.kill(self._process.pid, signal.SIGKILL)
        return blocks

    monkeypatch.setattr(EvaluationProcess, "take", kill)
    job(resolved, tmp_path, 2, lambda tick: warnings.append(tick.metrics.get("warning", "")))
    assert second[0][1] == [2, 1]
    assert files(tmp_path) == alone
    assert any("the second process has failed (it ended with exit code -9)" in text for text in warnings)


def test_a_process_that_reads_other_sources_scores_nothing(resolved, alone, tmp_path, monkeypatch, second):
    warnings = []
    original = EvaluationProcess.__init__
    changed = lambda self, given: original(self, replace(given, sources={"another/1": "source"}))  # noqa: E731
    monkeypatch.setattr(EvaluationProcess, "__init__", changed)
    job(resolved, tmp_path, 2, lambda tick: warnings.append(tick.metrics.get("warning", "")))
    assert second[0][1] == []
    assert files(tmp_path) == alone
    assert any("the source of a reward was changed" in text for text in warnings)


def test_the_process_ends_with_an_interrupted_run(resolved, tmp_path, second):
    before = set(multiprocessing.active_children())

    def interrupt(tick):
        if tick.phase == "updating":
            started.extend(set(multiprocessing.active_children()) - before)
            raise KeyboardInterrupt

    started = []
    with pytest.raises(KeyboardInterrupt):
        job(resolved, tmp_path, 2, interrupt)
    assert len(started) == 1
    assert not started[0].is_alive()


# -- when there is one ---------------------------------------------------------------------------------------


def policy_of(parameters):
    return SimpleNamespace(denoiser=torch.nn.Linear(parameters, 1, bias=False))


def scorer(filed_as=None):
    return SimpleNamespace(reward=SimpleNamespace(filed_as=filed_as))


USUAL = {"cores": 2, "memory": True, "device": "cpu", "count": 1, "parameters": 1000, "filed_as": None, "calls": 2000}


@pytest.mark.parametrize(
    ("asked", "changes", "used"),
    [
        (0, {}, True),
        (0, {"cores": 1}, False),
        (0, {"memory": False}, False),
        (0, {"device": "cuda:0"}, False),
        (0, {"count": 2}, False),
        (0, {"parameters": 5_000_000}, False),
        (0, {"filed_as": "hpsv2"}, False),
        (0, {"calls": 1999}, False),
        (1, {}, False),
        (2, {"cores": 1, "memory": False, "parameters": 5_000_000, "filed_as": "hpsv2", "calls": 1}, True),
    ],
)
def test_a_small_model_with_an_idle_core_gets_a_second_process(monkeypatch, tmp_path, asked, changes, used):
    case = USUAL | changes
    monkeypatch.setattr(evaluation_process, "usable_cores", lambda: case["cores"])
    monkeypatch.setattr(evaluation_process, "_memory_for_two", lambda: case["memory"])
    given = Runtime(tmp_path, processes=asked), case["device"], SimpleNamespace(count=case["count"])
    scorers = [scorer(), scorer(case["filed_as"])]
    assert use_second_process(*given, policy_of(case["parameters"]), scorers, case["calls"]) is used


@pytest.mark.parametrize(("device", "count"), [("cuda:0", 1), ("cpu", 2)])
def test_a_second_process_that_cannot_be_had_is_refused(tmp_path, device, count):
    with pytest.raises(UsageError, match="--processes 2 is for a run on a CPU"):
        use_second_process(Runtime(tmp_path, processes=2), device, SimpleNamespace(count=count), policy_of(1), [], 9)


def test_a_sweep_gives_its_jobs_one_process_each(tmp_path):
    assert not use_second_process(Runtime(tmp_path), "cpu", ALONE, policy_of(1), [], 10**6)


@pytest.mark.parametrize(
    ("calls", "taken"), [((1, 2, 4, 8, 16), {1, 2, 4, 8}), ((5,), set()), ((), set()), ((6, 6, 5, 5), {6, 5})]
)
def test_half_of_the_work(calls, taken):
    """By hand: 16 against 8 + 4 + 2 + 1; one block stays here; 6 + 5 each."""
    blocks = [ev.Block(f"split {i}", (), 1, n) for i, n in enumerate(calls)]
    assert {block.calls for block in half(blocks)} == taken
    assert sum(block.calls for block in half(blocks)) <= sum(calls) / 2
