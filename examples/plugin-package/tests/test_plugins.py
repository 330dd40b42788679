"""What a plugin's own tests should say: that it is found, that its numbers are right, that it runs."""

import json
import math
import subprocess
import sys

import pytest
import torch
from sdpo_bench_example.reward_weighted import RewardWeighted, RewardWeightedSettings
from sdpo_bench_example.warmth import Warmth
from sdpo_bench_example.weighted_matching import WeightedMatching, WeightedMatchingSettings

from sdpo_bench.api import Minibatch, Noised
from sdpo_bench.plugins.registry import find


def test_all_are_found():
    method, reward = find("methods", "reward-weighted"), find("rewards", "warmth")
    assert method.owner == reward.owner == "sdpo-bench-example"
    assert method.load() is RewardWeighted
    assert reward.load() is Warmth
    assert find("methods", "weighted-matching").load() is WeightedMatching
    assert reward.summary == "Mean of the red channel minus mean of the blue one."


def test_the_loss_by_hand():
    """Rewards 0 and 0.5 ln 3 at temperature 0.5 weigh 1/4 and 3/4; log-ratios 0.1 and 0.3 at the only step."""
    ratio = torch.tensor([[[0.1], [0.3]]])
    nothing = torch.zeros_like(ratio)
    batch = Minibatch(
        log_probs=ratio,
        old_log_probs=nothing,
        ref_log_probs=None,
        advantages=None,
        rewards=nothing,
        final_rewards=torch.tensor([[0.0, 0.5 * math.log(3)]]),
        steps=torch.zeros(1, 1, dtype=torch.int64),
        num_steps=1,
    )
    loss = RewardWeighted(RewardWeightedSettings(group_size=2, temperature=0.5)).loss(batch)
    assert loss.value.item() == pytest.approx(-(0.1 / 4 + 0.9 / 4))
    assert loss.metrics["largest_weight"].item() == pytest.approx(0.75)


def test_the_loss_without_likelihoods_by_hand():
    """Weights 1/4 and 3/4 again. At noise level 1/2 errors of 1 and 2 in the original are 2 and 4 in the velocity, so
    4 and 16 squared: (4 + 3 * 16) / 4 = 13. The base model is off by 1 for both: alpha (2^2) = 0.4."""
    original = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1, 1).requires_grad_()
    clean, level = torch.zeros(1, 2, 1, 1, 1), torch.full((1, 1, 1, 1, 1), 0.5)
    none = torch.zeros(1, 2, 0)
    batch = Minibatch(
        log_probs=none,
        old_log_probs=none,
        ref_log_probs=None,
        advantages=None,
        rewards=torch.zeros(1, 2, 1),
        final_rewards=torch.tensor([[0.0, 0.5 * math.log(3)]]),
        steps=torch.zeros(1, 1, dtype=torch.int64),
        num_steps=1,
        noised=Noised(clean, original, level, ref_original=original.detach() - 1),
    )
    loss = WeightedMatching(WeightedMatchingSettings(group_size=2, temperature=0.5, anchor=0.1)).loss(batch)
    assert loss.value.item() == pytest.approx(13 + 0.4)
    (slope,) = torch.autograd.grad(loss.value, original)
    # d/dx of w (x / level)^2 is 8 w x, of alpha / 2 ((x - ref) / level)^2 it is 4 alpha (x - ref).
    assert torch.allclose(slope.flatten(), torch.tensor([8 / 4 + 0.4, 8 * 2 * 3 / 4 + 0.4]))


def test_the_reward_by_hand():
    images = torch.zeros(2, 3, 4, 4)
    images[0, 0] = 0.75  # red
    images[1, 2] = 0.5  # blue
    assert torch.allclose(Warmth(None)(images, ["a", "b"]), torch.tensor([0.75, -0.5]))


@pytest.mark.parametrize(("method", "steps"), [("reward-weighted", 2), ("weighted-matching", 1)])
def test_a_short_run(tmp_path, method, steps):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("cat\ndog\n")
    small = [
        f"schedule.steps={steps}",
        "sample.images_per_epoch=8",
        f"sample.prompts={prompts}",
        "update.minibatch=2",
        f"eval.train={prompts}",
        "eval.steps=1",
        "eval.images_per_prompt=1",
        "eval.rewards=",
    ]
    command = [sys.executable, "-m", "sdpo_bench", "run", "--method", method, "--reward", "warmth"]
    command += ["--budget", "images=16", "--results", str(tmp_path), "--json"]
    command += [word for setting in small for word in ("--set", setting)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    bill = json.loads(done.stdout)["bill"]
    assert bill["images"] == bill["rewards"]["warmth"] == 16
