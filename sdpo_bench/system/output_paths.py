"""Where commands write what a user asks for by a path of his own: never over results, never in the place of a device.

A file that is written whole takes its name by a rename, which would put it in the place of a device, a pipe or a link.
"""

from pathlib import Path

from sdpo_bench.errors import UsageError

HELD = ("runs", "references", "suites", "studies", "replaced")
"""Folders of a results folder in which commands keep what they need again."""


def user_file(path: Path, results: Path, option: str = "--out") -> Path:
    """The file that a path means, links followed.

    Raises:
        UsageError: what is there is no regular file, or the path lies where the results folder keeps its own.
    """
    try:
        target = path.resolve()
    except RuntimeError:  # links in a circle, until Python 3.12
        raise UsageError(f"{option} '{path}' is a link that leads back to itself. Choose another.") from None
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise UsageError(f"{option} '{path}' is there and is no regular file. Choose another.")
    for held in [(results / name).resolve() for name in HELD] + _held_elsewhere(target):
        if target.is_relative_to(held):
            whose = results if held.parent == results.resolve() else held.parent
            raise UsageError(
                f"{option} '{path}' lies among the {held.name} of '{whose}', whose files are results. Choose another "
                "place."
            )
    return target


def _held_elsewhere(target: Path) -> list[Path]:
    """Such folders around a file, of whatever results folder: the one at hand need not be the only one."""
    return [
        folder for folder in target.parents if folder.name in HELD and any((folder.parent / "runs").glob("*/run.json"))
    ]
