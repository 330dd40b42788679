"""Every promise that the conformance checks look at, broken alone: each is found, and said in words."""

import os

import pytest
import torch

from sdpo_bench.api import Loss, Method, Search
from sdpo_bench.doctor import bandit, rewards, search
from sdpo_bench.doctor import methods as training
from sdpo_bench.doctor.contract import Nonconforming
from sdpo_bench.ledger import Ledger
from sdpo_bench.plugins.registry import find
from sdpo_bench.rewards.emoji_style import EmojiStyle
from sdpo_bench.rollout import group_cost
from sdpo_bench.training import checkpoint
from sdpo_bench.training.updater import Updater


def brightness(images):
    return images.mean((1, 2, 3))


def reward(score, **declared):
    """A reward that scores with ``score(self, images)``."""
    return type("Broken", (EmojiStyle,), {"__call__": lambda self, images, prompts: score(self, images), **declared})


def seeing(features):
    """A reward whose features are ``features(images)``."""
    return type("Broken", (EmojiStyle,), {"features": lambda self, images: features(images)})


def counted(owner):
    """1, 2, 3 and so on for each call with the same owner."""
    owner.asked = getattr(owner, "asked", 0) + 1
    return owner.asked


class Instances(EmojiStyle):
    """Every instance scores higher than the one before."""

    made = 0

    def __init__(self, settings, device="cpu"):
        super().__init__(settings, device)
        Instances.made += 1
        self.number = Instances.made

    def __call__(self, images, prompts):
        return brightness(images) + self.number


SCORES, SAME, BATCH, SLOPE = "shape, dtype and finiteness", "determinism", "batch-size invariance", "gradients"
FEATURES = "features"
LEFT = "process left as it was"
REWARDS = [
    (SCORES, reward(lambda self, x: brightness(x).tolist()), "returned list"),
    (SCORES, reward(lambda self, x: x.mean((2, 3))), r"shape \(5, 3\)"),
    (SCORES, reward(lambda self, x: brightness(x).double()), r"dtype torch\.float64"),
    (SCORES, reward(lambda self, x: brightness(x).log()), "not all finite"),  # one picture is black
    (SCORES, reward(lambda self, x: brightness(x.mul_(0.5))), "changes the images"),
    (SCORES, reward(lambda self, x: brightness(x), full_version=""), "full_version"),
    (SAME, reward(lambda self, x: brightness(x) + torch.rand(len(x))), "global generator"),
    (SAME, reward(lambda self, x: brightness(x) + counted(self)), "a second call"),
    (SAME, Instances, "a second instance"),
    (LEFT, reward(lambda self, x: os.chdir("/") or brightness(x)), "changes the working folder of"),
    (LEFT, reward(lambda self, x: torch.set_default_dtype(torch.float64) or brightness(x)), "the default dtype of"),
    (BATCH, reward(lambda self, x: brightness(x) - brightness(x).mean()), "alone"),
    (BATCH, reward(lambda self, x: brightness(x) + 0.1 * (len(x) > 1 and x[0].mean() < 0.65)), "order of the batch"),
    (SLOPE, reward(lambda self, x: brightness(x.detach())), "carry no gradient"),
    (SLOPE, reward(lambda self, x: brightness(x * 0)), "zero or not finite"),
    (FEATURES, seeing(lambda x: x), "features of shape"),
    (FEATURES, seeing(lambda x: x.flatten(1) / 0), "features are not all finite"),
    (FEATURES, seeing(lambda x: x.flatten(1) - x.mean()), "depend on the others of its batch"),
    (FEATURES, seeing(lambda x: x.flatten(1).detach()), "features carry no gradient"),
    (FEATURES, seeing(lambda x: x.flatten(1) * 0), "gradient of features is zero"),
]


@pytest.mark.parametrize(("check", "loaded", "said"), REWARDS, ids=[said for _, _, said in REWARDS])
def test_each_promise_of_a_reward_is_looked_at(tmp_path, check, loaded, said):
    with pytest.raises(Nonconforming, match=said):
        rewards.CHECKS[check](None, loaded, tmp_path)


