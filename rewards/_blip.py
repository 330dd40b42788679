"""ImageReward's network on transformers' BLIP parts: image tokens, text that attends to them, a head."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdpo_bench.errors import MissingError
from sdpo_bench.rewards._checkpoint import State, count_layers, damaged, read_state, shape_of, strict_load
from sdpo_bench.rewards._linear_head import LinearHead
from sdpo_bench.system.json_toml import parse_json

VISION = "blip.visual_encoder."
TEXT = "blip.text_encoder."
PUBLISHED_HEADS = {1024: 16, 768: 12}
TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "pad_token_id",
)
UNUSED = (
    "blip.vision_proj",
    "blip.text_proj",
    "blip.itm_head",
    "blip.text_decoder",
    "blip.visual_encoder_m",
    "blip.text_encoder_m",
    "blip.image_queue",
    "blip.text_queue",
    "blip.queue_ptr",
    "blip.temp",
)
"""Parts of BLIP's pretraining that a checkpoint may carry and the reward never reads."""


class BlipReward(nn.Module):
    """``vision`` (ViT), ``text`` (BERT with cross attention), ``head``; built on the meta device."""

    def __init__(self, vision_config: Any, text_config: Any):
        from transformers import BlipTextModel, BlipVisionModel

        super().__init__()
        with torch.device("meta"):
            self.vision = BlipVisionModel(vision_config)
            self.text = BlipTextModel(text_config, add_pooling_layer=False)
            self.head = LinearHead(text_config.hidden_size)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """``[B, tokens, width]`` of model input ``[B, 3, 224, 224]``."""
        weight = self.vision.embeddings.patch_embedding.weight
        return self.vision(pixel_values=pixels.to(weight.device, weight.dtype)).last_hidden_state

    def text_states(self, image_tokens: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """``[B, places, width]`` of prompts that attend to their image."""
        device = image_tokens.device
        states = self.text(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            encoder_hidden_states=image_tokens,
            encoder_attention_mask=torch.ones(image_tokens.shape[:2], dtype=torch.long, device=device),
            is_decoder=False,  # in the configuration True makes cross attention; here it would mean causal
        )
        return states.last_hidden_state

    def reward(self, text_states: Tensor) -> Tensor:
        """Raw reward ``[B]`` float32: the head on the first place."""
        return self.head(text_states[:, 0]).float()[:, 0]


def load_blip_reward(file: Path, med_config: Path, dtype: torch.dtype) -> BlipReward:
    """The network of a checkpoint in ImageReward's layout.

    Args:
        med_config: the published ``med_config.json``, sizes of the text side.

    Raises:
        MissingError: unreadable files, or a checkpoint that does not fit exactly.
    """
    state = read_state(file)
    vision = _vision_config(state, file)
    model = BlipReward(vision, _text_config(med_config, vision.hidden_size))
    return strict_load(model, from_imagereward(state), file, dtype)


def _vision_config(state: State, file: Path) -> Any:
    from transformers import BlipVisionConfig

    width, _, patch, _ = shape_of(state, f"{VISION}patch_embed.proj.weight", 4, file)
    _, positions, _ = shape_of(state, f"{VISION}pos_embed", 3, file)
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=shape_of(state, f"{VISION}blocks.0.mlp.fc1.weight", 2, file)[0],
        num_hidden_layers=count_layers(state, f"{VISION}blocks."),
        num_attention_heads=_vision_heads(width, file),
        image_size=patch * round((positions - 1) ** 0.5),
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )


def _vision_heads(width: int, file: Path) -> int:
    """Heads of the published ViT, else of a ``config.json`` beside the checkpoint; no tensor tells them."""
    if width in PUBLISHED_HEADS:
        return PUBLISHED_HEADS[width]
    try:
        sizes = parse_json((file.parent / "config.json").read_text(encoding="utf-8"))
        return int(sizes["vision"]["num_heads"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(
            file, f"an image width of {width} is not ViT-L/16's, and no config.json beside it tells its heads"
        ) from error


def _text_config(med_config: Path, image_width: int) -> Any:
    from transformers import BlipTextConfig

    try:
        given = parse_json(med_config.read_text(encoding="utf-8"))
        sizes = {key: given[key] for key in TEXT_KEYS}
        return BlipTextConfig(**sizes, encoder_hidden_size=image_width, is_decoder=True)
    except Exception as error:  # not there, not JSON, a key missing, a value of the wrong type
        raise MissingError(f"'{med_config}' is not ImageReward's med_config.json: {error!r}") from error


_VISION_NAMES = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("blocks.", "encoder.layers."),
    ("norm.", "post_layernorm."),
)
_BLOCK_NAMES = (
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)


def from_imagereward(state: State) -> State:
    """The same tensors under :class:`BlipReward`'s names; unknown keys stay and fail the strict check."""
    used_keys = (key for key in state if not key.startswith(UNUSED) and not key.endswith(".position_ids"))
    return {_rename(key): state[key] for key in used_keys}


def _rename(key: str) -> str:
    if key.startswith(TEXT):
        return "text." + key.removeprefix(TEXT)
    if key.startswith("mlp."):
        return "head." + key.removeprefix("mlp.")
    if not key.startswith(VISION):
        return key
    name = key.removeprefix(VISION)
    old, new = next(((o, n) for o, n in _VISION_NAMES if name.startswith(o)), ("", ""))
    name = new + name.removeprefix(old)
    for old, new in _BLOCK_NAMES:
        name = name.replace(old, new)
    return "vision." + name
