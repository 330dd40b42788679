"""Every plugin that is found keeps the contract, and the checks notice those that do not."""

from dataclasses import dataclass

import pytest
import torch

from sdpo_bench.api import Loss, Method, Reward, Search
from sdpo_bench.doctor import bandit, rewards, search
from sdpo_bench.doctor.checks import check_declarations, check_plugin
from sdpo_bench.doctor.contract import Nonconforming, NotHere
from sdpo_bench.plugins.registry import Plugin, plugins
from sdpo_bench.rewards.emoji_style import EmojiStyle

EVERY = [plugin for kind in ("methods", "rewards") for plugin in plugins(kind).values()]


def shown(plugin):
    """A parameter: slow, but for the few that stand for all."""
    quick = plugin.name in ("sdpo", "d3po", "emoji-align")
    return pytest.param(plugin, id=f"{plugin.kind}:{plugin.name}", marks=[] if quick else pytest.mark.slow)


@pytest.mark.parametrize("plugin", [shown(plugin) for plugin in EVERY])
def test_every_plugin_conforms(plugin, monkeypatch):
    monkeypatch.setenv("SDPO_BENCH_REWARD_URL", "http://127.0.0.1:1")  # no service there
    checks = list(check_plugin(plugin))
    assert [c for c in checks if c.status == "failed"] == []
    assert len(checks) >= 5
    assert plugin.kind == "rewards" or not [c for c in checks if c.status == "skipped"]


class Good(Method):
    """Policy gradient."""

    def loss(self, batch):
        return Loss(-(batch.advantages * (batch.log_probs - batch.old_log_probs).exp()).mean())


class WrongSign(Method):
    """Minimises the reward."""

    def loss(self, batch):
        return Loss((batch.advantages * (batch.log_probs - batch.old_log_probs).exp()).mean())


class SumInsteadOfMean(Method):
    """Adds up over groups."""

    def loss(self, batch):
        return Loss(-(batch.advantages * (batch.log_probs - batch.old_log_probs).exp()).sum())


class Noisy(Method):
    """Draws from the global generator."""

    def loss(self, batch):
        return Loss((batch.log_probs * torch.randn(())).mean())


class KeepsGraphs(Method):
    """Logs a value that carries its graph."""

    def loss(self, batch):
        value = -(batch.advantages * batch.log_probs).mean()
        return Loss(value, {"loss_again": value})


class Overwrites(Method):
    """Changes what it is given."""

    def loss(self, batch):
        batch.rewards.mul_(2)
        return Loss(-(batch.advantages * batch.log_probs).mean())


class Unmoved(Method):
    """A loss without the policy in it."""

    def loss(self, batch):
        return Loss(batch.advantages.mean())


class Uphill(Method):
    """Follows the reward's gradient, the wrong way."""

    signal = "gradient"
    granularity = "trajectory"

    def loss(self, batch):
        return Loss(batch.final_rewards.mean())


class Downhill(Uphill):
    """Follows the reward's gradient."""

    def loss(self, batch):
        return Loss(-batch.final_rewards.mean())


class FewCandidates(Search):
    """Three draws."""

    candidates = 3

    def propose(self, best, fresh):
        return fresh


class Louder(FewCandidates):
    """Noise that the base model does not know."""

    def propose(self, best, fresh):
        return best + fresh


class Restless(FewCandidates):
    """Draws for itself."""

    def propose(self, best, fresh):
        return torch.randn_like(best)


def failures(checks, loaded, folder):
    failed = []
    for name, check in checks.items():
        try:
            check(None, loaded, folder)
        except NotHere:
            pass
        except Exception:
            failed.append(name)
    return failed


@pytest.mark.parametrize(
    ("loaded", "expected"),
    [
        (Good, []),
        (WrongSign, ["bandit moves to its optimum"]),
        (SumInsteadOfMean, ["batch-size invariance"]),
        (Noisy, ["loss of a minibatch"]),
        (KeepsGraphs, ["loss of a minibatch"]),
        (Overwrites, ["loss of a minibatch"]),
        (Unmoved, ["loss of a minibatch", "loss falls on a bandit"]),
        (Downhill, []),
        (Uphill, ["bandit moves to its optimum"]),
    ],
)
def test_methods_that_break_the_contract_are_found(tmp_path, loaded, expected):
    failed = failures(bandit.CHECKS, loaded, tmp_path)
    assert set(expected) <= set(failed)
    assert expected or not failed


@pytest.mark.parametrize(
    ("loaded", "expected"),
    [
        (FewCandidates, []),
        (Louder, ["noise stays standard normal"]),
        (Restless, ["proposals"]),
    ],
)
def test_searches_that_break_the_contract_are_found(tmp_path, loaded, expected):
    failed = failures(search.CHECKS, loaded, tmp_path)
    assert set(expected) <= set(failed)
    assert expected or not failed


class ByBatch(EmojiStyle):
    """Compares with the batch's mean."""

    def __call__(self, images, prompts):
        scores = images.mean((1, 2, 3))
        return scores - scores.mean()


class Double(EmojiStyle):
    """float64."""

    def __call__(self, images, prompts):
        return images.double().mean((1, 2, 3))


class Random(EmojiStyle):
    """Another score every time."""

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3)) + torch.rand(len(images))


class FlatGradient(EmojiStyle):
    """Claims to be differentiable."""

    differentiable = True

    def __call__(self, images, prompts):
        return images.detach().mean((1, 2, 3))


class Nameless(Reward):
    """No version, no scale."""

    native_model = "no-such-model"

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3))


@pytest.mark.parametrize(
    ("loaded", "expected"),
    [
        (ByBatch, "batch-size invariance"),
        (Double, "shape, dtype and finiteness"),
        (Random, "determinism"),
        (FlatGradient, "gradients"),
        (Nameless, "declared fields"),
    ],
)
def test_rewards_that_break_the_contract_are_found(tmp_path, loaded, expected):
    assert expected in failures(rewards.CHECKS, loaded, tmp_path)


@dataclass
class Thawed:
    """Not frozen."""

    size: int = 1
    """Documented."""


@dataclass(frozen=True)
class Undocumented:
    """A field without a docstring."""

    size: int = 1


@pytest.mark.parametrize(("settings", "said"), [(Thawed, "not frozen"), (Undocumented, "size")])
def test_settings_that_break_the_contract_are_found(tmp_path, settings, said):
    plugin = Plugin("x", "methods", "someone", "m", "X", "A summary.", None)
    with pytest.raises(Nonconforming, match=said):
        check_declarations(plugin, type("X", (Good,), {"Settings": settings}), tmp_path)
