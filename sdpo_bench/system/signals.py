"""Signals that mean "save and end": handlers that are this process's alone, and whose errors no library can lose.

A process that a plugin forks (a pool of workers) would inherit them, and say that it was interrupted when its pool ends
it by SIGTERM. In such a child the signals do what they do to any process, but that Ctrl-C is its parent's business: a
worker that it killed while it held the lock of its pool would keep the parent waiting for ever.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOPS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name)
)
"""Of schedulers before they kill, of a terminal that is closed, of a limit on CPU time."""
_OF_A_JOB = {signal.SIGINT, *STOPS} - {signal.SIGTERM, getattr(signal, "SIGXCPU", signal.SIGTERM)}
"""The others mean the single process that gets them."""
_OURS: dict[int, Callable[[int, Any], Any]] = {}
_raised: BaseException | None = None
"""By the last signal that a handler of ours has answered with an error."""
_ANSWERED: set[int] = set()
"""Signals that are ignored since what they ask for is being done."""


def handle(number: int, handler: Callable[[int, Any], Any]) -> None:
    """``signal.signal``, for this process and none that is forked from it; what ``handler`` raises cannot be lost."""
    global _raised

    def remembered(number: int, frame: Any) -> None:
        global _raised
        try:
            handler(number, frame)
        except BaseException as error:
            _raised = error
            raise

    _OURS[number], _raised = remembered, None
    _ANSWERED.discard(number)
    signal.signal(number, remembered)


def ignore(*numbers: int) -> None:
    """From now on: one that has come, and its like, must not disturb what it has led to."""
    for number in numbers:
        _ANSWERED.add(number)
        signal.signal(number, signal.SIG_IGN)


def answered(number: int) -> bool:
    """Whether :func:`ignore` was told so; a plugin that ignores a signal has no say in it."""
    return number in _ANSWERED


def handle_stops(handler: Callable[[int, Any], Any]) -> None:
    """:func:`handle` for all of :data:`STOPS` but those that whoever started us has had ignored (``nohup``)."""
    for number in STOPS:
        if number == signal.SIGTERM or signal.getsignal(number) == signal.SIG_DFL:
            handle(number, handler)


def raise_what_was_lost() -> None:
    """For the head of a loop, which none is to reach once a signal has come: somebody else's code has swallowed it."""
    if _raised is not None and _is_main():
        raise _raised


@contextmanager
def no_stop_lost() -> Iterator[None]:
    """A block of library code, which ends by a signal's error if one comes, whatever the library has made of it.

    Libraries in C and Rust that call Python put any error into their own words: an interrupted read would be a damaged
    file. Others drop it.
    """
    before = _raised
    try:
        yield
    except BaseException as error:
        stop = _raised
        if stop is None or stop is before or stop is error or not _is_main():
            raise
        raise stop from None
    if _raised is not before:
        raise_what_was_lost()


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def unheard() -> Iterator[None]:
    """A block that starts processes of ours, to which Ctrl-C and its like, told to a whole job, mean nothing.

    They inherit that these are blocked; while they import what they need, they could not ignore them yet. Here they are
    heard when the block is over.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # every process needs it, and its start unblocks Ctrl-C
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_A_JOB)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def deliver_again(number: int) -> None:
    """Send a signal once more whose handler has raised in a finaliser, where errors are dropped: it would be lost."""
    global _raised
    if number in _OURS and _is_main():
        _raised = None
        _ANSWERED.discard(number)
        signal.signal(number, _OURS[number])
        again = threading.Timer(0.05, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()


def _as_any_process() -> None:
    """Also in a worker that a pool forks anew while its parent ends: it would ignore the pool's own SIGTERM."""
    for number in (*STOPS, signal.SIGINT):
        if number in _OURS and (number in _ANSWERED or signal.getsignal(number) == _OURS[number]):
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    _ANSWERED.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_as_any_process)
