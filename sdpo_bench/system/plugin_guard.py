"""Process-wide state that changes numbers or paths, restored after plugin code has run.

A plugin that changes the working folder, torch's default dtype or its number of threads would change where results go
or what the rest of the run computes. Many packages do so on import.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

AUTOCAST_DEVICES = ("cpu", "cuda")


def _autocast(torch: Any) -> tuple[Any, ...]:
    """By device whether autocast is on, and its dtype; last the number of open contexts."""
    by_device = tuple((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in AUTOCAST_DEVICES)
    torch.autocast_increment_nesting()
    return (*by_device, torch.autocast_decrement_nesting())


def _set_autocast(torch: Any, value: tuple[Any, ...]) -> None:
    *by_device, depth = value
    for device, (enabled, dtype) in zip(AUTOCAST_DEVICES, by_device):
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)
    # Only the outermost context empties the cache of cast weights, which would become stale in a context left open.
    for _ in range(_autocast(torch)[-1] - depth):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()


TORCH: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    "default_dtype": (lambda t: t.get_default_dtype(), lambda t, v: t.set_default_dtype(v)),
    "default_device": (
        lambda t: t.get_default_device(),
        lambda t, v: t.set_default_device(None if v.type == "cpu" else v),
    ),
    "gradients": (lambda t: t.is_grad_enabled(), lambda t, v: t.set_grad_enabled(v)),
    "threads": (lambda t: t.get_num_threads(), lambda t, v: t.set_num_threads(v)),
    "deterministic": (
        lambda t: t.are_deterministic_algorithms_enabled(),
        lambda t, v: t.use_deterministic_algorithms(v),
    ),
    "matmul_precision": (
        lambda t: t.get_float32_matmul_precision(),
        lambda t, v: t.set_float32_matmul_precision(v),
    ),
    "autocast": (_autocast, _set_autocast),
}
"""Settings of torch: how each is read, and how it is set."""


@dataclass(frozen=True)
class ProcessState:
    """The working folder and :data:`TORCH` by name; those of torch are absent while it is not imported."""

    values: dict[str, Any]

    @classmethod
    def now(cls) -> "ProcessState":
        values: dict[str, Any] = {}
        with suppress(OSError):  # the folder has been deleted
            values["working_folder"] = os.getcwd()
        if torch := sys.modules.get("torch"):
            values |= {name: read(torch) for name, (read, _) in TORCH.items()}
        return cls(values)

    def changes(self, later: "ProcessState") -> list[str]:
        """Names of the values that differ ``later``."""
        return [name for name, value in self._before(later).items() if later.values.get(name) != value]

    def restore(self) -> None:
        """Set every value that has changed."""
        now = ProcessState.now()
        before = self._before(now)
        for name in self.changes(now):
            if name == "working_folder":
                with suppress(OSError):  # the folder has been deleted
                    os.chdir(before[name])
            else:
                TORCH[name][1](sys.modules["torch"], before[name])

    def _before(self, later: "ProcessState") -> dict[str, Any]:
        """The values, with torch's defaults where it was imported in between."""
        if "default_dtype" in self.values or "default_dtype" not in later.values:
            return self.values
        import torch

        return self.values | {
            "default_dtype": torch.float32,
            "default_device": torch.device("cpu"),
            "gradients": True,
            "deterministic": False,
            "matmul_precision": "highest",
            "autocast": ((False, torch.bfloat16), (False, torch.float16), 0),
        }


@contextmanager
def preserve_process_state() -> Iterator[None]:
    """Restore the process state at the end of the block, also after an error."""
    before = ProcessState.now()
    try:
        yield
    finally:
        before.restore()
