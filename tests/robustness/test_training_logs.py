"""Logs that are damaged, cut or lost beside sound checkpoints are refused, and no training is thrown away."""

import json
import os
import shutil

import pytest
import torch

from factories import make_resolved, make_trainer
from sdpo_bench.errors import UsageError
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.training import checkpoint


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
    trainer.run.append("curve.jsonl", {"epoch": 1, "scores": []})
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


DAMAGE = {
    "byte": change_byte,
    "line": drop_line,
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "gone": os.remove,
}


@pytest.mark.parametrize("name", ["train.jsonl", "timing.jsonl", "validation.jsonl", "curve.jsonl"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_changed_log_is_refused_before_anything_is_lost(copy, damage, name):
    resolved, out, run, whole = copy
    sound = (run.path / name).read_bytes()
    damage(run.path / name)
    with pytest.raises(UsageError, match=rf"{name}' is not what it was when .* from a backup.*or delete") as refused:
        resume(resolved, out)
    assert refused.value.exit_code == 2
    (run.path / name).write_bytes(sound)
    assert resume(resolved, out) == ([3, 4], [])
    assert (run.path / "train.jsonl").read_bytes() == whole


def test_an_earlier_checkpoint_has_the_digests_of_shorter_logs(copy):
    """What was logged after it is trained again."""
    resolved, out, run, whole = copy
    os.truncate(run.checkpoints / "epoch-000002.safetensors", 100)
    epochs, told = resume(resolved, out)
    assert epochs == [2, 3, 4] and "damaged" in told[0]
    assert (run.path / "train.jsonl").read_bytes() == whole
    assert len(run.log("timing.jsonl")) == 4


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


@pytest.fixture(params=[True, False], ids=["copies", "no copies"])
def earlier(copy, request):
    """The same, with checkpoints as earlier versions wrote them: with and without copies of the logs."""
    _, _, run, _ = copy
    for path in run.checkpoints.iterdir():
        header, tensors = checkpoint.read(path)
        logs = header.pop("logs")
        header["log_size"], header["log_sha256"] = logs["train.jsonl"]
        header["timing_size"], header["validated"] = logs["timing.jsonl"][0], logs["validation.jsonl"]
        if request.param:
            for name, (size, _) in logs.items():
                content = (run.path / name).read_bytes()[:size]
                tensors[f"log/{name}"] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        path.unlink()
        checkpoint.write(run, header["epoch"], (tensors, json.dumps(header, sort_keys=True)))
    return copy


@pytest.mark.parametrize("name", ["train.jsonl", "validation.jsonl"])
def test_checkpoints_of_earlier_versions_go_on_and_refuse_changed_logs(earlier, name):
    resolved, out, run, whole = earlier
    sound = (run.path / name).read_bytes()
    change_byte(run.path / name)
    with pytest.raises(UsageError, match=rf"{name}' is not what it was"):
        resume(resolved, out)
    (run.path / name).write_bytes(sound)
    assert resume(resolved, out) == ([3, 4], [])
    assert (run.path / "train.jsonl").read_bytes() == whole
