"""The boundary to plugin code: any error in it is reported in one line with the plugin's name.

Plugins are imported, constructed and called inside :func:`plugin_code`.
"""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdpo_bench.errors import MissingError, RunFailed, SdpoBenchError
from sdpo_bench.system.plugin_guard import preserve_process_state
from sdpo_bench.system.signals import preserve_stop
from sdpo_bench.system.timeout import DeadlinePassed

_PACKAGE = str(Path(__file__).parents[1])


@contextmanager
def plugin_code(who: str, hint: str = "") -> Iterator[None]:
    """A block that runs a plugin's code; the process state from before it is restored afterwards.

    Args:
        who: start of the message, e.g. ``reward 'x': load()``.
        hint: end of the message.

    Raises:
        MissingError: the plugin cannot import a package. RunFailed: it raises anything else, or ends the program.
        SdpoBenchError, DeadlinePassed, KeyboardInterrupt: unchanged. MemoryError, RuntimeError: out of memory,
            unchanged, since the engine retries with a smaller micro-batch.
    """
    try:
        with preserve_process_state(), preserve_stop():
            yield
    except (SdpoBenchError, DeadlinePassed, KeyboardInterrupt):
        raise
    except BaseException as error:
        if _is_out_of_memory(error):
            raise
        raise failure(who, error, hint) from error


def failure(who: str, error: BaseException, hint: str = "") -> SdpoBenchError:
    """The error to raise instead of ``error``: it names the plugin and the line of code."""
    kind = MissingError if isinstance(error, ImportError) else RunFailed
    text = f"{who} {happened(error)}{_place(error)}"
    return kind(f"{text}. {hint}" if hint else text)


def happened(error: BaseException) -> str:
    """``raised KeyError: 'x'``, or that it ended the program."""
    if isinstance(error, SystemExit):
        return f"ended the program: sys.exit({error.code!r})"
    return f"raised {type(error).__name__}: {error}".removesuffix(": ")


def _place(error: BaseException) -> str:
    """`` (at file.py:12)``: the innermost line outside this package."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_PACKAGE)]
    return f" (at {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def _is_out_of_memory(error: BaseException) -> bool:
    if "torch" not in sys.modules:  # and it is not imported for this
        return isinstance(error, MemoryError)
    from sdpo_bench.system.memory_retry import is_out_of_memory

    return is_out_of_memory(error)
