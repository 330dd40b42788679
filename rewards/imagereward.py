"""ImageReward v1.0 (arXiv 2304.05977): a BLIP model trained on human rankings of generated pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.models.hub import HubFile
from sdpo_bench.rewards._blip import load_blip_reward
from sdpo_bench.rewards._images import clip_pixels, cropped_pixels
from sdpo_bench.rewards._model_reward import ModelReward, TextSettings
from sdpo_bench.rewards._official import imagereward_scores, load_imagereward

REPO = "THUDM/ImageReward"
MED_CONFIG = HubFile(REPO, "med_config.json", (), 500)
VOCABULARY = HubFile("bert-base-uncased", None, ("vocab.txt",), 232_000)
MAX_LENGTH = 35
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""The official code subtracts and divides by these (ImageReward/ImageReward.py)."""


@dataclass(frozen=True)
class ImageRewardSettings(TextSettings):
    """Settings of ImageReward."""

    preprocessing: Literal["official", "sdpo"] = "official"
    """Official crop and rescaled reward; or the CLIP processor's crop and the raw reward (SDPO code)."""
    backend: Literal["native", "official"] = "native"
    """This package's implementation, or the installed package ``image-reward`` (for cross-checks)."""


class ImageReward(ModelReward):
    """Human preference as a rescaled reward, about -2 to 2 (ImageReward v1.0, arXiv 2304.05977)."""

    name = "imagereward"
    Settings = ImageRewardSettings
    version = "1"
    scale = "standard deviations, (raw - 0.16717) / 1.03334 as the official code reports it"
    source = "arXiv 2304.05977; THUDM/ImageReward; checkpoint THUDM/ImageReward: ImageReward.pt"
    weights = (HubFile(REPO, "ImageReward.pt", (), 1_790_000_000), MED_CONFIG, VOCABULARY)
    tokenizer = VOCABULARY.allow_patterns

    def _variants(self) -> list[str]:
        settings = self.settings
        own = [] if settings.preprocessing == "official" else [settings.preprocessing]
        own += ["official-package"] if settings.backend == "official" else []
        return own + super()._variants()

    def _build(self) -> Any:
        file = self._checkpoint()
        med_config = self._med_config(file)
        if self.settings.backend == "official":
            if self.settings.preprocessing != "official":
                raise UsageError("reward.backend=official can only do reward.preprocessing=official.")
            return load_imagereward(file, med_config, self.device)
        self._tokenizer = _tokenizer(self._tokenizer_folder())
        return load_blip_reward(file, med_config, self.dtype).to(self.device)

    def _med_config(self, checkpoint: Path) -> Path:
        if not self.settings.path:
            return self._fetch(MED_CONFIG)
        beside = checkpoint.with_name("med_config.json")
        if not beside.is_file():
            raise MissingError(f"'{checkpoint}' needs the published med_config.json in the same folder.")
        return beside

    def pixels(self, pictures: Tensor) -> Tensor:
        """Model input ``[B, 3, 224, 224]`` of uint8 ``[B, 3, H, W]``, by the chosen preprocessing."""
        return clip_pixels(pictures) if self.settings.preprocessing == "sdpo" else cropped_pixels(pictures)

    def tokens(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """``input_ids`` and ``attention_mask``, int64 ``[B, 35]``."""
        self.load()
        tokens = self._tokenizer(
            prompts, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
        )
        return tokens["input_ids"], tokens["attention_mask"]

    def _score(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        if self.settings.backend == "official":
            return imagereward_scores(self._model, pictures, prompts)
        image_tokens = self._model.image_tokens(self.pixels(pictures))
        raw = self._model.reward(self._model.text_states(image_tokens, *self.tokens(prompts)))
        return raw if self.settings.preprocessing == "sdpo" else (raw - MEAN) / STD


def _tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizer

    return BertTokenizer(str(folder / "vocab.txt"), do_lower_case=True)
