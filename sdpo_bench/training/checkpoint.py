"""Exact resume: all that the future of a run depends on, in one file that is either whole or absent.

Randomness needs no state (every draw has a named seed), so a checkpoint is the LoRA weights, the critic, the
optimiser's moments, the loss scale (fp16), the normaliser's buffers, the remembered scores, the ledger and the digests
of the logs. It is one safetensors file with JSON in its header: loading runs no code from the file. A digest of
everything in it is checked on loading: a checkpoint with a single flipped bit is passed over for the one before. A log
with one is refused.
"""

import errno
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdpo_bench.advantages.normalise import Normaliser
from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.runs.run_folder import VALIDATION, RunFolder
from sdpo_bench.scoring.score_cache import ScoreCache
from sdpo_bench.system.files import atomic_write, disk_space
from sdpo_bench.system.json_toml import parse_json
from sdpo_bench.system.signals import preserve_stop
from sdpo_bench.training.followers import PREFIXES
from sdpo_bench.training.training_logs import Seals, refuse_changed
from sdpo_bench.training.updater import CRITIC, Updater

KEEP = 2
FORMAT = 2
OUT_OF_REACH = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
UNREADABLE = "It may be sound, so training does not start again: make it readable, or delete it to go back behind it."


@dataclass(frozen=True)
class Progress:
    """Where training stands: ``epoch`` is the number of completed epochs."""

    epoch: int
    ledger: dict[str, Any]
    logs: Seals
    """Lengths and digests of the logs after that epoch."""
    run: str
    """Whose it is."""


Snapshot = tuple[dict[str, Tensor], str]
"""Tensors and header of a checkpoint, in memory."""


