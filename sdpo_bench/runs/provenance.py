"""What produced a run: versions, commit, plugin sources, hardware. Recorded, never part of the identity."""

import hashlib
import inspect
import os
import platform
import subprocess
import time
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sdpo_bench.plugins.registry import find
from sdpo_bench.scoring.reward_expression import choose

PACKAGES = (
    "sdpo-bench",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "numpy",
    "pandas",
    "pyarrow",
    "pillow",
)


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a number."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def git_commit() -> str | None:
    """Commit of the source checkout the package runs from, with ``+changes`` if it is dirty; ``None`` outside one."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder.parent / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changes else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def source_hash(kind: str, name: str) -> str | None:
    """SHA-256 of a plugin's source file."""
    return class_hash(find(kind, name).load())


@lru_cache(maxsize=256)
def class_hash(owner: type) -> str | None:
    """SHA-256 of the file that defines a class, read once: what was imported is what runs, whatever it says later."""
    try:
        path = inspect.getsourcefile(owner)
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None
    except (OSError, TypeError):  # typed in by hand, or compiled
        return None


def reward_hash(reward: str) -> str | None:
    """SHA-256 of a reward's source file; of the parts' hashes for a weighted sum."""
    choice = choose(reward)
    hashes = [source_hash("rewards", plugin.name) or "" for plugin, _ in choice.parts]
    return hashlib.sha256("".join(hashes).encode()).hexdigest() if choice.weighted else hashes[0] or None


def hardware(device: str) -> dict[str, Any]:
    """Processor, memory and accelerator of this machine, as far as they can be asked."""
    import psutil
    import torch

    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": device,
        "accelerator": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
    }


def record(method: str, reward: str, device: str) -> dict[str, Any]:
    """The provenance part of ``run.json``."""
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions(),
        "git_commit": git_commit(),
        "plugin_sha256": {"method": source_hash("methods", method), "reward": reward_hash(reward)},
        "hardware": hardware(device),
    }
