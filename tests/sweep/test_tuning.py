"""The choice among tuning runs by hand: whose score counts, over what it is a mean, and which of equals is taken."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from report_factory import frame

from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.sweep.tuning import Candidate, Choice, make_choice, tuning_score

GROUP = ("sdpo", "good", "model", "")
ASKED = SimpleNamespace(settings=SimpleNamespace(by="train", steps=(1, 4), images_per_prompt=2))


def choice_of(*scores, states=()):
    """Candidates named by their place, done unless said otherwise."""
    named = [
        Candidate(str(i), {"place": i}, state, score)
        for i, (score, state) in enumerate(zip(scores, states or ["done"] * len(scores)))
    ]
    return Choice(GROUP, tuple(named), {})


@pytest.mark.parametrize(
    ("scores", "place"),
    [((0.2, 0.7, 0.3), 1), ((0.5, 0.7, 0.7), 1), ((-5.0, -2.0, -9.0), 1), ((-1.0, 0.0, -2.0), 1), ((None, -3.0), 1)],
)
def test_the_highest_score_is_chosen_and_the_first_of_equals(scores, place):
    assert choice_of(*scores).chosen.settings == {"place": place}


def test_nothing_is_chosen_before_all_have_ended():
    assert choice_of(0.5, None, states=("done", "running")).chosen is None
    assert choice_of(0.5, None, states=("done", "new")).chosen is None
    assert choice_of(0.5, None, states=("done", "failed")).chosen.settings == {"place": 0}
    assert choice_of(None, None, states=("failed", "failed")).chosen is None


def scores_of(cells, reward="good", steps=(1, 2, 4), **options):
    who = {"run": "tuning", "method": "sdpo", "seed": 9, "prompts": ("bee", "cat"), "steps": steps}
    return frame(cells, **who, reward=reward, **options)


def folder_with(path, *frames, state="done"):
    folder = RunFolder(path)
    folder.path.mkdir(parents=True)
    folder.set_status(state)
    pd.concat(frames).to_parquet(folder.evaluation, index=False)
    return folder


def test_a_score_is_the_mean_over_the_step_counts_and_images_that_the_search_asks_for(tmp_path):
    """Prompts 0 and 10, step counts 1, 2, 4, images 0, 1, 2 in units, hundreds and thousands."""
    cells = np.array([0, 10])[:, None, None] + np.array([100, 200, 400])[None, :, None] + np.arange(3) * 1000.0
    others = [scores_of(cells * 0 + 9e9, "a-better-one"), scores_of(cells * 0 + 9e9, split="unseen")]
    folder = folder_with(tmp_path / "a", scores_of(cells), *others)
    assert tuning_score(folder, "good", ASKED) == 5 + 250 + 500
    outside, inside = cells.copy(), cells.copy()
    outside[0, 1, 2], inside[0, 2, 1] = np.nan, np.nan
    assert tuning_score(folder_with(tmp_path / "b", scores_of(outside)), "good", ASKED) == 5 + 250 + 500
    assert tuning_score(folder_with(tmp_path / "c", scores_of(inside)), "good", ASKED) is None
    assert tuning_score(folder_with(tmp_path / "d", scores_of(cells[:, :2], steps=(1, 2))), "good", ASKED) is None
    assert tuning_score(folder_with(tmp_path / "e", scores_of(cells[:, :, :1])), "good", ASKED) is None


def test_scores_of_a_run_that_is_not_done_do_not_count_and_its_cost_does(tmp_path):
    runs = []
    for state, level, images in (("done", 1.0, 64), ("failed", 9.0, 32), ("done", 2.0, 64)):
        folder = folder_with(tmp_path / str(len(runs)), scores_of(np.full((2, 3, 2), level)), state=state)
        (folder.path / "train.jsonl").write_text(json.dumps({"epoch": 1, "bill": {"images": images}}) + "\n")
        runs.append((folder, {"place": len(runs)}))
    found = make_choice(GROUP, runs, "good", ASKED)
    assert [candidate.score for candidate in found.candidates] == [1.0, None, 2.0]
    assert (found.chosen.settings, found.cost["images"]) == ({"place": 2}, 160)
