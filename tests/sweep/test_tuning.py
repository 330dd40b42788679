"""The choice among tuning runs by hand: whose score counts, over what it is a mean, and which of equals is taken."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from report_factory import SAMPLER, frame

from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.config.run_id import training_id, versions_of
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.sweep import asked_scores
from sdpo_bench.sweep.asked_scores import AskedScores
from sdpo_bench.sweep.search import Requirement, Round, Search, SearchSettings
from sdpo_bench.sweep.suite import Group
from sdpo_bench.sweep.tuning import TuningRun, edge_of_values, read_tuning_run, search_settings, tuning_score

GROUP = Group("sdpo", "good", "model", "")
BY_REWARD = SimpleNamespace(settings=SimpleNamespace(by="reward"), require=None)
ASKED = AskedScores(SAMPLER, {"train": ("bee", "cat")}, (1, 4), (0, 1), "good")
PLACES = "method.clip_range"


def search_of(values, *rounds, extend=()):
    """A search over one setting, with one round unless more are given."""
    settings = SearchSettings(steps=(1,), extend=extend)
    return Search(settings, rounds or (Round((9,), {}, None),), {PLACES: tuple(values)}, {})


def choose(scores, search=None, states=None):
    """The choice where the run of each value (and seed, where the key has one) scores as said."""
    search = search or search_of(range(len(scores)))
    scores = dict(enumerate(scores)) if isinstance(scores, list | tuple) else scores
    asked = []

    def run_of(settings, one, seed):
        value = settings[PLACES]
        asked.append((value, seed, dict(one.budget)))
        score = scores.get((value, seed), scores.get(value))
        state = (states or {}).get(value, "done" if score is not None else "failed")
        return TuningRun(
            f"{value}-{seed}-{dict(one.budget)}", state, score if state == "done" else None, {"images": 64}
        )

    return search_settings(GROUP, search, run_of), asked


@pytest.mark.parametrize(
    ("scores", "place"),
    [((0.2, 0.7, 0.3), 1), ((0.5, 0.7, 0.7), 1), ((-5.0, -2.0, -9.0), 1), ((-1.0, 0.0, -2.0), 1), ((None, -3.0), 1)],
)
def test_the_highest_score_is_chosen_and_the_first_of_equals(scores, place):
    assert choose(scores)[0].chosen.settings == {PLACES: place}


def test_nothing_is_chosen_before_all_have_ended():
    assert choose((0.5, 0.1), states={1: "running"})[0].chosen is None
    assert not choose((0.5, 0.1), states={1: "new"})[0].settled
    assert choose((0.5, None))[0].chosen.settings == {PLACES: 0}
    all_failed = choose((None, None))[0]
    assert (all_failed.settled, all_failed.chosen) == (True, None)


HALVING = (Round((9,), {"images": 1}, None), Round((9, 10), {"images": 1}, 2), Round((9,), {"images": 5}, 1))


def test_the_best_of_a_round_go_on_with_more_seeds_and_a_larger_budget():
    """By hand: 3 and 2 lead with seed 9; over seeds 9 and 10 they have (8 + 1) / 2 and (7 + 4) / 2, so 2 wins."""
    scores = {0: 1.0, 1: 5.0, 2: 7.0, 3: 8.0, (3, 10): 1.0, (2, 10): 4.0}
    choice, asked = choose(scores, search_of(range(4), *HALVING))
    small, large = {"images": 1}, {"images": 5}
    first = [(place, 9, small) for place in range(4)]
    second = [(3, 9, small), (3, 10, small), (2, 9, small), (2, 10, small)]
    assert asked == [*first, *second, (2, 9, large)]
    assert choice.chosen.settings == {PLACES: 2}
    assert [len(candidate.rounds) for candidate in choice.candidates] == [1, 1, 3, 2]
    assert choice.candidates[3].score == 4.5
    assert choice.cost["images"] == 64 * 7, "a run that serves two rounds is paid for once"


def test_a_later_round_waits_for_the_whole_round_before():
    choice, asked = choose({0: 1.0, 1: 5.0, 2: 2.0}, search_of(range(3), *HALVING), states={2: "running"})
    assert {seed for _, seed, _ in asked} == {9} and len(asked) == 3
    assert not choice.settled


def test_a_candidate_with_one_failed_seed_is_out():
    scores = {0: 1.0, 1: 5.0, 2: 7.0, (2, 10): None}
    choice, _ = choose(scores, search_of(range(3), *HALVING))
    assert choice.chosen.settings == {PLACES: 1}
    assert choice.candidates[2].state == "failed"


@pytest.mark.parametrize(
    ("rule", "tried", "chosen", "on_edge"),
    [
        (lambda x: -abs(x - 2), [1.0, 2.0, 4.0], 2.0, ()),
        (lambda x: -abs(x - 8), [1.0, 2.0, 4.0, 8.0, 16.0], 8.0, ()),
        (lambda x: -abs(x - 0.5), [0.25, 0.5, 1.0, 2.0, 4.0], 0.5, ()),
        (lambda x: x, [1.0, 2.0, 4.0, 8.0, 16.0], 16.0, (PLACES,)),
    ],
)
def test_a_winner_at_an_end_of_the_list_makes_it_longer_twice_at_most(rule, tried, chosen, on_edge):
    scores = {2.0**power: rule(2.0**power) for power in range(-5, 9)}
    choice, _ = choose(scores, search_of([1.0, 2.0, 4.0], extend=(PLACES,)))
    assert sorted(candidate.settings[PLACES] for candidate in choice.candidates) == tried
    assert (choice.chosen.settings[PLACES], choice.on_edge) == (chosen, on_edge)


LR, CLIP, ORDER, FLAG = "update.lr", PLACES, "update.order", "update.shuffle"
TRIED = [
    {LR: lr, CLIP: clip, ORDER: order, FLAG: flag}
    for lr in (1e-3, 2e-3, 4e-3)
    for clip in (1e-3, 1e-2)
    for order in ("a", "b")
    for flag in (False, True)
]


@pytest.mark.parametrize(
    ("chosen", "extend", "keys"),
    [
        ({LR: 2e-3, CLIP: 1e-2, ORDER: "a", FLAG: True}, (), (CLIP,)),
        ({LR: 1e-3, CLIP: 1e-3, ORDER: "b", FLAG: False}, (), (LR, CLIP)),
        ({LR: 4e-3, CLIP: 1e-3, ORDER: "b", FLAG: False}, (LR,), (CLIP,)),
        ({}, (), ()),
    ],
)
def test_a_chosen_number_at_an_edge_of_a_list_that_does_not_grow_is_named(chosen, extend, keys):
    """Of two values one always is; words and switches have no order, and of one value there is no choice."""
    assert edge_of_values(TRIED, chosen, extend) == keys
    single = [{**one, CLIP: 1e-3} for one in TRIED]
    assert CLIP not in edge_of_values(single, {**chosen, CLIP: 1e-3} if chosen else {}, extend)


def scores_of(cells, reward="good", steps=(1, 2, 4), **options):
    who = {"run": "tuning", "method": "sdpo", "seed": 9, "prompts": ("bee", "cat"), "steps": steps}
    return frame(cells, **who | options, reward=reward)


def folder_with(path, *frames, **settings):
    """A tuning run."""
    folder = RunFolder(path)
    folder.create(resolve(Request("sdpo", "emoji-align", "emoji-turbo", overrides=settings)).record)
    pd.concat(frames).to_parquet(folder.evaluation, index=False)
    return folder


def test_a_score_is_the_mean_over_the_step_counts_and_images_that_the_search_asks_for(tmp_path):
    """Prompts 0 and 10, step counts 1, 2, 4, images 0, 1, 2 in units, hundreds and thousands."""
    cells = np.array([0, 10])[:, None, None] + np.array([100, 200, 400])[None, :, None] + np.arange(3) * 1000.0
    others = [scores_of(cells * 0 + 9e9, "a-better-one"), scores_of(cells * 0 + 9e9, split="unseen")]
    others += [scores_of(cells * 0 + 9e9, sampler="another"), scores_of(cells[:1] * 0 + 9e9, prompts=("owl",))]
    folder = folder_with(tmp_path / "a", scores_of(cells), *others)
    assert tuning_score(folder, BY_REWARD, ASKED) == 5 + 250 + 500
    outside, inside = cells.copy(), cells.copy()
    outside[0, 1, 2], inside[0, 2, 1] = np.nan, np.nan
    assert tuning_score(folder_with(tmp_path / "b", scores_of(outside)), BY_REWARD, ASKED) == 5 + 250 + 500
    assert tuning_score(folder_with(tmp_path / "c", scores_of(inside)), BY_REWARD, ASKED) is None
    assert tuning_score(folder_with(tmp_path / "d", scores_of(cells[:, :2], steps=(1, 2))), BY_REWARD, ASKED) is None
    assert tuning_score(folder_with(tmp_path / "e", scores_of(cells[:, :, :1])), BY_REWARD, ASKED) is None


def test_scores_of_a_run_that_is_not_done_do_not_count_and_its_cost_does(tmp_path):
    runs = []
    for state, level, images in (("done", 1.0, 64), ("failed", 9.0, 32), ("done", 2.0, 64)):
        folder = folder_with(tmp_path / str(len(runs)), scores_of(np.full((2, 3, 2), level)))
        (folder.path / "train.jsonl").write_text(json.dumps({"epoch": 1, "bill": {"images": images}}) + "\n")
        runs.append(read_tuning_run(folder, state, BY_REWARD, ASKED))
    assert [(run.score, run.bill["images"]) for run in runs] == [(1.0, 64), (None, 32), (2.0, 64)]


def test_the_cost_counts_runs_that_a_longer_list_has_made_idle():
    """2 wins the first time, with a second run of 1 beside it; 4 and 8 then push 1 and 2 out of the second round."""
    scores = {1.0: 1.0, 2.0: 2.0, 4.0: 4.0, 8.0: 3.0}
    rounds = (Round((9,), {"images": 1}, None), Round((9,), {"images": 5}, 2))
    choice, asked = choose(scores, search_of([1.0, 2.0], *rounds, extend=(PLACES,)))
    assert choice.chosen.settings == {PLACES: 4.0}
    assert [len(candidate.rounds) for candidate in choice.candidates] == [1, 1, 2, 2]
    # First round: 1, 2, 4, 8. Second round: 1 and 2, then 2 and 4, then 4 and 8.
    assert choice.cost["images"] == 64 * (4 + 4)
    assert len({(value, images["images"]) for value, _, images in asked}) == 8


@pytest.mark.parametrize(("own", "out"), [(0.79, True), (0.81, False)])
def test_a_run_that_falls_below_the_base_model_by_another_reward_is_out(tmp_path, own, out):
    """The base model's accuracy is .9 in this panel, and .1 may be lost."""
    search = SimpleNamespace(settings=BY_REWARD.settings, require=Requirement("accuracy", 0.1))
    ones = np.ones((2, 3, 2))
    folder = folder_with(tmp_path / "run", scores_of(ones), scores_of(ones * own, "accuracy"))
    for name, facts, level in (("base-a", {"name": "other"}, 0.0), ("base-b", BASE, 0.9)):
        base = folder_with(tmp_path / name, scores_of(ones * level, "accuracy"))
        (base.path / "run.json").write_text(json.dumps({"kind": "base", "config": {"model": facts}}))
    run = read_tuning_run(folder, "done", search, ASKED)
    assert (run.score is None) == out
    assert ("accuracy 0.790 is below 0.800" in run.out) == out


