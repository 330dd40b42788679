"""Whatever a plugin does to the process, the run goes on in the folder and with the numbers it began with."""

import os
import sys
from pathlib import Path

import pytest
import torch

from factories import make_method, make_resolved
from sdpo_bench.api import NoSettings, Reward
from sdpo_bench.evaluation.evaluate import evaluation_schedule
from sdpo_bench.evaluation.inference_search import Candidates
from sdpo_bench.methods.best_of_n import BestOfN
from sdpo_bench.methods.ddpo import DDPO
from sdpo_bench.plugins.registry import Plugin
from sdpo_bench.rewards.jpeg_incompressibility import JpegIncompressibility
from sdpo_bench.running.run_one import run_job
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.scoring.make_scorers import make_scorer
from sdpo_bench.scoring.scorer import Scorer
from sdpo_bench.settings import EvaluationSettings, Runtime
from sdpo_bench.system.plugin_guard import ProcessState, preserve_process_state
from sdpo_bench.training.critic import seeded_critic

CHANGES = {
    "working_folder": lambda: os.chdir("/"),
    "default_dtype": lambda: torch.set_default_dtype(torch.float64),
    "default_device": lambda: torch.set_default_device("meta"),
    "gradients": lambda: torch.set_grad_enabled(False),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "matmul_precision": lambda: torch.set_float32_matmul_precision("medium"),
    "autocast": lambda: torch.autocast("cpu", torch.float16).__enter__(),
}


class Meddling(Reward):
    """Changes the process and scores."""

    version = source = "1"

    def __init__(self, change):
        super().__init__(NoSettings())
        self.change = change

    def load(self):
        self.change()

    def __call__(self, images, prompts):
        self.change()
        return torch.ones(len(images), dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_and_put_back(name):
    before = ProcessState.now()
    with preserve_process_state():
        CHANGES[name]()
        assert before.changes(ProcessState.now())[:1] == [name]
    assert ProcessState.now() == before


@pytest.mark.parametrize("name", CHANGES)
def test_it_is_put_back_after_a_reward_has_been_asked(name):
    before = ProcessState.now()
    scorer = Scorer("x", Meddling(CHANGES[name]))
    scorer.load()
    assert ProcessState.now() == before
    scorer(torch.rand(2, 3, 4, 4), ["a", "b"])
    assert ProcessState.now() == before


@pytest.mark.parametrize("name", CHANGES)
def test_it_is_put_back_after_a_method_has_made_its_critic(name, tiny_policy, monkeypatch):
    before = ProcessState.now()
    monkeypatch.setattr(DDPO, "critic", lambda self, shape, steps: [CHANGES[name](), None][1])
    seeded_critic(make_method("ddpo"), tiny_policy, 2, 0)
    assert ProcessState.now() == before


@pytest.mark.parametrize("name", CHANGES)
def test_it_is_put_back_after_a_search_has_proposed(name, tiny_policy, monkeypatch):
    def propose(self, best, fresh):
        CHANGES[name]()
        return fresh

    before = ProcessState.now()
    monkeypatch.setattr(BestOfN, "propose", propose)
    search = Candidates(make_method("best_of_n", n=2), make_scorer("jpeg-incompressibility", {}, "cpu"), 0)
    settings = EvaluationSettings(steps=(2,))
    search.sample(tiny_policy, evaluation_schedule(tiny_policy, settings, 2), settings, [("cat", 0)], 64)
    assert ProcessState.now() == before


def test_putting_back_needs_no_torch(monkeypatch):
    """Lists and reports ask plugins for a line; they would wait seconds for torch."""
    monkeypatch.delitem(sys.modules, "torch")
    here = os.getcwd()
    with preserve_process_state():
        os.chdir("/")
    assert os.getcwd() == here and "torch" not in sys.modules


def test_it_is_put_back_after_an_error():
    before = ProcessState.now()
    with pytest.raises(KeyError), preserve_process_state():
        CHANGES["default_dtype"]()
        raise KeyError
    assert ProcessState.now() == before


def test_autocast_forgets_what_it_had_cast():
    """Or weights would be those of before the last update: its cache is emptied where the outermost context ends."""
    with preserve_process_state():
        torch.autocast("cpu", torch.float16).__enter__()
        torch.autocast("cpu", torch.bfloat16).__enter__()
    assert torch.autocast_increment_nesting() == 1
    assert torch.autocast_decrement_nesting() == 0


def test_contexts_around_the_block_stay_as_they_are():
    with torch.autocast("cpu", torch.float16):
        with preserve_process_state():
            torch.set_autocast_enabled("cpu", False)
        assert torch.is_autocast_enabled("cpu") and torch.autocast_increment_nesting() == 2
        torch.autocast_decrement_nesting()


def test_a_folder_that_was_deleted_meanwhile_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with preserve_process_state():
        os.chdir(tmp_path)
        (tmp_path / "here").rmdir()
    assert os.getcwd() == str(tmp_path)


def test_torch_imported_in_between_is_as_after_its_import(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    with preserve_process_state():
        monkeypatch.setitem(sys.modules, "torch", torch)
        torch.set_default_dtype(torch.float64)
    assert torch.get_default_dtype() == torch.float32


def test_importing_a_plugin_leaves_the_process_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "meddler.py").write_text(
        "import os, torch\nos.chdir('/')\ntorch.set_default_dtype(torch.float64)\n"
        "from sdpo_bench.methods.ddpo import DDPO\nclass Meddler(DDPO): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = ProcessState.now()
    Plugin("meddler", "methods", "someone", "meddler", "Meddler", "A summary.", None).load()
    assert ProcessState.now() == before


def test_a_run_whose_plugins_meddle_has_the_numbers_of_one_whose_do_not(tiny_pipe, tmp_path, monkeypatch):
    """In particular, results go to the relative folder they were asked for."""
    few = tmp_path / "few.txt"
    few.write_text("cat\ndog\n")
    settings = {"sample.prompts": str(few), "eval.train": str(few), "eval.steps": "1", "schedule.steps": 2}
    resolved = make_resolved(tiny_pipe, "ddpo", **settings)
    monkeypatch.chdir(tmp_path)
    logs = []
    for out in ("calm", "meddled"):
        run_job(resolved, Runtime(out=Path(out), device="cpu"))
        logs.append((tmp_path / out / "runs" / resolved.run_id / "train.jsonl").read_bytes())
        _meddle(monkeypatch)
    assert logs[0] == logs[1]
    assert RunFolder(tmp_path / "meddled" / "runs" / resolved.run_id).state == "done"


def _meddle(monkeypatch):
    score, loss = JpegIncompressibility.__call__, DDPO.loss

    def scored(self, images, prompts):
        answer = score(self, images, prompts)
        os.chdir("/")
        torch.set_default_dtype(torch.float64)
        return answer

    def lost(self, batch):
        answer = loss(self, batch)
        os.chdir("/")
        torch.set_grad_enabled(False)
        return answer

    monkeypatch.setattr(JpegIncompressibility, "__call__", scored)
    monkeypatch.setattr(DDPO, "loss", lost)
