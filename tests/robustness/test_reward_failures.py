"""A reward that raises, hangs or answers nonsense ends a run with a clear record, and the same command goes on."""

import signal
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from factories import make_resolved
from sdpo_bench.api import NoSettings, Reward
from sdpo_bench.errors import RunFailed
from sdpo_bench.methods.ddpo import DDPO
from sdpo_bench.rewards.jpeg_incompressibility import JpegIncompressibility
from sdpo_bench.running.run_one import run_job
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.scoring.scorer import Scorer
from sdpo_bench.settings import Runtime
from sdpo_bench.system.timeout import Deadline, DeadlinePassed


class Answer(Reward):
    """Returns what a test wants."""

    version = "1"
    source = "test"

    def __init__(self, answer):
        super().__init__(NoSettings())
        self.answer = answer

    def __call__(self, images, prompts):
        return self.answer(images)


def swallow_everything(images):
    while True:
        try:
            time.sleep(30)
        except Exception:
            continue


def fail(images):
    raise KeyError("no such layer")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (fail, r"reward 'x' raised KeyError: 'no such layer'"),
        (lambda images: (_ for _ in ()).throw(TimeoutError("socket")), "raised TimeoutError: socket"),
        (lambda images: time.sleep(30), r"not scored 2 images: no answer within 0\.2 s.*--reward-timeout"),
        (swallow_everything, "not scored 2 images"),
        (lambda images: torch.zeros(3), r"returned \(3,\) for 2 images"),
        (lambda images: torch.zeros(2, 1), r"returned \(2, 1\)"),
        (lambda images: [0.0, 0.0], "returned list"),
        (lambda images: None, "returned NoneType"),
        (lambda images: torch.tensor([1.0, float("nan")]), "1 scores of 2 that are NaN"),
        (lambda images: torch.tensor([float("inf")] * 2), "2 scores of 2"),
        (lambda images: torch.tensor([0.0, -3e38]), r"scores up to 3e\+38; beyond 1e\+18"),
        (lambda images: torch.tensor([0.0, 1e300], dtype=torch.float64), r"scores up to 1e\+300"),
        (lambda images: torch.tensor([1j, 2j]), "returned complex numbers"),
        (lambda images: sys.exit(0), r"reward 'x' ended the program: sys.exit\(0\)"),
    ],
)
def test_every_bad_answer_is_named(answer, message):
    started = time.monotonic()
    with pytest.raises(RunFailed, match=message):
        Scorer("x", Answer(answer), timeout=0.2)(torch.rand(2, 3, 4, 4), ["a", "b"])
    assert time.monotonic() - started < 10


def test_what_a_reward_does_to_its_pictures_stays_with_it():
    """In-place normalisation would change what the next reward, the grid and the base model's rows are made of."""
    images, kept = torch.rand(2, 3, 4, 4), []
    given = images.clone()
    Scorer("x", Answer(lambda pictures: pictures.sub_(0.5).sum((1, 2, 3))))(images, ["a", "b"])
    Scorer("y", Answer(lambda pictures: kept.append(pictures.clone()) or torch.zeros(2)))(images, ["a", "b"])
    assert torch.equal(images, given) and torch.equal(kept[0], given)


def test_a_bad_answer_is_not_remembered():
    answers = iter([torch.tensor([float("nan")]), torch.tensor([3.0])])
    scorer = Scorer("x", Answer(lambda images: next(answers)))
    image = torch.rand(1, 3, 4, 4)
    with pytest.raises(RunFailed):
        scorer(image, ["a"])
    assert scorer(image, ["a"]).tolist() == [3.0]


def test_a_deadline_interrupts_and_leaves_the_signal_handler_as_it_was():
    before = signal.getsignal(signal.SIGALRM)
    assert Deadline(5)(lambda: 7) == 7
    with pytest.raises(DeadlinePassed, match=r"0\.05 s"):
        Deadline(0.05)(lambda: time.sleep(5))
    assert signal.getsignal(signal.SIGALRM) == before


def test_in_a_thread_a_late_answer_is_refused_when_it_comes():
    found = []

    def work():
        try:
            Deadline(0.05)(lambda: time.sleep(0.1))
        except DeadlinePassed as error:
            found.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["no answer within 0.05 s"]
    assert Deadline(0)(lambda: 5) == 5


