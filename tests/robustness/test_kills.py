"""A run that is killed again and again, anywhere, ends with the bytes of one that never was."""

import json
import random
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from factories import make_resolved, make_trainer
from killing import command_of, finish, results, run_until
from sdpo_bench.cli import entry
from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.runs.adapter import LORA_FILE, LORA_SEAL, exported, log_changed, seal_log
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.runs.saved_adapter import load_adapter, save_adapter
from sdpo_bench.training import checkpoint


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Arguments of a run of three epochs with a choice among them, for a results folder and a checkpoint interval."""
    from places import OFFICIAL

    return command_of(tmp_path_factory.mktemp("prompts"), OFFICIAL / "tiny_pipe")


@pytest.fixture(scope="module")
def never_killed(command, tmp_path_factory):
    """Results of the run that nothing happened to, and the moments that it has."""
    out = tmp_path_factory.mktemp("whole")
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):  # here, so that the children inherit what is imported
        entry.main(command(out / "here", 5))
    signal.signal(signal.SIGTERM, handler)
    assert run_until(0, command(out / "child", 1), out / "moments") == 0
    assert results(out / "here") == results(out / "child"), "how often a checkpoint is written changes no number"
    return results(out / "child"), (out / "moments").read_text().splitlines()


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments_again_and_again(command, never_killed, tmp_path, seed):
    """Each attempt is killed somewhere in what is left of it, the resumed ones too."""
    expected, moments = never_killed
    draw = random.Random(seed)
    kills = [draw.randrange(20, len(moments) // 2) for _ in range(2)]
    where = finish(command, tmp_path / "out", 1 + seed, kills, tmp_path / "moments")
    assert len(where) == 2, "hardly anything was killed"
    assert results(tmp_path / "out") == expected, where


def test_killed_inside_each_kind_of_write(command, never_killed, tmp_path):
    """Half a line of a log, half a checkpoint, half an adapter, half a table: one after the other in the same run."""
    expected, _ = never_killed
    kills = [
        "before fsync curve.jsonl",
        "before fsync train.jsonl",
        "before fsync .epoch-000001",
        "before fsync .pytorch_lora",
        "before unlink epoch-000001.safetensors",
        "before fsync .eval.parquet",
    ]
    where = finish(command, tmp_path / "out", 1, kills, tmp_path / "moments")
    assert [moment.split(" ", 1)[1].startswith(kill) for moment, kill in zip(where, kills)] == [True] * len(kills)
    assert results(tmp_path / "out") == expected


def test_killed_before_the_log_is_sealed(command, never_killed, tmp_path):
    """Its adapter is there already, but a log without a seal could be changed unseen: it is sealed by the next."""
    expected, moments = never_killed
    seals = [m for m in moments if "before replace .pytorch_lora_weights.sha256" in m]  # the last is the log's
    finish(command, tmp_path / "out", 1, [int(seals[-1].split()[0])], tmp_path / "moments")
    assert results(tmp_path / "out") == expected


def test_the_last_checkpoints_are_kept_and_synced_with_their_folder(never_killed, command, tmp_path):
    """A rename is durable only when the folder is synced too, and what is older goes only after that."""
    _, moments = never_killed
    names = [moment.split(" ", 1)[1].replace(".tmp", "") for moment in moments]
    third = next(i for i, name in enumerate(names) if name.startswith("before fsync .epoch-000003"))
    order = [name for name in names[third:] if name.startswith("before")][:4]
    assert [name.split()[1] for name in order] == ["fsync", "replace", "fsync", "unlink"]
    assert order[2:] == ["before fsync checkpoints", "before unlink epoch-000001.safetensors"]


def flip(path, position):
    """One flipped bit in the middle of a file, which a format without checksums does not notice."""
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def trained(tiny_pipe, tmp_path_factory):
    """A trainer that has done four epochs, a checkpoint after each, and its results folder."""
    resolved = make_resolved(tiny_pipe, **{"budget.images": 32})
    out = tmp_path_factory.mktemp("trained")
    make_trainer(resolved, out, checkpoint_every=1).train()
    return resolved, out


@pytest.fixture
def copy(trained, tmp_path):
    resolved, out = trained
    shutil.copytree(out, tmp_path / "copy")
    return resolved, tmp_path / "copy", RunFolder(tmp_path / "copy" / "runs" / resolved.run_id)


@pytest.mark.parametrize("position", [0.2, 0.999])
def test_a_flipped_bit_in_a_checkpoint_is_found(trained, copy, position):
    resolved, out, run = copy
    log = (run.path / "train.jsonl").read_bytes()
    assert len(list(run.checkpoints.iterdir())) == checkpoint.KEEP
    newest = run.checkpoints / "epoch-000004.safetensors"
    flip(newest, position)
    path, warnings = checkpoint.latest(run)
    assert path == run.checkpoints / "epoch-000003.safetensors"
    assert "damaged" in warnings[0] and "Going back" in warnings[0]
    told = []
    again = make_trainer(resolved, out, checkpoint_every=1)
    again.watch = lambda tick: told.append(tick.metrics["warning"]) if tick.phase == "warning" else None
    again.train()
    assert told == warnings
    assert (run.path / "train.jsonl").read_bytes() == log
    before = checkpoint.read(trained[1] / "runs" / run.run_id / "checkpoints" / newest.name)[1]
    again = checkpoint.read(newest)[1]
    assert all(torch.equal(value, before[name]) for name, value in again.items() if name != "log/timing.jsonl")


def test_a_changed_header_of_a_checkpoint_is_found(copy):
    """Of a checkpoint that says it is of another epoch, whole in all else."""
    _, _, run = copy
    newest = run.checkpoints / "epoch-000004.safetensors"
    changed, count = re.subn(rb"(epoch\\\W+)4\b", rb"\g<1>5", newest.read_bytes())
    assert count == 1
    newest.write_bytes(changed)
    path, warnings = checkpoint.latest(run)
    assert path == run.checkpoints / "epoch-000003.safetensors"
    assert "does not have the digest" in warnings[0]


@pytest.mark.parametrize(
    ("found", "put"),
    [(rb'"shape":\[(\d+),(?!\1)(\d+)\]', rb'"shape":[\2,\1]'), (rb'"dtype":"F32"', rb'"dtype":"I32"')],
    ids=["shape", "type"],
)
def test_what_says_how_to_read_a_checkpoint_s_bytes_is_checked_too(copy, found, put):
    """The same bytes, read as numbers of another type or in another order."""
    _, _, run = copy
    newest = run.checkpoints / "epoch-000004.safetensors"
    changed, count = re.subn(found, put, newest.read_bytes(), count=1)
    assert count == 1
    newest.write_bytes(changed)
    path, warnings = checkpoint.latest(run)
    assert path == run.checkpoints / "epoch-000003.safetensors"
    assert "does not have the digest" in warnings[0]


def test_a_checkpoint_of_another_format_is_passed_over(copy):
    """Whole, but what a version after or before this one put in it may mean something else."""
    _, _, run = copy
    header, tensors = checkpoint.read(run.checkpoints / "epoch-000004.safetensors")
    checkpoint.write(run, 4, (tensors, json.dumps(header | {"format": checkpoint.FORMAT + 1})))
    path, warnings = checkpoint.latest(run)
    assert path == run.checkpoints / "epoch-000003.safetensors"
    assert f"has format {checkpoint.FORMAT + 1}, this version reads {checkpoint.FORMAT}" in warnings[0]


def test_a_run_that_begins_anew_keeps_the_checkpoints_that_it_writes(copy):
    """Those that were passed over are of later epochs, and must not count as the last ones."""
    resolved, out, run = copy
    for path in run.checkpoints.iterdir():
        flip(path, 0.9)
    again = make_trainer(resolved, out, checkpoint_every=1)

    def watch(tick):
        if (tick.epoch, tick.phase) == (2, "updating"):
            raise ZeroDivisionError

    again.watch = watch
    with pytest.raises(ZeroDivisionError):
        again.train()
    path, warnings = checkpoint.latest(run)
    assert path == run.checkpoints / "epoch-000002.safetensors" and len(warnings) == 2


def test_checkpoints_of_another_run_are_not_gone_on_from(copy, tmp_path):
    """As a backup that was put back into the wrong folder, its log with it."""
    resolved, out, run = copy
    whole = (run.path / "train.jsonl").read_bytes()
    other = tmp_path / "other" / "runs" / "another-run"
    shutil.copytree(run.path, other)
    path, warnings = checkpoint.latest(RunFolder(other))
    assert path is None and f"belongs to run '{run.run_id}'" in warnings[0]
    shutil.rmtree(run.checkpoints)
    path, warnings = checkpoint.latest(run)
    assert path is None and warnings == [
        f"there is no checkpoint to go on from in '{run.checkpoints}': the run starts again."
    ]
    make_trainer(resolved, out).train()
    assert (run.path / "train.jsonl").read_bytes() == whole


def test_a_checkpoint_that_cannot_be_read_is_not_trained_over(copy, monkeypatch):
    """Somebody else's file, or a network disk that has gone: its content may be sound."""
    _, _, run = copy
    for error in (PermissionError(13, "Permission denied"), OSError(5, "Input/output error")):

        def refuse(path, mode, error=error):
            raise error

        monkeypatch.setattr(Path, "open", refuse)
        with pytest.raises(MissingError, match=f"cannot be read: {error.strerror}.*does not start again"):
            checkpoint.latest(run)


