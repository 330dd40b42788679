"""The entry point: run a command, turn each kind of error into a short message and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 something is missing, 130 Ctrl-C, 143 SIGTERM.
"""

import os
import shlex
import signal
import sys
from typing import NoReturn

import click

from sdpo_bench.cli.main import cli
from sdpo_bench.errors import MissingError, SdpoBenchError, says_out_of_memory
from sdpo_bench.prompts.prompt_sets import prompt_cache
from sdpo_bench.system.distributed import several
from sdpo_bench.system.signals import STOPS, handle_stops
from sdpo_bench.system.streams import let_progress_fail


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line with ``arguments``; without them, with those of the process."""
    given = sys.argv[1:] if arguments is None else arguments
    # Threads that spin while they wait make a small model ten times slower as soon as anything else runs on the
    # machine; sleeping ones cost nothing on an idle one. Read when torch loads its OpenMP library.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    let_progress_fail()
    handle_stops()
    code: object = 0
    try:
        if "_SDPO_BENCH_COMPLETE" in os.environ:  # the shell asks for completions
            cli.main(prog_name="sdpo-bench")
        # A prompt file that is edited while a command works is not read a second time.
        with prompt_cache(), cli.make_context("sdpo-bench", list(given)) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except SystemExit as stop:  # a command's own exit code, or rich's where the reader has gone
        code = 0 if isinstance(stop.__context__, BrokenPipeError) else stop.code
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort) as stop:
        click.echo(_interruption(stop), err=True)
        code = getattr(stop, "exit_code", 130)
    except BrokenPipeError:  # the reader of standard output has gone (| head)
        _output_refused()
    except Exception as error:
        if "--debug" in given:
            raise
        click.echo(f"Error: {_explanation(error)}", err=True)
        code = _exit_code(error)
    if arguments is None:
        for number in (signal.SIGINT, *STOPS):  # a repeated one must not change the exit code
            signal.signal(number, signal.SIG_IGN)
    sys.exit(code)  # type: ignore[arg-type]


def _exit_code(error: Exception) -> int:
    if isinstance(error, SdpoBenchError):
        return error.exit_code
    return MissingError.exit_code if isinstance(error, OSError) or says_out_of_memory(error) else 1


def _explanation(error: Exception) -> str:
    from sdpo_bench.system.console_text import clean

    text = "\n".join(clean(line) for line in str(error).split("\n"))
    if isinstance(error, SdpoBenchError):
        return text
    if says_out_of_memory(error):
        last = text.strip().splitlines()[-1:] or [type(error).__name__]
        return (
            f"out of memory ({last[0][:200]}). What was saved is kept, and the same command goes on: with more memory, "
            "without a limit on it (ulimit -v), or with a smaller --micro-batch."
        )
    if isinstance(error, OSError):
        place = f"'{error.filename}': " if error.filename else "standard output: " if _output_refused() else ""
        return clean(f"{place}{error.strerror or error}. More with: sdpo-bench --debug ...")
    return (
        f"unexpected {type(error).__name__}: {text}\n"
        "This is a defect. Run again with 'sdpo-bench --debug ...' and report the traceback."
    )


def _output_refused() -> bool:
    """Whether standard output cannot be written; then its buffer is dropped, or Python would try again at the exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _interruption(stop: BaseException) -> str:
    if command := getattr(stop, "command", ""):  # errors.Interrupted, of a sweep
        return f"\nInterrupted; finished jobs and saved epochs stay. Go on with:\n  {command}"
    command = "sdpo-bench " + shlex.join(sys.argv[1:])
    if several():
        command = f"the launcher, as before (torchrun, accelerate launch): ... -m {command.replace('-', '_', 1)}"
    return f"\nInterrupted; what was finished (of a training: whole epochs) is kept. Go on with:\n  {command}"
