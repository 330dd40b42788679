"""What a plugin's own tests should say: that it is found, that its numbers are right, that it runs."""

import json
import math
import subprocess
import sys

import pytest
import torch
from sdpo_bench_example.reward_weighted import RewardWeighted, RewardWeightedSettings
from sdpo_bench_example.warmth import Warmth

from sdpo_bench.api import Minibatch
from sdpo_bench.plugins.registry import find


def test_both_are_found():
    method, reward = find("methods", "reward-weighted"), find("rewards", "warmth")
    assert method.owner == reward.owner == "sdpo-bench-example"
    assert method.load() is RewardWeighted
    assert reward.load() is Warmth
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


def test_the_reward_by_hand():
    images = torch.zeros(2, 3, 4, 4)
    images[0, 0] = 0.75  # red
    images[1, 2] = 0.5  # blue
    assert torch.allclose(Warmth(None)(images, ["a", "b"]), torch.tensor([0.75, -0.5]))


def test_a_short_run(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("cat\ndog\n")
    small = [
        "schedule.steps=2",
        "sample.images_per_epoch=8",
        f"sample.prompts={prompts}",
        "update.minibatch=2",
        f"eval.train={prompts}",
        "eval.steps=1",
        "eval.images_per_prompt=1",
        "eval.rewards=",
    ]
    command = [sys.executable, "-m", "sdpo_bench", "run", "--method", "reward-weighted", "--reward", "warmth"]
    command += ["--budget", "images=16", "--results", str(tmp_path), "--json"]
    command += [word for setting in small for word in ("--set", setting)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    bill = json.loads(done.stdout)["bill"]
    assert bill["images"] == bill["rewards"]["warmth"] == 16
