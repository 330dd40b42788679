"""What works on this machine, and for the rest what to type.

A *problem* keeps every run from working; a *note* is about something that one run or another would need, such as
weights that are not cached. Nothing is downloaded and no model is loaded.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from sdpo_bench.errors import MissingError, SdpoBenchError
from sdpo_bench.models import hub
from sdpo_bench.models.base_model import pick_device
from sdpo_bench.models.known_models import KNOWN, asset_folder
from sdpo_bench.models.pipeline_files import published, read_folder
from sdpo_bench.plugins.call import plugin_code
from sdpo_bench.plugins.registry import Plugin, plugins
from sdpo_bench.runs.run_folder import check_writable
from sdpo_bench.system.console_text import gigabytes

State = Literal["ok", "note", "problem"]
HUB_TIMEOUT = 3.0  # seconds
LITTLE_DISK = 2e9  # bytes; a run with its checkpoints and grids stays far below


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, how it is, and what to type if that is not good."""

    area: str
    name: str
    state: State
    text: str
    mend: str = ""


def examine(out: Path, device: str) -> Iterator[Finding]:
    """All findings about this machine."""
    yield from _packages()
    yield from _device(device)
    yield from _disk(out)
    yield _hub()
    for kind in ("methods", "rewards"):
        yield from _plugins(kind)
    yield from _models(device)


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    version = ".".join(str(part) for part in sys.version_info[:3])
    new_enough = sys.version_info >= (3, 11)
    yield Finding("package", "python", "ok" if new_enough else "problem", version, "" if new_enough else "Use 3.11.")
    for line in metadata.requires("sdpo-bench") or []:
        needed = Requirement(line)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        yield _package(needed.name, needed.specifier)


def _package(name: str, requirement: Any) -> Finding:
    mend = f'pip install "{name}{requirement}"'
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding("package", name, "problem", "not installed", mend)
    if not requirement.contains(version, prereleases=True):
        return Finding("package", name, "problem", f"{version}, {requirement} is needed", mend)
    return Finding("package", name, "ok", version)


def _device(name: str) -> Iterator[Finding]:
    try:
        device = pick_device(name)
    except SdpoBenchError as error:
        yield Finding("device", name, "problem", str(error))
        return
    yield Finding("device", device, "ok", device_text(device))
    if device == "cpu":
        yield Finding("device", "gpu", "note", "none found: the embedded model runs on a CPU, SD-Turbo is for a GPU")


def device_text(device: str) -> str:
    """What a device that is here is, and its free memory."""
    import torch

    from sdpo_bench.estimates.memory_estimate import available_bytes

    free = gigabytes(available_bytes(device))
    if device.startswith("cuda"):
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16 (use model.precision=fp16)"
        return f"{torch.cuda.get_device_name(device)}, {free} free, {bf16}"
    return f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {free} of memory free"


def _disk(out: Path) -> Iterator[Finding]:
    from huggingface_hub import constants

    existing = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    try:
        if out.exists():
            check_writable(out)
        elif not (existing.is_dir() and os.access(existing, os.W_OK)):
            raise MissingError(f"'{existing}' cannot be written.")
        free = shutil.disk_usage(existing).free
        little = free < LITTLE_DISK
        mend = "Free some, or choose another results folder." if little else ""
        yield Finding("disk", "results", "problem" if little else "ok", f"{gigabytes(free)} free at {existing}", mend)
    except SdpoBenchError as error:
        yield Finding("disk", "results", "problem", str(error))
    cache = Path(constants.HF_HUB_CACHE)
    place = next(p for p in (cache.absolute(), *cache.absolute().parents) if p.exists())
    text = f"{gigabytes(shutil.disk_usage(place).free)} free at {cache}"
    yield Finding("disk", "hub cache", "ok", f"{text} (HF_HOME moves it)")


def _hub() -> Finding:
    reason = hub.out_of_reach(HUB_TIMEOUT)
    if reason is None:
        return Finding("hub", "network", "ok", "the hub answers")
    mend = "Cached weights work without it. Elsewhere: sdpo-bench fetch NAME, then copy the hub cache (HF_HOME)."
    return Finding("hub", "network", "note", reason, mend)


def _plugins(kind: str) -> Iterator[Finding]:
    try:
        available = plugins(kind)
    except SdpoBenchError as error:
        yield Finding(kind[:-1], "all", "problem", str(error))
        return
    for plugin in available.values():
        yield _plugin(kind[:-1], plugin)


def _plugin(area: str, plugin: Plugin) -> Finding:
    where = plugin.owner
    try:
        ask = getattr(plugin.load(), "unavailable", lambda: None)
        with plugin_code("unavailable()"):
            reason = ask()
    except SdpoBenchError as error:
        return Finding(area, plugin.name, "problem", str(error), f"sdpo-bench doctor --plugin {plugin.name}")
    if reason is None:
        return Finding(area, plugin.name, "ok", f"usable ({where})")
    if not isinstance(reason, str):
        return Finding(
            area, plugin.name, "problem", f"unavailable() returned {type(reason).__name__}; expected a text or None"
        )
    text, _, mend = reason.partition("; type: ")
    return Finding(area, plugin.name, "note", f"{text} ({where})", mend)


def _models(device: str) -> Iterator[Finding]:

    for model in KNOWN.values():
        kind, _, name = model.location.partition(":")
        if kind == "asset":
            yield _embedded(model.name, asset_folder(name))
            continue
        files = published(model.name)
        size = gigabytes(files.download_bytes) if files else "unknown size"
        if hub.cached_pipeline(model.location):
            yield Finding("model", model.name, "ok", f"cached; {_memory(model.name, device)}")
        else:
            text = f"weights not cached ({size}); {_memory(model.name, device)}"
            yield Finding("model", model.name, "note", text, f"sdpo-bench fetch {model.name}")


def _embedded(name: str, folder: Path) -> Finding:
    try:
        read_folder(folder)
    except SdpoBenchError as error:
        return Finding("model", name, "problem", str(error), "Install sdpo-bench again.")
    return Finding("model", name, "ok", "in the package")


def _memory(name: str, device: str) -> str:
    """Whether a run of the model's defaults fits here, one latent at a time."""
    from sdpo_bench.config.resolve import Request, resolve
    from sdpo_bench.estimates import memory_estimate

    try:
        device = pick_device(device)
        needed = memory_estimate.estimate(resolve(Request(model=name)).config, 1, device)
        if needed is None:
            return "memory unknown"
        free = memory_estimate.available_bytes(device)
    except SdpoBenchError as error:
        return f"cannot be configured: {error}"
    verdict = "fits" if needed.total <= free else "does not fit"
    return f"a run needs {gigabytes(needed.total)} or more and {verdict} on {device}"
