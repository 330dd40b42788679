"""What happens to a machine left alone for days: full disks, no memory, broken numbers, clocks that jump, twins."""

import errno
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from read_only import mount_read_only

from factories import make_resolved, make_trainer
from sdpo_bench.api import Loss
from sdpo_bench.errors import DiskFull, MissingError, RunFailed, Unwritable
from sdpo_bench.models.policy import Policy
from sdpo_bench.running.run_one import run_job
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.settings import Runtime
from sdpo_bench.system.files import atomic_write
from sdpo_bench.system.memory_retry import MicroBatch, halving, is_out_of_memory
from sdpo_bench.system.progress import Watcher
from sdpo_bench.training import checkpoint, collapse_guards
from sdpo_bench.training.updater import Updater

NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    RuntimeError("could not create a primitive"),
    MemoryError(),
]


def few(tmp_path, **more):
    (tmp_path / "few.txt").write_text("cat\ndog\n")
    path = str(tmp_path / "few.txt")
    return {"sample.prompts": path, "eval.train": path, "eval.steps": 1, "schedule.steps": 2, **more}


# -- memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda e: type(e).__name__)
def test_micro_batches_are_halved_until_they_fit(error):
    tried, told = [], []

    def work(size):
        tried.append(size)
        if size > 6:
            raise error
        return size * 10

    assert halving(work, 64, lambda size, text: told.append((size, text))) == 40
    assert tried == [64, 32, 16, 8, 4]
    assert told[-1] == (4, told[-1][1]) and "--micro-batch 4" in told[-1][1]


def test_what_does_not_fit_at_all_says_what_would_help():
    def work(size):
        raise NO_MEMORY[0]

    with pytest.raises(RunFailed, match=r"one latent at a time.*model\.precision=bf16"):
        halving(work, 2, lambda size, text: None)


def test_one_of_several_processes_ends_the_run_and_says_how_it_goes_on():
    batch = MicroBatch(8)
    with pytest.raises(RunFailed, match=r"--micro-batch 8\. The same command with a smaller one goes on"):
        for attempt in batch.attempts(pytest.fail, retry=False):
            with attempt:
                raise NO_MEMORY[0]
    assert batch.size == 8
    with pytest.raises(ZeroDivisionError):
        for attempt in batch.attempts(pytest.fail, retry=False):
            with attempt:
                raise ZeroDivisionError


def test_other_errors_are_not_taken_for_missing_memory():
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for a convolution"))
    with pytest.raises(OSError, match="memory"):
        halving(lambda size: (_ for _ in ()).throw(OSError("out of memory card")), 4, lambda size, text: None)


@pytest.fixture(scope="module")
def ample(tiny_pipe, tmp_path_factory):
    """A run with memory enough, and its settings."""
    folder = tmp_path_factory.mktemp("ample")
    sizes = {"budget.images": 16, "update.minibatch": 4, "schedule.steps": 3}  # a task of one micro-batch, in 3 slots
    resolved = make_resolved(tiny_pipe, "sdpo", **few(folder, **sizes))
    return resolved, run_job(resolved, Runtime(out=folder, device="cpu", micro_batch=8))


