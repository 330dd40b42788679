"""Human Preference Score v2 (arXiv 2306.09341): what its two published checkpoints share.

A fine-tuned CLIP ViT-H/14; the score is the plain cosine, without the logit scale. Prompts are read as the
official tokenizer reads them, which repairs more than transformers' does and has other special words.
"""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.models.hub import HubFile
from sdpo_bench.rewards._checkpoint import damaged
from sdpo_bench.rewards._clip import CONTEXT, TABLE_FILES, Clip, Tokenize, cosine, load_open_clip
from sdpo_bench.rewards._clip_features import ClipFeatures, smooth_clip_pixels
from sdpo_bench.rewards._images import SIDE, clip_pixels, padded_pixels, to_bytes
from sdpo_bench.rewards._model_reward import CLIP_TABLE, TextSettings
from sdpo_bench.rewards._official import hpsv2_scores
from sdpo_bench.system.json_toml import parse_json

REPO = "xswu/HPSv2"
FILES = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}
SIZE = 1_970_000_000
PUBLISHED_HEADS = {(1280, 1024): (16, 16)}


@dataclass(frozen=True)
class HpsSettings(TextSettings):
    """Settings of HPS v2."""

    preprocessing: Literal["official", "official-2023", "sdpo"] = "official"
    """Resize and pad (official code on current torchvision); the same without antialiasing (torchvision 0.16
    and older); or the CLIP processor's centre crop (SDPO code)."""
    backend: Literal["native", "official"] = "native"
    """This package's implementation, or the installed package ``hpsv2`` (slow, for cross-checks)."""


class HpsReward(ClipFeatures):
    """HPS v2 with one of its checkpoints."""

    Settings = HpsSettings
    tokenizer = TABLE_FILES
    hps_version: ClassVar[str]
    version = "1"
    scale = "cosine similarity (official; times 100 in the paper's tables)"

    def __init__(self, settings: Any = None, device: str = "cpu"):
        super().__init__(settings, device)
        self.has_features = self.settings.backend == "native"  # the package gives scores alone

    def _variants(self) -> list[str]:
        settings = self.settings
        own = [] if settings.preprocessing == "official" else [settings.preprocessing]
        own += ["official-package"] if settings.backend == "official" else []
        return own + super()._variants()

    def _checkpoint(self) -> Path:
        file = super()._checkpoint()
        others = {name: version for version, name in FILES.items() if version != self.hps_version}
        if file.name in others:
            raise UsageError(
                f"'{file}' is HPS {others[file.name]}, and '{self.name}' is HPS {self.hps_version}: scores "
                f"differ. Use that version's reward, or the file {FILES[self.hps_version]}."
            )
        return file

    def _build(self) -> Any:
        file = self._checkpoint()
        if self.settings.backend == "official":
            if self.settings.preprocessing != "official":
                raise UsageError("reward.backend=official can only do reward.preprocessing=official.")
            return partial(hpsv2_scores, checkpoint=file, hps_version=self.hps_version)
        tokenize = hps_tokenizer(self._tokenizer_folder())
        model = load_open_clip(file, partial(_heads, file=file), self.dtype)
        if model.config.vision_config.image_size != SIDE:
            raise damaged(file, f"its images are not {SIDE} pixels wide")
        return Clip(model, tokenize, self.device)

    def pixels(self, pictures: Tensor) -> Tensor:
        """Model input ``[B, 3, 224, 224]`` of uint8 ``[B, 3, H, W]``, by the chosen preprocessing."""
        if self.settings.preprocessing == "sdpo":
            return clip_pixels(pictures)
        place = self.device if self.device.startswith("cuda") else "cpu"  # other devices lack the antialiased resize
        return padded_pixels(pictures.to(place), antialias=self.settings.preprocessing == "official")

    def _input(self, images: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.pixels(to_bytes(images))
        return smooth_clip_pixels(images) if self.settings.preprocessing == "sdpo" else self.pixels(images * 255)

    def _score(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        if self.settings.backend == "official":
            return self._model(pictures, prompts)
        return cosine(self._model.image_features(self.pixels(pictures)), self._model.text_features(prompts))


def hps_weights(version: str) -> tuple[HubFile, ...]:
    """Hub files of one version."""
    return (HubFile(REPO, FILES[version], (), SIZE), CLIP_TABLE)


def _heads(width: int, text_width: int, *, file: Path) -> tuple[int, int]:
    """Heads of the published ViT-H/14, else of a ``config.json`` (open_clip's form) beside the file."""
    if (width, text_width) in PUBLISHED_HEADS:
        return PUBLISHED_HEADS[width, text_width]
    try:
        sizes = parse_json((file.parent / "config.json").read_text(encoding="utf-8"))["model"]
        return width // int(sizes["vision_cfg"].get("head_width", 64)), int(sizes["text_cfg"]["heads"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(
            file, f"widths {width} and {text_width} are not ViT-H/14's, and no config.json tells the heads"
        ) from error


START, END = "<start_of_text>", "<end_of_text>"
_WORDS = rf"(?i){START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"
"""How CLIP's published tokenizer splits a prompt into words."""


def clean_prompt(prompt: str) -> str:
    """Mis-decoded text repaired, HTML entities decoded twice, white space collapsed, lower case."""
    import ftfy

    decoded = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return " ".join(decoded.split()).lower()


def hps_tokenizer(folder: Path) -> Tokenize:
    """The official tokenizer on CLIP's table: start, pairs, end; cut to 77 with the end kept, padded with 0.

    ``<start_of_text>`` and ``<end_of_text>`` inside a prompt are special, ``<|endoftext|>`` is plain text; in
    transformers it is the other way round.

    Raises:
        MissingError: a folder whose ``vocab.json`` and ``merges.txt`` are not CLIP's table.
    """
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    pairs, start, end = _byte_pairs(folder)
    special = {START: start, END: end}
    # ByteLevel leaves the two special words as they are: they are ASCII without spaces
    split = Sequence([Split(Regex(_WORDS), "removed", invert=True), ByteLevel(add_prefix_space=False, use_regex=False)])

    def encode(word: str) -> list[int]:
        return [special[word]] if word in special else [token.id for token in pairs.tokenize(word)]

    def tokenize(prompt: str) -> Mapping[str, Tensor]:
        words = [word for word, _ in split.pre_tokenize_str(clean_prompt(prompt))]
        inside = [number for word in words for number in encode(word)]
        row = [start, *inside[: CONTEXT - 2], end]
        return {"input_ids": torch.tensor([row + [0] * (CONTEXT - len(row))])}

    return tokenize


def _byte_pairs(folder: Path) -> tuple[Any, int, int]:
    """CLIP's byte-pair table and its numbers of the start and end token."""
    from tokenizers.models import BPE

    vocabulary, merges = (str(folder / name) for name in TABLE_FILES)
    try:
        pairs = BPE.from_file(vocabulary, merges, end_of_word_suffix="</w>")
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise MissingError(f"'{folder}' does not hold CLIP's tokenizer table: {error}") from error
    start, end = (pairs.token_to_id(f"<|{name}|>") for name in ("startoftext", "endoftext"))
    if start is None or end is None:
        raise MissingError(f"'{folder}' does not hold CLIP's tokenizer table: no start or end token in it.")
    return pairs, start, end
