"""The command line in a forked child: a process of its own that need not import everything again."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def exit_code(work: Callable[[], None], out: Path, err: Path) -> int:
    """Exit code of ``work`` in a child whose output goes to two files (or one); -N where signal N ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(start(work, out, err), 0)[1])


def start(work: Callable[[], None], out: Path, err: Path) -> int:
    """Number of a child process that does ``work``; its output goes to two files (or one)."""
    sys.stdout.flush(), sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            for number, path in ((1, out), (2, err)):
                file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(file, number)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]
            work()
        except SystemExit as stop:
            code = _exit(stop.code if isinstance(stop.code, int) else 0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return child


def _exit(code: int) -> int:
    """What Python does at its exit: an output that cannot be written is reported and makes 0 a 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            os.write(2, f"Exception ignored on flushing {stream.name}: {error}\n".encode())
            code = code or 120
    return code


def wait(child: int, seconds: float) -> int | None:
    """Exit code of a child as :func:`exit_code` gives it, or None if it still works after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)


def heed_signals() -> None:
    """Undo what a background shell or ``nohup`` leaves to its children: SIGINT or SIGHUP ignored."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def command(arguments: list[str]) -> None:
    """``sdpo-bench ARGUMENTS``, as its entry point runs it; does not return."""
    from sdpo_bench.cli import entry

    sys.argv = ["sdpo-bench", *arguments]
    entry.main(arguments)
