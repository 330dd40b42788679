"""Saving an adapter in a run folder and loading it again, at the strength it was trained with."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdpo_bench.models.adapter_file import LORA_FILE, METADATA, NAMES, AdapterFile, renamed
from sdpo_bench.runs.adapter import LORA_SEAL, check_seal
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.system.files import atomic_write
from sdpo_bench.system.signals import preserve_stop

if TYPE_CHECKING:
    from torch import Tensor

    from sdpo_bench.models.policy import Policy


@preserve_stop()
def save_adapter(policy: "Policy", folder: Path) -> Path:
    """Write the adapter so that the stock pipeline's ``load_lora_weights(folder)`` gives the same denoiser.

    The file holds the float32 weights bit for bit, and rank, alpha and targets beside them (``adapter_file``).
    """
    content = policy.adapter().to_bytes()
    target = Path(folder) / LORA_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    seal = target.with_name(LORA_SEAL)
    seal.unlink(missing_ok=True)  # a seal without its adapter must never exist
    atomic_write(target, content)
    atomic_write(seal, f"{hashlib.sha256(content).hexdigest()}  {LORA_FILE}\n")
    return target


@preserve_stop()
def load_adapter(policy: "Policy", folder: Path) -> None:
    """Load an adapter written by :func:`save_adapter` in place of the present one.

    An adapter of an earlier version gets its recorded strength, with a notice.

    Raises:
        UsageError: the file is damaged.
    """
    check_seal(Path(folder))
    file = read_adapter(Path(folder))
    if file.notice:
        click.echo(f"note: {file.notice}.", err=True)
    policy.set_adapter(file)


def read_adapter(folder: Path) -> AdapterFile:
    """The adapter in ``folder``, of this or an earlier version.

    Earlier versions wrote no settings. Such an adapter has the strength in the ``run.json`` of its run, and
    ``alpha = rank`` where there is none.
    """
    from safetensors import safe_open

    back = {theirs: ours for ours, theirs in NAMES.items()}
    with safe_open(str(folder / LORA_FILE), framework="pt") as file:
        stored = (file.metadata() or {}).get(METADATA)
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    part = next(iter(tensors)).partition(".")[0]
    prefix = f"{part}."
    weights = {renamed(name.removeprefix(prefix), back): value for name, value in tensors.items()}
    if stored:
        config = {key.removeprefix(prefix): value for key, value in json.loads(stored).items()}
        return AdapterFile(weights, config, part)
    return _of_an_earlier_version(folder, weights)


def _of_an_earlier_version(folder: Path, weights: "dict[str, Tensor]") -> AdapterFile:
    modules = sorted({name.split(".lora_")[0] for name in weights})
    rank = next(len(matrix) for name, matrix in weights.items() if ".lora_A." in name)
    run = RunFolder(folder.parents[1] if folder.parent.name == "candidates" else folder.parent)
    model: Mapping[str, Any] = run.record()["config"]["model"] if (run.path / "run.json").exists() else {}
    alpha = model.get("lora_alpha", rank)
    notice = ""
    if alpha != rank:
        notice = (
            f"the adapter in '{folder}' was saved by an earlier version, without its lora_alpha. It is applied at the "
            f"recorded strength, {alpha:g}/{rank}. That version judged it at strength 1: delete '{run.evaluation}' and "
            f"'{run.path / 'grid.png'}' and give the same run command to have them made again"
        )
    return AdapterFile(weights, {"r": rank, "lora_alpha": alpha, "target_modules": modules}, notice=notice)
