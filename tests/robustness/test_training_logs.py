"""Logs that are damaged, cut or lost beside sound checkpoints: no training is thrown away, and none is left out."""

import json
import os
import shutil

import pytest

from factories import make_resolved, make_trainer
from sdpo_bench.errors import UsageError
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.training import checkpoint, collapse_guards


class Stop(KeyboardInterrupt):
    pass


def stop_in(trainer, epoch):
    """Ctrl-C while epoch ``epoch`` + 1 is scored."""

    def watch(tick):
        if (tick.epoch, tick.phase) == (epoch, "scoring"):
            raise Stop

    trainer.watch = watch
    with pytest.raises(Stop):
        trainer.train()


@pytest.fixture(scope="module")
def stopped(tiny_pipe, tmp_path_factory):
    """A run of four epochs stopped in the third, and the bytes of the log of one that never stopped."""
    resolved = make_resolved(tiny_pipe, **{"budget.images": 32})
    out = tmp_path_factory.mktemp("stopped")
    make_trainer(resolved, out / "whole").train()
    trainer = make_trainer(resolved, out / "stopped", checkpoint_every=1)
    trainer.run.append("validation.jsonl", {"epoch": 1, "score": 3.0})
    stop_in(trainer, 2)
    return resolved, out / "stopped", (out / "whole" / "runs" / resolved.run_id / "train.jsonl").read_bytes()


@pytest.fixture
def copy(stopped, tmp_path):
    resolved, out, whole = stopped
    shutil.copytree(out, tmp_path / "copy")
    return resolved, tmp_path / "copy", RunFolder(tmp_path / "copy" / "runs" / resolved.run_id), whole


def resume(resolved, out):
    """The epochs that are trained on going on, and the warnings."""
    told, epochs = [], []
    trainer = make_trainer(resolved, out, checkpoint_every=1)

    def watch(tick):
        if tick.phase == "warning":
            told.append(tick.metrics["warning"])
        if tick.phase == "epoch":
            epochs.append(tick.epoch)

    trainer.watch = watch
    trainer.train()
    return epochs, told


def change_byte(path):
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def drop_line(path):
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


def pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGE = {
    "byte": change_byte, "line": drop_line, "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "gone": os.remove, "pipe": pipe, "other": lambda path: path.write_text('{"epoch": 1, "bill": {}}\n' * 40),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_log_is_put_back_and_no_epoch_is_trained_again(copy, damage):
    resolved, out, run, whole = copy
    damage(run.path / "train.jsonl")
    epochs, told = resume(resolved, out)
    assert epochs == [3, 4]
    assert (run.path / "train.jsonl").read_bytes() == whole
    (warned,) = collapse_guards.warnings(run)
    assert (warned.epoch, warned.guard) == (2, "log") and told == [f"epoch 2: {warned.text}"]
    assert "train.jsonl had been damaged" in warned.text


def test_all_logs_are_put_back_from_an_earlier_checkpoint_too(copy):
    """Where the newest checkpoint is damaged as well; what was logged after the earlier one is trained again."""
    resolved, out, run, whole = copy
    os.truncate(run.checkpoints / "epoch-000002.safetensors", 100)
    seconds = run.log("timing.jsonl")[0]
    for name in ("train.jsonl", "timing.jsonl", "validation.jsonl"):
        os.remove(run.path / name)
    epochs, told = resume(resolved, out)
    assert epochs == [2, 3, 4] and "damaged" in told[0]
    assert (run.path / "train.jsonl").read_bytes() == whole
    assert run.log("timing.jsonl")[0] == seconds and len(run.log("timing.jsonl")) == 4
    assert run.log("validation.jsonl") == [{"epoch": 1, "score": 3.0}]
    assert [warned.text.split()[0] for warned in collapse_guards.warnings(run)] == [
        "train.jsonl", "timing.jsonl", "validation.jsonl",
    ]  # fmt: skip


def test_what_was_logged_after_a_checkpoint_is_no_damage(copy):
    """A candidate judged after it stays, for nobody judges it again."""
    resolved, out, run, whole = copy
    for name in ("train.jsonl", "timing.jsonl"):
        with open(run.path / name, "a") as stream:
            stream.write('{"epoch": 3, "los')
    run.append("validation.jsonl", {"epoch": 2, "score": 4.0})
    assert resume(resolved, out) == ([3, 4], [])
    assert (run.path / "train.jsonl").read_bytes() == whole
    assert [row["score"] for row in run.log("validation.jsonl")] == [3.0, 4.0]


@pytest.fixture
def earlier(copy):
    """The same, with checkpoints as earlier versions wrote them: without copies of the logs."""
    _, _, run, _ = copy
    for path in run.checkpoints.iterdir():
        header, tensors = checkpoint.read(path)
        plain = {name: value for name, value in tensors.items() if not name.startswith("log/")}
        path.unlink()
        checkpoint.write(run, header["epoch"], (plain, json.dumps(header, sort_keys=True)))
    return copy


@pytest.mark.parametrize("name", ["train.jsonl", "validation.jsonl"])
def test_without_a_copy_a_damaged_log_stops_the_run_before_anything_is_lost(earlier, name):
    resolved, out, run, whole = earlier
    sound = (run.path / name).read_bytes()
    for damage in (change_byte, os.remove):
        damage(run.path / name)
        with pytest.raises(UsageError, match=rf"{name}' is not what it was.*from a backup, or delete") as refused:
            resume(resolved, out)
        assert refused.value.exit_code == 2
        (run.path / name).write_bytes(sound)
    assert resume(resolved, out) == ([3, 4], []), "as sound checkpoints of earlier versions do"
    assert (run.path / "train.jsonl").read_bytes() == whole
