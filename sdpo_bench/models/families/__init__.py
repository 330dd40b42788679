"""Families of pipelines, told apart by the denoiser in their files, never by a model's name.

A new family is a module beside these and an entry of :data:`FAMILIES` (CONTRIBUTING.md).
"""

from typing import Any

from sdpo_bench.errors import UsageError
from sdpo_bench.models.families.base import Configs, Family
from sdpo_bench.models.families.flux import Flux
from sdpo_bench.models.families.qwenimage import QwenImage
from sdpo_bench.models.families.sd3 import StableDiffusion3
from sdpo_bench.models.families.stable_diffusion import OneEncoder, TwoEncoders
from sdpo_bench.models.families.zimage import ZImage

__all__ = ["FAMILIES", "Configs", "Family", "configs_of", "family_of", "supported"]

FAMILIES: tuple[Family, ...] = (OneEncoder(), TwoEncoders(), StableDiffusion3(), Flux(), ZImage(), QwenImage())


def family_of(configs: Configs, location: str, pipeline: str = "") -> Family:
    """The family of a pipeline with these configurations.

    Args:
        pipeline: class of the pipeline, where it is known.

    Raises:
        UsageError: a denoiser or a pipeline class that no family has.
    """
    if "unet" in configs:
        return FAMILIES[1] if "text_encoder_2" in configs else FAMILIES[0]
    network = configs.get("transformer", {}).get("_class_name", "")
    for family in FAMILIES:
        if family.network == network:
            if pipeline and pipeline not in family.pipelines:
                raise UsageError(
                    f"'{location}' is a {pipeline}; of {family.name}, {' and '.join(family.pipelines)} is supported."
                )
            return family
    kind = f"a {pipeline or 'pipeline'} with {f'a {network}' if network else 'no denoiser that is known here'}"
    raise UsageError(f"'{location}' is {kind}, which is not supported. Supported: {supported()}.")


def supported() -> str:
    """The families in words, with their denoisers."""
    return ", ".join(f"{family.name} ({family.network})" for family in FAMILIES)


def configs_of(pipeline: Any) -> Configs:
    """Configurations of a loaded pipeline's denoiser, autoencoder and text encoders, as their files have them."""
    configs: dict[str, dict[str, Any]] = {}
    for part in ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        network = getattr(pipeline, part, None)
        if network is None:
            continue
        config = network.config if isinstance(network.config, dict) else network.config.to_dict()
        configs[part] = {"_class_name": type(network).__name__} | dict(config)
    return configs
