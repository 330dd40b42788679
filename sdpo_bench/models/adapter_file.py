"""The adapter's file: LoRA weights and LoRA settings, as diffusers' ``load_lora_weights`` reads them.

The output of an adapted layer is ``W x + alpha / rank * B A x``. The weights alone do not say ``alpha``, and a loader
that does not find it takes ``alpha = rank``: another policy. So the file has the settings in diffusers' own adapter
metadata (``lora_adapter_metadata`` in the safetensors header), and the float32 weights stay as they were trained.

Two other ways were left aside. The scale multiplied into B is exact for powers of two only, and the loaded weights
would not be the trained ones. ``.alpha`` keys belong to kohya's format: diffusers ignores them beside names of its own.
Web UIs (AUTOMATIC1111, ComfyUI) honour ``.alpha`` keys, but read no UNet adapter in diffusers' names, with or without
them: for those ``kohya`` writes another file.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The adapter, under the name that diffusers looks for."""
METADATA = "lora_adapter_metadata"
"""Key of the header under which diffusers looks for the LoRA settings, as JSON."""
NAMES = {".lora_A.": ".lora.down.", ".lora_B.": ".lora.up."}
"""Peft's names of the two matrices, and diffusers' for those of a UNet; transformers have peft's in their files too.

Diffusers' own conversion leaves out top-level modules (``conv_in``), and its loader drops the rest of a file that has
both kinds of names.
"""


@dataclass(frozen=True)
class AdapterFile:
    """What the file of an adapter says."""

    weights: "dict[str, Tensor]"
    """Float32 matrices by peft's names: ``MODULE.lora_A.weight`` ``[rank, in, ..]``, ``lora_B`` ``[out, rank, ..]``."""
    config: dict[str, Any]
    """``r``, ``lora_alpha`` and ``target_modules`` of peft's ``LoraConfig``."""
    part: str = "unet"
    """The pipeline's part that carries the adapter: ``unet`` or ``transformer``."""
    notice: str = ""
    """What to tell of a file without settings that is applied at the strength of its run's record."""

    def to_bytes(self) -> bytes:
        """Content of the file; the same adapter gives the same bytes."""
        from safetensors.torch import save

        names = NAMES if self.part == "unet" else {}
        settings = {f"{self.part}.{key}": value for key, value in self.config.items()}
        weights = {f"{self.part}.{renamed(name, names)}": value.contiguous() for name, value in self.weights.items()}
        # The only entry of the header: safetensors writes several in random order. No loader needs its "format".
        return save(weights, metadata={METADATA: json.dumps(settings, sort_keys=True)})


def renamed(name: str, names: Mapping[str, str]) -> str:
    for before, after in names.items():
        name = name.replace(before, after)
    return name
