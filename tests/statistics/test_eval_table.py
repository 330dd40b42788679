"""Evaluation files as arrays: every score stays with its prompt, step count, image and seed."""

import numpy as np
import pandas as pd
import pytest
from report_factory import frame

from sdpo_bench.statistics.eval_table import (
    BASE,
    Block,
    PanelKey,
    ScoreGrid,
    at,
    only_seeds,
    only_steps,
    own_part,
    stack,
)
from sdpo_bench.statistics.matrices import Measure
from sdpo_bench.statistics.score_reader import ScoreReader, read_scores

KEY = PanelKey("sampler", "train", "good", "1")


def numbered(*shape):
    return np.arange(np.prod(shape), dtype=float).reshape(shape)


def test_parts_are_picked_by_their_labels_and_not_by_their_places():
    block = Block(numbered(2, 3, 4), ("bee", "cat"), (1, 2, 4), (0, 1, 2, 3))
    part = block.restrict((2, 4), (1, 3))
    assert (part.steps, part.images) == ((2, 4), (1, 3))
    assert part.scores.tolist() == [[[5, 7], [9, 11]], [[17, 19], [21, 23]]]
    grid = ScoreGrid(numbered(3, 1, 3, 1), (3, 5, 7), ("bee",), (1, 2, 4), (0,), "sdpo", Measure())
    assert only_steps(grid, (2, 4)).scores[..., 0].tolist() == [[[1, 2]], [[4, 5]], [[7, 8]]]
    assert at(grid, 4).scores.ravel().tolist() == [2, 5, 8]
    picked = only_seeds(grid, (7, 5))
    assert picked.seeds == (7, 5) and picked.scores[:, 0, 0, 0].tolist() == [6, 3]


def test_a_fixed_model_is_repeated_under_each_seed():
    base = ScoreGrid(numbered(1, 1, 3, 1), (0,), ("bee",), (1, 2, 4), (0,), BASE, Measure())
    assert only_seeds(base, (5, 9)).scores[..., 0].tolist() == [[[0, 1, 2]]] * 2


def test_runs_are_stacked_by_seed():
    blocks = {seed: Block(np.full((1, 1, 1), seed), ("bee",), (1,), (0,)) for seed in (7, 3, 5)}
    found = stack(blocks, KEY, "sdpo")
    assert found.seeds == (3, 5, 7) and found.scores.ravel().tolist() == [3, 5, 7]


@pytest.mark.parametrize("far", [3, 5000], ids=["numbers close together", "numbers far apart"])
def test_labels_are_sorted_with_their_scores_whatever_the_order_in_the_file(tmp_path, far):
    """Prompts in the file's order dog, ant, cat, bee, whose sorting is no mere exchange of pairs; images far, 0, 1."""
    prompts, steps, images = ("dog", "ant", "cat", "bee"), (4, 1), (far, 0, 1)
    scores = numbered(4, 2, 3)
    rows = frame(scores, run="r", method="sdpo", seed=0, prompts=prompts, steps=steps)
    rows["image"] = np.array(images)[rows["image"]]
    rows.to_parquet(tmp_path / "eval.parquet")
    (block,) = read_scores(tmp_path / "eval.parquet").blocks.values()
    assert (block.prompts, block.steps, block.images) == (("ant", "bee", "cat", "dog"), (1, 4), (0, 1, far))
    assert block.scores.tolist() == scores[np.ix_([1, 3, 2, 0], [1, 0], [1, 2, 0])].tolist()


def test_a_picture_statistic_stands_in_the_place_of_the_scores(tmp_path):
    rows = frame(np.zeros((3, 3, 2)), run="a", method="nft", seed=0)
    rows["sharpness"] = np.arange(18) / 10
    rows.to_parquet(tmp_path / "eval.parquet", index=False)
    (block,) = read_scores(tmp_path / "eval.parquet", pictures=False, value="sharpness").blocks.values()
    (plain,) = read_scores(tmp_path / "eval.parquet").blocks.values()
    by_label = {(r.prompt, r.steps, r.image): r.sharpness for r in rows.itertuples()}
    found = {
        (prompt, k, image): block.scores[p, j, i]
        for p, prompt in enumerate(block.prompts)
        for j, k in enumerate(block.steps)
        for i, image in enumerate(block.images)
    }
    assert found == pytest.approx(by_label)
    assert not plain.scores.any()


