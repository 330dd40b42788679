"""The one door to the Hugging Face hub: what a plugin needs from it, whether that is here, and how to get it.

Rewards declare their files as :class:`HubFile`: ``fetch`` fills the cache of an offline cluster from it, and
``doctor`` says what is missing without loading a model. Downloads go through ``huggingface_hub`` and diffusers alone.
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sdpo_bench.errors import MissingError
from sdpo_bench.models.pipeline_files import missing_parts
from sdpo_bench.system.signals import preserve_stop

PATIENCE = 10.0  # seconds in which a hub that is there has answered


@dataclass(frozen=True)
class HubFile:
    """A file of a hub model repository, or a set of its files that share one folder."""

    repo: str
    """Repository, ``owner/name``."""
    filename: str | None = None
    """The one file that is needed; ``None``: the files that match ``allow_patterns``."""
    allow_patterns: tuple[str, ...] = ()
    """File-name patterns; each must match at least one file, or the set counts as incomplete."""
    size: int = 0
    """Approximate download in bytes."""

    @property
    def label(self) -> str:
        """How messages name it, e.g. ``xswu/HPSv2: HPS_v2_compressed.pt``."""
        return f"{self.repo}: {self.filename or ', '.join(self.allow_patterns) or 'all files'}"


def cached(hubfile: HubFile, revision: str | None = None) -> bool:
    """Whether everything is in the local hub cache; never touches the network."""
    try:
        _get(hubfile, revision, local_files_only=True)
    except Exception:
        return False
    return True


def fetch(hubfile: HubFile, revision: str | None = None, *, hint: str = "") -> Path:
    """The local file (or folder, for a set of files), downloaded first if the cache lacks it.

    Args:
        revision: branch, tag or commit; ``None`` is the repository's current state.
        hint: end of the error message: what the person can type.

    Raises:
        MissingError: neither cached nor reachable, no such revision or file, an incomplete set.
    """
    try:
        return _get(hubfile, revision, local_files_only=False)
    except Exception as error:  # network, disk, hub and validation errors have no common base
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        where = f" at revision '{revision}'" if revision else ""
        raise MissingError(
            f"{hubfile.label}{where} is neither in the hub cache nor reachable: {reason} {hint}".rstrip()
        ) from error


@preserve_stop()
def find(hubfile: HubFile, revision: str | None = None, *, hint: str = "") -> Path:
    """The cached file or folder as it is, else :func:`fetch`.

    What is cached is not looked up again: a second run uses the weights of the first, and a machine without
    network does not wait for one.
    """
    try:
        return _get(hubfile, revision, local_files_only=True)
    except Exception:
        return fetch(hubfile, revision, hint=hint)


def out_of_reach(timeout: float | None = None) -> str | None:
    """Why the hub cannot be asked now (offline mode, or no answer in ``timeout`` seconds, :data:`PATIENCE` if not
    said); ``None`` if it can."""
    from huggingface_hub import constants, is_offline_mode
    from huggingface_hub.utils import get_session

    if is_offline_mode():
        return "offline mode is on (HF_HUB_OFFLINE is set)."
    try:
        get_session().head(constants.ENDPOINT, timeout=timeout or PATIENCE)
    except Exception as error:  # the session's own errors, those of its transport, wrong addresses
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        return f"{constants.ENDPOINT} does not answer: {reason.rstrip('.')}."
    return None


def cached_pipeline(repo: str, revision: str | None = None) -> Path | None:
    """Folder of a whole pipeline in the hub cache; ``None`` where it or a part of it is missing. Asks no network."""
    try:
        folder = _get_pipeline(repo, revision, local_files_only=True)
        return folder if not missing_parts(folder) else None
    except Exception:  # the hub library has no common base for "not here"
        return None


@preserve_stop()
def find_pipeline(repo: str, revision: str | None = None, *, hint: str = "") -> Path:
    """The cached pipeline as it is, else downloaded (also where a part of the cached one is missing).

    Raises:
        MissingError: neither cached nor reachable, no such repository or revision, not a whole pipeline.
    """
    folder = cached_pipeline(repo, revision)
    if folder is not None:
        return folder
    where = f"'{repo}'" + (f" at revision '{revision}'" if revision else "")
    reason = out_of_reach()
    if reason is None:
        try:
            folder = _get_pipeline(repo, revision, local_files_only=False)
            absent = missing_parts(folder)
            if not absent:
                return folder
            reason = f"{'; '.join(absent)}."
        except Exception as error:  # likewise
            reason = str(error).strip().split("\n")[0] or type(error).__name__
    raise MissingError(f"the weights of {where} are neither cached here nor reachable: {reason} {hint}".rstrip())


def _get_pipeline(repo: str, revision: str | None, *, local_files_only: bool) -> Path:
    from diffusers import DiffusionPipeline

    options: dict[str, Any] = {"revision": revision} if revision else {}
    return Path(DiffusionPipeline.download(repo, safety_checker=None, local_files_only=local_files_only, **options))


def resolved_commit(path: str | Path) -> str | None:
    """The commit that a path inside the hub cache belongs to; ``None`` for any other path."""
    match = re.search(r"/snapshots/([0-9a-f]{40})(?:/|$)", Path(path).as_posix())
    return match.group(1) if match else None


def _get(hubfile: HubFile, revision: str | None, *, local_files_only: bool) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    if hubfile.filename:
        file = hf_hub_download(hubfile.repo, hubfile.filename, revision=revision, local_files_only=local_files_only)
        return Path(file)
    patterns = list(hubfile.allow_patterns) or None
    folder = Path(
        snapshot_download(hubfile.repo, revision=revision, allow_patterns=patterns, local_files_only=local_files_only)
    )
    _check_complete(folder, hubfile)
    return folder


def _check_complete(folder: Path, hubfile: HubFile) -> None:
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    absent = [p for p in hubfile.allow_patterns if not any(fnmatch(name, p) for name in names)]
    if absent:
        raise FileNotFoundError(f"the snapshot has no {', '.join(absent)}.")
