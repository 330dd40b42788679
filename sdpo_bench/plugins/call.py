"""The border to somebody else's code: whatever goes wrong beyond it is said by the plugin's name, in words.

Plugins are imported, made and called inside :func:`plugin_code`. What slips past it (a property read in the middle of
the engine, a thread) is caught once more around a whole command, by the frames of the traceback (:func:`blamed`).
"""

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdpo_bench.errors import MissingError, RunFailed, SdpoBenchError, said
from sdpo_bench.plugins.entry_points import owner_of
from sdpo_bench.system.plugin_guard import kept_process_state
from sdpo_bench.system.signals import no_stop_lost, raise_what_was_lost
from sdpo_bench.system.timeout import DeadlinePassed


@contextmanager
def plugin_code(who: str, hint: str = "") -> Iterator[None]:
    """A block that runs somebody else's code; what the process had before is put back afterwards.

    Args:
        who: as a message begins, e.g. ``reward 'x': load()``.
        hint: as it ends.

    Raises:
        MissingError: it needs a package that is not here. RunFailed: it raises anything else, or ends the program.
        SdpoBenchError: what it says in our own words. MemoryError, RuntimeError: out of memory, the engine's to mend.
        KeyboardInterrupt: of a signal. DeadlinePassed: of whoever waits for it.
    """
    process = os.getpid()
    try:
        with kept_process_state(), no_stop_lost():
            yield
    except BaseException as error:
        if isinstance(error, SdpoBenchError | DeadlinePassed) or is_interrupt(error) or _is_out_of_memory(error):
            raise
        raise failure(who, error, hint) from error
    finally:
        if os.getpid() != process:  # forked in the block: two must not write one run, nor print what is buffered
            os.write(2, f"{who} has forked a process and let it go on; it ends here.\n".encode())
            os._exit(1)


@contextmanager
def blamed() -> Iterator[None]:
    """A whole command, whose unexpected errors are the plugin's wherever one of its lines was at work.

    Raises:
        MissingError, RunFailed: in place of such an error.
    """
    try:
        yield
    except BaseException as raised:
        error = _behind(raised)
        if not isinstance(error, SdpoBenchError | OSError):  # those may tell why it could not be saved
            raise_what_was_lost()
        who, _ = _plugin_frame(error)
        if not who or isinstance(error, SdpoBenchError) or is_interrupt(error) or _is_out_of_memory(error):
            raise
        raise failure(who, error) from error


def failure(who: str, error: BaseException, hint: str = "") -> SdpoBenchError:
    """What to raise instead of ``error``: the same in words, with the plugin's line where there is one."""
    kind = MissingError if isinstance(error, ImportError) else RunFailed
    _, place = _plugin_frame(error)
    text = f"{who} {happened(error)}" + (f" (at {place})" if place else "")
    return kind(f"{text}. {hint}" if hint else text)


def happened(error: BaseException) -> str:
    """``raised KeyError: 'x'``, or that it ended the program."""
    if isinstance(error, SystemExit):
        return f"ended the program: sys.exit({error.code!r})"
    return f"raised {type(error).__name__}: {said(error)}".removesuffix(": ")


def is_interrupt(error: BaseException) -> bool:
    """Whether it is a signal's, and not a plugin's own ``raise KeyboardInterrupt``.

    A handler of ours is the innermost frame of what it raises. Python's own handler has no frame, so there every
    interrupt is taken for a signal's.
    """
    if not isinstance(error, KeyboardInterrupt):
        return False
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        return True
    frames = list(traceback.walk_tb(error.__traceback__))
    return not frames or not _owner(frames[-1][0].f_globals.get("__name__"))


def _behind(error: BaseException) -> BaseException:
    """click turns some errors into an Abort that carries them as its cause."""
    return error.__cause__ if type(error).__name__ == "Abort" and error.__cause__ else error


def _plugin_frame(error: BaseException) -> tuple[str, str]:
    """The third-party plugin whose line was at work when ``error`` was raised, and ``file.py:12``; else empty."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if who := _owner(frame.f_globals.get("__name__")):
            return who, f"{Path(frame.f_code.co_filename).name}:{line}"
    return "", ""


def _owner(module: object) -> str:
    return owner_of(module) if isinstance(module, str) else ""


def _is_out_of_memory(error: BaseException) -> bool:
    if "torch" not in sys.modules:  # and it is not imported for this
        return isinstance(error, MemoryError)
    from sdpo_bench.system.memory_retry import is_out_of_memory

    return is_out_of_memory(error)