def test_a_required_reward_that_a_service_computes_is_found_under_its_name_there(tmp_path, monkeypatch):
    """Else no candidate has the required scores, and all were trained for nothing."""
    monkeypatch.setattr(asked_scores, "choose", lambda name: SimpleNamespace(make=lambda _: services[name]))
    services = {"remote": SimpleNamespace(filed_as="accuracy")}
    search = SimpleNamespace(settings=BY_REWARD.settings, require=Requirement("remote", 0.1))
    ones = np.ones((2, 3, 2))
    folder = folder_with(tmp_path / "run", scores_of(ones), scores_of(ones * 0.5, "accuracy"))
    base = folder_with(tmp_path / "base-a", scores_of(ones * 0.9, "accuracy"))
    (base.path / "run.json").write_text(json.dumps({"kind": "base", "config": {"model": BASE}}))
    assert read_tuning_run(folder, "done", search, ASKED).out.startswith("remote 0.500 is below 0.800")


BASE = {"name": "emoji-turbo", "revision": None, "precision": "fp32"}


@pytest.mark.parametrize(
    ("facts", "own_digest"),
    [
        (BASE | {"resolution": 64}, ""),
        (BASE | {"text_tokens": 77}, ""),
        (BASE | {"precision": "bf16"}, ""),
        (BASE | {"digest": "before it was edited"}, "as it is now"),
        (BASE, "as it is now"),
    ],
)
def test_a_run_is_held_against_its_own_base_model_alone(tmp_path, facts, own_digest):
    """A record has no key for a resolution or a number of tokens that is the model's own, nor for a digest of a run."""
    search = SimpleNamespace(settings=BY_REWARD.settings, require=Requirement("accuracy", 0.1))
    ones = np.ones((2, 3, 2))
    run = folder_with(tmp_path / "run", scores_of(ones), scores_of(ones * 0.5, "accuracy"))
    record = json.loads((run.path / "run.json").read_text())
    versions = versions_of(record | {"model_digest": own_digest})
    record |= {"model_digest": own_digest, "run": training_id(record["config"], versions)}
    (run.path / "run.json").write_text(json.dumps(record))
    own = BASE | ({"digest": own_digest} if own_digest else {})
    for name, model, level in (("base-a", facts, 0.0), ("base-b", own, 0.9)):
        base = folder_with(tmp_path / name, scores_of(ones * level, "accuracy"))
        (base.path / "run.json").write_text(json.dumps({"kind": "base", "config": {"model": model}}))
    assert read_tuning_run(run, "done", search, ASKED).out.startswith("accuracy 0.500 is below 0.800")


