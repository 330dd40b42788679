"""Loading of base models: their pipelines and policies, what their files say, and the device that they run on."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.models.hub import cached_pipeline, find_pipeline
from sdpo_bench.models.known_models import KNOWN, known_model, network_family, resolve_location
from sdpo_bench.models.pipeline_files import PipelineFiles, content_digest, missing_parts, published, read_folder
from sdpo_bench.system.distributed import local_device
from sdpo_bench.system.library_imports import collector_paused

if TYPE_CHECKING:
    from sdpo_bench.models.families.base import Family
    from sdpo_bench.models.policy import Policy
    from sdpo_bench.settings import ModelSettings


def quiet_libraries() -> None:
    """Keep the libraries' own progress bars and advice off the terminal; their errors still come through."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def pipeline_folder(settings: "ModelSettings") -> Path:
    """Folder of the model's pipeline: in the package, local, or in the hub cache (downloaded first if need be).

    Raises:
        UsageError: a local folder that is not a pipeline.
        MissingError: hub weights that are neither cached nor reachable, or a folder that is not whole.
    """
    model = known_model(settings.name)
    location = resolve_location(model)
    if not Path(location).is_dir():
        hint = (
            model.fetch_hint
            if model.name in KNOWN
            else ("Download it where there is a network, or name a local folder with --model FOLDER.")
        )
        return find_pipeline(location, settings.revision, hint=hint)
    missing = missing_parts(Path(location))
    if missing:
        raise MissingError(f"the pipeline folder '{location}' is not whole: {'; '.join(missing)}.")
    return Path(location)


def model_digest(name: str) -> str:
    """Hash of a local pipeline folder, which can change under its name; empty for known models and those of the hub."""
    return content_digest(Path(name)) if name not in KNOWN and os.path.isdir(name) else ""


def refuse_changed(settings: "ModelSettings", record: Mapping[str, Any]) -> None:
    """An adapter belongs to the weights that it was trained on.

    Args:
        record: ``run.json`` of the run whose adapter it is.

    Raises:
        UsageError: the pipeline folder holds another model now.
    """
    before = record.get("model_digest")
    if before and not os.path.isdir(settings.name):
        raise UsageError(
            f"the pipeline folder '{settings.name}' that run '{record.get('run')}' was trained on is not there. Put "
            "it back, or a link to where it is now."
        )
    if before and before != model_digest(settings.name):
        raise UsageError(
            f"the pipeline '{settings.name}' has changed since run '{record.get('run')}' was trained on it. Put its "
            "files back, or give the run command again: with the changed files it starts a new run."
        )


def pipeline_files(settings: "ModelSettings") -> PipelineFiles | None:
    """Configurations and sizes of a model without loading it or asking the network; ``None`` where nothing is known.

    Raises:
        UsageError, MissingError: a local folder that is not a pipeline, not whole, or damaged.
    """
    folder = local_folder(settings)
    return read_folder(folder) if folder else published(settings.name)


def local_folder(settings: "ModelSettings") -> Path | None:
    """Folder of a model's pipeline without asking the network; ``None`` where it is not on this machine."""
    location = resolve_location(known_model(settings.name))
    return Path(location) if Path(location).is_dir() else cached_pipeline(location, settings.revision)


def refuse_unread(settings: "ModelSettings") -> None:
    """A hub id is configured by its files: sampler, adapter's layers and guidance follow from them.

    Raises:
        MissingError: they are not on this machine.
    """
    location = resolve_location(known_model(settings.name))
    if settings.name in KNOWN or Path(location).is_dir() or cached_pipeline(location, settings.revision):
        return
    name = f"{location}@{settings.revision}" if settings.revision else location
    raise MissingError(
        f"the files of model '{settings.name}' are not on this machine, so nothing says which sampler, guidance and "
        f"adapter it takes. Type: sdpo-bench fetch {name}"
    )


def flow_family(settings: "ModelSettings") -> "Family | None":
    """The flow-matching family that the files of a model show; ``None`` for other kinds, or without files here."""
    folder = local_folder(settings)
    family = network_family(folder / "transformer" / "config.json") if folder else None
    return family if family and family.flow else None


def load_pipeline(settings: "ModelSettings") -> Any:
    """The diffusers pipeline of a base model on the CPU, weights in the precision of the settings.

    Raises:
        UsageError: a local folder that is not a pipeline, or one of another family.
        MissingError: hub weights that are neither cached nor reachable, or damaged files.
    """
    with collector_paused():
        quiet_libraries()
        from sdpo_bench.models.pipeline_loading import import_libraries, whole_pipeline

        import_libraries()
    return whole_pipeline(pipeline_folder(settings), settings.precision)


def load_policy(settings: "ModelSettings", *, device: str = "cpu", lora_seed: int | None = None) -> "Policy":
    """A policy of the base model; with ``lora_seed`` it carries a fresh adapter."""
    from sdpo_bench.models.policy import Policy

    set_float32_products(settings.precision, device)
    policy = Policy(
        load_pipeline(settings),
        guidance_scale=settings.guidance_scale,
        precision=settings.precision,
        device=device,
        resolution=settings.resolution,
        text_tokens=settings.text_tokens,
        gradient_checkpointing=settings.gradient_checkpointing,
        channels_last=settings.channels_last,
        cpu_offload=settings.cpu_offload,
    )
    if lora_seed is not None:
        policy.add_lora(settings.lora_rank, settings.lora_alpha, settings.lora_targets, lora_seed)
    if settings.compile:
        policy.compile(settings.compile)
    return policy


def set_float32_products(precision: str, device: str) -> None:
    """Whether products of float32 numbers may be rounded to TF32, in this process.

    PyTorch's own default rounds in convolutions and not in matrix products; here the setting decides for both.

    Raises:
        UsageError: TF32 asked for on a device that has none.
    """
    import torch

    rounded = precision == "tf32"
    if rounded and not device.startswith("cuda"):
        raise UsageError(f"model.precision = tf32 is for NVIDIA GPUs; on '{device}' use fp32.")
    torch.backends.cuda.matmul.allow_tf32 = rounded
    torch.backends.cudnn.allow_tf32 = rounded


def scheduler_config(policy: "Policy") -> dict[str, Any]:
    """The pipeline's scheduler settings as plain data, ``_class_name`` among them.

    Of flow-matching models also ``image_seq_len``, the tokens of a picture at the policy's resolution: a dynamic shift
    of the noise levels depends on it.

    Raises:
        UsageError: a flow-matching model with another scheduler. Its files were not here when settings were checked.
    """
    scheduler = policy.pipeline.scheduler
    policy.family.check_scheduler(type(scheduler).__name__)
    settings = dict(scheduler.config) | {"_class_name": type(scheduler).__name__}
    return settings | ({"image_seq_len": policy.image_tokens} if policy.family.flow else {})


def check_devices(text: str) -> list[str]:
    """The names in a comma-separated list of devices, all of which are here; ``auto`` stays ``auto``.

    Raises:
        UsageError, MissingError: as for :func:`pick_device`.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        pick_device(name)
    return names


def pick_device(name: str) -> str:
    """Resolve ``auto`` and refuse a device that is not here; each of several processes gets a GPU of its own.

    Raises:
        UsageError: not a device name. MissingError: a device this machine lacks.
    """
    import torch

    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    name = local_device(name)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device '{name}'. Valid: auto, cpu, cuda, cuda:N, mps.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MissingError(f"device '{name}' is not here ({torch.cuda.device_count()} CUDA devices). Use --device cpu.")
    if device.type == "mps" and not has_mps:
        raise MissingError("device 'mps' is not here. Use --device cpu.")
    return name
