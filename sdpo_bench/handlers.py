"""Signals that mean "save and end", and handlers of them that are this process's alone.

A process that a plugin forks (a pool of workers) would inherit them, and say that it was interrupted when its pool ends
it by SIGTERM. In such a child the signals do what they do to any process.
"""

import os
import signal
from collections.abc import Callable
from typing import Any

STOPS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name)
)
"""Of schedulers before they kill, of a terminal that is closed, of a limit on CPU time."""
_OURS: set[Any] = set()


def handle(number: int, handler: Callable[[int, Any], Any]) -> None:
    """``signal.signal``, for this process and none that is forked from it."""
    _OURS.add(handler)
    signal.signal(number, handler)


def handle_stops(handler: Callable[[int, Any], Any]) -> None:
    """:func:`handle` for all of :data:`STOPS` but those that whoever started us has had ignored (``nohup``)."""
    for number in STOPS:
        if number == signal.SIGTERM or signal.getsignal(number) == signal.SIG_DFL:
            handle(number, handler)


def _as_any_process() -> None:
    for number in (*STOPS, signal.SIGINT):
        if signal.getsignal(number) in _OURS:
            signal.signal(number, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_as_any_process)
