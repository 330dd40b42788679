"""What rewards with a published checkpoint share: lazy loading, checked input, batches, an honest version.

A subclass says which files it needs, builds its model from them and scores one batch of 8-bit pictures.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from annotated_types import Ge
from torch import Tensor

from sdpo_bench.api import Execution, Reward
from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.models.hub import HubFile, cached, find, resolved_commit
from sdpo_bench.rewards._checkpoint import file_digest, locate
from sdpo_bench.rewards._images import to_bytes

CLIP_TABLE = HubFile("openai/clip-vit-large-patch14", None, ("vocab.json", "merges.txt"), 1_500_000)
"""CLIP's byte-pair table; every published CLIP here uses this one."""


@dataclass(frozen=True)
class CheckpointSettings:
    """Settings of every reward with a published checkpoint."""

    path: Execution[str | None] = None
    """Local checkpoint, file or folder, instead of the hub's; its digest becomes part of the version."""
    revision: str | None = None
    """Branch, tag or commit of the checkpoint's hub repository; unset: what is cached, else the current."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Compute dtype of the reward model (fp32: as published)."""
    batch_size: Execution[Annotated[int, Ge(1)]] = 16
    """Pictures in one call of the reward model; changes no score beyond rounding."""


@dataclass(frozen=True)
class TextSettings(CheckpointSettings):
    """The same with a text side."""

    tokenizer_path: Execution[str | None] = None
    """Local folder of the tokenizer's files; unset: the local checkpoint's, else the hub's."""


class ModelReward(Reward):
    """A reward computed by a published model, which is loaded at the first call."""

    Settings: ClassVar[type] = CheckpointSettings
    name: ClassVar[str]
    weights: ClassVar[tuple[HubFile, ...]] = ()
    """All it needs from the hub; the first is the checkpoint that ``path`` and ``revision`` speak of."""
    tokenizer: ClassVar[tuple[str, ...]] = ()
    """Its tokenizer's files, the last of ``weights``; the first of them gives tokens their numbers."""
    native_model = "sd-turbo"

    def __init__(self, settings: Any = None, device: str = "cpu"):
        super().__init__(settings if settings is not None else self.Settings(), device)
        self.commits: dict[str, str] = {}
        """Commit of each hub repository that was read; complete after :meth:`load`."""
        self._model: Any = None

    @classmethod
    def unavailable(cls) -> str | None:
        """Which weights are not cached; a first call with network gets them, and ``path`` does without."""
        absent = [file for file in cls.weights if not cached(file)]
        size = sum(file.size for file in absent) / 1e9
        return f"weights not cached ({size:.1f} GB); type: sdpo-bench fetch {cls.name}" if absent else None

    @property
    def full_version(self) -> str:
        """``version`` and whatever in the settings changes a score, e.g. ``1+sdpo+bf16``.

        Raises:
            MissingError: ``path`` or ``tokenizer_path`` is set and nothing is there.
        """
        return "+".join([self.version, *self._variants()])

    def _variants(self) -> list[str]:
        settings = self.settings
        parts = [] if settings.precision == "fp32" else [settings.precision]
        if settings.revision:
            parts.append(f"rev-{settings.revision}")
        if settings.path:
            parts.append(f"file-{file_digest(self._weights_file(self._checkpoint()))}")
        if getattr(settings, "tokenizer_path", None):
            parts.append(f"tokenizer-{file_digest(self._tokenizer_folder() / self.tokenizer[0])}")
        return parts

    def load(self) -> Self:
        """Load the model unless it is loaded.

        Raises:
            MissingError: files that are neither local nor cached nor reachable, or a damaged checkpoint.
        """
        if self._model is None:
            self._model = self._build()
        return self

    @property
    def model(self) -> Any:
        """What :meth:`_build` made."""
        return self.load()._model

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores ``[B]`` float32 on the CPU; see :class:`sdpo_bench.api.Reward`.

        Raises:
            UsageError: images or prompts of the wrong type, shape or number, or values that are not finite.
            MissingError: as :meth:`load`.
        """
        check_batch(images, prompts)
        if not len(prompts):
            return torch.zeros(0)
        self.load()
        size = self.settings.batch_size
        with plain_arithmetic(self.device):
            parts = [
                self._score(to_bytes(images[at : at + size]), list(prompts[at : at + size]))
                for at in range(0, len(prompts), size)
            ]
        return torch.cat(parts).float().cpu()

    @abstractmethod
    def _build(self) -> Any:
        """Load everything that :meth:`_score` needs."""

    @abstractmethod
    def _score(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        """Scores ``[b]`` of pictures, uint8 ``[b, 3, H, W]``."""

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype of the model."""
        return torch.bfloat16 if self.settings.precision == "bf16" else torch.float32

    def _checkpoint(self) -> Path:
        """The local checkpoint of ``path``, else the hub's."""
        main = self.weights[0]
        if self.settings.path:
            return locate(self.settings.path, main.filename or "model.safetensors")
        return self._fetch(main)

    def _weights_file(self, checkpoint: Path) -> Path:
        return checkpoint

    def _fetch(self, file: HubFile, setting: str = "path") -> Path:
        """The hub's file; ``setting`` is the one that names a local copy instead."""
        own = file.repo == self.weights[0].repo
        hint = f"With a network, type: sdpo-bench fetch {self.name}. Or: --set reward.{setting}=PATH"
        path = find(file, self.settings.revision if own else None, hint=hint)
        commit = resolved_commit(path)
        if commit:
            self.commits[file.repo] = commit
        return path

    def _tokenizer_folder(self) -> Path:
        """Folder of the tokenizer's files: ``tokenizer_path``, beside the local checkpoint, or the hub's."""
        settings = self.settings
        if settings.tokenizer_path:
            folder = Path(settings.tokenizer_path).expanduser()
            absent = ", ".join(name for name in self.tokenizer if not (folder / name).is_file())
            if absent:
                raise MissingError(f"reward.tokenizer_path = '{folder}' lacks {absent}.")
            return folder
        table = self.weights[-1]
        if settings.path:
            beside = self._weights_file(self._checkpoint()).parent
            for folder in (beside, beside / table.repo.split("/")[-1]):
                if all((folder / name).is_file() for name in self.tokenizer):
                    return folder
        return self._fetch(table, "tokenizer_path")


