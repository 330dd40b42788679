"""Errors that nobody can catch: of a thread that a plugin has started, of what is torn down when it is forgotten.

Python prints a traceback of each and goes on. They cost no number, so a line is enough.
"""

import sys
import threading
from typing import Any

import click

from sdpo_bench.errors import said


def say_loose_errors_in_words() -> None:
    """From now on, for this process."""
    threading.excepthook = _of_a_thread
    sys.unraisablehook = _of_nobody


def _of_a_thread(found: Any) -> None:
    if found.exc_type is not SystemExit:
        name = found.thread.name if found.thread else "a thread"
        _say(f"thread '{name}'", found)


def _of_nobody(found: Any) -> None:
    _say(found.err_msg or f"while {type(found.object).__name__} was torn down", found)


def _say(where: str, found: Any) -> None:
    from sdpo_bench.terminal import clean  # late: it takes a while

    text = f"warning: {where}: {found.exc_type.__name__}: {said(found.exc_value) if found.exc_value else ''}"
    click.echo(clean(f"{text.removesuffix(': ')}. The command goes on; more with: sdpo-bench --debug ..."), err=True)
