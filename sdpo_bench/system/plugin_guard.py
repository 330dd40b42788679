"""Process-wide state that changes numbers or paths, restored after plugin code has run.

A plugin that changes the working folder, torch's default dtype or its number of threads would change where results go
or what the rest of the run computes. Many packages do so on import; their users should not have to know.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from typing import Any

_DEVICES = ("cpu", "cuda")
"""Where autocast can be on."""
_SMALLEST = 5e-324


@dataclass(frozen=True)
class ProcessState:
    """Working folder and torch's global settings; those of torch are ``None`` while nobody has imported it."""

    working_folder: str | None
    default_dtype: Any = None
    default_device: Any = None
    gradients: bool | None = None
    threads: int | None = None
    deterministic: bool | None = None
    matmul_precision: str | None = None
    autocast: tuple[Any, ...] | None = None
    """Whether it is on, and its dtype, by device; how many contexts are open."""
    flush_denormal: bool | None = None
    """Whether this thread takes numbers below float's normal range for 0; libraries built with -ffast-math do that."""

    @classmethod
    def now(cls) -> "ProcessState":
        folder = None
        with suppress(OSError):  # it has been deleted; there is nothing to come back to
            folder = os.getcwd()
        torch = sys.modules.get("torch")
        if torch is None:
            return cls(folder)
        return cls(
            folder,
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            _autocast(torch),
            _SMALLEST * 1.0 == 0.0,
        )

    def changes(self, later: "ProcessState") -> list[str]:
        """Names of what is different ``later``; torch's own defaults are none where it was imported in between."""
        before = self._known_to(later)
        names = [field.name for field in fields(self) if getattr(before, field.name) is not None]
        return [name for name in names if getattr(before, name) != getattr(later, name)]

    def _known_to(self, later: "ProcessState") -> "ProcessState":
        """The same, with torch as it is after its import where only ``later`` knows of it."""
        return self if self.default_dtype or not later.default_dtype else _fresh(self)

    def restore(self) -> None:
        """Make the process as it was."""
        now = ProcessState.now()
        before = self._known_to(now)
        for name in self.changes(now):
            _UNDO[name](getattr(before, name))


def _autocast(torch: Any) -> tuple[Any, ...]:
    by_device = tuple((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in _DEVICES)
    torch.autocast_increment_nesting()
    return (*by_device, torch.autocast_decrement_nesting())


def _undo_autocast(before: tuple[Any, ...]) -> None:
    torch = sys.modules["torch"]
    *by_device, depth = before
    for device, (enabled, dtype) in zip(_DEVICES, by_device):
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)
    for _ in range(_autocast(torch)[-1] - depth):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()


def _back_to(folder: str) -> None:
    with suppress(OSError):  # deleted: whatever needs it says so
        os.chdir(folder)


_UNDO: dict[str, Callable[[Any], Any]] = {
    "working_folder": _back_to,
    "default_dtype": lambda value: sys.modules["torch"].set_default_dtype(value),
    "default_device": lambda value: sys.modules["torch"].set_default_device(None if value.type == "cpu" else value),
    "gradients": lambda value: sys.modules["torch"].set_grad_enabled(value),
    "threads": lambda value: sys.modules["torch"].set_num_threads(value),
    "deterministic": lambda value: sys.modules["torch"].use_deterministic_algorithms(value),
    "matmul_precision": lambda value: sys.modules["torch"].set_float32_matmul_precision(value),
    "autocast": _undo_autocast,
    "flush_denormal": lambda value: sys.modules["torch"].set_flush_denormal(value),
}


def _fresh(before: ProcessState) -> ProcessState:
    """With torch as it is after its import; its number of threads depends on the machine."""
    import torch

    return replace(
        before,
        default_dtype=torch.float32,
        default_device=torch.device("cpu"),
        gradients=True,
        deterministic=False,
        matmul_precision="highest",
        flush_denormal=False,
        autocast=((False, torch.bfloat16), (False, torch.float16), 0),
    )


@contextmanager
def kept_process_state() -> Iterator[None]:
    """Put back, at the end, what the process had at the beginning, however the block ends."""
    before = ProcessState.now()
    try:
        yield
    finally:
        before.restore()
