"""Known base models, and loading of any Stable-Diffusion-family pipeline by name, folder or hub id.

A base model brings facts that the rest must not guess: where its weights are, which reward and prompts belong to it,
and which scheduler settings its training used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_bench.errors import MissingError, UsageError, nearest

if TYPE_CHECKING:
    from sdpo_bench.policy import Policy
    from sdpo_bench.settings import ModelSettings


@dataclass(frozen=True)
class BaseModel:
    """A base model known by name.

    ``location`` is a folder inside the package (``asset:NAME``), a local folder or a hub id. ``defaults`` are settings
    of a run that this model changes, below presets and the user's own.
    """

    name: str
    location: str
    summary: str
    native_reward: str
    defaults: Mapping[str, Any] = field(default_factory=dict)


_PUBLISHED_SCHEDULE = {"schedule.spacing": "trailing", "eval.spacing": "trailing"}

KNOWN: dict[str, BaseModel] = {
    model.name: model
    for model in (
        BaseModel(
            "emoji-turbo",
            "asset:emoji_turbo",
            "Embedded 1.3 M-parameter few-step latent diffusion model of emoji animals, 32x32 pixels, CPU",
            "emoji-align",
            _PUBLISHED_SCHEDULE
            | {"eval.rewards": ("emoji-accuracy",), "eval.unseen": "", "checkpoint.prompts": "emoji-validation"},
        ),
        BaseModel(
            "sd-turbo",
            "stabilityai/sd-turbo",
            "SD-Turbo, 866 M-parameter UNet, 512x512 pixels (the paper's model); needs a GPU and 5 GB of weights",
            "hpsv2",
            _PUBLISHED_SCHEDULE | {"eval.unseen": "complex-animals"},
        ),
    )
}


def known_model(name: str) -> BaseModel:
    """The known model, or an anonymous one for a local folder or a hub id.

    Raises:
        UsageError: neither a known name, an existing folder, nor of the form ``owner/name``.
    """
    if name in KNOWN:
        return KNOWN[name]
    if Path(name).is_dir():
        return BaseModel(name, str(Path(name).resolve()), "local pipeline folder", "", _PUBLISHED_SCHEDULE)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and all(name.split("/")):
        return BaseModel(name, name, "hub pipeline", "", _PUBLISHED_SCHEDULE)
    raise UsageError(
        f"unknown model '{name}': not a known name, not a folder, not a hub id (owner/name).{nearest(name, KNOWN)} "
        "See: sdpo-bench list models"
    )


def asset_folder(name: str) -> Path:
    """Folder of an asset that ships inside the package."""
    return Path(str(files("sdpo_bench"))) / "assets" / name


def resolve_location(model: BaseModel) -> str:
    """Folder or hub id to load from."""
    kind, _, rest = model.location.partition(":")
    return str(asset_folder(rest)) if kind == "asset" else model.location


def quiet_libraries() -> None:
    """Keep the libraries' own progress bars and advice off the terminal; their errors still come through."""
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def load_pipeline(settings: "ModelSettings") -> Any:
    """The diffusers pipeline of a base model, weights in float32 on the CPU.

    Raises:
        UsageError: a local folder that is not a pipeline.
        MissingError: hub weights that are neither cached nor reachable.
    """
    quiet_libraries()
    import torch
    from diffusers import DiffusionPipeline

    model = known_model(settings.name)
    location = resolve_location(model)
    local = Path(location).is_dir()
    if local and not (Path(location) / "model_index.json").is_file():
        raise UsageError(
            f"'{location}' is not a diffusers pipeline folder: it has no model_index.json. "
            "Save one with pipeline.save_pretrained(FOLDER)."
        )
    options: dict[str, Any] = {"dtype": torch.float32, "local_files_only": local}
    if not local and settings.revision:
        options["revision"] = settings.revision
    try:
        pipeline = DiffusionPipeline.from_pretrained(location, safety_checker=None, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        if local:
            raise UsageError(f"the pipeline folder '{location}' cannot be loaded: {reason}") from error
        raise MissingError(
            f"the weights of '{model.name}' ({location}) are neither cached here nor reachable: {reason} "
            f"On a machine with network: sdpo-bench fetch {model.name}"
        ) from error
    _check_parts(pipeline, location)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _check_parts(pipeline: Any, location: str) -> None:
    missing = [part for part in ("unet", "vae", "text_encoder", "tokenizer") if not getattr(pipeline, part, None)]
    if missing:
        raise UsageError(
            f"'{location}' holds a {type(pipeline).__name__} without {', '.join(missing)}; "
            "a Stable-Diffusion-family pipeline with a UNet is needed."
        )


def load_policy(settings: "ModelSettings", *, device: str = "cpu", lora_seed: int | None = None) -> "Policy":
    """A policy of the base model; with ``lora_seed`` it carries a fresh adapter."""
    from sdpo_bench.policy import Policy

    policy = Policy(
        load_pipeline(settings),
        guidance_scale=settings.guidance_scale,
        precision=settings.precision,
        device=device,
    )
    if lora_seed is not None:
        policy.add_lora(settings.lora_rank, settings.lora_alpha, settings.lora_targets, lora_seed)
    return policy


def scheduler_config(policy: "Policy") -> dict[str, Any]:
    """The pipeline's scheduler settings as plain data."""
    return dict(policy.pipeline.scheduler.config)


def pick_device(wanted: str) -> str:
    """Resolve ``auto`` and refuse a device that is not here.

    Raises:
        UsageError: not a device name. MissingError: a device this machine lacks.
    """
    import torch

    has_mps = torch.backends.mps.is_available()
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UsageError(f"unknown device '{wanted}'. Valid: auto, cpu, cuda, cuda:N, mps.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MissingError(
            f"device '{wanted}' is not here ({torch.cuda.device_count()} CUDA devices). Use --device cpu."
        )
    if device.type == "mps" and not has_mps:
        raise MissingError("device 'mps' is not here. Use --device cpu.")
    return wanted