def test_a_run_of_another_resolution_finds_no_base_model_in_that_of_the_models_own(tmp_path):
    search = SimpleNamespace(settings=BY_REWARD.settings, require=Requirement("accuracy", 0.1))
    ones = np.ones((2, 3, 2))
    run = folder_with(tmp_path / "run", scores_of(ones), scores_of(ones, "accuracy"), **{"model.resolution": 64})
    base = folder_with(tmp_path / "base-a", scores_of(ones * 0.0, "accuracy"))
    (base.path / "run.json").write_text(json.dumps({"kind": "base", "config": {"model": BASE}}))
    assert read_tuning_run(run, "done", search, ASKED).out == "the base model has no scores by accuracy"


EASY, HARD = ("ant", "bee"), ("cat", "dog")


@pytest.mark.parametrize(("by", "split"), [("reward", "train"), ("validation", "validation")])
def test_a_run_is_held_against_the_base_model_on_the_prompts_of_the_search_alone(tmp_path, by, split):
    """The base model has .9 on the easy prompts of the search and .1 on hard ones, on which other runs were judged."""
    search = SimpleNamespace(settings=SimpleNamespace(by=by), require=Requirement("accuracy", 0.1))
    asked = replace(ASKED, prompts={split: EASY})

    def judged(level, reward, prompts, **options):
        return scores_of(np.full((2, 3, 2), level), reward, split=split, **options).assign(
            prompt=lambda rows: rows.prompt.map(dict(zip(("bee", "cat"), prompts)))
        )

    base = folder_with(tmp_path / "base-a", judged(0.9, "accuracy", EASY), judged(0.1, "accuracy", HARD))
    (base.path / "run.json").write_text(json.dumps({"kind": "base", "config": {"model": BASE}}))
    found = []
    for i, (easy, hard) in enumerate([(0.6, None), (0.85, None), (0.85, 0.0), (0.6, 5.0)]):
        frames = [judged(easy, "accuracy", EASY), judged(1.0, "good", EASY)]
        if hard is not None:  # judged on other prompts afterwards
            frames += [judged(hard, "accuracy", HARD), judged(9.0, "good", HARD)]
        run = folder_with(tmp_path / f"run-{i}", *frames)
        found.append(read_tuning_run(run, "done", search, asked).score)
    assert found == [None, 1.0, 1.0, None]
