"""Stop signals: the first one raises once, so that the run saves and ends; a second Ctrl-C ends the process at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name)
)
"""Sent by schedulers before they kill, by a terminal that closes, at a limit on CPU time."""
_TO_A_GROUP = {signal.SIGINT, *STOPS} - {signal.SIGTERM, getattr(signal, "SIGXCPU", signal.SIGTERM)}
"""Signals that a terminal or a scheduler sends to every process of a job."""


class Stopped(KeyboardInterrupt):
    """A stop signal; ``exit_code`` is 128 and its number: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, number: int):
        super().__init__()
        self.exit_code = 128 + number


_stop: Stopped | None = None
_process = 0
"""The process that the handlers belong to; one that a plugin forks inherits them."""


def handle_stops(*numbers: int) -> None:
    """Raise :class:`Stopped` at the first of these signals (default: Ctrl-C and all :data:`STOPS`).

    Signals that the parent process ignores stay ignored (``nohup``, background jobs of a shell).
    """
    global _stop, _process
    _stop, _process = None, os.getpid()
    for number in numbers or (signal.SIGINT, *STOPS):
        if numbers or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _on_stop)


def _on_stop(number: int, frame: Any) -> None:
    global _stop
    if os.getpid() != _process:
        if number != signal.SIGINT:  # the parent handles Ctrl-C
            os._exit(128 + number)
    elif _stop is None:
        _stop = Stopped(number)
        raise _stop
    elif number == signal.SIGINT:  # schedulers repeat the others while the run saves
        os.write(2, b"\nEnded at once; the last saved epoch is kept.\n")
        os._exit(128 + number)


def raise_pending_stop() -> None:
    """Raise the stop that a library or a plugin has swallowed; for the head of a loop."""
    if _stop is not None and threading.current_thread() is threading.main_thread():
        raise _stop


@contextmanager
def preserve_stop() -> Iterator[None]:
    """Raise :class:`Stopped` from a block of library code if a signal came in it.

    Libraries in C and Rust that call Python report the exception as an error of their own, such as a damaged file.
    """
    before = _stop
    try:
        yield
    except BaseException as error:
        if _stop is not before and error is not _stop:
            raise_pending_stop()
        raise
    if _stop is not before:
        raise_pending_stop()


@contextmanager
def shield_children() -> Iterator[None]:
    """Processes that start in this block ignore Ctrl-C and other signals to the whole group; this process handles them.

    The processes inherit the blocked signals; a signal that comes meanwhile is handled at the end of the block.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # its start unblocks Ctrl-C
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TO_A_GROUP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