def test_files_with_other_labels_are_not_read_with_those_of_the_first(tmp_path):
    """Four files of as many rows, read one after the other; the last has the labels of the first."""
    reader, path = ScoreReader(), tmp_path / "eval.parquet"
    files = [("a", ("bee", "cat"), "good"), ("b", ("cat", "bee"), "good"), ("c", ("bee", "cat"), "else"), ("d",)]
    files[3] += files[0][1:]
    found = []
    for i, (run, prompts, reward) in enumerate(files):
        rows = frame([[[i]], [[i + 0.5]]], run=run, method="m", seed=0, prompts=prompts, steps=(1,), reward=reward)
        rows.to_parquet(path, index=False)
        scores = reader.read(path)
        (key,), (block,) = scores.blocks, scores.blocks.values()
        found.append((scores.runs, key.reward, block.prompts, block.scores.ravel().tolist()))
    alphabet = ("bee", "cat")
    assert found == [
        (("a",), "good", alphabet, [0, 0.5]),
        (("b",), "good", alphabet, [1.5, 1]),
        (("c",), "else", alphabet, [2, 2.5]),
        (("d",), "good", alphabet, [3, 3.5]),
    ]


def test_equal_labels_of_many_files_are_held_once(tmp_path):
    reader, path, blocks = ScoreReader(), tmp_path / "eval.parquet", []
    for run in ("a", "b"):
        frame(np.zeros((3, 3, 2)), run=run, method="m", seed=0).to_parquet(path, index=False)
        blocks += reader.read(path).blocks.values()
    assert blocks[0].prompts is blocks[1].prompts and blocks[0].scores is not blocks[1].scores


def test_a_column_that_a_later_file_lacks_is_missed_whatever_was_read_before(tmp_path):
    reader, path = ScoreReader(), tmp_path / "eval.parquet"
    rows = frame(np.zeros((3, 3, 2)), run="a", method="m", seed=0)
    rows.to_parquet(path, index=False)
    assert reader.read(path).problems == ()
    rows.drop(columns="score").to_parquet(path, index=False)
    found = reader.read(path)
    assert found.damaged and "lacks the columns score" in found.problems[0]


def judged(prompts, steps, images=2):
    """Rows whose score is 100 for the first prompt of the alphabet, 200 for the next, plus the step count."""
    scores = np.array([100.0 * (ord(p[0]) - 96) for p in prompts])[:, None, None] + np.array(steps)[None, :, None]
    return frame(
        np.repeat(scores, images, axis=2), run="r", method="sdpo", seed=0, prompts=prompts, steps=steps, split="unseen"
    )


def scores_of(tmp_path, *frames):
    pd.concat(frames).to_parquet(tmp_path / "eval.parquet", index=False)
    return read_scores(tmp_path / "eval.parquet", pictures=False)


KNOWN = ("ant", "cat")
"""The prompts that a run's configuration names."""


@pytest.mark.parametrize(
    "more", [{"steps": (1,)}, {"steps": (1, 4), "images": 1}, {"steps": (1, 4)}, {"steps": (1, 4, 16)}]
)
def test_other_prompts_of_a_split_do_not_change_the_runs_own(tmp_path, more):
    scores = scores_of(tmp_path, judged(KNOWN, (1, 4)), judged(("bee", "dog"), **more))
    own = own_part(scores, {"unseen": KNOWN})
    (block,) = own.blocks.values()
    assert (block.prompts, block.steps, block.images, block.present) == (KNOWN, (1, 4), (0, 1), None)
    assert block.scores[..., 0].tolist() == [[101, 104], [301, 304]]
    ((_, other),) = own.others
    assert (other.prompts, other.steps, len(other.images)) == (("bee", "dog"), more["steps"], more.get("images", 2))
    assert other.scores[:, 0, 0].tolist() == [201, 401] and other.present is None
    assert own.problems == ()


