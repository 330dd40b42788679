"""Published checkpoints from disk: found by name, read without running code, and put into a model key by key.

A checkpoint that does not fit exactly is refused. Loading "what matches" would leave the rest of the model
random, and the scores would still look like scores.
"""

import hashlib
import zipfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdpo_bench.errors import MissingError

State = dict[str, Tensor]


def locate(path: str | Path, filename: str) -> Path:
    """The checkpoint at ``path``: the file itself, or ``filename`` (else the only such file) in a folder.

    Raises:
        MissingError: nothing there, or a folder without a clear choice.
    """
    given = Path(path).expanduser()
    if given.is_file():
        return given
    if not given.is_dir():
        raise MissingError(f"reward.path = '{path}': no such file or folder.")
    if (given / filename).is_file():
        return given / filename
    others = sorted(given.glob(f"*{Path(filename).suffix}"))
    if len(others) == 1:
        return others[0]
    raise MissingError(f"reward.path = '{path}' holds no {filename}. Name the checkpoint file itself.")


def read_state(path: Path) -> State:
    """Tensors by name of a ``.safetensors`` file or a torch file, on the CPU, in their stored dtypes.

    Torch files are read with ``weights_only=True``: no code in them is run.

    Raises:
        MissingError: not readable, truncated, or not a table of tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # unpickling, zip, safetensors and OS errors have no common base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise damaged(path, f"it cannot be read ({reason})") from error
    return _only_tensors(content, path)


def _only_tensors(content: Any, path: Path) -> State:
    table = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(table, Mapping) or not table or not all(isinstance(v, Tensor) for v in table.values()):
        raise damaged(path, "it is not a table of named tensors")
    return dict(table)


def damaged(path: str | Path, problem: str) -> MissingError:
    """The error for a checkpoint that is not the expected one."""
    return MissingError(
        f"damaged or other checkpoint: {path}: {problem}. "
        "Download it again, or point reward.path at the published file."
    )


def shape_of(state: Mapping[str, Tensor], key: str, dims: int, path: Path) -> tuple[int, ...]:
    """Shape of a tensor that must be there with ``dims`` dimensions.

    Raises:
        MissingError: absent, or of other rank.
    """
    if key not in state or state[key].ndim != dims:
        raise damaged(path, f"no {dims}-dimensional tensor '{key}'")
    return tuple(state[key].shape)


def count_layers(state: Iterable[str], prefix: str) -> int:
    """Number of different layer numbers that follow ``prefix`` in the keys."""
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def strict_load(model: nn.Module, state: State, path: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Put ``state`` into ``model`` (built under ``torch.device("meta")``), frozen and in evaluation mode.

    Raises:
        MissingError: a missing or unexpected key, or a tensor of the wrong shape; nothing is loaded then.
    """
    expected = model.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    shapes = [k for k in expected if k in state and expected[k].shape != state[k].shape]
    problems = {"missing keys": missing, "unexpected keys": unexpected, "wrong shapes": shapes}
    differences = [f"{what} {_some(keys)}" for what, keys in problems.items() if keys]
    if differences:
        raise damaged(path, "; ".join(differences))
    # scalars stay exact: a logit scale in bfloat16 would be 1 % off
    cast = {key: value.to(dtype if value.ndim else torch.float32) for key, value in state.items()}
    model.load_state_dict(cast, assign=True)
    _fill_position_ids(model)
    return model.eval().requires_grad_(False)


def _some(keys: list[str], most: int = 3) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def _fill_position_ids(model: nn.Module) -> None:
    """Models built without memory lack the one kind of buffer that checkpoints do not carry: 0, 1, 2, ..."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                if name != "position_ids":
                    raise RuntimeError(f"no values for the buffer '{name}' of {type(module).__name__}")
                places = torch.arange(buffer.shape[-1]).expand(buffer.shape)
                module.register_buffer(name, places, persistent=False)


def file_digest(path: Path) -> str:
    """First 8 hexadecimal digits of the file's SHA-256, remembered while its size and time stay the same."""
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]
