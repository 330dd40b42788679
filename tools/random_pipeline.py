"""Pipelines with random weights in the architecture of real ones, for tests and measurements without any download.

The configurations are those of ``models.pipeline_files`` (``published(name).configs``) or smaller ones of the same
shape. CLIP's tokenizer is the tiny one of the test fixtures; those of T5 and Qwen spell words in letters.
"""

import string
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


SMALL_FLOW_VAE = SMALL_VAE | {"scaling_factor": 1.5, "shift_factor": 0.06, "use_quant_conv": False}
SMALL_FLOW_VAE |= {"use_post_quant_conv": False}
SMALL_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
SMALL_QWEN = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
}
SMALL_QWEN_VL = {
    "text_config": {
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
    },
    "vision_config": {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32},
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}

_SD3 = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 64,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 64,
    "pos_embed_max_size": 16,
    "qk_norm": "rms_norm",
    "dual_attention_layers": (0,),
}
_FLUX = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 6, 6),
}
_ZIMAGE = {
    "in_channels": 4,
    "dim": 32,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 32,
    "axes_dims": [4, 6, 6],
    "axes_lens": [1024, 64, 64],
}

_QWENIMAGE = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "axes_dims_rope": (4, 6, 6),
}

SMALL_FLOW: dict[str, dict[str, dict[str, Any]]] = {
    "sd3": {
        "transformer": _SD3 | {"_class_name": "SD3Transformer2DModel"},
        "vae": SMALL_FLOW_VAE,
        "text_encoder": SMALL_TEXT,
        "text_encoder_2": SMALL_TEXT | {"hidden_act": "gelu"},
        "text_encoder_3": SMALL_T5 | {"d_model": 64},
        "scheduler": FLOW | {"shift": 3.0},
    },
    "sd3-without-t5": {
        "transformer": _SD3 | {"_class_name": "SD3Transformer2DModel", "dual_attention_layers": ()},
        "vae": SMALL_FLOW_VAE,
        "text_encoder": SMALL_TEXT,
        "text_encoder_2": SMALL_TEXT | {"hidden_act": "gelu"},
        "scheduler": FLOW | {"shift": 3.0},
    },
    "flux-schnell": {
        "transformer": _FLUX | {"_class_name": "FluxTransformer2DModel", "guidance_embeds": False},
        "vae": SMALL_FLOW_VAE,
        "text_encoder": SMALL_TEXT,
        "text_encoder_2": SMALL_T5,
        "scheduler": FLOW | {"shift": 1.0},
    },
    "flux-dev": {
        "transformer": _FLUX | {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True},
        "vae": SMALL_FLOW_VAE,
        "text_encoder": SMALL_TEXT,
        "text_encoder_2": SMALL_T5,
        "scheduler": FLOW | DYNAMIC | {"shift": 3.0},
    },
    "qwenimage": {
        "transformer": _QWENIMAGE | {"_class_name": "QwenImageTransformer2DModel"},
        "vae": {
            "_class_name": "AutoencoderKLQwenImage",
            "base_dim": 16,
            "z_dim": 4,
            "dim_mult": [1, 2],
            "num_res_blocks": 1,
            "temperal_downsample": [False],
            "latents_mean": [0.1, -0.2, 0.3, 0.0],
            "latents_std": [1.5, 0.8, 1.2, 2.0],
        },
        "text_encoder": SMALL_QWEN_VL,
        "scheduler": FLOW | DYNAMIC | {"shift": 1.0},
    },
    "zimage": {
        "transformer": _ZIMAGE | {"_class_name": "ZImageTransformer2DModel"},
        "vae": SMALL_FLOW_VAE,
        "text_encoder": SMALL_QWEN,
        "scheduler": FLOW | {"shift": 3.0},
    },
}
"""Flow-matching pipelines with transformers, of about 0.1 M parameters, pictures of 16 pixels at ``resolution=16``."""

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)


def write_pipeline(configs: Mapping[str, Mapping[str, Any]], folder: Path, seed: int = 0) -> Path:
    """Save a pipeline with random weights of these configurations; returns ``folder``.

    The pipeline class follows from the parts: the transformer's class where there is one; else two text encoders make
    an SDXL pipeline, an LCM scheduler a consistency pipeline, anything else Stable Diffusion.
    """
    torch.manual_seed(seed)
    make = transformer_pipeline if "transformer" in configs else unet_pipeline
    make(configs).save_pretrained(folder)
    return folder


def make_scheduler(config: Mapping[str, Any]) -> Any:
    import diffusers

    config = dict(config)
    return getattr(diffusers, config.pop("_class_name")).from_config(config)


