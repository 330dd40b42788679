"""Entry points of plugins in installed distributions."""

from functools import lru_cache
from importlib import metadata

SINGULAR = {"methods": "method", "rewards": "reward", "studies": "study"}
"""The kinds of plugins, and what one of each is called."""


@lru_cache(maxsize=8)
def entry_points(kind: str, path: tuple[str, ...]) -> tuple[metadata.EntryPoint, ...]:
    """What is announced on the import ``path``. Reading the metadata of everything installed takes longer than
    resolving a run, and a plan resolves hundreds."""
    return tuple(metadata.entry_points(group=f"sdpo_bench.{kind}"))
