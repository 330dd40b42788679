"""CLIPScore (Hessel et al. 2021, arXiv 2104.08718): does the picture fit the prompt, by CLIP ViT-L/14?"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sdpo_bench.models.hub import HubFile
from sdpo_bench.rewards._clip import cosine
from sdpo_bench.rewards._clip_reward import ClipReward
from sdpo_bench.rewards._images import clip_pixels
from sdpo_bench.rewards._model_reward import CLIP_TABLE, TextSettings

WEIGHT = 2.5
"""w of the paper's equation 1."""


@dataclass(frozen=True)
class ClipScoreSettings(TextSettings):
    """Settings of CLIPScore."""

    form: Literal["clipscore", "cosine"] = "clipscore"
    """2.5 x max(0, cosine) as in the paper, or the plain cosine."""
    prefix: str = ""
    """Text before every prompt; the paper puts ``A photo depicts `` before captions."""


class ClipScore(ClipReward):
    """Text-image fit, 2.5 x max(0, cosine) of CLIP ViT-L/14 (CLIPScore, arXiv 2104.08718)."""

    name = "clipscore"
    Settings = ClipScoreSettings
    version = "1"
    scale = "2.5 x max(0, cosine similarity), ViT-L/14"
    source = "arXiv 2104.08718, equation 1 (there with ViT-B/32); checkpoint openai/clip-vit-large-patch14"
    weights = (
        HubFile("openai/clip-vit-large-patch14", None, ("config.json", "model.safetensors"), 1_710_000_000),
        CLIP_TABLE,
    )

    def _variants(self) -> list[str]:
        settings = self.settings
        own = [] if settings.form == "clipscore" else [settings.form]
        own += [f"prefix-{settings.prefix!r}"] if settings.prefix else []
        return own + super()._variants()

    def _score(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        texts = self._model.text_features([self.settings.prefix + prompt for prompt in prompts])
        cosines = cosine(self._model.image_features(clip_pixels(pictures)), texts)
        return cosines if self.settings.form == "cosine" else WEIGHT * cosines.clamp(min=0)
