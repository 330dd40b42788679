"""A hub repository whose weights change: an adapter and a base model's scores are never mixed with others' numbers."""

import shutil

import pytest

from factories import make_resolved
from sdpo_bench.errors import UsageError
from sdpo_bench.running.finished_run import load_tuned, open_finished_run
from sdpo_bench.running.run_one import run_job
from sdpo_bench.settings import Runtime

OLD, NEW = "a" * 40, "b" * 40
NAME = "someone/tiny"


@pytest.fixture
def publish(tiny_pipe, tmp_path, monkeypatch):
    """A function: make a commit the newest one of a repository in the hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--tiny"

    def newest(commit):
        shutil.copytree(tiny_pipe, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)

    return newest


def do(tmp_path, **changes):
    prompts = tmp_path / "two.txt"
    prompts.write_text("cat\ndog\n")
    sets = {"sample.prompts": str(prompts), "eval.train": str(prompts), "eval.steps": 1, "budget.images": 8}
    return run_job(make_resolved(NAME, "ddpo", **sets | changes), Runtime(out=tmp_path / "out", device="cpu"))


def test_nothing_is_added_with_the_weights_of_another_commit(publish, tmp_path):
    publish(OLD)
    made = do(tmp_path).run
    assert made.record()["model_commit"] == OLD
    publish(NEW)
    assert not do(tmp_path).trained_now, "nothing is missing, so it is shown"
    said = f"'{made.run_id}' .* commit {OLD}.*{NEW}.*model.revision={OLD}"
    for again in (lambda: do(tmp_path, **{"eval.steps": "1,2"}), lambda: load_tuned(open_finished_run(made), "cpu")):
        with pytest.raises(UsageError, match=said):
            again()
    shutil.rmtree(made.lora)
    with pytest.raises(UsageError, match=said):
        do(tmp_path)


def test_base_scores_of_another_commit_are_not_added_to(publish, tmp_path):
    """Another seed is another run, beside the same base model's folder."""
    publish(OLD)
    do(tmp_path)
    publish(NEW)
    with pytest.raises(UsageError, match=f"'base-.*' .* commit {OLD}.*{NEW}"):
        do(tmp_path, seed=1)
