"""Prompt sets: lists by name, text files with one prompt a line, and columns of table files and hub datasets."""

import codecs
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from sdpo_bench import seeds
from sdpo_bench.errors import MissingError, UsageError, nearest
from sdpo_bench.hashing import digest
from sdpo_bench.prompts.hub_prompts import parse_hub
from sdpo_bench.prompts.published_sets import PUBLISHED
from sdpo_bench.prompts.table_files import read_column, split_column


def prompt_folder() -> Path:
    return Path(str(files("sdpo_bench.prompts")))


@cache  # the package does not change while it runs
def shipped_sets() -> dict[str, Path]:
    """Shipped prompt sets by name."""
    return {path.stem: path for path in sorted(prompt_folder().glob("*.txt"))}


@dataclass(frozen=True)
class _Cache:
    """Prompt sets that are read once: those read so far, and what files must hold."""

    read: dict[str, list[str]]
    digests: Mapping[str, str]
    run: str

    def get(self, name: str) -> list[str]:
        if name not in self.read:
            self.read[name] = _read(name)
        texts, before = self.read[name], self.digests.get(os.path.normpath(name))
        if before and name not in shipped_sets() and digest(texts) != before:
            raise UsageError(
                f"the prompts in '{name}' are not those that run '{self.run}' used before: the file was changed. Put "
                "it back, or begin a new run on the changed prompts: the run command with another --out FOLDER. To "
                "judge this run on them, save them as another file and name that one."
            )
        return list(texts)


_caches: list[_Cache] = []
"""Open :func:`prompt_cache` blocks, the innermost last."""


@contextmanager
def prompt_cache(digests: Mapping[str, str] | None = None, run: str = "") -> Iterator[None]:
    """Read every prompt file once in this block, so that a file edited meanwhile is not half old and half new.

    Args:
        digests: recorded :func:`file_digest` of the prompt files of ``run``, by normalised path. The first use of a
            file with another content raises UsageError.
    """
    _caches.append(_Cache(_caches[-1].read if _caches else {}, digests or {}, run))
    try:
        yield
    finally:
        _caches.pop()


def digests_in_use() -> dict[str, str]:
    """Digests of the user's own prompt files that this :func:`prompt_cache` has read, by normalised path."""
    read = _caches[-1].read if _caches else {}
    return {os.path.normpath(name): digest(texts) for name, texts in read.items() if name not in shipped_sets()}


def load_prompts(name: str) -> list[str]:
    """Prompts of a set: a shipped or published one, a text file, ``FILE.csv[:COLUMN]`` or ``hub:OWNER/NAME:COLUMN``.

    Empty lines of a text file and lines starting with ``#`` are left out. A table may repeat a prompt, which counts
    once.

    Raises:
        UsageError: neither a set nor a file, no prompts in it, a prompt twice in a text file, or other prompts than
            :func:`prompt_cache` requires. MissingError: unreadable, or not fetched.
    """
    return _caches[-1].get(name) if _caches else _read(name)


def _read(name: str) -> list[str]:
    sets = shipped_sets()
    if name in PUBLISHED:
        return PUBLISHED[name].prompts()
    if hub := parse_hub(name):
        return hub.prompts()
    path = sets.get(name, Path(name))
    table = None if name in sets else split_column(name)
    if table and Path(table[0]).is_file():
        return read_column(Path(table[0]), table[1], f"prompt file '{table[0]}'")
    if name not in sets and not path.is_file():
        place = f" There is no file '{path.absolute()}' either." if path.suffix or len(path.parts) > 1 else ""
        raise UsageError(
            f"unknown prompt set '{name}'.{place}{nearest(name, [*sets, *PUBLISHED])} A path to a text file works too."
        )
    try:
        # Not splitlines(): for editors a line ends at a line feed, and not at, say, U+2028 in a pasted prompt.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise MissingError(f"prompt file '{path}' cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"prompt file '{path}' is not UTF-8 text ({_encoding(error.object)}: {error.reason} at byte "
            f"{error.start:,}). Convert it: iconv -f {_encoding(error.object)} -t UTF-8 {shlex.quote(name)} > NEW.txt"
        ) from error
    if broken := [str(number) for number, line in enumerate(lines, 1) if "\0" in line]:
        raise UsageError(
            f"prompt file '{path}' has a NUL character in line {', '.join(broken[:10])}, which no prompt has. Is it "
            f"text? If it is of another encoding: iconv -f UTF-16 -t UTF-8 {shlex.quote(name)} > NEW.txt"
        )
    prompts = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not prompts:
        raise UsageError(f"prompt file '{path}' has no prompts.")
    if len(set(prompts)) < len(prompts):
        twice = next(p for p in prompts if prompts.count(p) > 1)
        raise UsageError(f"prompt file '{path}' has '{twice}' twice; every prompt counts once.")
    return prompts


def _encoding(content: bytes) -> str:
    """The name, for ``iconv``, of the encoding that text which is not UTF-8 seems to have."""
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    return "UTF-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "WINDOWS-1252"


def file_digest(name: str) -> str:
    """Hash of the prompts in somebody's own file, which can be edited under its name; empty for a shipped set."""
    return "" if name in shipped_sets() else digest(load_prompts(name))


def prompt_commits(names: Iterable[str]) -> dict[str, str]:
    """Commits of the hub datasets among prompt sets, by the set's name."""
    commits = {}
    for name in names:
        hub = parse_hub(PUBLISHED[name].location if name in PUBLISHED else name)
        if hub and (commit := hub.commit()):
            commits[name] = commit
    return commits


def draw_prompts(prompts: list[str], count: int, *, seed: int, epoch: int, rule: str) -> list[str]:
    """The prompts of one epoch's groups, a pure function of seed and epoch.

    Group k draws from its own seed, so an epoch that is cut short keeps the prompts of its first groups. ``random``
    draws with replacement, ``cycle`` walks through a new shuffle of the whole list each time around.
    """
    if rule == "random":
        return [prompts[seeds.seed_for(seed, "prompt", epoch, k) % len(prompts)] for k in range(count)]
    chosen = []
    for position in range(epoch * count, (epoch + 1) * count):
        lap, place = divmod(position, len(prompts))
        chosen.append(prompts[int(seeds.permutation(len(prompts), seed, "prompt-cycle", lap)[place])])
    return chosen
