"""Give up on somebody else's code that does not come back.

An alarm signal interrupts Python code, sleeps and network waits. A helper thread would also get away from a deadlock
inside a C library, but it cannot be stopped, and one that is still in torch aborts the whole process when it ends.
"""

import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn


class DeadlinePassed(BaseException):
    """Not an ``Exception``, so that a reward which catches everything and tries again does not swallow it."""


class Deadline:
    """Calls a function and allows it ``seconds``; 0 is no limit.

    In a thread other than the main one, and on Windows, nothing can be interrupted: there an answer that comes too
    late is refused when it comes.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __call__(self, function: Callable[[], Any]) -> Any:
        """What ``function()`` returns or raises.

        Raises:
            DeadlinePassed: it took longer.
        """
        if self.seconds <= 0:
            return function()
        started = time.monotonic()
        answer = self._interruptible(function) if _can_interrupt() else function()
        if time.monotonic() - started > self.seconds:
            raise self._late()
        return answer

    def _late(self) -> DeadlinePassed:
        return DeadlinePassed(f"no answer within {self.seconds:g} s")

    def _interruptible(self, function: Callable[[], Any]) -> Any:
        def stop(number: int, frame: Any) -> NoReturn:
            raise self._late()

        handler = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        try:
            return function()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)


def _can_interrupt() -> bool:
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
