"""Errors that nobody can catch: of a plugin's thread, of what is torn down when it is forgotten, of a wrong log call.

Python prints a traceback of each and goes on. They cost no number, so a line is enough.
"""

import logging
import signal
import sys
import threading
from typing import Any

import click

from sdpo_bench.errors import said
from sdpo_bench.system.signals import deliver_again


def say_loose_errors_in_words() -> None:
    """From now on, for this process."""
    threading.excepthook = _of_a_thread
    sys.unraisablehook = _of_nobody
    logging.Handler.handleError = _of_a_log  # type: ignore[assignment, method-assign]


def _of_a_thread(found: Any) -> None:
    if found.exc_type is not SystemExit:
        name = found.thread.name if found.thread else "a thread"
        _say(f"thread '{name}'", found.exc_type, found.exc_value)


def _of_nobody(found: Any) -> None:
    if isinstance(found.exc_value, KeyboardInterrupt):
        deliver_again(getattr(found.exc_value, "exit_code", 128 + signal.SIGINT) - 128)
        return
    name = getattr(found.object, "__qualname__", type(found.object).__qualname__)
    _say(
        f"{found.err_msg or 'an error that was ignored'} ({getattr(found.object, '__module__', '?')}.{name})",
        found.exc_type,
        found.exc_value,
    )


def _of_a_log(handler: logging.Handler, record: logging.LogRecord) -> None:
    """The record of a call whose arguments do not fit its text, or whose place cannot be written."""
    kind, error, _ = sys.exc_info()
    _say(f"a log call at {record.filename}:{record.lineno}", kind, error)


def _say(where: str, kind: type[BaseException] | None, error: BaseException | None) -> None:
    from sdpo_bench.system.console_text import clean

    text = f"warning: {where}: {kind.__name__ if kind else 'an error'}: {said(error) if error else ''}"
    click.echo(clean(f"{text.removesuffix(': ')}. The command goes on; more with: sdpo-bench --debug ..."), err=True)
