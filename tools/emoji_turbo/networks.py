"""Architectures of the pipeline's parts, sized for a CPU: 32x32 pictures, 8x8x4 latents, 8 tokens.

Channel counts are multiples of 16, which CPU convolutions are fast at.
"""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from sdpo_bench.prompts.emoji_grammar import MAX_TOKENS, SPECIAL_TOKENS, vocabulary

TEXT_WIDTH = 64


def make_autoencoder():
    """Deterministic autoencoder; most decoder blocks work at 8x8, where they are cheap."""
    from diffusers import AutoencoderTiny

    width = (32, 32, 32)
    return AutoencoderTiny(
        encoder_block_out_channels=width,
        decoder_block_out_channels=width,
        num_encoder_blocks=(0, 0, 2),
        num_decoder_blocks=(4, 1, 0),
        latent_channels=4,
        upsampling_scaling_factor=2,
        scaling_factor=1.0,
        force_upcast=False,
    )


def make_unet():
    """Denoiser with cross-attention at 4x4 and in the middle."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_text_encoder():
    """Two-layer CLIP text encoder, trained together with the denoiser."""
    from transformers import CLIPTextConfig, CLIPTextModel

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
    return CLIPTextModel(config)


def make_scheduler():
    """Stable Diffusion's noise schedule rescaled to zero terminal SNR, which v-prediction makes possible.

    With it the first step of a 1-step sample starts from the pure noise that training saw at t = 999.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def make_tokenizer():
    """One token a word, lower case; words outside the vocabulary become ``<unk>``."""
    from transformers import PreTrainedTokenizerFast

    begin, end, unknown = SPECIAL_TOKENS
    words = vocabulary()
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, words[begin]), (end, words[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token=end,
        pad_token=end,
        unk_token=unknown,
        model_max_length=MAX_TOKENS,
    )