def make_autoencoder(config: Mapping[str, Any]) -> Any:
    import diffusers

    config = dict(config)
    return getattr(diffusers, config.pop("_class_name", "AutoencoderKL"))(**config)


def clip_tokenizer(config: Mapping[str, Any]) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(TOKENIZER, model_max_length=config["max_position_embeddings"])


def clip_encoder(config: Mapping[str, Any], projection: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    ends = {"bos_token_id": 516, "eos_token_id": 517, "pad_token_id": 517}
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    return kind(CLIPTextConfig(**config, **ends))


def t5_encoder(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """A T5 encoder and its tokenizer."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    letters = ["\u2581", *string.ascii_letters, *string.digits, *string.punctuation]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in letters)]
    tokenizer = T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)
    return T5EncoderModel(T5Config(vocab_size=len(vocabulary), **config)), tokenizer


def qwen_tokenizer() -> Any:
    """Qwen's tokenizer without merges, with a chat template."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=131072)
    tokenizer.add_special_tokens({"additional_special_tokens": words[1:3]})
    tokenizer.chat_template = CHAT
    return tokenizer


def qwen_encoder(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """A Qwen3 or Qwen2.5-VL model, by its configuration, and its tokenizer."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen3Config, Qwen3Model

    tokenizer = qwen_tokenizer()
    if "vision_config" not in config:
        return Qwen3Model(Qwen3Config(vocab_size=len(tokenizer), **config)), tokenizer
    text = config["text_config"] | {"vocab_size": len(tokenizer)}
    whole = Qwen2_5_VLConfig(text_config=text, vision_config=dict(config["vision_config"]))
    return Qwen2_5_VLForConditionalGeneration(whole), tokenizer


def unet_pipeline(configs: Mapping[str, Mapping[str, Any]]) -> Any:
    """Stable Diffusion, SDXL or a latent consistency model."""
    import diffusers

    scheduler = make_scheduler(configs["scheduler"])
    tokenizer = clip_tokenizer(configs["text_encoder"])
    parts: dict[str, Any] = {
        "unet": diffusers.UNet2DConditionModel(**configs["unet"]),
        "vae": diffusers.AutoencoderKL(**configs["vae"]),
        "text_encoder": clip_encoder(configs["text_encoder"], projection=False),
        "tokenizer": tokenizer,
        "scheduler": scheduler,
    }
    if "text_encoder_2" in configs:
        second = clip_encoder(configs["text_encoder_2"], projection=True)
        return diffusers.StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=tokenizer)
    consistency = isinstance(scheduler, diffusers.LCMScheduler)
    kind = diffusers.LatentConsistencyModelPipeline if consistency else diffusers.StableDiffusionPipeline
    return kind(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def transformer_pipeline(configs: Mapping[str, Mapping[str, Any]]) -> Any:
    """Stable Diffusion 3, FLUX.1, Z-Image or Qwen-Image."""
    import diffusers

    settings = dict(configs["transformer"])
    name = settings.pop("_class_name")
    parts: dict[str, Any] = {
        "transformer": getattr(diffusers, name)(**settings),
        "vae": make_autoencoder(configs["vae"]),
        "scheduler": make_scheduler(configs["scheduler"]),
    }
    fill_pads(parts["transformer"])
    if name in ("ZImageTransformer2DModel", "QwenImageTransformer2DModel"):
        parts["text_encoder"], parts["tokenizer"] = qwen_encoder(configs["text_encoder"])
        kind = diffusers.ZImagePipeline if name.startswith("ZImage") else diffusers.QwenImagePipeline
        return kind(**parts)
    parts["text_encoder"] = clip_encoder(configs["text_encoder"], projection=name == "SD3Transformer2DModel")
    parts["tokenizer"] = clip_tokenizer(configs["text_encoder"])
    if name == "FluxTransformer2DModel":
        parts["text_encoder_2"], parts["tokenizer_2"] = t5_encoder(configs["text_encoder_2"])
        return diffusers.FluxPipeline(**parts)
    parts["text_encoder_2"] = clip_encoder(configs["text_encoder_2"], projection=True)
    parts["tokenizer_2"] = clip_tokenizer(configs["text_encoder_2"])
    parts["text_encoder_3"] = parts["tokenizer_3"] = None
    if "text_encoder_3" in configs:
        parts["text_encoder_3"], parts["tokenizer_3"] = t5_encoder(configs["text_encoder_3"])
    return diffusers.StableDiffusion3Pipeline(**parts)


def fill_pads(transformer: Any) -> None:
    """Random numbers in place of zeros in parameters that the library leaves empty, so that they are seen to work."""
    for parameter in transformer.parameters():
        if not parameter.data.any():
            parameter.data.normal_(0, 0.02)
