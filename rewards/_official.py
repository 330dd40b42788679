"""Scores by the authors' own packages, where somebody has installed them: for cross-checks, not dependencies.

The packages ``hpsv2`` and ``image-reward`` need libraries that are years older than those of this project;
``requirements/official-rewards.txt`` is the newest set in which both work.
"""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdpo_bench.errors import MissingError
from sdpo_bench.rewards._images import to_pil

REQUIREMENTS = "requirements/official-rewards.txt"


def import_official(module: str, package: str) -> Any:
    """The module of an official package.

    Raises:
        MissingError: not installed, or it does not import beside the installed libraries.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # the old packages fail in many ways: missing names, missing files
        raise MissingError(
            f"reward.backend=official needs the package '{package}', which does not import here: {error}. It "
            f"needs its own environment (pip install -r {REQUIREMENTS}); else --set reward.backend=native"
        ) from error


def hpsv2_scores(pictures: Tensor, prompts: list[str], *, checkpoint: Path, hps_version: str) -> Tensor:
    """``[B]`` by ``hpsv2.img_score.score``: autocast on a GPU, its checkpoint read again at every call."""
    score = import_official("hpsv2.img_score", "hpsv2").score
    options = {"cp": str(checkpoint), "hps_version": hps_version}
    pairs = zip(to_pil(pictures), prompts)
    return torch.tensor([float(score(image, prompt, **options)[0]) for image, prompt in pairs])


def load_imagereward(checkpoint: Path, med_config: Path, device: str) -> Any:
    """The model object of the package ``image-reward``; its ``score(prompt, picture)`` is rescaled."""
    package = import_official("ImageReward", "image-reward")
    return package.load(str(checkpoint), device=device, med_config=str(med_config))


def imagereward_scores(model: Any, pictures: Tensor, prompts: list[str]) -> Tensor:
    """``[B]`` by the package ``image-reward``."""
    pairs = zip(to_pil(pictures), prompts)
    return torch.tensor([float(model.score(prompt, image)) for image, prompt in pairs])
