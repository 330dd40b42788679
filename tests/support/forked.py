"""The command line in a forked child: a process of its own that need not import everything again."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def exit_code(work: Callable[[], None], out: Path, err: Path) -> int:
    """Exit code of ``work`` in a child whose output goes to two files (or one); -N where signal N ended it."""
    sys.stdout.flush(), sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            for number, path in ((1, out), (2, err)):
                file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(file, number)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            work()
        except SystemExit as stop:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(stop.code if isinstance(stop.code, int) else 0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def command(arguments: list[str]) -> None:
    """``sdpo-bench ARGUMENTS``, as its entry point runs it; does not return."""
    from sdpo_bench.cli import entry

    sys.argv = ["sdpo-bench", *arguments]
    entry.main(arguments)
