"""Errors a person can act on: each says what was given, what is valid and what to type next.

The command line prints ``str(error)`` and exits with ``exit_code``; a traceback appears only with ``--debug``.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class SdpoBenchError(Exception):
    """Base of every error that is shown as a message instead of a traceback."""

    exit_code = 1


class UsageError(SdpoBenchError, ValueError):
    """The request itself is wrong: an unknown name, a value out of range, settings that do not fit together."""

    exit_code = 2


class CannotTrain(UsageError):
    """A method that cannot train on this schedule; ``reason`` is the cause alone, without advice."""

    def __init__(self, text: str, reason: str):
        super().__init__(text)
        self.reason = reason


class MissingError(SdpoBenchError):
    """Something the request needs is not here: a package, a checkpoint, a writable folder."""

    exit_code = 3


class Busy(UsageError):
    """Another living process works on the same run."""


class Interrupted(KeyboardInterrupt):
    """Stopped by a signal after everything was saved; ``command`` goes on."""

    def __init__(self, command: str, exit_code: int = 130):
        super().__init__(command)
        self.command, self.exit_code = command, exit_code


class Unwritable(MissingError):
    """The place where results are written refuses; what was whole before still is. ``strerror``: the system's words."""

    def __init__(self, text: str, strerror: str | None = None):
        super().__init__(text)
        self.strerror = strerror


class DiskFull(Unwritable):
    """No space left where results are written; what was whole before still is."""


class RunFailed(SdpoBenchError):
    """A run stopped because its numbers can no longer be trusted (NaN loss, black images, a broken reward)."""

    exit_code = 1


_NO_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to map segment",
)
"""What devices, systems and libraries say when there is no memory left."""


def says_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of whatever type, is about memory."""
    text = str(error).lower()
    # oneDNN's own words, where nothing follows them; with a description they are about an operation it lacks.
    return (
        isinstance(error, MemoryError) or text == "could not create a primitive" or any(w in text for w in _NO_MEMORY)
    )


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """The closest valid name as a question; empty without a close one."""
    close = get_close_matches(given, sorted(set(valid)), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def nearest(given: str, valid: Iterable[str]) -> str:
    """The end of an "unknown name" message: the closest valid name if there is one, and the whole list."""
    names = sorted(set(valid))
    return f"{did_you_mean(given, names)} Valid: {', '.join(names) if names else '(none)'}."
