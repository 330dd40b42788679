"""The adapter that a training leaves, and its seals: digests by which a later change of it or of its log is found.

A changed adapter still loads and a changed log still makes curves; neither says of itself that it is another.
"""

import hashlib
from contextlib import suppress
from pathlib import Path

from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.models.adapter_file import LORA_FILE
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.system.files import atomic_write

LORA_SEAL = "pytorch_lora_weights.sha256"
"""Digests of the adapter and of the log of its training, as ``sha256sum --check`` reads them."""


def require_adapter(run: RunFolder) -> None:
    """A base model's folder, a run that is not finished, scores without weights, the adapter of another run.

    Raises:
        UsageError: with what to do about it.
    """
    if run.record().get("kind") != "run":
        raise UsageError(f"'{run.run_id}' holds the base model's scores, no adapter. Runs: sdpo-bench list runs")
    if (run.lora / LORA_FILE).exists():
        if changed := log_changed(run):
            raise UsageError(f"run '{run.run_id}': {changed}")
        return
    if run.state_or_unknown == "done":
        raise UsageError(
            f"run '{run.run_id}' is done, but its adapter is not in '{run.lora}': only its scores are here. "
            "sdpo-bench run with the settings of its run.json trains it again"
        )
    raise UsageError(
        f"run '{run.run_id}' has no trained adapter yet (state: {run.state_or_unknown}). Finish it first: the "
        "command that began it goes on. See: sdpo-bench list runs"
    )


def check_seal(folder: Path) -> None:
    """An adapter with a flipped bit still loads, and its scores are wrong: compare it with the digest beside it.

    Raises:
        UsageError: it is damaged. MissingError: it cannot be read.
    """
    path, seal = folder / LORA_FILE, folder / LORA_SEAL
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if not seal.exists():
            return
        if seal.read_bytes().split()[:1] == [digest.encode()]:
            return
        reason = f"it does not have the digest in {LORA_SEAL}"
    except FileNotFoundError as error:
        reason = f"'{error.filename}': {error.strerror}"
    except OSError as error:  # sound, for all that is known
        raise MissingError(
            f"'{error.filename}' cannot be read: {error.strerror}. See whose it is, and to the disk."
        ) from error
    if folder.parent.name == "candidates":
        mend = (
            f"Only a new training brings a candidate back: delete '{folder.parents[1]}' and give the same run command"
        )
    else:
        mend = f"Delete the folder '{folder}' and give the same run command again; it makes the adapter from the"
        mend += " last checkpoint"
    raise UsageError(f"'{path}' is damaged: {reason}. {mend}.")


def exported(run: RunFolder) -> bool:
    """Whether training ended and its adapter is there, with the seal of the log, which is written last."""
    return bool(sealed_log(run))


def seal_log(run: RunFolder) -> None:
    """Keep the digest of the finished training's log, for :func:`log_changed`."""
    seal = run.lora / LORA_SEAL
    line = f"{run.digest('train.jsonl', run.size('train.jsonl'))}  ../train.jsonl\n"
    atomic_write(seal, seal.read_text(encoding="utf-8") + line)


def sealed_log(run: RunFolder) -> str:
    """Digest of the finished training log; empty before it is sealed, or where the seal cannot be read."""
    with suppress(OSError, ValueError):
        for line in (run.lora / LORA_SEAL).read_text(encoding="utf-8").splitlines():
            digest, _, name = line.partition("  ")
            if name == "../train.jsonl":
                return digest
    return ""


def log_changed(run: RunFolder) -> str:
    """The error text where the training log is not what it was when training ended; empty where it is."""
    with suppress(OSError):
        sealed = sealed_log(run)
        if sealed and sealed != run.digest("train.jsonl", run.size("train.jsonl")):
            return (
                "its adapter and its train.jsonl do not belong together: one of them was changed or replaced "
                "after training ended, so neither scores nor curves can be trusted. Put the changed file back "
                f"from a backup, or delete '{run.path}' and give the run command again"
            )
    return ""
