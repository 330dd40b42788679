"""How the ``sdpo-bench`` process begins and ends: short messages for whatever goes wrong, exit codes, signals, outputs.

What the commands are stands in ``cli``; nothing here knows one of them.
"""

import os
import shlex
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn

import click

from sdpo_bench.cli.main import cli
from sdpo_bench.errors import Interrupted, MissingError, SdpoBenchError, said, says_out_of_memory
from sdpo_bench.plugins.call import blamed
from sdpo_bench.prompts.prompt_sets import held_prompts
from sdpo_bench.system.distributed import several
from sdpo_bench.system.ending import end_soon
from sdpo_bench.system.json_toml import is_text
from sdpo_bench.system.loose_errors import say_loose_errors_in_words
from sdpo_bench.system.signals import STOPS, handle, handle_stops, ignore
from sdpo_bench.system.standard_output import Unread, name_standard_output, refusal
from sdpo_bench.system.streams import let_progress_fail

OWN = "SDPO_BENCH_"
"""How variables begin that are read in the place of an argument."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, as schedulers send it, or its like: treated as Ctrl-C, with exit code 143 (128 and the number)."""

    def __init__(self, number: int = signal.SIGTERM):
        super().__init__()
        self.exit_code = 128 + number


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line: short messages, exit codes 0, 1, 2, 3, 130 (Ctrl-C) or 143 (SIGTERM).

    Without ``arguments`` (then they are the process's) the process ends afterwards, whatever a plugin has left running.
    """
    code: object = 1
    try:
        _run(arguments)
    except SystemExit as stop:
        code = stop.code
        raise
    finally:
        if arguments is None:
            # All is done and said; Python ends a process by a signal that comes while it takes it down.
            ignore(signal.SIGINT, *STOPS)
            end_soon(code)


def _run(arguments: list[str] | None) -> NoReturn:
    debug = "--debug" in (arguments if arguments is not None else sys.argv[1:])
    # Threads that spin while they wait make a small model ten times slower as soon as anything else runs on the
    # machine; sleeping ones cost nothing on an idle one. Read when torch loads its OpenMP library.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _open_what_is_closed()
    name_standard_output()
    let_progress_fail()
    if not debug:
        say_loose_errors_in_words()
    handle_stops(_terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
        handle(signal.SIGINT, _interrupt)
    try:
        _refuse_a_deleted_folder()
        _refuse_lost_docstrings()
        _refuse_what_is_no_text(sys.argv[1:] if arguments is None else arguments)
        # A file that is edited while a command works is not read a second time.
        with held_prompts(), blamed():
            cli.main(args=arguments, prog_name="sdpo-bench", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort) as stop:
        if isinstance(stop.__cause__, EOFError):  # click takes any for Ctrl-D, also one of a plugin or a process
            _unexpected(stop.__cause__, debug)
        _interrupted(stop)
    except (Unread, BrokenPipeError):
        _print_no_more()
        sys.exit(0)
    except SdpoBenchError as error:
        if debug:
            raise
        click.echo(f"Error: {_clean_lines(said(error))}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if debug:
            raise
        text = _no_memory(error) if says_out_of_memory(error) else _system_error(error)
        click.echo(f"Error: {_clean_lines(text)}", err=True)
        sys.exit(MissingError.exit_code)
    except SystemExit:  # a command's own exit code
        raise
    except BaseException as error:
        if debug:
            raise
        if says_out_of_memory(error):
            click.echo(f"Error: {_clean_lines(_no_memory(error))}", err=True)
            sys.exit(MissingError.exit_code)
        _unexpected(error, debug)
    sys.exit(0)


def _unexpected(error: BaseException, debug: bool) -> NoReturn:
    if debug:
        raise error
    click.echo(
        f"Error: unexpected {type(error).__name__}: {_clean_lines(said(error))}\n"
        "This is a defect. Run again with 'sdpo-bench --debug ...' and report the traceback.",
        err=True,
    )
    sys.exit(1)


def _open_what_is_closed() -> None:
    """Python has ``None`` for an output that was closed (``>&-``), which libraries take for a stream."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _print_no_more() -> None:
    """What is still in the buffer of standard output cannot go anywhere, and would be tried again at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _system_error(error: OSError) -> str:
    if text := refusal(error):
        _print_no_more()
        return text
    place = f"'{error.filename}': " if error.filename else ""
    return f"{place}{error.strerror or error}. More with: sdpo-bench --debug ..."


def _no_memory(error: BaseException) -> str:
    lines = said(error).strip().splitlines()
    return (
        f"out of memory ({lines[-1][:200] if lines else type(error).__name__}). What was saved is kept, and the same "
        "command goes on: with more memory, without a limit on it (ulimit -v), or with a smaller --micro-batch."
    )


def _clean_lines(text: str) -> str:
    from sdpo_bench.system.console_text import clean

    return "\n".join(clean(line) for line in text.split("\n"))


def _refuse_a_deleted_folder() -> None:
    """Before a numerical library meets it and ends the process in its own words."""
    try:
        os.getcwd()
    except OSError as error:
        raise MissingError(
            f"the current folder cannot be used ({error.strerror}); was it deleted? Change to another: cd FOLDER"
        ) from None


def _refuse_lost_docstrings() -> None:
    """``list`` prints them, and transformers is built from its own while it is imported."""
    if sys.flags.optimize > 1:
        raise MissingError("docstrings are needed, and Python drops them with -OO. Type: unset PYTHONOPTIMIZE")


def _refuse_what_is_no_text(arguments: list[str]) -> None:
    """Settings and paths go into records, which are UTF-8."""
    given = [(f"the argument {argument!a}", argument) for argument in arguments]
    given += [(f"the variable {name} = {value!a}", value) for name, value in os.environ.items() if name.startswith(OWN)]
    for what, text in given:
        if not is_text(text) or "\0" in text:
            raise click.UsageError(f"{what} is not UTF-8 text.")


def _terminate(number: int, frame: Any) -> NoReturn:
    """Schedulers repeat themselves: once is enough, and the second must not disturb the saving."""
    ignore(*STOPS, signal.SIGINT)
    raise Terminated(number)


def _interrupt(number: int, frame: Any) -> NoReturn:
    ignore(signal.SIGINT)
    raise KeyboardInterrupt


def _launched() -> bool:
    with suppress(SdpoBenchError):  # variables that are no numbers: said elsewhere
        return several()
    return False


def _interrupted(stop: BaseException) -> NoReturn:
    ignore(*STOPS, signal.SIGINT)
    # click turns any KeyboardInterrupt into an Abort that carries it as its cause.
    cause = stop if isinstance(stop, KeyboardInterrupt) else stop.__cause__
    if isinstance(cause, Interrupted):
        click.echo(f"\nInterrupted; finished cells and saved epochs stay. Go on with:\n  {cause.command}", err=True)
        sys.exit(cause.exit_code)
    command = "sdpo-bench " + shlex.join(sys.argv[1:])
    if _launched():
        command = f"the launcher, as before (torchrun, accelerate launch): ... -m {command.replace('-', '_', 1)}"
    click.echo(
        f"\nInterrupted; what was finished (of a training: whole epochs) is kept. Go on with:\n  {command}", err=True
    )
    sys.exit(cause.exit_code if isinstance(cause, Terminated) else 130)
