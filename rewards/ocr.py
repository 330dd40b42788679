"""Text rendering (Flow-GRPO, arXiv 2505.05470, section 4.1): is the quoted text of the prompt in the picture?"""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge

from sdpo_bench.api import Execution, Reward
from sdpo_bench.errors import MissingError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES = ("rapidocr", "onnxruntime")
Match = Literal["distance", "contains"]
INSTALL = "needs the packages rapidocr and onnxruntime; type: pip install 'sdpo-bench[ocr]'"


def target_text(prompt: str) -> str:
    """The text between the first two double quotes (straight or curly) of a prompt.

    Raises:
        UsageError: no quoted text in it.
    """
    quoted = re.search(r'["“”]([^"“”]*)["“”]', prompt)
    if quoted is None or not _plain(quoted[1]):
        raise UsageError(
            f"the reward 'ocr' scores the text between double quotes in a prompt, and this one has none: {prompt!r}. "
            'Use prompts such as: a sign that says "OPEN"'
        )
    return quoted[1]


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: the fewest insertions, deletions and substitutions that turn ``a`` into ``b``."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            substitution = diagonal + (left != right)
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, substitution)
    return row[-1]


def text_score(target: str, text: str, match: Match = "distance") -> float:
    """``max(0, 1 - distance / length of the target)``, without spaces and capitals, as in Flow-GRPO's equation.

    With ``contains``, any text that contains the target has distance 0, as in Flow-GRPO's ``ocr.py`` (ac4c86e).
    """
    target, text = _plain(target), _plain(text)
    if match == "contains" and target in text:
        return 1.0
    return max(0.0, 1 - edit_distance(text, target) / len(target))


def _plain(text: str) -> str:
    return re.sub(r"\s", "", text).lower()


@dataclass(frozen=True)
class OcrSettings:
    """Settings of the text recogniser."""

    match: Execution[Match] = "distance"
    """What is right: the whole text, by its edit distance to the target (the paper's equation), or also any text that
    contains the target (Flow-GRPO's code, whose published scores are these). It is part of the version."""
    threads: Execution[Annotated[int, Ge(1)]] = 1
    """CPU threads of onnxruntime."""


class Ocr(Reward):
    """1 - edit distance / length between the quoted text of the prompt and the text read in the picture, at least 0."""

    name = "ocr"
    Settings = OcrSettings
    version = "1"
    scale = "share of the target's characters that are right"
    source = "Flow-GRPO, arXiv 2505.05470, section 4.1; text recognition by PP-OCR models in the wheel of rapidocr"
    native_model = "sd-turbo"

    def __init__(self, settings: Any = None, device: str = "cpu"):
        super().__init__(settings if settings is not None else OcrSettings(), device)
        self._reader: Any = None

    @classmethod
    def unavailable(cls) -> str | None:
        return None if all(map(importlib.util.find_spec, PACKAGES)) else INSTALL

    @property
    def full_version(self) -> str:
        """``version``, ``match`` where it is not the default, and rapidocr's release, whose wheel brings the models:
        another release may read other text.

        Raises:
            MissingError: the packages are not installed.
        """
        if self.unavailable():
            raise MissingError(f"the reward 'ocr' {INSTALL}")
        own = "" if self.settings.match == "distance" else f"+{self.settings.match}"
        return f"{self.version}{own}+rapidocr-{version('rapidocr')}"

    def load(self) -> "Ocr":
        if self._reader is None:
            if self.unavailable():
                raise MissingError(f"the reward 'ocr' {INSTALL}")
            from rapidocr import RapidOCR

            threads = self.settings.threads
            self._reader = RapidOCR(
                params={
                    "Global.log_level": "critical",
                    "Global.use_cls": False,  # upright text only, as in Flow-GRPO
                    "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                    "EngineConfig.onnxruntime.inter_op_num_threads": threads,
                }
            )
        return self

    def read(self, images: "Tensor") -> list[str]:
        """The text in each picture, its lines joined in reading order; empty where there is none."""
        import torch

        self.load()
        pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
        texts = []
        for picture in pixels.flip(1).permute(0, 2, 3, 1).contiguous().cpu().numpy():  # blue, green, red
            found = self._reader(picture)
            texts.append("".join(found.txts or ()))
        return texts

    def __call__(self, images: "Tensor", prompts: Sequence[str]) -> "Tensor":
        """Scores ``[B]`` in [0, 1].

        Raises:
            UsageError: a prompt without quoted text.
        """
        import torch

        targets = [target_text(prompt) for prompt in prompts]
        texts = self.read(images)
        scores = [text_score(target, text, self.settings.match) for target, text in zip(targets, texts)]
        return torch.tensor(scores, dtype=torch.float32)
