"""Files of the Hugging Face hub: look in its cache, download, explain failures.

Rewards declare their files as :class:`HubFile`: ``fetch`` fills the cache of an offline cluster from it, and
``doctor`` names missing files without loading a model. Downloads go through ``huggingface_hub`` and diffusers alone.
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sdpo_bench.errors import MissingError
from sdpo_bench.models.pipeline_files import missing_parts
from sdpo_bench.system.signals import preserve_stop

PATIENCE = 10.0  # seconds to wait for the hub


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


def cached(hubfile: HubFile, revision: str | None = None) -> Path | None:
    """The file or folder in the local hub cache; ``None`` where any of it is missing. Never touches the network."""
    try:
        return _get(hubfile, revision, local_files_only=True)
    except Exception:  # the hub library has no common base for "not here"
        return None


@preserve_stop()
def find(hubfile: HubFile, revision: str | None = None, *, hint: str = "") -> Path:
    """The local file (or folder, for a set of files), downloaded where the cache lacks it.

    Cached files are not looked up again: a second run uses the weights of the first, and a machine without a network
    does not wait for one.

    Args:
        revision: branch, tag or commit; ``None`` is the repository's current state.
        hint: end of the error message: the command to type.

    Raises:
        MissingError: neither cached nor reachable, no such revision or file, an incomplete set.
    """
    if path := cached(hubfile, revision):
        return path
    try:
        return _get(hubfile, revision, local_files_only=False)
    except Exception as error:  # network, disk, hub and validation errors have no common base
        where = f" at revision '{revision}'" if revision else ""
        text = f"{hubfile.label}{where} is neither in the hub cache nor reachable: {_first_line(error)} {hint}"
        raise MissingError(text.rstrip()) from error


def out_of_reach(timeout: float) -> str | None:
    """Why the hub cannot be asked now (offline mode, or no answer in ``timeout`` seconds); ``None`` if it can."""
    from huggingface_hub import constants, is_offline_mode
    from huggingface_hub.utils import get_session

    if is_offline_mode():
        return "offline mode is on (HF_HUB_OFFLINE is set)."
    try:
        get_session().head(constants.ENDPOINT, timeout=timeout)
    except Exception as error:  # the session's own errors, those of its transport, wrong addresses
        return f"{constants.ENDPOINT} does not answer: {_first_line(error).rstrip('.')}."
    return None


def cached_pipeline(repo: str, revision: str | None = None) -> Path | None:
    """Folder of a whole pipeline in the hub cache; ``None`` where any of it is missing. Never touches the network."""
    try:
        folder = _get_pipeline(repo, revision, local_files_only=True)
        return folder if not missing_parts(folder) else None
    except Exception:  # as in cached
        return None


@preserve_stop()
def find_pipeline(repo: str, revision: str | None = None, *, hint: str = "") -> Path:
    """The cached pipeline, else downloaded (also where a part of the cached one is missing).

    Raises:
        MissingError: neither cached nor reachable, no such repository or revision, not a whole pipeline.
    """
    if folder := cached_pipeline(repo, revision):
        return folder
    reason = out_of_reach(PATIENCE)
    if reason is None:
        try:
            folder = _get_pipeline(repo, revision, local_files_only=False)
            missing = missing_parts(folder)
            if not missing:
                return folder
            reason = f"{'; '.join(missing)}."
        except Exception as error:  # as in find
            reason = _first_line(error)
    where = f"'{repo}'" + (f" at revision '{revision}'" if revision else "")
    raise MissingError(f"the weights of {where} are neither cached here nor reachable: {reason} {hint}".rstrip())


def resolved_commit(path: str | Path) -> str | None:
    """The commit that a path inside the hub cache belongs to; ``None`` for any other path."""
    match = re.search(r"/snapshots/([0-9a-f]{40})(?:/|$)", Path(path).as_posix())
    return match.group(1) if match else None


def _get(hubfile: HubFile, revision: str | None, *, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [hubfile.filename] if hubfile.filename else list(hubfile.allow_patterns)
    folder = Path(
        snapshot_download(
            hubfile.repo, revision=revision, allow_patterns=patterns or None, local_files_only=local_files_only
        )
    )
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    missing = [p for p in patterns if not any(fnmatch(name, p) for name in names)]
    if missing:
        raise FileNotFoundError(f"the snapshot has no {', '.join(missing)}.")
    return folder / (hubfile.filename or "")


def _get_pipeline(repo: str, revision: str | None, *, local_files_only: bool) -> Path:
    from diffusers import DiffusionPipeline

    options: dict[str, Any] = {"revision": revision} if revision else {}
    return Path(DiffusionPipeline.download(repo, safety_checker=None, local_files_only=local_files_only, **options))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