def test_prompts_that_no_configuration_names_are_told_apart_by_their_step_counts(tmp_path):
    scores = scores_of(tmp_path, judged(KNOWN, (1,)), judged(("bee", "dog"), (1, 4)))
    own = own_part(scores, {})
    assert [(b.prompts, b.steps) for _, b in own.every_block] == [(("bee", "dog"), (1, 4)), (KNOWN, (1,))]


def test_a_gap_in_the_runs_own_prompts_is_a_problem(tmp_path):
    rows = judged(KNOWN, (1, 4))
    scores = scores_of(tmp_path, rows[~((rows.prompt == "cat") & (rows.steps == 4))], judged(("bee",), (1,)))
    own = own_part(scores, {"unseen": KNOWN})
    assert own.problems == ("emoji-align, unseen prompts: 2 of 8 images have no score; left out: 4 steps",)
    assert [(b.prompts, b.steps) for _, b in own.every_block] == [(KNOWN, (1,)), (("bee",), (1,))]


def test_a_configuration_with_prompts_that_the_file_lacks_cuts_nothing(tmp_path):
    own = own_part(scores_of(tmp_path, judged(KNOWN, (1, 4))), {"unseen": ("ant", "owl")})
    assert [block.prompts for _, block in own.every_block] == [KNOWN]


def test_a_part_has_the_step_counts_with_all_of_its_prompts_and_images(tmp_path):
    """ant and cat have 2 images at 1 and 4 steps and 1 image at 16; bee has 1 step alone."""
    frames = judged(KNOWN, (1, 4)), judged(KNOWN, (16,), images=1), judged(("bee",), (1,))
    (block,) = scores_of(tmp_path, *frames).blocks.values()
    parts = {prompts: block.part(prompts, (0, 1)) for prompts in (("cat", "ant"), ("ant", "bee"))}
    assert [part.steps for part in parts.values()] == [(1, 4), (1,)]
    assert parts["cat", "ant"].scores[..., 1].tolist() == [[301, 304], [101, 104]]
    assert block.part(KNOWN, (0,)).steps == (1, 4, 16)
    assert block.part(("ant", "owl"), (0,)) is None and block.part(KNOWN, (0, 5)) is None
    assert block.bad == 0


def test_picture_statistics_are_held_as_one_mean_a_set_of_prompts_that_rewards_share(tmp_path):
    """Sharpness 1 of ant and cat, 3 of bee; aesthetic judged bee at 1 step alone."""
    frames = [judged(KNOWN, (1, 4)), judged(("bee",), (1,)), judged(KNOWN, (1, 4)).assign(reward="aesthetic")]
    rows = pd.concat(frames).assign(sharpness=lambda r: np.where(r["prompt"] == "bee", 3.0, 1.0))
    rows.to_parquet(tmp_path / "eval.parquet", index=False)
    whole = read_scores(tmp_path / "eval.parquet")
    assert {pictures.values.shape for pictures in whole.pictures.values()} == {(4, 3, 2, 2)}
    own = own_part(whole, {"unseen": KNOWN}).pictures
    shapes = {key.reward: (pictures.values.shape, pictures.sets) for key, pictures in own.items()}
    assert shapes == {"emoji-align": ((4, 2, 2, 2), (KNOWN, ("bee",))), "aesthetic": ((4, 1, 2, 2), (KNOWN,))}
    (align,) = (pictures for key, pictures in own.items() if key.reward == "emoji-align")
    assert align.mean(("bee",), (1,), (0, 1))["sharpness"] == 3 and align.mean(KNOWN, (1, 4), (0,))["sharpness"] == 1
    assert align.mean(KNOWN, (1, 16), (0,)) is None and align.mean(("ant",), (1,), (0,)) is None