@pytest.mark.parametrize("where", ["rollout", "scoring", "update", "evaluation"])
def test_running_out_of_memory_changes_no_number(ample, tmp_path, monkeypatch, where):
    """The second epoch fails half-way with 8 at a time; fewer fit. Counts are equal, numbers up to rounding."""
    resolved, whole = ample
    predict, decode, calls, later = Policy.predict, Policy.decode, [], []
    phase = {}

    def tight(name):
        original = {"predict": predict, "decode": decode}[name]

        def limited(self, latents, *rest):
            asked = {"rollout": "predict", "scoring": "decode", "update": "predict", "evaluation": "decode"}[where]
            if name == asked and phase.get("now") == where and len(calls) > 1:
                later.append(len(latents))
            if name == asked and phase.get("now") == where and len(latents) > (2 if where == "evaluation" else 4) // 2:
                calls.append(len(latents))
                if len(calls) == 2 or where != "update":  # in the update, after a step has been taken
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return original(self, latents, *rest)

        return limited

    names = {"sampling": "rollout", "scoring": "scoring", "updating": "update"}

    def watch(tick):
        phase["now"] = names.get(tick.phase) if tick.epoch == 1 else None

    monkeypatch.setattr(Policy, "predict", tight("predict"))
    monkeypatch.setattr(Policy, "decode", tight("decode"))
    told = []
    watcher = Watcher(
        lambda tick: (watch(tick), told.append(tick.metrics["warning"]) if tick.phase == "warning" else None),
        lambda text, done, total: phase.update(now="evaluation") if "sdpo" in text else phase.update(now=None),
    )
    outcome = run_job(resolved, Runtime(out=tmp_path / "tight", device="cpu", micro_batch=8), watcher)
    assert calls, "nothing ran out of memory"
    assert told and "out of memory (CUDA out of memory" in told[0]
    if where == "update":
        assert later and max(later) <= 4, "smaller from then on"
    recorded = [w for w in collapse_guards.warnings(outcome.run) if w.guard == "memory"]
    assert [w.text for w in recorded] == [text.partition(": ")[2] for text in told]
    for ours, theirs in zip(outcome.run.log(), whole.run.log(), strict=True):
        assert ours["bill"] == theirs["bill"]
        assert ours["reward_mean"] == pytest.approx(theirs["reward_mean"], abs=2e-3)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2, abs=1e-5)
    for ours, theirs in zip(outcome.table, whole.table, strict=True):
        assert ours["tuned"] == pytest.approx(theirs["tuned"], abs=2e-3)


@pytest.mark.parametrize("failing_epoch", [0, 1])
def test_gradients_of_a_window_that_ran_out_of_memory_are_forgotten(tiny_pipe, tmp_path, monkeypatch, failing_epoch):
    """When the first of two minibatches has left its gradient, after an optimiser step: in the first epoch that step's
    moments have to go as well. To the bit, since all calls are smaller than the halved micro-batch."""
    sizes = {"budget.images": 16, "update.minibatch": 1, "update.accumulation": 2}  # four pairs an epoch
    resolved = make_resolved(tiny_pipe, "sdpo", **few(tmp_path, **sizes))
    monkeypatch.setattr("sdpo_bench.training.shared_calls.CALL_ELEMENTS", 1)  # a call of its own for each minibatch
    whole = run_job(resolved, Runtime(out=tmp_path / "whole", device="cpu")).run
    backward, epoch, left_over = Updater._backward_steps, [0], []

    def failing(self, *arguments):
        gradient = sum(float(p.grad.abs().sum()) for p in self.parameters.values() if p.grad is not None)
        if epoch[0] == failing_epoch and gradient > 1e-3 and self.optimiser.state and not left_over:
            left_over.append(gradient)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        backward(self, *arguments)

    monkeypatch.setattr(Updater, "_backward_steps", failing)
    watcher = Watcher(lambda tick: epoch.__setitem__(0, tick.epoch))
    run = run_job(resolved, Runtime(out=tmp_path / "tight", device="cpu"), watcher).run
    assert left_over, "nothing was left over that could have been forgotten"
    for name in ("train.jsonl", "eval.parquet", "lora/pytorch_lora_weights.safetensors"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes(), name


# -- numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "value"), [("loss", math.nan), ("gradient", math.inf)])
def test_numbers_that_are_none_end_a_run_with_its_last_good_checkpoint(tiny_pipe, tmp_path, monkeypatch, what, value):
    resolved = make_resolved(tiny_pipe, "ddpo", **few(tmp_path, **{"budget.images": 12, "sample.images_per_epoch": 4}))
    trainer_class = resolved.method
    loss, epoch = trainer_class.loss, [0]

    def broken(self, batch):
        found = loss(self, batch)
        if epoch[0] < 2:
            return found
        if what == "loss":
            return Loss(found.value * value, found.metrics)
        found.value.register_hook(lambda gradient: gradient * value)
        return found

    monkeypatch.setattr(trainer_class, "loss", broken)
    watcher = Watcher(lambda tick: epoch.__setitem__(0, tick.epoch))
    run = RunFolder(tmp_path / "out" / "runs" / resolved.run_id)
    said = {"loss": "the loss is (nan|inf|-inf)", "gradient": "the gradient norm is (nan|inf)"}[what]
    with pytest.raises(RunFailed, match=said):
        run_job(resolved, Runtime(out=tmp_path / "out", device="cpu"), watcher)
    assert run.state == "failed"
    path, warnings = checkpoint.latest(run)
    header, tensors = checkpoint.read(path)
    assert header["epoch"] == 2 and not warnings
    assert all(torch.isfinite(value).all() for value in tensors.values() if value.is_floating_point())
    monkeypatch.setattr(trainer_class, "loss", loss)
    assert [row["epoch"] for row in run_job(resolved, Runtime(out=tmp_path / "out")).run.log()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda total: total, r"loss\(\) gave Tensor; expected sdpo_bench.api.Loss with a tensor"),
        (lambda total: Loss(1.0), r"loss\(\) gave float"),
        (lambda total: Loss(total * torch.ones(2)), r"its loss has shape \(2,\); expected a scalar"),
        (lambda total: Loss(total.detach()), "its loss has no gradient"),
        (lambda total: Loss(total, {"epoch": total}), "'epoch' is the log's own name"),
    ],
)
def test_what_is_wrong_with_a_plugin_s_loss_is_said_by_its_name(tiny_pipe, tmp_path, monkeypatch, loss, said):
    trainer = make_trainer(make_resolved(tiny_pipe, "ddpo", **few(tmp_path)), tmp_path)
    monkeypatch.setattr(type(trainer.method), "loss", lambda self, batch: loss(batch.log_probs.sum()))
    with pytest.raises(RunFailed, match=f"method 'DDPO': .*{said}"):
        trainer.train()


