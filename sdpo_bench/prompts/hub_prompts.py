"""Prompts of a dataset repository of the Hugging Face hub: ``hub:OWNER/NAME[@REVISION][:COLUMN[:SPLIT]]``.

The repository's table files are read directly, so no code of the dataset runs. What is cached is not looked up again.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.prompts.table_files import DEFAULT_COLUMN, SUFFIXES, read_column
from sdpo_bench.system.signals import preserve_stop

PREFIX = "hub:"
PATIENCE = 10.0  # seconds to wait for the hub
FORM = "hub:OWNER/NAME[@REVISION][:COLUMN[:SPLIT]]"


@dataclass(frozen=True)
class HubPrompts:
    """A column of a dataset repository's table files."""

    repo: str
    revision: str | None
    column: str
    split: str
    """Word in the names of the files that count (``test``), or one file's whole name; empty: the only file."""

    @property
    def name(self) -> str:
        return f"{PREFIX}{self.repo}" + (f"@{self.revision}" if self.revision else "")

    def prompts(self) -> list[str]:
        """The prompts, each once, in file order.

        Raises:
            MissingError: neither cached nor reachable. UsageError: no clear file, or as ``read_column``.
        """
        texts: dict[str, None] = {}
        for path in self.files():
            texts |= dict.fromkeys(read_column(path, self.column, f"'{path.name}' of '{self.name}'"))
        return list(texts)

    def cached(self) -> list[Path] | None:
        """The files in the hub cache; ``None`` where they are missing. Never touches the network."""
        from huggingface_hub import snapshot_download

        try:
            folder = Path(
                snapshot_download(self.repo, repo_type="dataset", revision=self.revision, local_files_only=True)
            )
        except Exception:  # the hub library has no common base for "not here"
            return None
        names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
        chosen = self._choose(names) if any(name.lower().endswith(SUFFIXES) for name in names) else []
        if chosen != [self.split] and _lacks_shards(chosen):  # an interrupted download
            return None
        return [folder / name for name in chosen] or None

    @preserve_stop()
    def files(self) -> list[Path]:
        """The files, downloaded where the cache lacks them.

        Raises:
            MissingError: neither cached nor reachable. UsageError: no clear file.
        """
        if paths := self.cached():
            return paths
        from huggingface_hub import HfApi, hf_hub_download

        try:
            info = HfApi().dataset_info(self.repo, revision=self.revision, timeout=PATIENCE)
            names = self._choose([sibling.rfilename for sibling in info.siblings or []])
            if not names:
                raise UsageError(f"'{self.name}' has no {', '.join(SUFFIXES)} file for split '{self.split}'.")
            return [
                Path(hf_hub_download(self.repo, name, repo_type="dataset", revision=self.revision)) for name in names
            ]
        except UsageError:
            raise
        except Exception as error:  # network, disk, hub and validation errors have no common base
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise MissingError(
                f"the dataset '{self.name}' is neither in the hub cache nor reachable: {reason} On a machine with "
                f"network, type: sdpo-bench fetch {self.name}:{self.column}" + (f":{self.split}" if self.split else "")
            ) from error

    def commit(self) -> str | None:
        """The commit of the cached files."""
        match = re.search(r"/snapshots/([0-9a-f]{40})/", (self.cached() or [Path()])[0].as_posix())
        return match.group(1) if match else None

    def _choose(self, names: list[str]) -> list[str]:
        tables = sorted(name for name in names if name.lower().endswith(SUFFIXES))
        if self.split in tables:
            return [self.split]
        if self.split:
            word = re.compile(rf"(^|[/_.-]){re.escape(self.split)}([/_.-])")
            return [name for name in tables if word.search(name)]
        if len(tables) > 1:
            raise UsageError(
                f"'{self.name}' has several files: {', '.join(tables[:8])}. Name a split or one file: "
                f"{self.name}:{self.column}:SPLIT"
            )
        return tables


def _lacks_shards(names: list[str]) -> bool:
    """Whether files such as ``test-00000-of-00002.parquet`` are not all there."""
    shards = re.compile(r"(.*)-\d{5}-of-(\d{5})(\.\w+)")
    found: dict[tuple[str, int, str], int] = {}
    for name in names:
        if match := shards.fullmatch(name):
            key = match[1], int(match[2]), match[3]
            found[key] = found.get(key, 0) + 1
    return any(count < total for (_, total, _), count in found.items())


def parse_hub(name: str) -> HubPrompts | None:
    """The dataset that a prompt set's name means; ``None`` where it does not start with ``hub:``.

    Raises:
        UsageError: not of the form.
    """
    if not name.startswith(PREFIX):
        return None
    match = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)(?:@([^:@]+))?(?::([^:]+))?(?::([^:]+))?", name)
    if match is None:
        raise UsageError(f"'{name}' is not of the form {FORM}. Example: hub:sayakpaul/drawbench:Prompts")
    repo, revision, column, split = match.groups()
    return HubPrompts(repo, revision, column or DEFAULT_COLUMN, split or "")
