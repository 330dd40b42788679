"""Saving an adapter in a run folder and loading it again, at the strength it was trained with."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from sdpo_bench.errors import UsageError
from sdpo_bench.models.adapter_file import LORA_FILE, METADATA, NAMES, PREFIX, AdapterFile, renamed
from sdpo_bench.runs.adapter import LORA_SEAL, check_seal
from sdpo_bench.system.files import atomic_write
from sdpo_bench.system.signals import preserve_stop

if TYPE_CHECKING:
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

    Raises:
        UsageError: the file is damaged, or has no LoRA settings.
    """
    check_seal(Path(folder))
    policy.set_adapter(read_adapter(Path(folder)))


def read_adapter(folder: Path) -> AdapterFile:
    """The adapter in ``folder``.

    Raises:
        UsageError: its file has no LoRA settings.
    """
    from safetensors import safe_open

    back = {theirs: ours for ours, theirs in NAMES.items()}
    with safe_open(str(folder / LORA_FILE), framework="pt") as file:
        stored = (file.metadata() or {}).get(METADATA)
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    weights = {renamed(name.removeprefix(PREFIX), back): value for name, value in tensors.items()}
    if not stored:  # without lora_alpha it would be applied at another strength than it was trained with
        raise UsageError(
            f"the adapter in '{folder}' has no {METADATA} in its header, so its lora_alpha is unknown. Delete the "
            "folder and give the same run command again."
        )
    return AdapterFile(weights, {key.removeprefix(PREFIX): value for key, value in json.loads(stored).items()})
