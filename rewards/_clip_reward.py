"""Rewards that are a CLIP folder in transformers' layout and the byte-pair table beside it."""

from pathlib import Path
from typing import Any

from sdpo_bench.errors import MissingError
from sdpo_bench.rewards._clip import TABLE_FILES, Clip, clip_tokenizer, load_folder, weights_in
from sdpo_bench.rewards._clip_features import ClipFeatures
from sdpo_bench.rewards._model_reward import TextSettings


class ClipReward(ClipFeatures):
    """``weights`` are a ``CLIPModel`` folder and a tokenizer table, loaded as one :class:`Clip`."""

    Settings = TextSettings
    tokenizer = TABLE_FILES

    def _checkpoint(self) -> Path:
        if not self.settings.path:
            return self._fetch(self.weights[0])
        return local_folder(self.settings.path, "path")

    def _weights_file(self, checkpoint: Path) -> Path:
        return weights_in(checkpoint)

    def _build(self) -> Any:
        folder = self._checkpoint()
        tokenize = clip_tokenizer(self._tokenizer_folder())
        return Clip(load_folder(folder, self.dtype), tokenize, self.device)


def local_folder(path: str, setting: str) -> Path:
    """The folder that a setting names.

    Raises:
        MissingError: no such folder.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise MissingError(f"reward.{setting} = '{path}': no such folder.")
    return folder
