"""Architectures of the pipeline's parts: the form of Stable Diffusion 3, sized for a CPU.

The autoencoder is emoji-turbo's: 32x32 pictures, 8x8x4 latents. Patches of 2x2 latents make 16 image tokens; with
patches of 1 the same parameters cost three times as much a call.
"""

import torch
from torch import Tensor, nn

from sdpo_bench.prompts.emoji_grammar import MAX_TOKENS, vocabulary
from tools.emoji_turbo.networks import TEXT_WIDTH

HEADS, HEAD_WIDTH, BLOCKS = 3, 32, 5
ENCODERS = ("text_encoder", "text_encoder_2")


def make_transformer() -> nn.Module:
    """The MMDiT (Esser et al. 2024): 1.6 M parameters; every block begins as the identity, as in DiT."""
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=BLOCKS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        caption_projection_dim=HEADS * HEAD_WIDTH,
        joint_attention_dim=len(ENCODERS) * TEXT_WIDTH,
        pooled_projection_dim=len(ENCODERS) * TEXT_WIDTH,
        pos_embed_max_size=4,
        qk_norm="rms_norm",
    )
    gates = [block.norm1.linear for block in transformer.transformer_blocks]
    gates += [block.norm1_context.linear for block in transformer.transformer_blocks]
    for layer in (*gates, transformer.norm_out.linear, transformer.proj_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return transformer


def make_text_encoder() -> nn.Module:
    """A CLIP text encoder of two layers: the pipeline takes words from the first and a summary from the second."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(vocabulary()),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        projection_dim=TEXT_WIDTH,
    )
    return CLIPTextModelWithProjection(config)


def make_scheduler():
    """Sigmas without shift: pictures of 16 tokens keep their layout at far higher noise than large ones."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


class Denoiser(nn.Module):
    """Transformer and text encoders as one network: velocity eps - x0 from latents, noise level and token ids."""

    def __init__(self, transformer: nn.Module, encoders: dict[str, nn.Module]):
        super().__init__()
        self.transformer = transformer
        self.encoders = nn.ModuleDict(encoders)

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Text of ``tokens [n, 8]`` as the stock pipeline makes it: words ``[n, 8, 128]``, summary ``[n, 128]``."""
        outputs = [self.encoders[name](tokens, output_hidden_states=True) for name in ENCODERS]
        words = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return words, torch.cat([output.text_embeds for output in outputs], dim=-1)

    def forward(self, latents: Tensor, sigmas: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
        """Velocity like ``latents [n, 4, 8, 8]`` at noise levels ``sigmas [n]`` in (0, 1]."""
        return self.transformer(latents, *text, 1000 * sigmas).sample


def make_denoiser() -> Denoiser:
    """An untrained denoiser."""
    return Denoiser(make_transformer(), {name: make_text_encoder() for name in ENCODERS})


def load_denoiser(folder) -> Denoiser:
    """What :func:`save_denoiser` wrote, in evaluation mode."""
    from diffusers import SD3Transformer2DModel
    from transformers import CLIPTextModelWithProjection

    encoders = {name: CLIPTextModelWithProjection.from_pretrained(folder / name) for name in ENCODERS}
    return Denoiser(SD3Transformer2DModel.from_pretrained(folder / "transformer"), encoders).eval()


def save_denoiser(denoiser: Denoiser, folder) -> None:
    """Write the parts as the pipeline folder names them."""
    denoiser.transformer.save_pretrained(folder / "transformer")
    for name, encoder in denoiser.encoders.items():
        encoder.save_pretrained(folder / name)


def column(values: Tensor) -> Tensor:
    """``[n]`` as ``[n, 1, 1, 1]``."""
    return values[:, None, None, None]