def check_batch(images: Any, prompts: Any) -> None:
    """Refuse what a reward cannot score.

    Raises:
        UsageError: not float ``[B, 3, H, W]``, not finite, or not one prompt an image.
    """
    if not isinstance(images, Tensor):
        raise UsageError(f"a reward takes images as a tensor, got {type(images).__name__}.")
    shape = list(images.shape)
    if images.ndim != 4 or shape[1] != 3 or 0 in shape[1:] or not images.is_floating_point():
        raise UsageError(f"a reward takes float images [B, 3, H, W] in [0, 1], got {images.dtype} {shape}.")
    if isinstance(prompts, str) or len(prompts) != len(images):
        count = "one string" if isinstance(prompts, str) else f"{len(prompts)} prompts"
        raise UsageError(f"a reward takes a list with one prompt an image, got {count} for {len(images)} images.")
    if not torch.isfinite(images).all():
        raise UsageError("images contain NaN or infinity.")


@contextmanager
def plain_arithmetic(device: str) -> Iterator[None]:
    """No gradients, autocast or TF32, whatever the caller switched on: scores depend on their input alone."""
    with torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False), _without_tf32():
        yield


@contextmanager
def _without_tf32() -> Iterator[None]:
    conv, matmul = getattr(torch.backends.cudnn, "conv", None), torch.backends.cuda.matmul
    switches: tuple[Any, Any] = (torch.backends.cudnn, matmul)
    attribute: str = "allow_tf32"
    off: Any = False
    if hasattr(conv, "fp32_precision") and hasattr(matmul, "fp32_precision"):  # torch >= 2.9
        switches, attribute, off = (conv, matmul), "fp32_precision", "ieee"
    before = [getattr(switch, attribute) for switch in switches]
    try:
        for switch in switches:
            setattr(switch, attribute, off)
        yield
    finally:
        for switch, value in zip(switches, before):
            setattr(switch, attribute, value)
