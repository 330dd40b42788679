"""Conformance checks of methods that train nothing and search at inference."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdpo_bench.doctor.bandit import make
from sdpo_bench.doctor.contract import require, untouched_randomness
from sdpo_bench.doctor.methods import Brightness, fresh_policy
from sdpo_bench.evaluation.evaluate import evaluation_schedule, sample_images
from sdpo_bench.evaluation.inference_search import Candidates
from sdpo_bench.models.policy import Policy
from sdpo_bench.plugins.registry import Plugin
from sdpo_bench.scoring.scorer import supervise
from sdpo_bench.settings import EvaluationSettings, ModelSettings

PAIRS = (("cat", 0), ("dog", 0), ("horse", 1))
STEPS = 2
NOISE = (len(PAIRS), STEPS + 1, 4, 8, 8)


def check_proposals(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """Noise of the shape it was given, finite, the same when asked again, leaving its input and randomness alone."""
    method: Any = make(loaded)
    best, fresh = torch.randn(2, *NOISE, generator=torch.Generator().manual_seed(0))
    originals = best.clone(), fresh.clone()
    with untouched_randomness():
        proposed = method.propose(best, fresh)
    require(isinstance(proposed, Tensor), f"propose() returned {type(proposed).__name__}; expected a tensor.")
    require(proposed.shape == NOISE, f"the proposal has shape {tuple(proposed.shape)}; expected {NOISE}.")
    require(bool(torch.isfinite(proposed).all()), "the proposal is not finite.")
    require(torch.equal(proposed, method.propose(best, fresh)), "the same noise has two proposals.")
    require(torch.equal(best, originals[0]) and torch.equal(fresh, originals[1]), "it changes the noise it is given.")


def check_noise_scale(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """From standard normal noise it makes standard normal noise: the base model knows no other."""
    best, fresh = torch.randn(2, 4096, 5, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    method: Any = make(loaded)
    proposed = method.propose(best, fresh)
    mean, std = proposed.mean().item(), proposed.std().item()
    require(abs(mean) < 0.05 and abs(std - 1) < 0.05, f"noise of mean {mean:.3f} and deviation {std:.3f}.")


def check_search(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """No image scores below the one that every method starts from; every candidate is billed; batches do not matter."""
    policy, settings = fresh_policy(ModelSettings(name="emoji-turbo"), 0), EvaluationSettings(steps=(STEPS,))
    images, search, calls = _search(loaded, policy, settings, len(PAIRS))
    first = sample_images(policy, evaluation_schedule(policy, settings, STEPS), settings, PAIRS)
    worse = (images.mean((1, 2, 3)) < first.mean((1, 2, 3)) - 1e-4).any()
    require(not bool(worse), "an image scores below the first candidate.")
    bill, drawn = search.ledger.bill(), len(PAIRS) * search.method.candidates
    require(bill["images"] == calls == drawn, f"{bill['images']} images charged, {calls} scored; expected {drawn}.")
    require(
        bill["denoiser_calls"] == drawn * STEPS, f"{bill['denoiser_calls']} denoiser calls; expected {drawn * STEPS}."
    )
    again, _, _ = _search(loaded, policy, settings, 1)
    require(torch.allclose(images, again, atol=1e-4), "images depend on the size of the batch.")


def _search(loaded: Any, policy: Policy, settings: EvaluationSettings, batch: int) -> tuple[Tensor, Candidates, int]:
    reward = Brightness(None)
    method: Any = make(loaded)
    search = Candidates(method, supervise("brightness", reward), seed=0)
    schedule = evaluation_schedule(policy, settings, STEPS)
    return search.sample(policy, schedule, settings, PAIRS, batch), search, reward.calls


CHECKS = {
    "proposals": check_proposals,
    "noise stays standard normal": check_noise_scale,
    "never below the first candidate, cost, batch-size invariance": check_search,
}