@pytest.mark.parametrize("sealed", [False, True], ids=["in training", "with its log"])
def test_a_flipped_bit_in_an_adapter_is_found(tiny_policy, tmp_path, sealed):
    run = RunFolder(tmp_path / "run")

    def save():
        save_adapter(tiny_policy, run.lora)
        assert not exported(run), "before the log is sealed, training has not ended"
        if sealed:
            seal_log(run)
            assert exported(run)

    save()
    load_adapter(tiny_policy, run.lora)
    flip(run.lora / LORA_FILE, 0.9)
    with pytest.raises(UsageError, match=r"damaged.*same run command again"):
        load_adapter(tiny_policy, run.lora)
    save()
    load_adapter(tiny_policy, run.lora)


def test_a_log_that_was_changed_after_the_end_is_reported(tmp_path):
    """Its last line is the bill: a log that lost lines would make a run look cheap."""
    from report_factory import make_run, spread

    from sdpo_bench.reporting.assemble import Request, build_report
    from sdpo_bench.results.read_results import load_results

    run = RunFolder(make_run(tmp_path, "sdpo", 0, spread([1, 2, 3])))
    run.lora.mkdir()
    (run.lora / LORA_SEAL).write_text("0" * 64 + f"  {LORA_FILE}\n")
    seal_log(run)
    told = lambda: [n.text for n in build_report(load_results(tmp_path), Request()).notices]  # noqa: E731
    assert told() == [] and log_changed(run) == ""
    lines = (run.path / "train.jsonl").read_bytes().splitlines(keepends=True)
    for damage in (lines[:-1], [], [b"\xff\xfe\n"]):
        (run.path / "train.jsonl").write_bytes(b"".join(damage))
        assert ["train.jsonl do not belong together" in text for text in told()] == [True]
        run.log()


def test_what_killed_writers_left_is_cleared_by_the_next(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create({})
    (run.path / "lora").mkdir()
    for name in (".status.77.tmp", "lora/.x.safetensors.78.tmp", ".run.json.79.tmp"):
        (run.path / name).write_bytes(b"half")
    with run.locked():
        assert [path.name for path in run.path.rglob("*.tmp")] == [".run.json.79.tmp"], (
            "written before the lock is held"
        )