@pytest.mark.parametrize("kind", ["raises", "hangs"])
def test_a_run_that_its_reward_ended_is_recorded_and_resumes(tiny_pipe, tmp_path, monkeypatch, kind):
    few = tmp_path / "few.txt"
    few.write_text("cat\ndog\n")
    settings = {"sample.prompts": str(few), "eval.train": str(few), "eval.steps": "1", "schedule.steps": 2}
    resolved = make_resolved(tiny_pipe, "ddpo", **settings)
    healthy = JpegIncompressibility.__call__
    calls = []

    def ill(self, images, prompts):
        calls.append(len(prompts))
        if len(calls) == 2:
            if kind == "raises":
                raise OSError("disk gone")
            time.sleep(60)
        return healthy(self, images, prompts)

    monkeypatch.setattr(JpegIncompressibility, "__call__", ill)
    run = RunFolder(tmp_path / "out" / "runs" / resolved.run_id)
    with pytest.raises(RunFailed, match="disk gone" if kind == "raises" else "no answer within 2 s"):
        run_job(resolved, Runtime(out=tmp_path / "out", device="cpu", reward_timeout=2))
    assert run.state == "failed"
    assert "jpeg-incompressibility" in run.status["message"]
    assert [row["epoch"] for row in run.log()] == [1]
    monkeypatch.setattr(JpegIncompressibility, "__call__", healthy)
    outcome = run_job(resolved, Runtime(out=tmp_path / "out", device="cpu"))
    assert run.state == "done"
    assert [row["epoch"] for row in outcome.run.log()] == [1, 2]


def test_a_method_that_ends_the_program_has_not_succeeded(tiny_pipe, tmp_path, monkeypatch):
    few = tmp_path / "few.txt"
    few.write_text("cat\ndog\n")
    settings = {"sample.prompts": str(few), "eval.train": str(few), "eval.steps": "1", "schedule.steps": 2}
    resolved = make_resolved(tiny_pipe, "ddpo", **settings)
    monkeypatch.setattr(DDPO, "loss", lambda self, batch: sys.exit(0))
    with pytest.raises(RunFailed, match=r"method 'DDPO': loss\(\) ended the program: sys.exit\(0\)"):
        run_job(resolved, Runtime(out=tmp_path / "out", device="cpu"))
    run = RunFolder(tmp_path / "out" / "runs" / resolved.run_id)
    assert run.state == "failed" and "sys.exit(0)" in run.status["message"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda loss: loss["value"], r"method 'DDPO': loss\(\) raised TypeError: 'Loss' object is not subscriptable"),
        (lambda loss: float(loss.value), r"method 'DDPO': loss\(\) gave float"),
        (lambda loss: replace(loss, value=loss.value.repeat(2)), r"its loss has shape \(2,\)"),
        (lambda loss: replace(loss, value=loss.value.detach()), "its loss has no gradient"),
        (lambda loss: replace(loss, value=loss.value * 1j), "its loss has complex numbers"),
        (lambda loss: replace(loss, metrics={"a": torch.tensor(1j)}), "its metric 'a' is Tensor; expected a finite"),
        (lambda loss: replace(loss, metrics={"epoch": torch.tensor(99.0)}), "'epoch' is the log's own name"),
    ],
)
def test_what_is_no_loss_is_said_to_be_the_methods(tiny_pipe, tmp_path, monkeypatch, answer, message):
    few = tmp_path / "few.txt"
    few.write_text("cat\ndog\n")
    settings = {"sample.prompts": str(few), "eval.train": str(few), "eval.steps": "1", "schedule.steps": 2}
    loss = DDPO.loss
    monkeypatch.setattr(DDPO, "loss", lambda self, batch: answer(loss(self, batch)))
    with pytest.raises(RunFailed, match=message + ".*sdpo-bench doctor --plugin"):
        run_job(make_resolved(tiny_pipe, "ddpo", **settings), Runtime(out=tmp_path / "out", device="cpu"))


@pytest.mark.parametrize("key", ["advantages", "log_probs"])
def test_a_loss_that_changes_its_minibatch_is_said_to(tiny_pipe, tmp_path, monkeypatch, key):
    few = tmp_path / "few.txt"
    few.write_text("cat\ndog\n")
    settings = {"sample.prompts": str(few), "eval.train": str(few), "eval.steps": "1", "schedule.steps": 2}
    loss = DDPO.loss
    monkeypatch.setattr(DDPO, "loss", lambda self, batch: (loss(self, batch), getattr(batch, key).mul_(2))[0])
    with pytest.raises(RunFailed, match=rf"method 'DDPO': loss\(\) changes the minibatch in place \({key}\)"):
        run_job(make_resolved(tiny_pipe, "ddpo", **settings), Runtime(out=tmp_path / "out", device="cpu"))


def test_a_plain_number_is_a_metric_too(tiny_pipe, tmp_path, monkeypatch):
    few = tmp_path / "few.txt"
    few.write_text("cat\ndog\n")
    settings = {"sample.prompts": str(few), "eval.train": str(few), "eval.steps": "1", "schedule.steps": 2}
    loss = DDPO.loss
    monkeypatch.setattr(DDPO, "loss", lambda self, batch: replace(loss(self, batch), metrics={"mine": 0.25}))
    outcome = run_job(make_resolved(tiny_pipe, "ddpo", **settings), Runtime(out=tmp_path / "out", device="cpu"))
    assert [row["mine"] for row in outcome.run.log()] == [0.25, 0.25]
