"""Evaluation rows by hand: base against tuned, which rows are meant, which are missing, and who samples what."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from report_factory import frame

from sdpo_bench.config.sampler_id import sampler_id
from sdpo_bench.evaluation.evaluate import (
    Block,
    Subject,
    _add,
    _missing_in_block,
    evaluate,
    evaluation_schedule,
    my_batches,
    of_versions,
    sample_images,
    select,
)
from sdpo_bench.evaluation.score_rows import empty_rows, read_rows, step_table
from sdpo_bench.rewards.jpeg_incompressibility import JpegIncompressibility
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.scoring.make_scorers import make_scorer
from sdpo_bench.settings import EvaluationSettings


@pytest.fixture
def settings(tmp_path):
    """Cats and dogs to train on, bees unseen; two images of each at 1 and 4 steps."""
    (tmp_path / "train.txt").write_text("cat\ndog\n")
    (tmp_path / "unseen.txt").write_text("bee\n")
    files = {"train": str(tmp_path / "train.txt"), "unseen": str(tmp_path / "unseen.txt"), "validation": ""}
    return EvaluationSettings(steps=(1, 4), images_per_prompt=2, **files)


def rows_of(scores, **options):
    who = {"run": "r", "method": "sdpo", "seed": 0, "prompts": ("cat", "dog"), "steps": (1, 4)}
    return frame(scores, **who | {"reward": "good", "version": "1"} | options)


def scorer(name, version="1"):
    return SimpleNamespace(name=name, reward=SimpleNamespace(full_version=version))


def test_base_against_tuned_is_paired_over_images():
    """At 1 step the differences are 1, 2, 3, 6: mean 3, sample variance 14 / 3, over four images."""
    base = np.array([[[10.0, 20.0], [0, 0]], [[30.0, 40.0], [0, 0]]])
    gains = np.array([[[1.0, 2.0], [-1, -1]], [[3.0, 6.0], [-1, -1]]])
    tuned = rows_of(base + gains).sample(frac=1, random_state=0)
    first, second = step_table(rows_of(base), tuned)
    assert (first["steps"], first["images"], first["base"], first["tuned"]) == (1, 4, 25, 28)
    assert (first["difference"], first["standard_error"]) == (3, pytest.approx((14 / 3 / 4) ** 0.5))
    assert (second["steps"], second["difference"], second["standard_error"]) == (4, -1, 0)


def test_only_rows_that_both_have_are_compared():
    base = rows_of(np.zeros((2, 2, 3)))
    (row,) = step_table(base, rows_of(np.array([[[5.0]], [[7.0]]]), steps=(4,)))
    assert (row["steps"], row["images"], row["difference"]) == (4, 2, 6)
    (alone,) = step_table(base, rows_of(np.array([[[5.0]]]), prompts=("cat",), steps=(4,)))
    assert alone["images"] == 1 and np.isnan(alone["standard_error"])
    assert step_table(base, rows_of(np.zeros((2, 2, 3)), version="2")) == []


def test_rows_of_other_settings_are_left_out(settings):
    sampler = sampler_id(settings)
    mine = rows_of(np.zeros((2, 2, 3)), sampler=sampler)  # three images, of which two are meant
    found = select(mine, settings, ["good"])
    assert len(found) == 2 * 2 * 2 and set(found.image) == {0, 1}
    others = (
        {"sampler": "another"},
        {"reward": "better"},
        {"steps": (2, 8)},
        {"prompts": ("bee", "ant")},
        {"split": "unseen"},
        {"split": "validation"},
    )
    for other in others:
        assert select(rows_of(np.zeros((2, 2, 2)), **{"sampler": sampler} | other), settings, ["good"]).empty, other
    assert of_versions(mine, [scorer("good", "2"), scorer("better", "1")]).empty
    assert len(of_versions(mine, [scorer("good")])) == len(mine)


def test_what_is_missing_is_told_by_version_step_count_split_and_image(settings):
    sampler = sampler_id(settings)
    block = Block("train", ("cat", "dog"), 4, calls=16)
    whole = rows_of(np.zeros((2, 2, 2)), sampler=sampler)
    good, newer, other = scorer("good"), scorer("good", "2"), scorer("better")
    assert _missing_in_block(whole, settings, [good, newer, other], block) == [newer, other]
    lacking = (
        rows_of(np.zeros((2, 2, 1)), sampler=sampler),
        rows_of(np.zeros((1, 2, 2)), sampler=sampler, prompts=("cat",)),
        rows_of(np.zeros((2, 1, 2)), sampler=sampler, steps=(1,)),
        rows_of(np.zeros((2, 2, 2)), sampler="another"),
        rows_of(np.zeros((2, 2, 2)), sampler=sampler, split="unseen"),
        whole.drop(index=whole.index[-1]),
    )
    for rows in lacking:
        assert _missing_in_block(rows, settings, [good], block) == [good]


@pytest.mark.parametrize(("count", "sizes"), [(1, [3, 3, 1]), (2, [3, 1, 3]), (3, [3, 3, 1]), (8, [1] * 7)])
def test_every_picture_is_one_process_s(count, sizes):
    pairs = [("cat", i) for i in range(7)]
    parts = [my_batches(pairs, 3, SimpleNamespace(rank=rank, count=count)) for rank in range(count)]
    assert [len(batch) for part in parts for batch in part] == sizes
    assert sorted(pair for part in parts for batch in part for pair in batch) == pairs


def test_noise_is_named_by_prompt_number_and_bank_alone(tiny_policy):
    """Every method meets it: not by place, neighbours or batch."""
    draw = lambda pairs, **options: sample_images(  # noqa: E731
        tiny_policy, evaluation_schedule(tiny_policy, EvaluationSettings(), 2), EvaluationSettings(**options), pairs, 2
    )
    pairs = [("cat", 0), ("dog", 0), ("cat", 1)]
    images = draw(pairs)
    assert torch.allclose(draw(pairs[::-1]), images.flip(0), atol=1e-4)
    assert not torch.allclose(images[0], images[2], atol=1e-2)
    for options in ({"noise_bank": 1}, {"image": "predicted"}):
        assert not torch.allclose(draw(pairs, **options), images, atol=1e-3), options


def test_judging_asks_for_what_is_missing_with_its_own_guidance_and_returns_what_was_asked_for(
    tiny_policy, settings, tmp_path, monkeypatch
):
    """Rows of an earlier version of the reward stay in the file and out of the table."""
    settings = replace(settings, guidance_scale=2.0)
    run, subject, seen = RunFolder(tmp_path / "run"), Subject("run", "sdpo", 0), []
    run.path.mkdir()
    predict = type(tiny_policy).predict
    monkeypatch.setattr(
        type(tiny_policy), "predict", lambda self, *a: (seen.append(self.guidance_scale), predict(self, *a))[1]
    )
    tiny_policy.set_guidance(3.0)
    judge = make_scorer("jpeg-incompressibility", {}, "cpu")
    first = evaluate(tiny_policy, settings, [judge], run, subject)
    assert len(first) == 3 * 2 * 2 and set(seen) == {2.0} and tiny_policy.guidance_scale == 3.0
    seen.clear()
    monkeypatch.setattr(JpegIncompressibility, "version", "2")
    second = evaluate(tiny_policy, settings, [judge], run, subject)
    assert set(second.version) == {"2"} and len(second) == len(first) and seen
    assert len(read_rows(run)) == 2 * len(first)
    seen.clear()
    assert evaluate(tiny_policy, settings, [judge], run, subject).equals(second) and not seen


def test_rows_that_are_made_again_replace_those_that_were_there(settings):
    block = rows_of(np.ones((2, 1, 2)), steps=(4,))
    subject = Subject("r", "sdpo", 0)
    known = _add(empty_rows(), block.assign(score=5.0), subject, settings, Block("train", ("cat", "dog"), 4, calls=16))
    again = _add(known, block[:1], subject, settings, Block("train", ("cat", "dog"), 4, calls=16))
    assert again.score.tolist() == [1, 5, 5, 5]
    assert (
        _add(again, block, subject, settings, Block("unseen", ("bee",), 4, calls=8)).split.tolist()
        == ["train"] * 4 + ["unseen"] * 4
    )
