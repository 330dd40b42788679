"""Files that a user names for the output of a command: never over results."""

from pathlib import Path

from sdpo_bench.errors import UsageError

RESULT_FOLDERS = ("runs", "references", "suites", "studies", "replaced")
"""Folders of a results folder whose files commands read again."""


def user_file(path: Path, results: Path, option: str = "--out") -> Path:
    """The file that a path means, links followed.

    Raises:
        UsageError: a folder or device is there, or the path lies where the results folder keeps its own files.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise UsageError(f"{option} '{path}' is there and is no regular file. Choose another.")
    for name in RESULT_FOLDERS:
        if target.is_relative_to((results / name).resolve()):
            raise UsageError(
                f"{option} '{path}' lies among the {name} of '{results}', whose files are results. Choose another "
                "place."
            )
    return target
