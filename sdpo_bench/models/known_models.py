"""Known base models: facts that the rest must not guess, and lookups by name, folder or hub id.

Where a model's weights are, which reward and prompts belong to it, and which scheduler settings its training used.
Nothing here loads a model or imports torch: ``base_model`` does.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from sdpo_bench.errors import UsageError, nearest
from sdpo_bench.models.families import FAMILIES, Family
from sdpo_bench.models.families.flux import Flux
from sdpo_bench.models.families.sd3 import StableDiffusion3
from sdpo_bench.models.families.stable_diffusion import OneEncoder
from sdpo_bench.models.families.zimage import ZImage
from sdpo_bench.system.json_toml import parse_json


@dataclass(frozen=True)
class BaseModel:
    """A base model known by name.

    ``location`` is a folder inside the package (``asset:NAME``), a local folder or a hub id. ``defaults`` are settings
    of a run that this model changes, below presets and the user's own. ``family`` says where those of a local folder
    come from; empty where the model's own name says it. ``licence`` is empty and ``gated`` None where they are not
    known; ``gated`` repositories ask for a hub login and a licence that is accepted on their page. ``native_steps`` are
    the numbers of denoising steps that its authors sample with.
    """

    name: str
    location: str
    summary: str
    native_reward: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    family: str = ""
    licence: str = ""
    gated: bool | None = None
    native_steps: str = ""

    @property
    def source(self) -> str:
        """Where its defaults come from, as a run records it."""
        return f"the folder's family: {self.family}" if self.family else f"model {self.name}"

    @property
    def access(self) -> str:
        """What a download needs beforehand; empty where it needs nothing."""
        page = f"https://huggingface.co/{self.location}"
        return f"accept the licence on {page} and log in (hf auth login)" if self.gated else ""

    @property
    def fetch_hint(self) -> str:
        """What to type where the weights are missing."""
        before = f"{self.access}, then " if self.access else ""
        return f"On a machine with network: {before}sdpo-bench fetch {self.name}"


_PUBLISHED_SCHEDULE = {"schedule.spacing": "trailing", "eval.spacing": "trailing"}

# A consistency model is sampled by its own multistep sampler in few steps; 8 are what RLCM (arXiv 2404.03673) trains.
_CONSISTENCY = {
    "schedule.sampler": "lcm",
    "eval.sampler": "lcm",
    "schedule.steps": 8,
    "eval.steps": (1, 2, 4, 8),
}

# Guidance 8 is that of the stock pipeline's example. The paper counts from 0 (arXiv 2310.04378): this is its w = 7, and
# its w = 8 would be 9 here. As an embedding of the UNet it costs no second evaluation.
_EMBEDDED_GUIDANCE = {"model.guidance_scale": 8.0, "eval.guidance_scale": 8.0}
_FLUX_GUIDANCE = {"model.guidance_scale": 3.5, "eval.guidance_scale": 3.5}

_TRANSFORMER = {"eval.unseen": "complex-animals", "model.precision": "bf16"}

# Adversarial and step distillation: 4 steps are what the authors sample with, and guidance is 1 (none).
_FEW_STEPS = {"schedule.steps": 4, "eval.steps": (1, 2, 4, 8)}

# The stock pipeline of Stable Diffusion 3 takes its scheduler's own sigmas, the others 1 to 1/T.
_SD3_SIGMAS = {"schedule.spacing": "linspace", "eval.spacing": "linspace"}

# In four steps they are 1, .858, .602 and .009. The last random step lands at .009, where noise of .008 cannot change
# the reward, and its gain of 75 beside .19 and .56 would be 99.99 % of the squared gain (docs/models.md).
_EQUAL_GAIN = {"update.step_weight": "equal-gain"}


TRANSFORMER_FILE = "transformer/config.json"
SCHEDULER_FILE = "scheduler/scheduler_config.json"
UNET_FILE = "unet/config.json"

_EMBEDDED_SCORES = {"eval.rewards": ("emoji-accuracy",), "eval.unseen": "", "checkpoint.prompts": "emoji-validation"}


def _lora(family: type[Family]) -> dict[str, Any]:
    """The adapter's default modules; Stable Diffusion's are those of the settings themselves."""
    targets = family.lora_targets
    return {} if targets == OneEncoder.lora_targets else {"model.lora_targets": targets}


KNOWN: dict[str, BaseModel] = {
    model.name: model
    for model in (
        BaseModel(
            "emoji-turbo",
            "asset:emoji_turbo",
            "Embedded 1.3 M-parameter few-step latent diffusion model of emoji animals, 32x32 pixels, CPU",
            "emoji-align",
            _PUBLISHED_SCHEDULE | _EMBEDDED_SCORES,
            licence="MIT",
            gated=False,
            native_steps="1 to 8",
        ),
        BaseModel(
            "emoji-flow",
            "asset:emoji_flow",
            "Embedded 2.0 M-parameter few-step flow-matching model (Stable Diffusion 3's form) of the same emoji, CPU",
            "emoji-align",
            _PUBLISHED_SCHEDULE
            | _lora(StableDiffusion3)
            # It has no T5, and was trained without the zeros that the stock pipeline puts in its place.
            | {"model.text_tokens": 0, "schedule.steps": 4, "eval.steps": (1, 2, 4, 8)}
            | _EMBEDDED_SCORES,
            licence="MIT",
            gated=False,
            native_steps="1 to 8",
        ),
        BaseModel(
            "emoji-flow-base",
            "asset:emoji_flow_base",
            "The embedded model that emoji-flow was distilled from: the same size, needs about 8 steps, CPU",
            "emoji-align",
            _PUBLISHED_SCHEDULE
            | _lora(StableDiffusion3)
            | {"model.text_tokens": 0, "eval.steps": (1, 2, 4, 8, 16)}
            | _EMBEDDED_SCORES,
            licence="MIT",
            gated=False,
            native_steps="8 and more",
        ),
        BaseModel(
            "sd-turbo",
            "stabilityai/sd-turbo",
            "SD-Turbo, 866 M-parameter UNet, 512x512 pixels (the paper's model); needs a GPU and 5 GB of weights",
            "hpsv2",
            _PUBLISHED_SCHEDULE | {"eval.unseen": "complex-animals"},
            licence="Stability AI (see its LICENSE.md)",
            gated=False,
            native_steps="1 to 4",
        ),
        BaseModel(
            "lcm-dreamshaper-v7",
            "SimianLuo/LCM_Dreamshaper_v7",
            "Latent consistency model of 860 M parameters, 768x768 pixels, sampled by LCM's own stochastic step",
            "hpsv2",
            _CONSISTENCY | _EMBEDDED_GUIDANCE | {"eval.unseen": "complex-animals"},
            licence="MIT",
            gated=False,
            native_steps="1 to 8",
        ),
        BaseModel(
            "sdxl-turbo",
            "stabilityai/sdxl-turbo",
            "SDXL-Turbo, 2.6 B-parameter UNet, two text encoders, 512x512 pixels; needs a GPU and 14 GB of weights",
            "hpsv2",
            _PUBLISHED_SCHEDULE | {"eval.unseen": "complex-animals", "model.precision": "bf16"},
            licence="Stability AI (see its LICENSE.md)",
            gated=False,
            native_steps="1 to 4",
        ),
        BaseModel(
            "sd3.5-large-turbo",
            "stabilityai/stable-diffusion-3.5-large-turbo",
            "SD3.5 large turbo, 8.1 B-parameter transformer, three text encoders, 4 steps without guidance, 1024x1024 "
            "pixels; needs a GPU of 48 GB and 28 GB of weights",
            "hpsv2",
            _TRANSFORMER | _FEW_STEPS | _lora(StableDiffusion3) | _SD3_SIGMAS | _EQUAL_GAIN,
            licence="Stability AI Community",
            gated=True,
            native_steps="4",
        ),
        BaseModel(
            "sd3.5-medium",
            "stabilityai/stable-diffusion-3.5-medium",
            "SD3.5 medium (the model of Flow-GRPO), 2.2 B-parameter transformer, three text encoders, 40 steps with "
            "guidance 4.5, 1024x1024 pixels; needs a GPU and 16 GB of weights",
            "pickscore",
            _TRANSFORMER
            | _lora(StableDiffusion3)
            | _SD3_SIGMAS
            | {"eval.steps": (1, 2, 4, 10, 40), "model.guidance_scale": 4.5, "eval.guidance_scale": 4.5},
            licence="Stability AI Community",
            gated=True,
            native_steps="40",
        ),
        BaseModel(
            "flux.1-schnell",
            "black-forest-labs/FLUX.1-schnell",
            "FLUX.1 schnell, 11.9 B-parameter transformer, CLIP and T5, 1 to 4 steps without guidance, 1024x1024 "
            "pixels; needs a GPU of 80 GB and 34 GB of weights",
            "hpsv2",
            _TRANSFORMER | _FEW_STEPS | _lora(Flux),
            licence="Apache-2.0",
            gated=True,
            native_steps="1 to 4",
        ),
        BaseModel(
            "z-image-turbo",
            "Tongyi-MAI/Z-Image-Turbo",
            "Z-Image-Turbo, 6.2 B-parameter transformer, Qwen3 text encoder, 8 steps without guidance, 1024x1024 "
            "pixels; needs a GPU of 48 GB and 33 GB of weights",
            "hpsv2",
            _TRANSFORMER | _FEW_STEPS | _lora(ZImage) | {"schedule.steps": 8},
            licence="Apache-2.0",
            gated=False,
            native_steps="8",
        ),
    )
}


def known_model(name: str, revision: str | None = None) -> BaseModel:
    """The known model, or an anonymous one for a local folder or a hub id.

    Args:
        revision: of a hub id, whose cached files of that revision say what it asks for.

    Raises:
        UsageError: neither a known name, an existing folder, nor of the form ``owner/name``, or with a revision.
    """
    if name in KNOWN:
        return KNOWN[name]
    if os.path.isdir(name):  # which takes any text, however long
        return BaseModel(name, str(Path(name).resolve()), "local pipeline folder", "", *_folder_defaults(Path(name)))
    repo, at, typed = name.partition("@")
    if at and repo.count("/") == 1:  # as in fetch
        raise UsageError(
            f"model '{name}': the revision is a setting of its own. Use --model {repo} --set model.revision={typed}."
        )
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and all(name.split("/")):
        return BaseModel(name, name, "hub pipeline", "", _hub_defaults(name, revision))
    raise UsageError(
        f"unknown model '{name}': not a known name, not a folder, not a hub id (owner/name).{nearest(name, KNOWN)} "
        "See: sdpo-bench list models"
    )


def _folder_defaults(folder: Path) -> tuple[Mapping[str, Any], str]:
    """Settings that a local folder's files ask for, and the family that they show, in words."""
    config = folder / TRANSFORMER_FILE
    if transformer := network_family(config):
        return _PUBLISHED_SCHEDULE | _transformer_defaults(transformer, config), transformer.name
    consistency, family = _consistency_defaults(folder / SCHEDULER_FILE, folder / UNET_FILE)
    return consistency or _PUBLISHED_SCHEDULE, family


