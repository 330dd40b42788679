"""PickScore v1 (arXiv 2305.01569): a CLIP ViT-H/14 trained on people's choices between two pictures."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sdpo_bench.models.hub import HubFile
from sdpo_bench.rewards._clip import TABLE_FILES, cosine
from sdpo_bench.rewards._clip_reward import ClipReward
from sdpo_bench.rewards._images import clip_pixels
from sdpo_bench.rewards._model_reward import TextSettings

TABLE = HubFile("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", None, TABLE_FILES, 1_500_000)


@dataclass(frozen=True)
class PickScoreSettings(TextSettings):
    """Settings of PickScore."""

    preprocessing: Literal["official", "sdpo"] = "official"
    """Official scale, exp(logit_scale) times the cosine; or the plain cosine (SDPO code); same pixels."""


class PickScore(ClipReward):
    """Human choice as 100 times a cosine, about 20 to 23 (PickScore v1, arXiv 2305.01569)."""

    name = "pickscore"
    Settings = PickScoreSettings
    version = "1"
    scale = "exp(logit_scale) x cosine similarity; the published scale is 100"
    source = "arXiv 2305.01569; yuvalkirstain/PickScore; checkpoint yuvalkirstain/PickScore_v1"
    weights = (
        HubFile("yuvalkirstain/PickScore_v1", None, ("config.json", "model.safetensors"), 3_940_000_000),
        TABLE,
    )

    def _variants(self) -> list[str]:
        own = [] if self.settings.preprocessing == "official" else [self.settings.preprocessing]
        return own + super()._variants()

    def _score(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        clip = self._model
        cosines = cosine(clip.image_features(clip_pixels(pictures)), clip.text_features(prompts))
        return cosines if self.settings.preprocessing == "sdpo" else clip.logit_scale * cosines