@pytest.mark.parametrize("error", [IndexError("list index\nout of range"), AssertionError()], ids=["text", "no text"])
def test_an_unexpected_error_is_recorded_and_raised_on(tiny_pipe, tmp_path, monkeypatch, error):
    """Or the run would read as running for ever."""
    resolved = make_resolved(tiny_pipe, "ddpo", **few(tmp_path))

    def broken(self, *args):
        raise error

    monkeypatch.setattr(Updater, "_checked", broken)
    with pytest.raises(type(error)):
        run_job(resolved, Runtime(out=tmp_path / "out", device="cpu"))
    run = RunFolder(tmp_path / "out" / "runs" / resolved.run_id)
    assert run.status == {"state": "failed", "message": f"{type(error).__name__}: {error}".removesuffix(": ")}


# -- disks ---------------------------------------------------------------------------------------------------


def test_a_file_size_limit_is_a_full_disk(tmp_path):
    """``ulimit -f``: the system itself refuses the write, in the middle of a file."""
    atomic_write(tmp_path / "file", b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(DiskFull, match="cannot be written"):
            atomic_write(tmp_path / "file", b"x" * 5000)
        with pytest.raises(DiskFull):
            RunFolder(tmp_path).append("train.jsonl", {"text": "x" * 5000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert not list(tmp_path.glob(".*.tmp"))
    assert RunFolder(tmp_path).log() == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "kind", "mend"),
    [
        (errno.ENOSPC, DiskFull, "Free some space"),
        (errno.EDQUOT, DiskFull, "Free some space"),
        (errno.EFBIG, DiskFull, "ulimit -f"),
        (errno.EROFS, Unwritable, "Check the disk"),
        (errno.EIO, Unwritable, "Check the disk"),
    ],
)
def test_whatever_a_disk_refuses_with_is_said_in_words(tmp_path, monkeypatch, call, code, kind, mend):
    """Where a file is synced or renamed: the old one stays, and nothing is left beside it."""
    (tmp_path / "file").write_text("old")

    def refuse(*arguments):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(Unwritable, match=f"file' cannot be written: {os.strerror(code)}.*{mend}") as error:
            atomic_write(tmp_path / "file", "new")
    assert type(error.value) is kind and error.value.strerror == os.strerror(code)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


def test_a_log_that_cannot_be_cut_is_said_in_words(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    run.append("train.jsonl", {"epoch": 1})
    mount_read_only(tmp_path, monkeypatch)
    with pytest.raises(Unwritable, match="train.jsonl' cannot be written: Read-only"):
        run.truncate("train.jsonl", 1)


def test_what_is_synced_is_all_there_already(tmp_path, monkeypatch):
    """Bytes that are still in the process's own buffer are synced by nobody."""
    sync, synced = os.fsync, []

    def watched(handle):
        synced.append((os.path.basename(os.readlink(f"/proc/self/fd/{handle}")), os.fstat(handle).st_size))
        sync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    atomic_write(tmp_path / "file", "few")
    assert [size for name, size in synced if name.endswith(".tmp")] == [3]
    RunFolder(tmp_path).append("train.jsonl", {"epoch": 1})
    assert synced[-1] == ("train.jsonl", len('{"epoch": 1}\n'))


def test_a_folder_that_becomes_read_only_fails_in_words(tiny_pipe, tmp_path, monkeypatch):
    """A file system that is remounted read-only in mid-run; as root, permissions alone stop nobody."""
    resolved = make_resolved(tiny_pipe, "ddpo", **few(tmp_path, **{"budget.images": 16, "sample.images_per_epoch": 4}))
    run = RunFolder(tmp_path / "out" / "runs" / resolved.run_id)
    sync = os.fsync

    def refuse(handle):
        if run.path.exists() and run.log():
            raise OSError(errno.EROFS, "Read-only file system")
        sync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(MissingError, match=r"cannot be written.*same command again"):
        run_job(resolved, Runtime(out=tmp_path / "out", device="cpu"))
    monkeypatch.setattr(os, "fsync", sync)
    run_job(resolved, Runtime(out=tmp_path / "out", device="cpu"))
    assert run.state == "done"


# -- clocks and twins ----------------------------------------------------------------------------------------


def test_clocks_that_jump_change_nothing(tiny_pipe, tmp_path, monkeypatch):
    """The wall clock goes back a day at every look, and no duration is taken from it."""
    resolved = make_resolved(tiny_pipe, "ddpo", **few(tmp_path))
    plain = run_job(resolved, Runtime(out=tmp_path / "plain", device="cpu")).run
    now = [time.time()]

    def backwards():
        now[0] -= 86400
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    jumped = run_job(resolved, Runtime(out=tmp_path / "jumped", device="cpu", checkpoint_every=1)).run
    for name in ("train.jsonl", "eval.parquet", "lora/pytorch_lora_weights.safetensors"):
        assert (jumped.path / name).read_bytes() == (plain.path / name).read_bytes(), name
    for row in jumped.log("timing.jsonl"):
        assert {"seconds", "sample_seconds", "reward_seconds", "update_seconds"} <= set(row)
        assert all(0 <= value < 600 for name, value in row.items() if name.endswith("seconds"))
    header, _ = checkpoint.read(checkpoint.latest(jumped)[0])
    assert 0 < header["ledger"]["seconds"] < 600


def test_a_second_process_on_a_run_is_refused_and_harms_nothing(tmp_path):
    """The lock is the kernel's: another process sees it, and it is gone when its holder is killed."""
    run = RunFolder(tmp_path / "run")
    run.create({"kind": "run"})
    script = (
        "import sys, time, pathlib; from sdpo_bench.runs.run_folder import RunFolder\n"
        "with RunFolder(pathlib.Path(sys.argv[1])).locked():\n    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    (run.path / ".half.tmp").write_bytes(b"of the other process")
    with pytest.raises(Exception, match="another process is working on run 'run'"), run.locked():
        pass
    assert (run.path / ".half.tmp").exists(), "what a living process writes is not cleared"
    holder.kill()
    holder.wait()
    with run.locked():
        assert not run.log() and json.loads((run.path / "run.json").read_text()) == {"kind": "run"}
