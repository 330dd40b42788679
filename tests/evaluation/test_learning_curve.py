"""The learning curve: what the final evaluation would measure, at every few epochs, and nothing else changes."""

import json

import pytest

from factories import SEARCH_METHODS, make_resolved
from killing import curve_without_times
from sdpo_bench.cli.commands.eval import eval_command
from sdpo_bench.errors import UsageError
from sdpo_bench.evaluation.learning_curve import curve_prompts
from sdpo_bench.evaluation.score_rows import read_rows
from sdpo_bench.running.run_one import run_job
from sdpo_bench.runs.adapter import LORA_FILE
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.settings import EvaluationSettings, Runtime
from sdpo_bench.system.progress import Watcher

CURVE = {"eval.every": 2, "eval.curve_steps": "1,2"}


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "train.txt").write_text("cat\ndog\n")
    (tmp_path / "unseen.txt").write_text("a bee\na horse\na hen\n")
    return tmp_path


def curved(tiny_pipe, prompts, method="ddpo", curve=CURVE, **more):
    """Five epochs of eight images, points after the second, the fourth and the last."""
    return make_resolved(
        tiny_pipe,
        method,
        **{
            "sample.prompts": str(prompts / "train.txt"),
            "eval.train": str(prompts / "train.txt"),
            "eval.unseen": str(prompts / "unseen.txt"),
            "budget.images": 40,
            "update.lr": 3e-2,
            **curve,
            **more,
        },
    )


def run(resolved, out, watcher=None, every=3):
    return run_job(resolved, Runtime(out=out, device="cpu", checkpoint_every=every), watcher).run


def means(point):
    return {(s["split"], s["reward"], s["steps"]): s["mean"] for s in point["scores"]}


def test_the_first_point_is_the_base_model_and_the_last_is_the_final_evaluation(tiny_pipe, prompts):
    """The evaluation samples the same prompts with the same noise, and is a program of its own."""
    folder = run(
        curved(tiny_pipe, prompts, **{"eval.rewards": "emoji-align", "eval.curve_rewards": "emoji-align"}), prompts
    )
    points = folder.log("curve.jsonl")
    assert [point["epoch"] for point in points] == [0, 2, 4, 5]
    base = next(path for path in folder.path.parent.iterdir() if path.name.startswith("base-"))
    for point, judged in ((points[0], RunFolder(base)), (points[-1], folder)):
        found = means(point)
        assert {key[0] for key in found} == {"train", "unseen"}
        assert {key[1] for key in found} == {"jpeg-incompressibility", "emoji-align"}
        expected = read_rows(judged).groupby(["split", "reward", "steps"]).score.mean().to_dict()
        assert found == pytest.approx(expected, rel=1e-6)
    assert means(points[0]) != means(points[-1])


def test_a_point_has_the_training_bill_so_far_and_its_own_cost(tiny_pipe, prompts):
    folder = run(curved(tiny_pipe, prompts), prompts)
    points, rows = folder.log("curve.jsonl"), folder.log()
    axes = ("images", "denoiser_calls", "reward_calls", "optimiser_steps")
    assert [points[0][axis] for axis in (*axes, "seconds")] == [0] * 5
    for point in points[1:]:
        assert {axis: point[axis] for axis in axes} == {axis: rows[point["epoch"] - 1]["bill"][axis] for axis in axes}
        seconds = sum(row["seconds"] for row in folder.log("timing.jsonl")[: point["epoch"]])
        assert point["seconds"] == pytest.approx(seconds, abs=1e-3)
        assert point["cost"]["denoiser_calls"] == 5 * (1 + 2) and point["cost"]["reward_calls"] == 5 * 2
        assert point["cost"]["seconds"] > 0


@pytest.mark.parametrize("method", ["sdpo", "draft"])
def test_the_training_is_the_one_without_a_curve(tiny_pipe, prompts, method):
    """With a choice of the checkpoint and another guidance in the evaluation, so that all three take turns."""
    (prompts / "held.txt").write_text("a fox\n")
    more = {
        "checkpoint.choose": "validation",
        "checkpoint.prompts": str(prompts / "held.txt"),
        "checkpoint.every": 1,
        "eval.guidance_scale": 2.0,
    }
    plain = curved(tiny_pipe, prompts, method, {}, **more)
    measured = curved(tiny_pipe, prompts, method, {"eval.every": 1, "eval.curve_steps": "1,2"}, **more)
    assert plain.run_id == measured.run_id
    without, beside = run(plain, prompts / "plain"), run(measured, prompts / "measured")
    assert len(beside.log("curve.jsonl")) == 6 and not (without.path / "curve.jsonl").exists()
    for name in ("train.jsonl", "validation.jsonl", "eval.parquet", f"lora/{LORA_FILE}"):
        assert (without.path / name).read_bytes() == (beside.path / name).read_bytes(), name


