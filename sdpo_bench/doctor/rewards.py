"""Conformance checks of rewards: what they declare, and scores that depend on one image and its prompt alone."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdpo_bench.doctor.contract import Nonconforming, NotHere, require, untouched_process, untouched_randomness
from sdpo_bench.errors import MissingError
from sdpo_bench.models.known_models import known_model
from sdpo_bench.plugins.parse_settings import validate
from sdpo_bench.plugins.registry import Plugin

PROMPTS = ['cat "A"', 'dog "B"', 'butterfly on red "C"', 'horse "D"', 'a bee "E"']
"""With quoted text, for rewards that look for it in the picture."""
SIZES = (32, 64)
TOLERANCE = 1e-4  # relative to the scores' magnitude; batches are summed in another order


def make(loaded: Any) -> Any:
    """The reward with default settings, ready to score.

    Raises:
        NotHere: its weights, packages or service are not here.
    """
    reason = loaded.unavailable()
    if reason:
        raise NotHere(reason)
    reward = loaded(validate(loaded.Settings, {}, "reward"), "cpu")
    try:
        reward.load()
    except MissingError as error:
        raise NotHere(str(error)) from error
    return reward


def images(size: int) -> Tensor:
    """Five different pictures ``[5, 3, size, size]`` in [0, 1]: flat, black, noise, a gradient, a checkerboard."""
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, size).expand(3, size, size)
    cells = (torch.arange(size)[:, None] // 4 + torch.arange(size) // 4) % 2
    flat, black = torch.full((3, size, size), 0.7), torch.zeros(3, size, size)
    noise = torch.rand((3, size, size), generator=generator)
    return torch.stack([flat, black, noise, ramp, cells.float().expand(3, -1, -1)])


def close(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding."""
    return bool(((a - b).abs() <= TOLERANCE * (1 + b.abs())).all())


def check_fields(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """The native model is one that can be asked for; the other declarations are checked when a class is loaded."""
    known_model(loaded.native_model)


def check_scores(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """``[B]`` float32, finite, for pictures of several sizes; the pictures are left as they were."""
    reward = make(loaded)
    require(isinstance(reward.full_version, str) and reward.full_version, "full_version is not a text.")
    for size in SIZES:
        pictures = images(size)
        original = pictures.clone()
        scores = reward(pictures, list(PROMPTS))
        require(isinstance(scores, Tensor), f"it returned {type(scores).__name__}; expected a tensor.")
        require(scores.shape == (len(PROMPTS),), f"shape {tuple(scores.shape)} for {len(PROMPTS)} images.")
        require(scores.dtype == torch.float32, f"dtype {scores.dtype}; expected float32.")
        require(bool(torch.isfinite(scores).all()), f"scores {scores.tolist()} are not all finite.")
        require(torch.equal(pictures, original), "it changes the images it is given.")


def check_process(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """Loading and scoring leave the working folder, torch's default dtype and the like as they were."""
    with untouched_process():
        make(loaded)(images(SIZES[0]), list(PROMPTS))


def check_determinism(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """The same picture scores the same: called again, by a new instance, and without touching global randomness."""
    first, second = make(loaded), make(loaded)
    pictures = images(SIZES[0])
    with untouched_randomness():
        once = first(pictures, list(PROMPTS))
    require(torch.equal(once, first(pictures, list(PROMPTS))), "a second call gives other scores.")
    require(torch.equal(once, second(pictures, list(PROMPTS))), "a second instance gives other scores.")


def check_batches(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """Row b depends on image b and prompt b alone: alone, in a batch, or in another order."""
    reward = make(loaded)
    pictures = images(SIZES[0])
    together = reward(pictures, list(PROMPTS))
    alone = torch.cat([reward(pictures[i : i + 1], [PROMPTS[i]]) for i in range(len(PROMPTS))])
    require(close(alone, together), f"alone {alone.tolist()}, in a batch {together.tolist()}.")
    order = [3, 0, 4, 2, 1]
    mixed = reward(pictures[order], [PROMPTS[i] for i in order])
    require(close(mixed, together[order]), "scores change with the order of the batch.")


def check_gradient(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """Where it says so, finite gradients reach the pictures."""
    if not loaded.differentiable:
        raise NotHere("it does not claim to be differentiable.")
    reward = make(loaded)
    pictures = images(SIZES[0]).requires_grad_()
    scores = reward(pictures, list(PROMPTS))
    if not scores.requires_grad:
        raise Nonconforming("it claims to be differentiable, and its scores carry no gradient.")
    (slope,) = torch.autograd.grad(scores.sum(), pictures)
    require(bool(torch.isfinite(slope).all()) and bool(slope.any()), "its gradient is zero or not finite.")


def check_features(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """Where it has features, they are rows of numbers, of one image each, with finite gradients to the images."""
    if not loaded.has_features:
        return  # most rewards have none and promise nothing
    reward = make(loaded)
    pictures = images(SIZES[0]).requires_grad_()
    together = reward.features(pictures)
    require(together.ndim == 2 and len(together) == len(pictures), f"features of shape {tuple(together.shape)}.")
    require(bool(torch.isfinite(together).all()), "features are not all finite.")
    alone = torch.cat([reward.features(pictures[i : i + 1]) for i in range(len(pictures))])
    require(close(alone, together), "the features of an image depend on the others of its batch.")
    require(together.requires_grad, "features carry no gradient to the images.")
    (slope,) = torch.autograd.grad(together.sum(), pictures)
    require(bool(torch.isfinite(slope).all()) and bool(slope.any()), "the gradient of features is zero or not finite.")


CHECKS = {
    "declared fields": check_fields,
    "shape, dtype and finiteness": check_scores,
    "process left as it was": check_process,
    "determinism": check_determinism,
    "batch-size invariance": check_batches,
    "gradients": check_gradient,
    "features": check_features,
}
