"""Z-Image: one stream of image and text tokens, prompts of their own lengths through a chat template of Qwen3."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdpo_bench.models.conditioning import Conditioning
from sdpo_bench.models.families.base import Configs, Family

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TEXT_TOKENS = 512
"""Default of the stock pipeline (``max_sequence_length``)."""


class ZImage(Family):
    """The network's time runs from noise (0) to picture (1) and its output is ``x0 - eps``; both are turned round here.

    Guidance is classifier-free with an empty negative prompt, at the scale that all families share (1 is none). The
    stock pipeline counts from 0: its ``guidance_scale`` is one less.
    """

    name = "Z-Image"
    network = "ZImageTransformer2DModel"
    pipelines = ("ZImagePipeline",)
    encoders = ("text_encoder",)
    tokenizers = ("tokenizer",)
    self_cutting = ()
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")  # the attention projections, as for Stable Diffusion

    def channels(self, configs: Configs) -> int:
        return int(configs["transformer"].get("in_channels", 16))

    def text_shapes(self, configs: Configs) -> dict[str, tuple[int, ...]]:
        return {"cap_feats": (TEXT_TOKENS, configs["transformer"].get("cap_feat_dim", 2560))}

    def text_tokens(self, configs: Configs) -> int:
        return TEXT_TOKENS

    def stock_guidance(self, configs: Configs, guidance: float) -> dict[str, Any]:
        return super().stock_guidance(configs, guidance - 1)

    def prompt_limits(self, lengths: Mapping[str, int], text_tokens: int) -> dict[str, int]:
        return {"tokenizer": text_tokens}

    def as_read(self, tokenizer: Any, prompt: str) -> str:
        message = [{"role": "user", "content": prompt}]
        text: str = tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        return text

    def encode(
        self, pipeline: Any, prompt: str, *, device: "torch.device", guided: bool, size: int, text_tokens: int
    ) -> Conditioning:
        positive, negative = pipeline.encode_prompt(
            prompt, device=device, do_classifier_free_guidance=guided, max_sequence_length=text_tokens
        )
        return Conditioning(_with_length(positive[0]), _with_length(negative[0]) if guided else None)

    def predict(
        self, denoiser: Any, latents: "Tensor", timesteps: "Tensor", tensors: "dict[str, Tensor]", guidance: float
    ) -> "Tensor":
        import torch

        texts = list(tensors["cap_feats"])
        if "length" in tensors:
            texts = [text[:length] for text, length in zip(texts, tensors["length"].tolist())]
        outputs = denoiser(list(latents.unsqueeze(2)), (1000 - timesteps) / 1000, texts, return_dict=False)[0]
        return -torch.stack(list(outputs)).squeeze(2)


def _with_length(embeddings: "Tensor") -> "dict[str, Tensor]":
    """One row ``[1, L, d]``, and its length, which stays on the CPU: rows that are joined end in zeros."""
    import torch

    return {"cap_feats": embeddings.unsqueeze(0), "length": torch.tensor([len(embeddings)])}