def _consistency_defaults(scheduler: Path, unet: Path) -> tuple[dict[str, Any], str]:
    """Settings that a consistency model's files ask for, and its kind in words; both empty for other models."""
    if _entry(scheduler, "_class_name") != "LCMScheduler":
        return {}, ""
    if _entry(unet, "time_cond_proj_dim"):
        return _CONSISTENCY | _EMBEDDED_GUIDANCE, "latent consistency model"
    # Such as a model with a consistency LoRA merged into it: guidance would be classifier-free and cost an evaluation.
    return _CONSISTENCY, "latent consistency model without guidance embedding"


def _hub_defaults(name: str, revision: str | None) -> Mapping[str, Any]:
    """Settings that the files of a hub pipeline in the cache ask for, as :func:`_folder_defaults`; of others nothing
    is known before their download."""
    config = _cached_file(name, revision, TRANSFORMER_FILE)
    if config and (transformer := network_family(config)):
        return _PUBLISHED_SCHEDULE | _transformer_defaults(transformer, config)
    scheduler, unet = (_cached_file(name, revision, file) for file in (SCHEDULER_FILE, UNET_FILE))
    return (_consistency_defaults(scheduler, unet)[0] if scheduler and unet else {}) or _PUBLISHED_SCHEDULE


def _cached_file(repo: str, revision: str | None, path: str) -> Path | None:
    """A file of a hub repository in the cache; ``None`` where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, path, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _transformer_defaults(family: Family, config: Path) -> dict[str, Any]:
    """Settings that a transformer's file asks for. One with a guidance embedding takes the scale as an input,
    whose default in the stock pipeline is 3.5 (MixGRPO's too); 1 is another condition, not the absence of one."""
    return _lora(type(family)) | (_FLUX_GUIDANCE if _entry(config, "guidance_embeds") else {})


def network_family(config: Path) -> Family | None:
    """The family whose transformer the file is of; None where there is none."""
    network = _entry(config, "_class_name")
    return next((family for family in FAMILIES if family.network == network), None)


def _entry(path: Path, key: str) -> Any:
    """An entry of a configuration file; None where there is none. A damaged file is reported when it is loaded."""
    try:
        return parse_json(path.read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def asset_folder(name: str) -> Path:
    """Folder of an asset that ships inside the package."""
    return Path(str(files("sdpo_bench"))) / "assets" / name


def resolve_location(model: BaseModel) -> str:
    """Folder or hub id to load from."""
    kind, _, rest = model.location.partition(":")
    return str(asset_folder(rest)) if kind == "asset" else model.location
