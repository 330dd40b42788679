"""The best checkpoint on validation prompts: chosen apart from what is reported, and exactly resumable."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from factories import make_resolved
from sdpo_bench.errors import UsageError
from sdpo_bench.evaluation.best_checkpoint import Validator
from sdpo_bench.running.run_one import run_job
from sdpo_bench.runs.adapter import LORA_FILE
from sdpo_bench.runs.run_folder import RunFolder, best_row
from sdpo_bench.runs.saved_adapter import save_adapter
from sdpo_bench.scoring.make_scorers import make_scorer
from sdpo_bench.settings import CheckpointSettings, EvaluationSettings, Runtime
from sdpo_bench.system.distributed import ALONE
from sdpo_bench.system.memory_retry import MicroBatch
from sdpo_bench.system.progress import Watcher
from sdpo_bench.training import collapse_guards


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "train.txt").write_text("cat\ndog\n")
    (tmp_path / "held.txt").write_text("a bee\na horse\n")
    return tmp_path


def choosing(tiny_pipe, prompts, **more):
    return make_resolved(
        tiny_pipe,
        "ddpo",
        **{
            "checkpoint.choose": "validation",
            "checkpoint.prompts": str(prompts / "held.txt"),
            "checkpoint.every": 2,
            "checkpoint.steps": "1,2",
            "sample.prompts": str(prompts / "train.txt"),
            "eval.train": str(prompts / "train.txt"),
            "budget.images": 40,
            "update.lr": 3e-2,
            **more,
        },
    )


def run(resolved, out, watcher=None):
    return run_job(resolved, Runtime(out=out, device="cpu", checkpoint_every=3), watcher).run


def test_the_best_candidate_is_the_result_and_nothing_else_changes(tiny_pipe, prompts):
    """Five epochs, a candidate every second one and the last; training itself is that of the run without a choice."""
    chosen = run(choosing(tiny_pipe, prompts), prompts / "a")
    rows = chosen.log("validation.jsonl")
    assert [row["epoch"] for row in rows] == [2, 4, 5]
    assert all(row["score"] == pytest.approx(sum(row["score_by_steps"].values()) / 2) for row in rows)
    assert rows[0]["denoiser_calls"] == 2 * (1 + 2) and rows[0]["reward_calls"] == 4
    best = best_row(rows)
    resolved = choosing(tiny_pipe, prompts)
    last = make_resolved(
        tiny_pipe,
        "ddpo",
        **{
            "sample.prompts": str(prompts / "train.txt"),
            "eval.train": str(prompts / "train.txt"),
            "budget.images": 8 * best["epoch"],
            "update.lr": 3e-2,
        },
    )
    assert last.run_id != resolved.run_id
    stopped_there = run(last, prompts / "b")
    ours, theirs = (load_file(str(folder.lora / LORA_FILE)) for folder in (chosen, stopped_there))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    log = (chosen.path / "train.jsonl").read_text().splitlines()
    assert log[: best["epoch"]] == (stopped_there.path / "train.jsonl").read_text().splitlines()
    assert not (chosen.path / "candidates").exists()


def test_validation_scores_never_reach_the_evaluation_file(tiny_pipe, prompts):
    from sdpo_bench.evaluation.score_rows import read_rows

    folder = run(choosing(tiny_pipe, prompts), prompts / "a")
    assert set(read_rows(folder)["prompt"]) == {"cat", "dog"}


def test_judging_leaves_the_policy_s_guidance_as_it_was(tiny_policy, prompts, monkeypatch):
    """Training has a scale of its own, and goes on with it, even where judging failed."""
    folder = RunFolder(prompts / "run")
    folder.create({})
    settings = CheckpointSettings("validation", str(prompts / "held.txt"), steps=(1, 3))
    scorer = make_scorer("jpeg-incompressibility", {}, "cpu")
    judge = Validator(
        tiny_policy, settings, EvaluationSettings(guidance_scale=2.0), scorer, folder, MicroBatch(64), Watcher()
    )
    tiny_policy.set_guidance(3.0)
    seen = []
    predict = type(tiny_policy).predict
    monkeypatch.setattr(
        type(tiny_policy), "predict", lambda self, *a: (seen.append(self.guidance_scale), predict(self, *a))[1]
    )
    judge.after_epoch(5, last=False)
    assert seen == [2.0] * (1 + 3), "once a step, both prompts at a time"
    assert tiny_policy.guidance_scale == 3.0
    assert folder.log("validation.jsonl")[0]["denoiser_calls"] == 2 * 2 * (1 + 3), "two branches, two prompts"
    monkeypatch.setattr(type(tiny_policy), "predict", lambda self, *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        judge.after_epoch(10, last=False)
    assert tiny_policy.guidance_scale == 3.0


def test_the_candidate_of_the_checkpoint_that_is_gone_on_from_stays(tmp_path):
    """It was judged after the checkpoint was written and is the same one."""
    run = RunFolder(tmp_path)
    for epoch in (2, 4, 6):
        run.append("validation.jsonl", {"epoch": epoch, "score": 1.0})
    validator = SimpleNamespace(run=run, processes=ALONE, rows=run.log("validation.jsonl"))
    Validator.forget_after(validator, 4)
    assert [row["epoch"] for row in run.log("validation.jsonl")] == [2, 4]


def test_the_earliest_of_equal_candidates_is_the_best():
    rows = [{"epoch": epoch, "score": score} for epoch, score in ((2, 1.0), (4, 3.0), (6, 3.0), (8, 2.0))]
    assert best_row(rows)["epoch"] == 4


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """A function: judges candidates of given scores; what was saved, each with the number of lines logged by then."""
    run, saved = RunFolder(tmp_path), []
    judge = Validator.__new__(Validator)
    judge.run, judge.processes = run, ALONE
    judge.policy = None

    def save(policy, folder):
        saved.append((folder.name, len(run.log("validation.jsonl"))))

    monkeypatch.setattr("sdpo_bench.evaluation.best_checkpoint.save_adapter", save)

    def after(scores, choose="validation"):
        judge.settings = SimpleNamespace(choose=choose, every=2)
        for epoch, score in scores.items():
            judge._judge = lambda score=score: {"score": score}
            judge.after_epoch(epoch, last=False)
        return saved, [row["epoch"] for row in run.log("validation.jsonl")]

    return after, run


def test_an_adapter_is_kept_while_it_is_the_best_and_before_its_line_says_so(judged):
    """Killed between the two, a run that goes on judges the candidate again; the other way round it would be lost."""
    saved, logged = judged[0]({2: 1.0, 3: 9.0, 4: 3.0, 6: 3.0, 8: 2.0, 10: 4.0})
    assert saved == [("epoch-000002", 0), ("epoch-000004", 1), ("epoch-000010", 4)]
    assert logged == [2, 4, 6, 8, 10]


def test_the_first_candidate_is_judged_even_after_a_collapse(judged):
    """A run without any would have no result."""
    after, run = judged
    collapse_guards.record(run, collapse_guards.Warned(1, "dark", "black"))
    saved, logged = after({2: 1.0, 4: 3.0}, "before-collapse")
    assert logged == [2] and saved == [("epoch-000002", 0)]


def test_a_score_is_the_mean_over_all_pictures_of_all_processes(tiny_policy, prompts, monkeypatch):
    """Here "a bee" twice with 5 + 0 and 5 + 10 at 1 step, 3 more at 3 steps; "a horse" elsewhere with 1 and 2."""
    settings = CheckpointSettings("validation", str(prompts / "held.txt"), steps=(1, 3), images_per_prompt=2)
    two = SimpleNamespace(rank=0, count=2, is_main=True, gather=lambda rows: [rows, [[1.0], [2.0]]])
    scorer = lambda images, texts: images + torch.tensor([float(len(text)) for text in texts])  # noqa: E731
    scorer.calls_per_image = 3  # a sum of three rewards
    judge = Validator(
        tiny_policy, settings, EvaluationSettings(), scorer, RunFolder(prompts / "run"), MicroBatch(64), Watcher(), two
    )
    sampled = lambda policy, schedule, sampler, part, size: torch.tensor(  # noqa: E731
        [10.0 * number + (3 if schedule.num_steps == 3 else 0) for _, number in part]
    )
    monkeypatch.setattr("sdpo_bench.evaluation.evaluate.sample_images", sampled)
    found = judge._judge()
    assert found["score_by_steps"] == {"1": (5 + 15 + 1 + 2) / 4, "3": (8 + 18 + 1 + 2) / 4}
    assert found["score"] == (23 / 4 + 29 / 4) / 2
    assert found["reward_calls"] == 3 * 2 * 4


class Stop(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("where", ["candidate", "after"])
def test_a_choice_resumes_to_the_same_bytes(tiny_pipe, prompts, where):
    resolved = choosing(tiny_pipe, prompts)
    whole = run(resolved, prompts / "whole")
    seen = []

    def in_candidate(text, done, total):
        seen.append(text)
        if where == "candidate" and len([t for t in seen if t.startswith("checkpoint")]) == 4:
            raise Stop

    def in_epoch(tick):
        if where == "after" and tick.epoch == 4 and tick.phase == "scoring":
            raise Stop

    with pytest.raises(Stop):
        run(resolved, prompts / "stopped", Watcher(in_epoch, in_candidate))
    again = run(resolved, prompts / "stopped")
    for name in ("train.jsonl", "validation.jsonl", "eval.parquet", f"lora/{LORA_FILE}"):
        assert (again.path / name).read_bytes() == (whole.path / name).read_bytes(), name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checkpoint.prompts": "train"}, "shares 2 prompts with eval.train"),
        ({"checkpoint.prompts": ""}, "checkpoint.prompts is empty"),
        ({"checkpoint.prompts": "no-such-set"}, "unknown prompt set"),
        ({"checkpoint.choose": "last"}, "would have no effect"),
        ({"checkpoint.choose": "best"}, "'last', 'validation' or 'before-collapse'"),
    ],
)
def test_a_choice_that_would_mislead_is_refused(tiny_pipe, prompts, change, said):
    change = {k: str(prompts / "train.txt") if v == "train" else v for k, v in change.items()}
    with pytest.raises(UsageError, match=said):
        choosing(tiny_pipe, prompts, **change)


@pytest.mark.parametrize("choose", ["validation", "before-collapse"])
def test_a_choice_needs_prompts_of_its_own(tiny_pipe, choose):
    with pytest.raises(UsageError, match=f"checkpoint.choose = {choose} needs prompts to choose on"):
        make_resolved(tiny_pipe, **{"checkpoint.choose": choose})


def test_a_checkpoint_is_not_shown_for_a_sampler_that_did_not_choose_it(tiny_pipe, prompts):
    """The id is the same, since a run can be judged by many samplers; a run without a choice may be."""
    short = {"budget.images": 16}
    made = run(choosing(tiny_pipe, prompts, **short), prompts / "out")
    other = choosing(tiny_pipe, prompts, **short, **{"eval.eta": 0})
    assert other.run_id == made.run_id
    with pytest.raises(UsageError, match=rf"eta=1.*eta=0.*sdpo-bench eval {made.run_id} --set eval\.") as refused:
        run(other, prompts / "out")
    assert "--out FOLDER" in str(refused.value) and refused.value.exit_code == 2
    run(choosing(tiny_pipe, prompts, **short, **{"eval.steps": "1,3"}), prompts / "out")  # of the same sampler
    sets = {key: str(prompts / "train.txt") for key in ("sample.prompts", "eval.train")}
    ids = [run(make_resolved(tiny_pipe, "ddpo", **sets, **{"eval.eta": eta}), prompts / "out").run_id for eta in (1, 0)]
    assert ids[0] == ids[1]


def test_the_last_checkpoint_leaves_no_trace_in_the_identity(tiny_pipe):
    plain, said = make_resolved(tiny_pipe), make_resolved(tiny_pipe, **{"checkpoint.choose": "last"})
    assert plain.run_id == said.run_id
    assert "checkpoint" not in plain.data


def test_prompts_that_chose_cannot_be_reported_later(tiny_pipe, prompts):
    from sdpo_bench.cli.commands.eval import _eval_one

    folder = run(choosing(tiny_pipe, prompts), prompts)
    with pytest.raises(UsageError, match="was chosen on"):
        _eval_one(folder, {"unseen": str(prompts / "held.txt")}, None, Runtime(out=prompts, device="cpu"))


def test_a_full_disk_fails_in_words_and_the_run_goes_on_later(tiny_pipe, tmp_path, monkeypatch):
    """The disk fills up in the second epoch, for the status file too, and is empty again for the next attempt."""
    import errno
    import os

    from sdpo_bench.errors import DiskFull

    resolved = make_resolved(tiny_pipe, **{"budget.images": 24})
    whole = run(resolved, tmp_path / "whole")
    folder = RunFolder(tmp_path / "full" / "runs" / resolved.run_id)
    sync = os.fsync

    def full(handle):
        if len(folder.log()) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="No space left on device.*same command again") as stop:
        run(resolved, tmp_path / "full")
    assert stop.value.exit_code == 3
    assert folder.state != "done"
    monkeypatch.setattr(os, "fsync", sync)
    again = run(resolved, tmp_path / "full")
    assert again.state == "done"
    assert (again.path / "train.jsonl").read_bytes() == (whole.path / "train.jsonl").read_bytes()
    assert json.loads((again.path / "status").read_text())["message"] == ""


def test_an_adapter_is_written_in_one_piece(tiny_policy, tmp_path, monkeypatch):
    """Killed in the middle of saving: no file, so the run does not count as trained."""
    import sdpo_bench.runs.saved_adapter as saved_adapter

    monkeypatch.setattr(saved_adapter, "atomic_write", lambda path, data: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        save_adapter(tiny_policy, tmp_path / "lora")
    assert not list((tmp_path / "lora").iterdir())
