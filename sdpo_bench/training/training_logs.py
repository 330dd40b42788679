"""Digests of a training's logs: a log that was changed from outside is refused, for its curves could not be trusted."""

from collections.abc import Mapping

from sdpo_bench.errors import UsageError
from sdpo_bench.runs.run_folder import CURVE, VALIDATION, RunFolder

LOGS = ("train.jsonl", "timing.jsonl", VALIDATION, CURVE)
Seals = Mapping[str, tuple[int, str]]
"""Length in bytes and SHA-256 of each log; an empty digest is not checked."""


def seal(run: RunFolder) -> Seals:
    """Length and digest of the logs as they are now."""
    sizes = {name: run.size(name) for name in LOGS}
    return {name: (size, run.digest(name, size)) for name, size in sizes.items()}


def refuse_changed(run: RunFolder, seals: Seals, since: str) -> None:
    """Refuse a log that does not begin with what was sealed; lines after it are no change.

    Args:
        since: when it was sealed, in words.

    Raises:
        UsageError: with what to do about it.
    """
    for name, (size, digest) in seals.items():
        if digest and run.digest(name, size) != digest:
            raise UsageError(
                f"'{run.path / name}' is not what it was {since}. Put the file back from a backup and give the same "
                f"command again, or delete '{run.path}' to train from the beginning."
            )
