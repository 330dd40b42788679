"""Pipelines with random weights in the architecture of real ones, for tests and measurements without any download.

The configurations are those of ``models.pipeline_files`` (``published(name).configs``) or smaller ones of the same
shape; the tokenizer is the tiny one of the test fixtures.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

TOKENIZER = Path(__file__).parent.parent / "tests" / "fixtures" / "official" / "tiny_pipe" / "tokenizer"
NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
SMALL_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 32,
    "vocab_size": 518,
    "max_position_embeddings": 32,
    "hidden_act": "quick_gelu",
}
SMALL_UNET = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": [2, 4],
    "sample_size": 8,
    "use_linear_projection": True,
}
SMALL_VAE = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 16,
}

SMALL: dict[str, dict[str, dict[str, Any]]] = {
    "sdxl": {
        "unet": SMALL_UNET
        | {
            "cross_attention_dim": 64,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 32,
            "transformer_layers_per_block": [1, 2],
        },
        "vae": SMALL_VAE | {"scaling_factor": 0.13025, "force_upcast": True},
        "text_encoder": SMALL_TEXT,
        "text_encoder_2": SMALL_TEXT | {"hidden_act": "gelu"},
        "scheduler": {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"} | NOISE,
    },
    "lcm": {
        "unet": SMALL_UNET | {"cross_attention_dim": 32, "time_cond_proj_dim": 16},
        "vae": SMALL_VAE,
        "text_encoder": SMALL_TEXT,
        "scheduler": {"_class_name": "LCMScheduler", "original_inference_steps": 50} | NOISE,
    },
}
"""Pipelines of about 0.2 M parameters, shaped like SDXL and like a latent consistency model."""


def write_pipeline(configs: Mapping[str, Mapping[str, Any]], folder: Path, seed: int = 0) -> Path:
    """Save a pipeline with random weights of these configurations; returns ``folder``.

    The pipeline class follows from the parts: two text encoders make an SDXL pipeline, an LCM scheduler a consistency
    pipeline, anything else Stable Diffusion.
    """
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(seed)
    scheduler_config = dict(configs["scheduler"])
    scheduler = getattr(diffusers, scheduler_config.pop("_class_name")).from_config(scheduler_config)
    length = configs["text_encoder"]["max_position_embeddings"]
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER, model_max_length=length)
    ends = {"bos_token_id": 516, "eos_token_id": 517, "pad_token_id": 517}
    parts: dict[str, Any] = {
        "unet": diffusers.UNet2DConditionModel(**configs["unet"]),
        "vae": diffusers.AutoencoderKL(**configs["vae"]),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"], **ends)),
        "tokenizer": tokenizer,
        "scheduler": scheduler,
    }
    if "text_encoder_2" in configs:
        second = CLIPTextModelWithProjection(CLIPTextConfig(**configs["text_encoder_2"], **ends))
        pipeline = diffusers.StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=tokenizer)
    else:
        consistency = isinstance(scheduler, diffusers.LCMScheduler)
        kind = diffusers.LatentConsistencyModelPipeline if consistency else diffusers.StableDiffusionPipeline
        pipeline = kind(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.save_pretrained(folder)
    return folder