class Stop(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("where", ["point", "after"])
def test_a_curve_resumes_to_the_same_points(tiny_pipe, prompts, where):
    """Stopped in the third point, or in the fifth epoch."""
    resolved = curved(tiny_pipe, prompts)
    whole = run(resolved, prompts / "whole")
    seen = []

    def in_point(text, done, total):
        seen.append(text)
        if where == "point" and len([t for t in seen if t.startswith("learning curve")]) == 2 * 4 + 2:
            raise Stop

    def in_epoch(tick):
        if where == "after" and tick.epoch == 4 and tick.phase == "scoring":
            raise Stop

    with pytest.raises(Stop):
        run(resolved, prompts / "stopped", Watcher(in_epoch, in_point))
    stopped = RunFolder(prompts / "stopped" / "runs" / resolved.run_id)
    assert len(stopped.log("curve.jsonl")) == (2 if where == "point" else 3)
    again = run(resolved, prompts / "stopped")
    assert curve_without_times(again) == curve_without_times(whole)
    assert (again.path / "train.jsonl").read_bytes() == (whole.path / "train.jsonl").read_bytes()


def test_points_after_the_checkpoint_are_measured_again(tiny_pipe, prompts):
    """A killed process has measured points of epochs that its last checkpoint knows nothing of."""
    resolved = curved(tiny_pipe, prompts)
    whole = run(resolved, prompts / "out", every=1)
    expected = curve_without_times(whole)
    (whole.checkpoints / "epoch-000005.safetensors").unlink()
    (whole.lora / LORA_FILE).unlink()
    lines = (whole.path / "curve.jsonl").read_text().splitlines()
    last = json.loads(lines[-1]) | {"scores": []}
    (whole.path / "curve.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    again = run(resolved, prompts / "out", every=1)
    assert curve_without_times(again) == expected


def test_no_curve_is_the_default_and_a_method_that_trains_nothing_has_none(tiny_pipe, prompts):
    assert not (run(curved(tiny_pipe, prompts, curve={}), prompts).path / "curve.jsonl").exists()
    searching = make_resolved(tiny_pipe, SEARCH_METHODS[0], **{"eval.train": str(prompts / "train.txt"), **CURVE})
    assert not (run(searching, prompts).path / "curve.jsonl").exists()


def test_of_a_long_prompt_set_always_the_same_prompts_are_taken(tmp_path):
    (tmp_path / "many.txt").write_text("\n".join(f"a cat of {i} years" for i in range(100)))
    settings = EvaluationSettings(train=str(tmp_path / "many.txt"), unseen="emoji-unseen", every=1, curve_prompts=7)
    chosen = curve_prompts(settings)
    assert chosen == curve_prompts(settings)
    assert [len(texts) for texts in chosen.values()] == [7, 7]
    numbers = [int(text.split()[3]) for text in chosen["train"]]
    assert numbers == sorted(set(numbers)) and max(numbers) - min(numbers) > 50, "spread over the set"


def test_a_curve_without_prompts_is_refused_before_training(tiny_pipe, prompts):
    resolved = curved(tiny_pipe, prompts, **{"eval.train": "", "eval.unseen": "", "eval.validation": "few-animals"})
    with pytest.raises(UsageError, match="eval.every needs prompts"):
        run(resolved, prompts / "out")
    assert not (prompts / "out" / "runs" / resolved.run_id).exists()


@pytest.mark.parametrize("key", ["every", "curve_steps", "curve_rewards"])
def test_a_finished_run_cannot_get_a_curve(tmp_path, key):
    options = dict.fromkeys(("steps", "rewards", "images", "unseen", "validation"))
    with pytest.raises(UsageError, match=rf"eval.{key}: the learning curve is measured during training"):
        eval_command(
            runs=("x",),
            sets=(f"eval.{key}=2",),
            out=tmp_path,
            device="cpu",
            threads=1,
            micro_batch=8,
            reward_timeout=0,
            as_json=False,
            **options,
        )
