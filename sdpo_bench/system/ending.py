"""The end of the process, also where a plugin has left a thread or a process behind, or a handler that never returns.

Python waits for them for ever before it exits. They are given time, since some have something to finish, and the usual
end goes on meanwhile (handlers at exit, idle pools of threads); only what is still there afterwards is left behind.
"""

import os
import sys
import threading
import time
from contextlib import suppress
from typing import Any

GRACE = 20.0  # seconds


def end_soon(code: object) -> None:
    """Let the process end with the exit code ``code`` within :data:`GRACE`; to be called last of all."""
    number = code if isinstance(code, int) else int(code is not None)
    with suppress(RuntimeError):  # no room for a thread: then nothing but the usual end
        threading.Thread(target=_end, args=(number,), daemon=True).start()


def _strangers() -> list[Any]:
    """Threads and processes that Python would wait for."""
    here = (threading.current_thread(), threading.main_thread())
    threads = [thread for thread in threading.enumerate() if not thread.daemon and thread not in here]
    return threads + [child for child in _processes() if not child.daemon]


def _processes() -> list[Any]:
    multiprocessing = sys.modules.get("multiprocessing")
    return multiprocessing.active_children() if multiprocessing else []


def _end(code: int) -> None:
    time.sleep(GRACE)
    names = ", ".join(stranger.name for stranger in _strangers()) or "a handler at exit that does not return"
    with suppress(OSError, ValueError):
        print(f"The command is done and ends without what a plugin has left running: {names}", file=sys.stderr)
    for child in _processes():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
