"""What a reward service and its client send each other: safetensors, so float32 arrives bit for bit and runs no code.

A picture file would round to 8 bits, and a pickle would let either side run code on the other. A request holds
``images`` float32 ``[B, 3, H, W]`` and the prompts as JSON in the header, an answer ``scores`` float32 ``[B]`` with the
name and version of the reward that gave them.
"""

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdpo_bench.errors import UsageError
from sdpo_bench.system.json_toml import parse_json

PROTOCOL = 1
MEDIA_TYPE = "application/x-safetensors"
"""Not one that a web page may send to another host without asking, so no page can use a service on this machine."""
MOST_PIXELS = 4096 * 4096


def pack_request(images: Tensor, prompts: Sequence[str]) -> bytes:
    """Request body."""
    return _pack({"images": images}, {"prompts": json.dumps(list(prompts))})


def unpack_request(body: bytes) -> tuple[Tensor, list[str]]:
    """Images and prompts of a request body.

    Raises:
        UsageError: not such a body, or images and prompts that do not fit together.
    """
    images, header = _unpack(body, "images")
    prompts = _json(header.get("prompts", ""))
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape or images[0, 0].numel() > MOST_PIXELS:
        raise UsageError(f"images must be [B, 3, H, W], got {list(images.shape)}.")
    if not isinstance(prompts, list) or not all(isinstance(p, str) for p in prompts) or len(prompts) != len(images):
        raise UsageError(
            f"the prompts do not fit the images. Expected a JSON list of {len(images)} strings, one for each image."
        )
    if not bool(((images >= 0) & (images <= 1)).all()):  # False for NaN too
        raise UsageError("images must hold finite values from 0 to 1.")
    return images, prompts


def pack_answer(scores: Tensor, *, name: str, version: str) -> bytes:
    """Answer body."""
    return _pack({"scores": scores}, {"name": name, "version": version})


def unpack_answer(body: bytes) -> tuple[Tensor, dict[str, str]]:
    """Scores, and the name and version they carry.

    Raises:
        UsageError: not such a body.
    """
    return _unpack(body, "scores")


def _pack(tensors: dict[str, Tensor], header: dict[str, str]) -> bytes:
    from safetensors.torch import save

    plain = {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in tensors.items()}
    return save(plain, metadata=header)


def _unpack(body: bytes, name: str) -> tuple[Tensor, dict[str, str]]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(body)
        size = int.from_bytes(body[:8], "little")
        header = parse_json(body[8 : 8 + size]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError) as error:
        raise UsageError(f"not a safetensors body: {error}") from error
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype != torch.float32:
        raise UsageError(f"the body has no float32 tensor '{name}'.")
    return tensor, header


def _json(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None
