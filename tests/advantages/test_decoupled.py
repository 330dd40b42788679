"""Each reward of a weighted sum normalised by itself (MixGRPO, GDPO), and groups over the std of the batch."""

import pytest
import torch

from factories import make_resolved, make_trainer
from sdpo_bench.advantages.normalise import Normaliser, advantages, decoupled_advantages
from sdpo_bench.errors import UsageError

OPTIONS = {"gamma": 1.0, "clip": 5.0, "sparse": True}
SUM = "jpeg-incompressibility+2*emoji-align"


def last(*groups):
    return torch.tensor(groups)[..., None]


def test_a_reward_with_large_units_does_not_drown_another():
    """By hand: each part has advantages of +-1; their sum alone would follow the first one."""
    parts = {"a": last([100.0, 300.0]), "b": last([0.2, 0.1])}
    found = decoupled_advantages(parts, {"a": 1.0, "b": 3.0}, ["cat"], Normaliser("group"), **OPTIONS)
    assert torch.allclose(found[..., 0], torch.tensor([[2.0, -2.0]]), atol=1e-3)
    summed = advantages(parts["a"] + 3 * parts["b"], ["cat"], Normaliser("group"), **OPTIONS)
    assert torch.allclose(summed[..., 0], torch.tensor([[-1.0, 1.0]]), atol=1e-3)


def test_the_sum_is_clipped_and_a_negative_weight_turns_a_part_round():
    parts = {"a": last([0.0, 1.0]), "b": last([0.0, 1.0])}
    found = decoupled_advantages(parts, {"a": 9.0, "b": -1.0}, ["cat"], Normaliser("group"), **OPTIONS)
    assert torch.allclose(found[..., 0], torch.tensor([[-5.0, 5.0]]))


def test_gdpo_normalises_the_sum_over_all_images():
    """By hand: advantages of +-1 and +-3 add up to +-2 for one prompt and +-4 for the other; their std is
    (40 / 3)**.5."""
    parts = {"a": last([1.0, 3.0], [1.0, 3.0]), "b": last([0.2, 0.1], [0.1, 0.2])}
    options = {**OPTIONS, "over_batch": True}
    found = decoupled_advantages(parts, {"a": 1.0, "b": 3.0}, ["cat", "dog"], Normaliser("group"), **options)
    expected = torch.tensor([[2.0, -2.0], [-4.0, 4.0]]) / (40 / 3) ** 0.5
    assert torch.allclose(found[..., 0], expected, atol=1e-3)


def test_parts_have_buffers_of_their_own():
    """Two calls of two samples: the second is compared with all four of its part."""
    normaliser = Normaliser("per-step-prompt", min_count=4)
    call = lambda a, b: decoupled_advantages(  # noqa: E731
        {"a": last(a), "b": last(b)}, {"a": 1.0, "b": 1.0}, ["cat"], normaliser, **OPTIONS
    )
    call([0.0, 2.0], [50.0, 70.0])
    second = call([4.0, 6.0], [50.0, 70.0])
    assert sorted(normaliser.buffers) == ["a: cat", "b: cat"]
    # a: mean 3, std 5**.5 of 0, 2, 4, 6; b: mean 60, std 10.
    assert torch.allclose(second[..., 0], torch.tensor([[1 / 5**0.5 - 1, 3 / 5**0.5 + 1]]), atol=1e-4)


@pytest.mark.parametrize("mode", ["sparse", "predicted", "completion"])
def test_a_run_learns_from_decoupled_advantages(tiny_pipe, tmp_path, mode):
    """Its bill is that of the sum, and what it learns is something else."""
    rows = {}
    for rewards in ("summed", "decoupled", "gdpo"):
        overrides = {"advantage.rewards": rewards, "method.reward": mode, "reward.name": SUM, "budget.images": 8}
        overrides["reward.standardise"] = "none"
        trainer = make_trainer(make_resolved(tiny_pipe, "grpo", **overrides), tmp_path / rewards)
        trainer.train()
        (rows[rewards],) = trainer.run.log()
    assert rows["summed"]["bill"] == rows["decoupled"]["bill"] == rows["gdpo"]["bill"]
    assert len({row["advantage_std"] for row in rows.values()}) == 3
    assert max(row["ratio_at_zero_update"] for row in rows.values()) < 1e-4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"advantage.rewards": "decoupled"}, "'jpeg-incompressibility' is one reward"),
        (
            {"advantage.rewards": "decoupled", "advantage.normalisation": "none", "reward.name": SUM},
            "normalisation = none does not",
        ),
        ({"advantage.std": "batch", "advantage.normalisation": "batch"}, "belongs to advantage.normalisation = group"),
    ],
)
def test_options_without_effect_are_refused(tiny_pipe, overrides, message):
    with pytest.raises(UsageError, match=message):
        make_resolved(tiny_pipe, "grpo", **overrides)


def test_defaults_are_no_part_of_a_runs_identity(tiny_pipe):
    plain = make_resolved(tiny_pipe, "grpo")
    typed = make_resolved(tiny_pipe, "grpo", **{"advantage.std": "group", "advantage.rewards": "summed"})
    assert plain.run_id == typed.run_id
    assert set(plain.record["config"]["advantage"]) == {"normalisation", "gamma", "clip", "buffer_size", "min_count"}
    assert make_resolved(tiny_pipe, "grpo", **{"advantage.std": "batch"}).run_id != plain.run_id


def test_gdpo_of_one_image_is_no_nan():
    """An epoch of one image (the last one of a budget) has nothing to be compared with."""
    found = decoupled_advantages(
        {"a": last([1.0])}, {"a": 1.0}, ["cat"], Normaliser("batch"), **{**OPTIONS, "over_batch": True}
    )
    assert found.tolist() == [[[0.0]]]
