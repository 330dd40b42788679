"""Prompt sets: shipped lists by name, or any text file with one prompt a line."""

from importlib.resources import files
from pathlib import Path

from sdpo_bench import seeds
from sdpo_bench.errors import MissingError, UsageError, nearest
from sdpo_bench.identity import digest


def prompt_folder() -> Path:
    return Path(str(files("sdpo_bench"))) / "prompts"


def shipped_sets() -> dict[str, Path]:
    """Shipped prompt sets by name."""
    return {path.stem: path for path in sorted(prompt_folder().glob("*.txt"))}


def load_prompts(name: str) -> list[str]:
    """Prompts of a shipped set or of a text file; empty lines and lines starting with ``#`` are left out.

    Raises:
        UsageError: neither a set nor a file, no prompts in it, or a prompt twice. MissingError: unreadable.
    """
    sets = shipped_sets()
    path = sets.get(name, Path(name))
    if name not in sets and not path.is_file():
        raise UsageError(f"unknown prompt set '{name}'.{nearest(name, sets)} A path to a text file works too.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise MissingError(f"prompt file '{path}' cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"prompt file '{path}' is not UTF-8 text: {error}.") from error
    prompts = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not prompts:
        raise UsageError(f"prompt file '{path}' has no prompts.")
    if len(set(prompts)) < len(prompts):
        twice = next(p for p in prompts if prompts.count(p) > 1)
        raise UsageError(f"prompt file '{path}' has '{twice}' twice; every prompt counts once.")
    return prompts


def file_digest(name: str) -> str:
    """Hash of the prompts in somebody's own file, which can be edited under its name; empty for a shipped set."""
    return "" if name in shipped_sets() else digest(load_prompts(name))


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