def gain(batch):
    return batch.advantages * (batch.log_probs - batch.old_log_probs).exp()


def method(loss):
    """A method whose loss is ``loss(self, batch)``."""
    return type("Broken", (Method,), {"loss": loss})


METHODS = [
    (lambda self, batch: -gain(batch).mean(), "returned Tensor"),
    (lambda self, batch: Loss(-gain(batch)), "expected a scalar"),
    (lambda self, batch: Loss(gain(batch).mean() / 0), "the loss is -?(inf|nan)"),
    (lambda self, batch: Loss(-gain(batch).mean().detach()), "no gradient"),
    (lambda self, batch: Loss(-gain(batch).mean(), {"gain": gain(batch).detach()}), "no scalar tensor"),
    (lambda self, batch: Loss(-gain(batch).mean(), {"gain": gain(batch).mean()}), "not detached"),
    (lambda self, batch: Loss(-gain(batch).mean() * torch.rand(())), "global generator"),
    (lambda self, batch: torch.set_num_threads(7) or Loss(-gain(batch).mean()), "changes the threads of"),
    (lambda self, batch: Loss(-gain(batch).mean() * counted(self)), "two losses"),
    (
        lambda self, batch: Loss(-gain(batch).mean() + 0 * batch.rewards.mul_(2).mean()),
        "changes the minibatch: rewards",
    ),
]


@pytest.mark.parametrize(("loss", "said"), METHODS, ids=[said for _, said in METHODS])
def test_each_promise_of_a_loss_is_looked_at(tmp_path, loss, said):
    with pytest.raises(Nonconforming, match=said):
        bandit.CHECKS["loss of a minibatch"](None, method(loss), tmp_path)


def searching(propose):
    """A search that proposes ``propose(best, fresh)``."""
    body = {"candidates": 3, "propose": lambda self, best, fresh: propose(best, fresh)}
    return type("Broken", (Search,), body)


SEARCHES = [
    (searching(lambda best, fresh: [fresh]), "returned list"),
    (searching(lambda best, fresh: fresh[:1]), "has shape"),
    (searching(lambda best, fresh: fresh / 0), "not finite"),
    (searching(lambda best, fresh: torch.randn_like(best)), "global generator"),
    (searching(lambda best, fresh: fresh.neg_().clone()), "two proposals|changes the noise"),
    (searching(lambda best, fresh: best.mul_(2) * 0 + fresh), "changes the noise"),
]


@pytest.mark.parametrize(("loaded", "said"), SEARCHES, ids=[said for _, said in SEARCHES])
def test_each_promise_of_a_search_is_looked_at(tmp_path, loaded, said):
    with pytest.raises(Nonconforming, match=said):
        search.CHECKS["proposals"](None, loaded, tmp_path)


def no_step(self, log):
    self.optimiser.zero_grad(set_to_none=True)


def melting(self, log, step=Updater._optimiser_step):
    step(self, log)
    next(p for name, p in self.policy.denoiser.named_parameters() if "lora_" not in name).data.add_(1)


EPOCH, RESUME = "only LoRA changes, ratio 1, ledger", "determinism, resume, save and load"
MODES = "the same with every reward mode"
ENGINES = [
    (EPOCH, Updater, "_optimiser_step", no_step, "no LoRA weight changed"),
    (EPOCH, Updater, "_optimiser_step", melting, "frozen weights changed"),
    (EPOCH, Ledger, "charge_call", lambda self, latents: None, "denoiser calls: 0 charged"),
    (MODES, group_cost, "completion_calls", lambda method, steps, drawing: 0, "completion: denoiser calls"),
    (RESUME, checkpoint, "_restore_optimiser", lambda tensors, updater: None, "a resumed run"),
]


@pytest.mark.parametrize(("check", "owner", "name", "broken", "said"), ENGINES, ids=[row[-1] for row in ENGINES])
def test_each_promise_of_a_training_is_looked_at(tmp_path, monkeypatch, check, owner, name, broken, said):
    """Here it is the engine that does not keep it."""
    plugin = find("methods", "ddpo")
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(Nonconforming, match=said):
        training.CHECKS[check](plugin, plugin.load(), tmp_path)