def snapshot(progress: Progress, updater: Updater, normaliser: Normaliser, cache: ScoreCache) -> Snapshot:
    """The state after ``progress.epoch`` epochs, which later updates leave alone."""
    buffers = normaliser.state_dict()
    prompts = list(buffers)
    tensors = {_key(name): p.detach() for name, p in _state(updater).items()}
    tensors |= _optimiser_tensors(updater)
    tensors |= {f"buffer/{i}": buffers[prompt] for i, prompt in enumerate(prompts)}
    tensors |= {f"cache/{name}": value for name, value in cache.state().items()}
    header = {
        "format": FORMAT,
        "epoch": progress.epoch,
        "ledger": progress.ledger,
        "logs": dict(progress.logs),
        "run": progress.run,
        "prompts": prompts,
    }
    if updater.followers.ema is not None:
        header["averaged"] = updater.followers.averaged
    if (scaling := updater.scale.state()) is not None:
        header["loss_scale"] = scaling
    plain = {name: value.to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    return plain, json.dumps(header, sort_keys=True)


def _digest(state: str, tensors: Mapping[str, Tensor]) -> str:
    """One digest of the header and of every tensor's name, type, shape and bytes."""
    found = hashlib.sha256(state.encode())
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def write(run: RunFolder, epoch: int, state: Snapshot) -> Path:
    """Put a checkpoint on disk and drop all but the last :data:`KEEP` up to it.

    A later one was passed over as damaged, or the run would have gone on from it: counted, it would crowd out this one.
    """
    from safetensors.torch import save as to_bytes

    with disk_space(run.checkpoints):
        run.checkpoints.mkdir(exist_ok=True)
    path = path_of(run, epoch)
    tensors, header = state
    sealed = json.dumps([_digest(header, tensors), header])
    atomic_write(path, to_bytes(tensors, metadata={"sealed": sealed}))
    for old in [known for known in _files(run) if known.name <= path.name][:-KEEP]:
        old.unlink()
    return path


def path_of(run: RunFolder, epoch: int) -> Path:
    """Where the checkpoint after ``epoch`` epochs is."""
    return run.checkpoints / f"epoch-{epoch:06d}.safetensors"


def _files(run: RunFolder) -> list[Path]:
    return sorted(run.checkpoints.glob("epoch-[0-9]*.safetensors")) if run.checkpoints.is_dir() else []


def _state(updater: Updater) -> dict[str, Tensor]:
    """The weights that learn, those that follow them and the critic's buffers, by name."""
    return {**updater.parameters, **updater.buffers, **updater.followers.named()}


def _key(name: str) -> str:
    """Where a weight or buffer is in the file: ``lora/NAME`` or ``critic/NAME``."""
    return name if name.startswith((CRITIC, *PREFIXES)) else f"lora/{name}"


def _optimiser_tensors(updater: Updater) -> dict[str, Tensor]:
    state = updater.optimiser.state
    return {
        f"optimiser/{key}/{name}": value
        for name, parameter in updater.parameters.items()
        for key, value in state.get(parameter, {}).items()
    }


def latest(run: RunFolder) -> tuple[Path | None, list[str]]:
    """The newest readable checkpoint, and a warning for each damaged one that was passed over.

    Raises:
        UsageError: a log is not what it was when it was written; going back would throw away sound training.
    """
    warnings: list[str] = []
    for path in reversed(_files(run)):
        try:
            header, _ = read(path)
            _check_own(run, path, header)
        except UsageError as error:
            warnings.append(f"{error} Going back to the checkpoint before it.")
            continue
        refuse_changed(run, _seals(header), f"when checkpoint '{path.name}' was written")
        return path, warnings
    if warnings or run.log():
        warnings.append(f"there is no checkpoint to go on from in '{run.checkpoints}': the run starts again.")
    return None, warnings


def _check_own(run: RunFolder, path: Path, header: Mapping[str, Any]) -> None:
    """A backup put back in the wrong place brings its log with it, so the name is asked."""
    if header.get("run", run.run_id) != run.run_id:
        raise UsageError(f"checkpoint '{path}' belongs to run '{header['run']}'.")


def _seals(header: Mapping[str, Any]) -> Seals:
    """Lengths and digests of the logs; earlier versions had other names for them, and no digest of the times."""
    if "logs" in header:
        return {name: (size, digest) for name, (size, digest) in header["logs"].items()}
    size, digest = header.get("validated", (0, ""))
    return {
        "train.jsonl": (header["log_size"], header["log_sha256"]),
        "timing.jsonl": (header["timing_size"], ""),
        VALIDATION: (size, digest),
    }


@preserve_stop()
def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a checkpoint.

    Raises:
        UsageError: the file is damaged or of another format.
        MissingError: it cannot be read, which says nothing about its content.
    """
    from safetensors import SafetensorError, safe_open

    try:
        path.open("rb").close()  # its own error, before a library puts it in other words
        with safe_open(str(path), framework="pt") as file:
            digest, state = parse_json((file.metadata() or {})["sealed"])
            header = parse_json(state)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in OUT_OF_REACH:
            raise MissingError(f"checkpoint '{path}' cannot be read: {error.strerror}. {UNREADABLE}") from error
        raise UsageError(f"checkpoint '{path}' is damaged ({error}).") from error
    if header.get("format") != FORMAT:
        raise UsageError(f"checkpoint '{path}' has format {header.get('format')}, this version reads {FORMAT}.")
    if digest != _digest(state, tensors):
        raise UsageError(f"checkpoint '{path}' is damaged (its content does not have the digest it was written with).")
    return header, tensors


def restore(path: Path, updater: Updater, normaliser: Normaliser, cache: ScoreCache) -> Progress:
    """Put weights, optimiser, buffers and remembered scores back as they were, bit for bit."""
    header, tensors = read(path)
    _check_shapes(path, tensors, updater)
    _restore_scale(path, header, updater)
    updater.followers.averaged = header.get("averaged", 0)
    for name, value in _state(updater).items():
        with torch.no_grad():
            value.copy_(tensors[_key(name)])
    _restore_optimiser(tensors, updater)
    normaliser.load_state_dict({p: tensors[f"buffer/{i}"] for i, p in enumerate(header["prompts"])})
    cache.load_state({name: tensors[f"cache/{name}"] for name in ("keys", "scores") if f"cache/{name}" in tensors})
    return Progress(header["epoch"], header["ledger"], _seals(header), header.get("run", ""))


def _restore_optimiser(tensors: dict[str, Tensor], updater: Updater) -> None:
    updater.optimiser.state.clear()
    for key, value in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "optimiser":
            moment, _, name = rest.partition("/")
            parameter = updater.parameters[name]
            # The fused AdamW counts steps on the parameter's device, the plain one on the CPU.
            stays = moment == "step" and not updater.optimiser.defaults["fused"]
            updater.optimiser.state[parameter][moment] = value if stays else value.to(parameter.device)


def _restore_scale(path: Path, header: Mapping[str, Any], updater: Updater) -> None:
    if updater.scale.factor is None:
        return
    if "loss_scale" not in header:
        raise UsageError(
            f"checkpoint '{path}' was written by an earlier version, which trained fp16 without loss scaling: most "
            f"gradients were zero. Delete '{path.parent.parent}' and give the same command to train again."
        )
    updater.scale.load(header["loss_scale"])


def _check_shapes(path: Path, tensors: dict[str, Tensor], updater: Updater) -> None:
    for name, value in _state(updater).items():
        stored = tensors.get(_key(name))
        if stored is None or stored.shape != value.shape:
            raise UsageError(f"checkpoint '{path}' does not fit this model: '{name}' is missing or of another shape.")
