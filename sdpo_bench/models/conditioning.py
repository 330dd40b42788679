"""Inputs of a denoiser besides latents and timestep: text, and what some architectures add to it.

Which tensors these are is the business of the model's family (``families``); here they are rows that are joined,
picked and repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Text conditioning of n prompts: tensors by name, each ``[n, ...]``.

    ``negative`` holds the unconditional ones where classifier-free guidance is in use.
    """

    positive: "dict[str, Tensor]"
    negative: "dict[str, Tensor] | None" = None

    def __getitem__(self, rows: "Tensor") -> "Conditioning":
        """Conditioning of the given rows (int64 index, repeats allowed)."""
        return Conditioning(_pick(self.positive, rows), _pick(self.negative, rows) if self.negative else None)

    @classmethod
    def join(cls, parts: Sequence["Conditioning"]) -> "Conditioning":
        """One conditioning of the rows of all parts, which all have a negative side or none has."""
        positive = join_rows([part.positive for part in parts])
        if parts[0].negative is None:
            return cls(positive)
        return cls(positive, join_rows([part.negative or {} for part in parts]))


def join_rows(parts: "Sequence[dict[str, Tensor]]") -> "dict[str, Tensor]":
    """The rows of all parts under each name; token sequences ``[n, L, d]`` of different lengths end in zeros."""
    import torch

    joined = {}
    for name in parts[0]:
        rows = [part[name] for part in parts]
        if rows[0].ndim == 3 and len({value.shape[1] for value in rows}) > 1:
            longest = max(value.shape[1] for value in rows)
            rows = [torch.nn.functional.pad(value, (0, 0, 0, longest - value.shape[1])) for value in rows]
        joined[name] = torch.cat(rows)
    return joined


def _pick(tensors: "dict[str, Tensor]", rows: "Tensor") -> "dict[str, Tensor]":
    return {name: value[rows.to(value.device)] for name, value in tensors.items()}
