"""How often a normalisation falls back on the whole batch, where it is another mode than its name says."""

import pytest
import torch

from factories import make_resolved, make_trainer
from sdpo_bench.advantages.normalise import Normaliser, advantages
from sdpo_bench.errors import UsageError


@pytest.mark.parametrize("mode", ["per-step-prompt", "per-prompt"])
def test_samples_of_prompts_with_too_few_are_counted(mode):
    """Three samples are needed: cat has them in the second batch, dog not yet."""
    normaliser = Normaliser(mode, 32, 3)
    assert normaliser.fallback is None
    normaliser(torch.rand(3, 2), ["cat", "dog", "cat"])
    assert normaliser.fallback == 1.0
    normaliser(torch.rand(4, 2), ["cat", "cat", "cat", "dog"])
    assert normaliser.fallback == 0.25
    normaliser(torch.rand(1, 2), ["dog"])
    assert normaliser.fallback == 0.0


@pytest.mark.parametrize("mode", ["per-step-prompt", "per-prompt"])
def test_a_buffer_that_never_holds_enough_samples_is_refused(tiny_pipe, mode):
    """It would compare every epoch with the whole batch, which is another mode."""
    settings = {"advantage.normalisation": mode, "advantage.min_count": 9}
    with pytest.raises(UsageError, match="Use --set advantage.buffer_size=9 or more, or --set advantage.min_count=8"):
        make_resolved(tiny_pipe, **settings, **{"advantage.buffer_size": 8})
    full = make_resolved(tiny_pipe, **settings, **{"advantage.buffer_size": 9}).config.advantage
    normaliser = Normaliser(full.normalisation, full.buffer_size, full.min_count)
    normaliser(torch.rand(9, 2), ["cat"] * 9)
    assert normaliser.fallback == 0.0


@pytest.mark.parametrize("mode", ["per-step", "batch", "none", "group"])
def test_the_size_of_a_buffer_that_is_not_kept_is_refused(tiny_pipe, mode):
    """It would make another run of the same numbers."""
    chosen = {"advantage.normalisation": mode}
    for key in ("advantage.buffer_size", "advantage.min_count"):
        with pytest.raises(
            UsageError, match=f"normalisation = {mode} keeps no earlier samples, so {key} would have no"
        ):
            make_resolved(tiny_pipe, **chosen, **{key: 24})
    make_resolved(tiny_pipe, **chosen)


@pytest.mark.parametrize("mode", ["per-step", "batch", "none"])
def test_a_mode_without_statistics_by_prompt_has_nothing_to_fall_back_from(mode):
    normaliser = Normaliser(mode)
    normaliser(torch.rand(3, 2), ["cat", "dog", "cat"])
    assert normaliser.fallback is None


def test_the_training_log_has_the_share_of_every_epoch(tiny_pipe, tmp_path):
    """Eight images an epoch of one prompt, which needs 16."""
    (tmp_path / "one.txt").write_text("cat\n")
    more = {"sample.prompts": str(tmp_path / "one.txt"), "budget.images": 24}
    trainer = make_trainer(make_resolved(tiny_pipe, **more), tmp_path)
    trainer.train()
    assert [row["normalisation_fallback"] for row in trainer.run.log()] == [1.0, 0.0, 0.0]
    plain = make_trainer(make_resolved(tiny_pipe, **more, **{"advantage.normalisation": "batch"}), tmp_path)
    plain.train()
    assert not any("normalisation_fallback" in row for row in plain.run.log())


@pytest.mark.parametrize("mode", ["batch", "per-prompt"])
def test_steps_without_a_reward_are_in_no_pooled_statistic(mode):
    """By hand: 1 and 3 have mean 2 and std 1. With the two zeros of the other steps the mean would be 1 of a std of
    1.22."""
    rewards = torch.tensor([[[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]]])
    normaliser = Normaliser(mode, min_count=1)
    found = advantages(rewards, ["cat"], normaliser, gamma=0.0, clip=0, sparse=False, scored=[0])
    assert torch.allclose(found, torch.tensor([[[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]]), atol=1e-5)
