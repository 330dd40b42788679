"""LAION aesthetic predictor: a linear head on CLIP ViT-L/14 image features, blind to the prompt."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sdpo_bench.api import Execution
from sdpo_bench.models.hub import HubFile
from sdpo_bench.rewards._checkpoint import file_digest, read_state, strict_load
from sdpo_bench.rewards._clip import Clip, load_folder, weights_in
from sdpo_bench.rewards._clip_features import ClipFeatures
from sdpo_bench.rewards._clip_reward import local_folder
from sdpo_bench.rewards._images import clip_pixels
from sdpo_bench.rewards._linear_head import LinearHead
from sdpo_bench.rewards._model_reward import CheckpointSettings

CLIP_L14 = HubFile("openai/clip-vit-large-patch14", None, ("config.json", "model.safetensors"), 1_710_000_000)
WIDTH = 768


@dataclass(frozen=True)
class AestheticSettings(CheckpointSettings):
    """Settings of the aesthetic predictor; ``path`` is its head (3.7 MB)."""

    clip_path: Execution[str | None] = None
    """Local folder of CLIP ViT-L/14 in transformers' layout instead of the hub's."""


class Parts(NamedTuple):
    """The loaded model."""

    clip: Clip
    head: LinearHead


class Aesthetic(ClipFeatures):
    """Aesthetic rating, about 1 to 10, of the picture alone (LAION sac+logos+ava1-l14-linearMSE)."""

    name = "aesthetic"
    Settings = AestheticSettings
    version = "1"
    scale = "rating points, trained on human ratings from 1 to 10"
    source = "christophschuhmann/improved-aesthetic-predictor; checkpoint trl-lib/ddpo-aesthetic-predictor"
    weights = (HubFile("trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth", (), 3_710_000), CLIP_L14)

    def _variants(self) -> list[str]:
        own = super()._variants()
        if self.settings.clip_path:
            own.append(f"clip-{file_digest(weights_in(local_folder(self.settings.clip_path, 'clip_path')))}")
        return own

    def _build(self) -> Any:
        file = self._checkpoint()
        local = self.settings.clip_path
        folder = local_folder(local, "clip_path") if local else self._fetch(CLIP_L14, "clip_path")
        with torch.device("meta"):
            head = LinearHead(WIDTH)
        head = strict_load(head, read_state(file), file).to(self.device)
        return Parts(Clip(load_folder(folder, self.dtype, vision_only=True), None, self.device), head)

    @property
    def clip(self) -> Clip:
        clip: Clip = self.model.clip
        return clip

    def _score(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        features = self._model.clip.image_features(clip_pixels(pictures))
        return self._model.head(F.normalize(features, dim=-1))[:, 0]
