"""The train split holds prompts of training and the unseen split none of them; a run, a plan and eval say if not."""

import json

import pytest
from finished_run import call, words_of

from sdpo_bench.config.split_prompts import split_warning
from sdpo_bench.settings import EvaluationSettings

SETS = {"abc": ["cat", "dog", "bee"], "ab": ["cat", "dog"], "cd": ["bee", "cow"], "e": ["fox"]}


@pytest.fixture
def sets(tmp_path):
    """Paths of the prompt sets by name."""
    for name, prompts in SETS.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(prompts))
    return {name: str(tmp_path / f"{name}.txt") for name in SETS}


@pytest.mark.parametrize(
    ("train", "unseen", "said"),
    [
        ("abc", "e", []),
        ("ab", "", []),
        ("", "e", []),
        ("cd", "", ["1 of 2 prompts of eval.train", "e.g. 'cow'", "eval.train={abc}"]),
        ("abc", "cd", ["1 of 2 prompts of eval.unseen", "e.g. 'bee'", "eval.unseen="]),
        ("e", "ab", ["1 of 1 prompts of eval.train", "2 of 2 prompts of eval.unseen"]),
    ],
)
def test_splits_that_are_not_what_they_are_called_are_named(sets, train, unseen, said):
    text = split_warning(sets["abc"], EvaluationSettings(train=sets.get(train, ""), unseen=sets.get(unseen, "")))
    assert bool(text) == bool(said)
    for words in said:
        assert words.format(**sets) in text


def test_a_plan_a_run_and_eval_say_so(sets, tiny_pipe, tmp_path, capsys):
    """``words_of`` trains on cat and dog."""
    words = words_of(tmp_path, tiny_pipe, "jpeg-compressibility", 4, **{"eval.unseen": sets["abc"]})
    _, shown, _ = call(capsys, *words, "--dry-run", "--json")
    assert "2 of 3 prompts of eval.unseen" in json.loads(shown)["split_warning"]
    _, shown, _ = call(capsys, *words, "--dry-run")
    assert "warning: 2 of 3 prompts of eval.unseen" in shown
    code, shown, _ = call(capsys, *words, "--out", tmp_path / "out")
    assert code == 0 and "warning: before training: 2 of 3 prompts of eval.unseen" in shown
    (run,) = (tmp_path / "out" / "runs").glob("sdpo-*")
    (tmp_path / "two.txt").write_text("changed\n")
    more = ["--unseen", sets["e"], "--set", f"eval.train={sets['abc']}", "--device", "cpu"]
    code, _, said = call(capsys, "eval", run, *more)
    assert code == 0 and "eval.train" not in said  # what the training had is not known any more
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    code, _, said = call(capsys, "eval", run, *more)
    assert code == 0 and "warning: 1 of 3 prompts of eval.train" in said
