"""All that is known of one method or one model (``sdpo-bench list WHAT NAME``), as plain data, without torch."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.models.known_models import KNOWN, BaseModel, known_model, resolve_location
from sdpo_bench.models.pipeline_files import PipelineFiles, published, read_folder
from sdpo_bench.plugins.registry import Plugin, find

NOT_KNOWN = "not known"


def describe(what: str, name: str) -> dict[str, Any]:
    """Everything known of the method or model of this name; None where a fact is not known.

    Raises:
        UsageError: a list whose entries have no more to say, or no such name. MissingError: a damaged pipeline folder.
    """
    if what not in _DESCRIBE:
        lists = " and ".join(f"'list {kind}'" for kind in _DESCRIBE)
        raise UsageError(f"only {lists} take a name, got '{name}' for {what}. Type: sdpo-bench list {what}")
    return _DESCRIBE[what](name)


def in_words(value: Any) -> str:
    """A fact for a table."""
    if value is None:
        return NOT_KNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_words(one)}" for key, one in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(in_words, value)) or "-"
    return str(value) or "-"


def _method(name: str) -> dict[str, Any]:
    """Formula, source, reward modes and cost of a method."""
    plugin = find("methods", name)
    return {
        "name": plugin.name,
        "from": plugin.owner,
        "what": plugin.summary,
        "formula": plugin.formula,
        "source": plugin.source,
        "rewards": _reward_modes(plugin),
        "cost": _method_cost(name),
    }


def _reward_modes(plugin: Plugin) -> str:
    """The rewards of steps that a method can learn from, its default first; empty where it asks for none in sampling,
    and where it cannot be made, whose error ``run`` gives."""
    from sdpo_bench.config.resolve import make_method

    try:
        loaded = plugin.load()
        method = make_method(plugin.name, loaded, {})
    except (UsageError, MissingError):
        return ""
    if method.signal not in ("advantage", "preference"):
        return ""
    default = loaded.fixed.get("method.reward", method.reward_mode)
    if "method.reward" in loaded.fixed or len(method.reward_modes) == 1:
        return str(default)
    return ", ".join([default, *(mode for mode in method.reward_modes if mode != default)]) + " (method.reward)"


def _method_cost(name: str) -> str:
    """What a training image costs at the method's own settings, as ``run --dry-run`` counts it; empty where the method
    cannot be run with the default reward and model, whose error ``run`` gives."""
    from sdpo_bench.api import Search
    from sdpo_bench.config.resolve import Request, resolve
    from sdpo_bench.estimates.time_estimate import epoch_work, make_method

    try:
        resolved = resolve(Request(method=name))
        method = make_method(resolved)
        if isinstance(method, Search):
            return f"{method.candidates} samples and reward calls for every image that is delivered"
        work = epoch_work(resolved)
    except (UsageError, MissingError):
        return ""
    images, steps = work["images"], resolved.config.schedule.steps
    calls = (work["denoiser_forward"] + work["denoiser_backward"]) / images
    return (
        f"per image at {steps} steps: {calls:.4g} denoiser calls ({work['denoiser_backward'] / images:.4g} of them "
        f"backward), {work['reward_calls'] / images:.4g} reward calls; "
        f"{work['optimiser_steps']} optimiser steps for {images} images"
    )


def _model(name: str) -> dict[str, Any]:
    """Where a model's weights are, on what terms, how large they are, and what it is sampled with."""
    model = known_model(name)
    folder = Path(resolve_location(model))
    files = read_folder(folder) if folder.is_dir() else published(name)
    family = files.family(name) if files else None
    side = family.native_side(files.configs) * family.stride(files.configs) if files and family else None
    return {
        "name": name,
        "what": model.summary,
        "weights": weights(model),
        "licence": model.licence or None,
        "gated": model.gated,
        "access": model.access,
        "family": family.name if family else None,
        "native_steps": model.native_steps or None,
        "resolution": f"{side}x{side} pixels" if side else None,
        "guidance_scale": float(model.defaults.get("model.guidance_scale", 1.0)),
        "parameters": dict(files.parameters) if files else None,
        "memory": _memory(model, files) if files else None,
        "fetch": _download(model, files),
        "own_reward": model.native_reward,
        "presets": _presets(name),
    }


def weights(model: BaseModel) -> str:
    """Where a model's weights are, in words."""
    if model.location.startswith("asset:"):
        return "in the package"
    return f"folder: {model.location}" if Path(model.location).is_dir() else f"hub: {model.location}"


def _memory(model: BaseModel, files: PipelineFiles) -> str:
    """Memory of the weights and, where it was measured, of one latent of a training step at the model's resolution."""
    from sdpo_bench.estimates.activations import WIDTH, weight_bytes
    from sdpo_bench.settings import ModelSettings
    from sdpo_bench.system.console_text import gigabytes

    precision = model.defaults.get("model.precision", ModelSettings.precision)
    text = f"weights {gigabytes(sum(weight_bytes(files, model.name, precision).values()))} in {precision}"
    if files.measured:
        sizes = files.measured["fp32" if WIDTH[precision] == 4 else "half"]
        text += (
            f"; one latent of a training step {gigabytes(sizes['training'])}, with model.gradient_checkpointing "
            f"{gigabytes(sizes['checkpointed'])}"
        )
    return f"{text}; a whole run: sdpo-bench run --model {model.name} --dry-run"


def _download(model: BaseModel, files: PipelineFiles | None) -> str | None:
    """What ``sdpo-bench fetch`` downloads of a known model, by part."""
    if model.name not in KNOWN:
        return None
    if not files or model.location.startswith("asset:"):
        return "nothing: it is in the package"
    parts = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in files.part_bytes.items())
    return f"{files.download_bytes / 1e9:.2f} GB ({parts}): sdpo-bench fetch {model.name}"


def _presets(name: str) -> list[str]:
    """Shipped presets that are chosen for a model, or that choose it."""
    from sdpo_bench.config.presets import shipped_presets

    found = []
    for preset in shipped_presets().values():
        matched = preset.match.get("model", [])
        if name in ([matched] if isinstance(matched, str) else matched):
            reward = preset.match.get("reward", "any reward")
            found.append(f"{preset.name} ({reward if isinstance(reward, str) else ' or '.join(reward)})")
        elif preset.common.get("model.name") == name:
            found.append(f"{preset.name} (only when named)")
    return found


_DESCRIBE: dict[str, Callable[[str], dict[str, Any]]] = {"methods": _method, "models": _model}
