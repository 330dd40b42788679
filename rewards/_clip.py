"""CLIP models of all layouts as one thing: unnormalised image and text features from pictures and prompts.

Two published layouts end in ``transformers.CLIPModel``: folders that transformers saved, and single files of
the open_clip code, which store three attention projections as one and the final projections transposed.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdpo_bench.errors import MissingError
from sdpo_bench.rewards._checkpoint import State, count_layers, damaged, read_state, shape_of, strict_load

Tokenize = Callable[[str], Mapping[str, Tensor]]
TABLE_FILES = ("vocab.json", "merges.txt")
CONTEXT = 77


class Clip:
    """Features of a CLIP model, frozen, on one device.

    Args:
        model: ``CLIPModel``, or ``CLIPVisionModelWithProjection`` where no text is needed.
        tokenize: model input of one prompt (``input_ids [1, 77]`` int64, perhaps ``attention_mask``).
    """

    def __init__(self, model: nn.Module, tokenize: Tokenize | None, device: str):
        self.model: Any = model.to(device)
        self.tokenize = tokenize
        self.device = device
        self._text = lru_cache(maxsize=4096)(self._text_of_one)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Float32 ``[B, D]``, projected, not normalised, of model input ``[B, 3, 224, 224]``."""
        pixels = pixels.to(self.device, self.model.vision_model.embeddings.patch_embedding.weight.dtype)
        if hasattr(self.model, "get_image_features"):
            return self.model.get_image_features(pixel_values=pixels).pooler_output.float()
        return self.model(pixel_values=pixels).image_embeds.float()

    @property
    def logit_scale(self) -> Tensor:
        """Scalar exp(logit_scale), about 100 in published models."""
        return self.model.logit_scale.exp()

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Float32 ``[B, D]``, projected, not normalised.

        Prompts are encoded one by one and remembered: training asks for few prompts many times, and so a
        prompt's feature never depends on its neighbours, not even by rounding.
        """
        return torch.stack([self._text(prompt) for prompt in prompts])

    def _text_of_one(self, prompt: str) -> Tensor:
        if self.tokenize is None:
            raise RuntimeError("this CLIP model was loaded without its text side")
        inputs = {name: value.to(self.device) for name, value in self.tokenize(prompt).items()}
        return self.model.get_text_features(**inputs).pooler_output[0].float()


def cosine(images: Tensor, texts: Tensor) -> Tensor:
    """``[B]`` cosine similarity of rows of two ``[B, D]``."""
    return (F.normalize(images, dim=-1) * F.normalize(texts, dim=-1)).sum(-1)


def clip_tokenizer(folder: Path) -> Tokenize:
    """Tokenization by ``CLIPTokenizer``, cut and padded to 77, from a folder with CLIP's two table files."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer(*(str(folder / name) for name in TABLE_FILES))
    options = {"padding": "max_length", "max_length": CONTEXT, "truncation": True, "return_tensors": "pt"}
    return lambda prompt: dict(tokenizer([prompt], **options))


def weights_in(folder: Path) -> Path:
    """The weights file of a folder that ``CLIPModel.save_pretrained`` wrote.

    Raises:
        MissingError: not such a folder.
    """
    files = (folder / name for name in ("model.safetensors", "pytorch_model.bin"))
    candidates = [file for file in files if file.is_file()]
    if not candidates or not (folder / "config.json").is_file():
        raise MissingError(f"'{folder}' is not a CLIP model folder: it should hold config.json and model.safetensors.")
    return candidates[0]


def load_folder(folder: Path, dtype: torch.dtype, *, vision_only: bool = False) -> nn.Module:
    """``CLIPModel`` (or its image side) of a folder in transformers' layout.

    Raises:
        MissingError: not such a folder, or a checkpoint that does not fit exactly.
    """
    from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

    file = weights_in(folder)
    try:
        config = CLIPConfig.from_pretrained(folder)
    except Exception as error:  # not JSON, not a CLIP config, values of the wrong type
        raise damaged(folder / "config.json", f"it cannot be read ({str(error).strip()[:200]})") from error
    state = {key: value for key, value in read_state(file).items() if not key.endswith(".position_ids")}
    if not vision_only:
        with torch.device("meta"):
            model = CLIPModel(config)
        return strict_load(model, state, file, dtype)
    config.vision_config.projection_dim = config.projection_dim
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(config.vision_config)
    text = ("text_model.", "text_projection.", "logit_scale")
    return strict_load(model, {k: v for k, v in state.items() if not k.startswith(text)}, file, dtype)


def load_open_clip(file: Path, heads: Callable[[int, int], tuple[int, int]], dtype: torch.dtype) -> nn.Module:
    """``CLIPModel`` of a checkpoint in open_clip's layout; sizes come from its tensors.

    Args:
        heads: attention heads of the image and text side for their widths; the one size that no tensor tells.

    Raises:
        MissingError: a checkpoint that does not fit exactly.
    """
    from transformers import CLIPModel

    state = read_state(file)
    config = _open_clip_config(state, heads, file)
    with torch.device("meta"):
        model = CLIPModel(config)
    return strict_load(model, from_open_clip(state), file, dtype)


def _open_clip_config(state: State, heads: Callable[[int, int], tuple[int, int]], file: Path) -> Any:
    from transformers import CLIPConfig

    width, _, patch, _ = shape_of(state, "visual.conv1.weight", 4, file)
    positions, _ = shape_of(state, "visual.positional_embedding", 2, file)
    vocabulary, text_width = shape_of(state, "token_embedding.weight", 2, file)
    vision_heads, text_heads = heads(width, text_width)
    shared = {"hidden_act": "gelu", "layer_norm_eps": 1e-5}
    vision, text = "visual.transformer.resblocks.", "transformer.resblocks."
    return CLIPConfig(
        projection_dim=shape_of(state, "visual.proj", 2, file)[1],
        vision_config=shared
        | {
            "hidden_size": width,
            "intermediate_size": shape_of(state, f"{vision}0.mlp.c_fc.weight", 2, file)[0],
            "num_hidden_layers": count_layers(state, vision),
            "num_attention_heads": vision_heads,
            "patch_size": patch,
            "image_size": patch * round((positions - 1) ** 0.5),
        },
        text_config=shared
        | {
            "hidden_size": text_width,
            "intermediate_size": shape_of(state, f"{text}0.mlp.c_fc.weight", 2, file)[0],
            "num_hidden_layers": count_layers(state, text),
            "num_attention_heads": text_heads,
            "vocab_size": vocabulary,
            "max_position_embeddings": shape_of(state, "positional_embedding", 2, file)[0],
            "eos_token_id": vocabulary - 1,
        },
    )


_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
}
_LAYER_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_LAYER = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)")


def from_open_clip(state: State) -> State:
    """The same tensors under ``CLIPModel``'s names; unknown keys keep theirs and fail the strict check."""
    result: State = {}
    for key, value in state.items():
        layer = _LAYER.fullmatch(key)
        if layer:
            result |= _from_layer(layer, value)
        else:
            turned = value.T.contiguous() if key in ("visual.proj", "text_projection") else value
            result[_NAMES.get(key, key)] = turned
    return result


def _from_layer(match: re.Match[str], value: Tensor) -> State:
    visual, number, part, kind = match.groups()
    prefix = f"{'vision' if visual else 'text'}_model.encoder.layers.{number}."
    if part == "attn.in_proj":
        names = (f"{prefix}self_attn.{name}_proj.{kind}" for name in "qkv")
        return dict(zip(names, value.chunk(3)))
    return {f"{prefix}{_LAYER_NAMES.get(part, part)}.{kind}": value}
