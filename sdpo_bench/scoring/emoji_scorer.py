"""Networks behind the embedded rewards, and the scores that are read from their probabilities.

Two networks that share nothing: ``align`` is what the rewards `emoji-align` and `emoji-style` ask;
``accuracy`` is a second opinion that no reward is trained with, so that a policy which learns to please the
first is found out.
"""

from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdpo_bench.prompts.emoji_grammar import BACKGROUNDS, CLASSES, STYLES, parse_prompt

SIDE = 32
"""Side of the pictures that the networks read; others are resized."""

TAIL = 4.0
"""Largest loss of a style score in nats, see ``bounded_log``."""

SOFTNESS = 3.0
"""Temperature of alignment, over the calibrated one.

At the calibrated temperature nine of ten pictures of the embedded model score within .1 nat of the best possible, and
the tenth decides every mean: neither a policy nor a table could tell a good picture from a better one. At three times
that temperature the same ordering is spread out: real pictures -0.9, reconstructions -1.0, samples -1.5, blurred ones
-2 to -3, class means -2.3, blank and noise -4.7.
"""


class AlignScorer(nn.Module):
    """Class, background and style of a picture, from one trunk.

    The class head has a 66th output, "nothing recognisable", which training gives to noise, to blurred
    class means and to unfinished denoising; without it a confident answer would cost nothing on such
    pictures.
    """

    def __init__(self) -> None:
        super().__init__()
        self.border = _conv(3, 32, stride=2)
        self.trunk = nn.Sequential(
            _conv(32, 64, stride=2),
            _conv(64, 64),
            _conv(64, 128, stride=2),
            _conv(128, 128),
            nn.Flatten(),
            nn.Linear(128 * 16, 96),
            nn.SiLU(),
        )
        self.heads = nn.ModuleDict(
            {
                "class": nn.Linear(96, len(CLASSES) + 1),
                "background": nn.Linear(96, len(BACKGROUNDS)),
                "style": nn.Linear(96, len(STYLES)),
            }
        )
        for head in self.heads:
            self.register_buffer(f"{head}_temperature", torch.ones(()))

    def features(self, images: Tensor) -> Tensor:
        """``[B, 96]`` of ``[B, 3, H, W]`` in [0, 1]: what all heads read."""
        return self.trunk(self.border(_prepare(images)))

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """Uncalibrated logits by head for ``[B, 3, H, W]`` in [0, 1]."""
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Calibrated log-probabilities: ``class [B, 66]``, ``background [B, 10]``, ``style [B, 4]``."""
        return {
            name: (logits / getattr(self, f"{name}_temperature")).log_softmax(1)
            for name, logits in self.logits(images).items()
        }


class AccuracyScorer(nn.Module):
    """Class of a picture; a residual network with pooling, unlike ``AlignScorer`` in every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.border = nn.Sequential(nn.Conv2d(3, 32, 5, 2, 2), nn.GroupNorm(4, 32), nn.GELU())
        self.down = nn.ModuleList([nn.Conv2d(32, 64, 3, 2, 1), nn.Conv2d(64, 96, 3, 2, 1)])
        self.inner = nn.ModuleList([_Residual(64), _Residual(96), _Residual(96)])
        self.heads = nn.Linear(2 * 96, len(CLASSES))

    def features(self, images: Tensor) -> Tensor:
        """``[B, 192]`` of ``[B, 3, H, W]`` in [0, 1]: what the head reads."""
        x = self.inner[0](self.down[0](self.border(_prepare(images))))
        x = self.inner[2](self.inner[1](self.down[1](x)))
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, 65]`` for ``[B, 3, H, W]`` in [0, 1]."""
        return self.heads(self.features(images))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.spread = nn.Conv2d(width, width, 3, 1, 1)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.gelu(self.spread(self.norm(x))))


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(8, outputs), nn.SiLU())


def _prepare(images: Tensor) -> Tensor:
    """To 32x32 in [-1, 1]."""
    if images.shape[-2:] != (SIDE, SIDE):
        images = F.interpolate(images.float(), size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return images.float() * 2 - 1


ARCHITECTURES: dict[str, type[nn.Module]] = {"align": AlignScorer, "accuracy": AccuracyScorer}


@lru_cache(maxsize=8)
def load_scorer(name: str, device: str = "cpu") -> Any:
    """The frozen scorer ``align`` or ``accuracy`` in float32.

    Raises:
        KeyError: no scorer of that name.
    """
    from safetensors.torch import load_file

    scorer = ARCHITECTURES[name]()
    path = Path(str(files("sdpo_bench"))) / "assets" / "emoji_scorers" / f"{name}.safetensors"
    scorer.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return scorer.eval().requires_grad_(False).to(device)


def bounded_log(log_prob: Tensor) -> Tensor:
    """``4 (p^(1/4) - 1)``: close to log p near p = 1, but never below -4.

    The Box-Cox form of the logarithm. Improving a hopeless picture from p = 1e-9 to 1e-6 changes log p by 7
    nats and nothing that a person could see; bounded, such outliers do not decide the advantages of a whole
    batch.
    """
    return TAIL * torch.expm1(log_prob / TAIL)


def alignment(scorer: AlignScorer, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Tempered log-probability of what each prompt names: its class, plus its background if it names one.

    Args:
        images: ``[B, 3, H, W]`` in [0, 1].
        prompts: B texts; one that names no known class is scored by how recognisable the picture is at all.

    Returns:
        ``[B]`` float32, at most 0.
    """
    log_probs = {name: (value / SOFTNESS).log_softmax(1) for name, value in scorer(images).items()}
    named = [parse_prompt(prompt) for prompt in prompts]
    score = _class_log_prob(log_probs["class"], [name for name, _ in named])
    grounds = torch.tensor([BACKGROUNDS.index(ground) if ground else -1 for _, ground in named], device=score.device)
    ground_log_prob = log_probs["background"].gather(1, grounds.clamp(min=0)[:, None])[:, 0]
    return score + torch.where(grounds >= 0, ground_log_prob, 0.0)


def _class_log_prob(log_probs: Tensor, names: Sequence[str | None]) -> Tensor:
    target = torch.tensor([CLASSES.index(name) if name else -1 for name in names], device=log_probs.device)
    named = log_probs.gather(1, target.clamp(min=0)[:, None])[:, 0]
    anything = log_probs[:, : len(CLASSES)].logsumexp(1).clamp(max=0)
    return torch.where(target >= 0, named, anything)


def style_score(scorer: AlignScorer, images: Tensor, style: str) -> Tensor:
    """Bounded log-probability ``[B]`` that a picture shows something recognisable and in ``style``."""
    log_probs = scorer(images)
    anything = log_probs["class"][:, : len(CLASSES)].logsumexp(1).clamp(max=0)
    return bounded_log(log_probs["style"][:, STYLES.index(style)] + anything)


def correctness(scorer: AccuracyScorer, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """``[B]`` 1 where the most probable class is the prompt's, else 0 (also without a known class)."""
    best = scorer(images).argmax(1)
    names = [parse_prompt(prompt)[0] for prompt in prompts]
    target = torch.tensor([CLASSES.index(name) if name else -1 for name in names], device=best.device)
    return (best == target).float()
