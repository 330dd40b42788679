"""Several processes: the numbers, bills and files of one, no draw twice, and trouble on one that ends all of them."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from factories import make_resolved, make_trainer
from killing import curve_without_times
from sdpo_bench.errors import MissingError, RunFailed, UsageError
from sdpo_bench.running.run_one import run_job
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.settings import Runtime
from sdpo_bench.system.distributed import ALONE, Launched, Processes, Report, local_device, refuse_several
from sdpo_bench.training.update_order import Task, part_of
from several import BUDGET, TRAININGS, overflowing, trained, with_curve

HERE = Path(__file__).parents[1] / "support"
SCENARIOS = (*TRAININGS, "overflowing", "resumed", "curve", "stopped", "failing", "killed")
"""In the order in which two processes do them; the last one kills a process."""
ADAPTERS = {"average": {"ema"}, "nft": {"old"}, "awm": {"old"}, "dgpo": {"old"}}
"""Which adapters a scenario has beside the one that learns."""
APART = ("average", "nft")
"""Scenarios in which they do not end as the one that learns."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return min(probe.getsockname()[1], 65000)


@pytest.fixture(scope="module")
def two(tmp_path_factory, tiny_pipe):
    """What two processes left; the run ``resumed`` was begun by one."""
    folder = tmp_path_factory.mktemp("two")
    make_trainer(make_resolved(tiny_pipe, **BUDGET), folder / "resumed")  # makes the folder
    begun = make_trainer(make_resolved(tiny_pipe, **BUDGET), folder / "resumed")

    class Enough(Exception):
        pass

    def watch(tick):
        if tick.epoch == 1 and tick.phase == "updating":
            raise Enough

    begun.watch = watch
    with pytest.raises(Enough):
        begun.train()
    port = str(free_port())
    children = [
        subprocess.Popen(
            [sys.executable, str(HERE / "several.py"), str(rank), "2", port, str(folder), *SCENARIOS],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    try:
        for child in children:
            child.wait(timeout=240)
    finally:
        for child in children:
            child.kill()
    return folder


def left(folder, scenario):
    files = [folder / f"{scenario}-{rank}.json" for rank in range(2)]
    return [json.loads(path.read_text()) if path.exists() else None for path in files]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", TRAININGS)
def test_two_processes_give_the_numbers_of_one(tiny_pipe, tmp_path, two, scenario):
    one = trained(scenario, tmp_path, ALONE)
    results = left(two, scenario)
    weights = [load_file(two / scenario / f"weights-{rank}.safetensors") for rank in range(2)]
    expected = load_file(tmp_path / "weights-0.safetensors")
    followers = {name: w for name, w in expected.items() if "/" in name}
    assert {name.split("/")[0] for name in followers} == ADAPTERS.get(scenario, set())
    if scenario in APART:
        assert any((w - expected[name.split("/")[1]]).abs().max() > 1e-4 for name, w in followers.items())
    # Adam divides by the gradient's own size, so rounding in a vanishing entry moves it by up to a learning rate.
    assert all((weights[0][n] - w).abs().max() < 1e-3 for n, w in expected.items())
    assert sum(float((weights[0][n] - w).abs().mean()) for n, w in expected.items()) / len(expected) < 1e-5
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in expected)
    for result in results:
        assert result["bill"] == one["bill"]
        assert result["metrics"].keys() == one["metrics"].keys()
    for name in ("reward_mean", "reward_std", "loss", "grad_norm", "kl_to_base"):
        assert results[0]["metrics"][name] == pytest.approx(one["metrics"][name], rel=1e-3, abs=1e-7), name
    assert results[0]["metrics"]["pictures"] == pytest.approx(one["metrics"]["pictures"], rel=1e-4)


@pytest.mark.slow
def test_no_picture_is_sampled_twice_and_none_is_left_out(tiny_pipe, tmp_path, two):
    one = trained("sdpo", tmp_path, ALONE)["sampled"]
    parts = [result["sampled"] for result in left(two, "sdpo")]
    assert [len(part) for part in parts] == [5, 4], "4 + 4 + 1 pairs"
    every = torch.tensor([pair for part in parts for pair in part])
    assert len(every.flatten().unique()) == 18
    # From the second epoch on the sampling weights carry rounding.
    assert torch.allclose(
        every.flatten(1)[:, 0].sort().values, torch.tensor(one).flatten(1)[:, 0].sort().values, atol=1e-2
    )


@pytest.mark.slow
def test_a_run_begun_by_one_process_is_finished_by_two(two):
    whole, resumed = (load_file(two / name / "weights-0.safetensors") for name in ("sdpo", "resumed"))
    assert all((resumed[n] - w).abs().max() < 1e-3 for n, w in whole.items())
    rows = [next((two / name / "runs").iterdir()).joinpath("train.jsonl").read_text() for name in ("sdpo", "resumed")]
    bills = [[json.loads(line)["bill"] for line in text.splitlines()] for text in rows]
    assert bills[0] == bills[1] and len(bills[0]) == 3, "each epoch is logged once, by one process"


@pytest.mark.slow
def test_two_processes_measure_the_learning_curve_of_one(tmp_path, two):
    one = RunFolder(tmp_path / "runs" / with_curve(tmp_path, ALONE)["run"])
    both = RunFolder(two / "curve" / "runs" / one.run_id)
    points = curve_without_times(one), curve_without_times(both)
    assert [[p["epoch"] for p in curve] for curve in points] == [[0, 2, 3]] * 2, "each point once, by one process"
    for mine, theirs in zip(*points):
        scores = mine.pop("scores"), theirs.pop("scores")
        assert mine == theirs, "the same bills, and the same cost of measuring"
        means = [[entry.pop("mean") for entry in part] for part in scores]
        assert scores[0] == scores[1] and means[0] == pytest.approx(means[1], rel=1e-4)


@pytest.mark.slow
def test_processes_skip_the_same_fp16_steps_as_one(tmp_path, two):
    """The last epoch has one pair: a process without gradients of its own decides as the other does."""
    one = overflowing(tmp_path, ALONE)["metrics"]
    files = [next((folder / "runs").iterdir()) / "train.jsonl" for folder in (two / "overflowing", tmp_path)]
    rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    skipped, scales = ([[row[key] for row in run] for run in rows] for key in ("skipped_steps", "loss_scale"))
    assert skipped[0] == skipped[1] and scales[0] == scales[1] and skipped[0][0] > 0
    weights = [load_file(two / "overflowing" / f"weights-{rank}.safetensors") for rank in range(2)]
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
    for result in left(two, "overflowing"):
        assert result["metrics"]["grad_norm"] == pytest.approx(one["grad_norm"], rel=0.05)


@pytest.mark.slow
def test_trouble_on_one_process_ends_all(two):
    main, other = left(two, "failing")
    assert "process 1 failed: the disk of process 1 is on fire" in main["error"]
    assert other["error"] == "SystemExit: 1", "the main process alone speaks"
    main, other = left(two, "stopped")
    assert main["error"].startswith("KeyboardInterrupt") and other["error"] == "SystemExit: 130"
    main, other = left(two, "killed")
    assert "another process of this run has died" in main["error"] and other is None


def test_parts_of_a_task_keep_every_groups_weight():
    task = Task(torch.tensor([4, 0, 2]), torch.tensor([[1], [0], [2]]), 0.75)
    mine = part_of(task, torch.tensor([0, -1, 1, -1, -1]))
    assert mine.groups.tolist() == [0, 1] and mine.steps.tolist() == [[0], [2]]
    assert mine.share == pytest.approx(0.5)
    assert part_of(task, torch.full((5,), -1)).share == 0


def test_a_parameter_without_a_gradient_anywhere_stays_without_one():
    """Zeros instead would let the optimiser's momentum move it, which it does not do in one process."""
    processes = Launched.__new__(Launched)
    processes._dist = SimpleNamespace(all_reduce=lambda bucket: bucket.mul_(2))  # the other one has the same
    processes._meeting = nullcontext
    learnt = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    learnt[0].grad = torch.tensor([1.0, 3.0])
    processes.sum_gradients(learnt)
    assert learnt[0].grad.tolist() == [2.0, 6.0] and learnt[1].grad is None


def test_a_signal_during_a_meeting_is_heard_at_its_end():
    """Half a meeting would leave processes in different ones; forgotten, it would stop nobody."""
    processes = Launched.__new__(Launched)
    processes._busy = processes._stopping = processes._over = False
    processes._pending, processes._handlers = None, {signal.SIGTERM: signal.SIG_DFL}
    processes._exchange = lambda report: None
    reached = []
    with pytest.raises(KeyboardInterrupt), processes._meeting():
        processes._hear(signal.SIGTERM, None)
        reached.append("the end of the meeting")
    assert reached and not processes._busy


def test_what_is_shared_is_made_by_the_main_process_alone():
    """It writes files, say."""
    processes = Launched.__new__(Launched)
    processes.rank, processes._meeting = 1, nullcontext
    processes._dist = SimpleNamespace(broadcast_object_list=lambda box, src: box.__setitem__(0, ("from", src)))
    assert processes.share(lambda: pytest.fail("made here as well")) == ("from", 0)


def test_rows_come_back_in_the_order_of_their_numbers():
    """Five rows of two processes that took turns: 0, 2, 4 here and 1, 3 there."""
    processes = Launched.__new__(Launched)
    processes.count = 2
    there = (torch.tensor([[10.0], [30.0]]), torch.tensor([1, 3]))
    processes.gather = lambda mine: [mine, there]
    found = processes.rows(torch.tensor([[0.0], [20.0], [40.0]]), torch.tensor([0, 2, 4]))
    assert found.flatten().tolist() == [0, 10, 20, 30, 40]


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (MissingError("no weights"), RunFailed, MissingError.exit_code),
        (RunFailed("NaN"), RunFailed, RunFailed.exit_code),
        (ZeroDivisionError("by zero"), RunFailed, 1),
        (KeyboardInterrupt(), KeyboardInterrupt, 130),
    ],
)
def test_trouble_elsewhere_ends_a_process_with_the_same_code(error, kind, code):
    """A sweep or a script tells by it whether trying again can help."""
    heard = Report.of(1, error).error()
    assert type(heard) is kind and Report.of(0, heard).exit_code == code
    assert getattr(heard, "exit_code", 130) == code


