"""What a process has only one of, put back after somebody else's code has run.

A plugin that changes the working folder, torch's default dtype or its number of threads would change where results go
or what the rest of the run computes. Many packages do so on import; their users should not have to know.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any


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

    @classmethod
    def now(cls) -> "ProcessState":
        folder = None
        with suppress(OSError):  # it has been deleted; there is nothing to come back to
            folder = os.getcwd()
        torch = sys.modules.get("torch")
        if torch is None:
            return cls(folder)
        return cls(
            folder, torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
            torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
        )  # fmt: skip

    def changes(self, later: "ProcessState") -> list[str]:
        """Names of what is different ``later``; torch's own defaults are none where it was imported in between."""
        before = self if self.default_dtype or not later.default_dtype else _fresh(self.working_folder)
        names = [field.name for field in fields(self) if getattr(before, field.name) is not None]
        return [name for name in names if getattr(before, name) != getattr(later, name)]

    def restore(self) -> None:
        """Make the process as it was."""
        changed = self.changes(ProcessState.now())
        if not changed:
            return
        before = self if self.default_dtype else _fresh(self.working_folder)
        if "working_folder" in changed and before.working_folder:
            with suppress(OSError):  # deleted: whatever needs it says so
                os.chdir(before.working_folder)
        if changed != ["working_folder"]:
            before._restore_torch(changed)

    def _restore_torch(self, changed: list[str]) -> None:
        import torch

        undo: dict[str, Callable[[Any], Any]] = {
            "default_dtype": torch.set_default_dtype,
            "default_device": lambda device: torch.set_default_device(None if device.type == "cpu" else device),
            "gradients": torch.set_grad_enabled,
            "threads": torch.set_num_threads,
            "deterministic": torch.use_deterministic_algorithms,
            "matmul_precision": torch.set_float32_matmul_precision,
        }
        for name in changed:
            if name in undo:
                undo[name](getattr(self, name))


def _fresh(folder: str | None) -> ProcessState:
    """With torch as it is after its import; its number of threads depends on the machine."""
    import torch

    return ProcessState(folder, torch.float32, torch.device("cpu"), True, None, False, "highest")


@contextmanager
def kept_process_state() -> Iterator[None]:
    """Put back, at the end, what the process had at the beginning, however the block ends."""
    before = ProcessState.now()
    try:
        yield
    finally:
        before.restore()
