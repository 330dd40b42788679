"""Signals that mean "save and end", and handlers of them that are this process's alone.

A process that a plugin forks (a pool of workers) would inherit them, and say that it was interrupted when its pool ends
it by SIGTERM. In such a child the signals do what they do to any process, but that Ctrl-C is its parent's business: a
worker that it killed while it held the lock of its pool would keep the parent waiting for ever.
"""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

STOPS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name)
)
"""Of schedulers before they kill, of a terminal that is closed, of a limit on CPU time."""
_OURS: dict[int, Callable[[int, Any], Any]] = {}


def handle(number: int, handler: Callable[[int, Any], Any]) -> None:
    """``signal.signal``, for this process and none that is forked from it."""
    _OURS[number] = handler
    signal.signal(number, handler)


def handle_stops(handler: Callable[[int, Any], Any]) -> None:
    """:func:`handle` for all of :data:`STOPS` but those that whoever started us has had ignored (``nohup``)."""
    for number in STOPS:
        if number == signal.SIGTERM or signal.getsignal(number) == signal.SIG_DFL:
            handle(number, handler)


def deliver_again(number: int) -> None:
    """Send a signal once more whose handler has raised in a finaliser, where errors are dropped: it would be lost."""
    if number in _OURS and threading.current_thread() is threading.main_thread():
        signal.signal(number, _OURS[number])
        again = threading.Timer(0.05, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()


def _as_any_process() -> None:
    for number in (*STOPS, signal.SIGINT):
        if number in _OURS and signal.getsignal(number) == _OURS[number]:
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_as_any_process)