class Disagreeing(Processes):
    """Another process that has found something else."""

    def gather(self, value):
        return [value, "another"]


def test_processes_that_would_do_two_runs_do_none(tiny_pipe, tmp_path):
    """As with a reward whose version names the device that it is on."""
    resolved = make_resolved(tiny_pipe)
    with pytest.raises(UsageError, match=f"would each do another run \\(another, {resolved.run_id}\\)"):
        run_job(resolved, Runtime(tmp_path / "out", "cpu"), processes=Disagreeing())
    assert not (tmp_path / "out").exists()


def test_each_process_has_a_gpu_of_its_own_and_other_commands_refuse_to_be_multiplied(monkeypatch):
    assert local_device("cuda") == "cuda"
    for name, value in (("RANK", 1), ("WORLD_SIZE", 2), ("LOCAL_RANK", 1), ("MASTER_ADDR", "x"), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))
    assert local_device("cuda") == "cuda:1" and local_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="all 2 processes on one GPU"):
        local_device("cuda:0")
    with pytest.raises(UsageError, match="sdpo-bench sweep"):
        refuse_several("sweep")


@pytest.mark.slow
def test_accelerate_launches_the_command(tiny_pipe, tmp_path):
    """The documented command: one set of files, one table, the evaluation of every image exactly once."""
    settings = (
        "schedule.steps=2",
        "sample.images_per_epoch=8",
        "update.minibatch=4",
        "update.accumulation=1",
        "eval.steps=1",
        "eval.images_per_prompt=1",
    )
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        str(free_port()),
        "-m",
        "sdpo_bench",
        "run",
        "--model",
        str(tiny_pipe),
        "--reward",
        "jpeg-incompressibility",
        "--device",
        "cpu",
        "--budget",
        "images=8",
        "--out",
        str(tmp_path),
        *(f"--set={s}" for s in settings),
    ]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip().splitlines()[-1])
    assert done.stdout.count("SE over images:") == 1
    assert json.loads((folder / "status").read_text())["state"] == "done"
    assert len((folder / "train.jsonl").read_text().splitlines()) == 1
    import pandas as pd

    rows = pd.read_parquet(folder / "eval.parquet")
    assert len(rows) == len(rows[["prompt", "image"]].drop_duplicates()) == 45
