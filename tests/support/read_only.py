"""A folder that cannot be written; as root, permissions alone stop nobody."""

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def mount_read_only(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Refuse every call of this process that would change something in ``folder``, as a disk mounted so does."""

    def inside(path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and Path(path).absolute().is_relative_to(folder)

    def refusing(function: Callable[..., Any], asks_to_write: Callable[..., bool]) -> Callable[..., Any]:
        def called(path: Any, *args: Any, **kwargs: Any) -> Any:
            if inside(path) and asks_to_write(path, *args, **kwargs):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return function(path, *args, **kwargs)

        return called

    opened = refusing(open, lambda path, mode="r", *args, **kwargs: any(letter in mode for letter in "wax+"))
    patch.setattr(builtins, "open", opened)
    patch.setattr(io, "open", opened)
    patch.setattr(os, "open", refusing(os.open, lambda path, flags, *args, **kwargs: bool(flags & CHANGES)))
    patch.setattr(os, "mkdir", refusing(os.mkdir, lambda path, *args, **kwargs: not os.path.exists(path)))
    for name in ("replace", "rename", "unlink", "remove", "rmdir"):
        patch.setattr(os, name, refusing(getattr(os, name), lambda *args, **kwargs: True))
