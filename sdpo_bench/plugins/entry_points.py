"""What installed distributions announce as plugins, and whose code a module is."""

import sys
from functools import lru_cache
from importlib import metadata

SINGULAR = {"methods": "method", "rewards": "reward", "studies": "study"}
"""The kinds of plugins, and what one of each is called."""


@lru_cache(maxsize=8)
def entry_points(kind: str, path: tuple[str, ...]) -> tuple[metadata.EntryPoint, ...]:
    """What is announced on the import ``path``. Reading the metadata of everything installed takes longer than
    resolving a run, and a plan resolves hundreds."""
    return tuple(metadata.entry_points(group=f"sdpo_bench.{kind}"))


def owner_of(module: str) -> str:
    """Whose code a module is: the third-party plugin announced for it, else the package of one; else empty."""
    package = ""
    for kind in SINGULAR:
        for entry in entry_points(kind, tuple(sys.path)):
            announced, dist = entry.value.partition(":")[0], entry.dist.name if entry.dist else "unknown distribution"
            if announced == module:
                return f"{SINGULAR[kind]} '{entry.name}' ({dist})"
            if announced.partition(".")[0] == module.partition(".")[0]:
                package = f"the plugin package '{dist}'"
    return package
