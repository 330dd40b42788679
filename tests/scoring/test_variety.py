"""Variety of a prompt's pictures: by hand, whatever the batches, and only where pictures are compared."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import UsageError
from sdpo_bench.evaluation.evaluate import Subject, evaluate, evaluation_schedule, sample_images
from sdpo_bench.models.base_model import load_policy
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.scoring.emoji_scorer import load_scorer
from sdpo_bench.scoring.make_scorers import curve_scorers, evaluation_scorers, make_scorer
from sdpo_bench.scoring.reward_expression import choose
from sdpo_bench.scoring.variety import distances
from sdpo_bench.settings import EvaluationSettings, ModelSettings
from sdpo_bench.statistics.vendi import vendi_score
from sdpo_bench.sweep.asked_scores import asked_scores

NAME = "variety:emoji-accuracy"


def test_distances_by_hand():
    """Cosines of a's pictures: 0, .6 and .8. Those of b point one way, and in opposite ways for c."""
    rows = [
        ("a", [1, 0]),
        ("b", [2, 2]),
        ("a", [0, 5]),
        ("c", [0, 1]),
        ("a", [0.6, 0.8]),
        ("b", [1, 1]),
        ("c", [0, -3]),
    ]
    prompts, features = [prompt for prompt, _ in rows], torch.tensor([values for _, values in rows])
    found = distances(features, prompts)
    assert found.tolist() == pytest.approx([1 - 0.3, 0, 1 - 0.4, 2, 1 - 0.7, 0, 2], abs=1e-6)
    assert distances(features * 7, prompts).tolist() == pytest.approx(found.tolist(), abs=1e-6)


def test_the_vendi_score_of_two_pictures_rises_with_their_distance():
    cosines = np.linspace(0, 1, 11)
    scores = [vendi_score(np.array([[1, s], [s, 1]])) for s in cosines]
    assert (np.diff(scores) < 0).all()


@pytest.fixture
def judged(tmp_path):
    """A function: scores by (prompt, image) of pictures of two prompts at one step, in batches of a size."""
    (tmp_path / "two.txt").write_text("red cat\ndog\n")
    settings = EvaluationSettings(steps=(1,), images_per_prompt=3, train=str(tmp_path / "two.txt"), rewards=(NAME,))
    policy = load_policy(ModelSettings())

    def judge(folder, batch=64, pictures=3):
        run = RunFolder(tmp_path / folder)
        run.path.mkdir(exist_ok=True)
        asked = replace(settings, images_per_prompt=pictures)
        scorers = [make_scorer(NAME, {}, "cpu", pictures=pictures)]
        rows = evaluate(policy, asked, scorers, run, Subject(run.run_id, "m", 0), micro_batch=batch)
        assert set(rows.reward) == {NAME} and len(set(rows.version)) == 1
        assert "features" not in rows.columns
        return rows.set_index(["prompt", "image"]).score

    return judge, policy, settings


def test_pictures_of_one_prompt_are_compared_whatever_the_batches(judged):
    judge, policy, settings = judged
    pairs = [(prompt, i) for prompt in ("dog", "red cat") for i in range(3)]
    images = sample_images(policy, evaluation_schedule(policy, settings, 1), settings, pairs)
    seen = load_scorer("accuracy").features(images)
    expected = [
        np.mean([1 - torch.cosine_similarity(seen[i], seen[j], dim=0).item() for j in group if j != i])
        for group in (range(3), range(3, 6))
        for i in group
    ]
    for batch in (2, 4, 64):
        scores = judge(f"batch-{batch}", batch)
        assert [scores[pair] for pair in pairs] == pytest.approx(expected, abs=1e-5)
    assert min(expected) > 0


def test_scores_of_other_numbers_of_pictures_are_kept_apart(judged):
    """A picture's number is its distance to all others of its prompt, so that of two is not part of that of three."""
    judge = judged[0]
    two, three = judge("two", pictures=2), judge("three")
    assert judge("both").equals(three) and judge("both", pictures=2).equals(two) and judge("both").equals(three)
    assert not three.loc[two.index].equals(two)


def test_the_version_names_more_than_two_pictures():
    """Also where a sweep looks for stored scores."""
    for pictures, version in ((2, "1:1"), (4, "1+pictures=4:1")):
        resolved = resolve(Request(overrides={"eval.rewards": NAME, "eval.images_per_prompt": pictures}))
        assert evaluation_scorers(resolved.config, "cpu")[-1].reward.full_version == version
        assert asked_scores(resolved).versions[NAME] == version
    assert make_scorer("variety:hpsv2", {"precision": "bf16"}, "cpu").reward.full_version == "1:1+bf16"


def test_it_is_not_trained_on(capsys):
    with pytest.raises(UsageError, match=f"cannot be trained on.*eval.rewards={NAME}"):
        resolve(Request(reward=NAME))


def test_a_learning_curve_does_not_take_it():
    config = resolve(Request(overrides={"eval.curve_rewards": NAME})).config
    with pytest.raises(UsageError, match="Put it in eval.rewards"):
        curve_scorers(config, [make_scorer("emoji-align", {}, "cpu")], "cpu")


def test_one_picture_a_prompt_is_refused():
    overrides = {"eval.rewards": f"emoji-accuracy,{NAME}", "eval.images_per_prompt": 1}
    with pytest.raises(UsageError, match=f"{NAME} compares.*eval.images_per_prompt=2"):
        resolve(Request(overrides=overrides))
    assert NAME in resolve(Request(overrides=overrides | {"eval.images_per_prompt": 2})).config.eval.rewards


def test_a_reward_without_features_is_refused():
    with pytest.raises(
        UsageError, match="exposes none. Rewards that do: aesthetic, clipscore, emoji-accuracy, emoji-align"
    ):
        make_scorer("variety:jpeg-compressibility", {}, "cpu")
    with pytest.raises(UsageError, match="Did you mean"):
        choose("variety:emoji-acuracy")


def test_its_run_is_the_run_without_it():
    """What is measured afterwards does not name a training."""
    with_it = resolve(Request(overrides={"eval.rewards": NAME}))
    assert with_it.run_id == resolve(Request()).run_id
