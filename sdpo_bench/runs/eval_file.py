"""The bytes of an ``eval.parquet``: its pages have checksums, and its footer, which the format leaves bare, has ours.

One flipped bit in a footer could hide rows. Readers find everything by offsets, so nobody looks at a digest before it.
"""

import hashlib
from pathlib import Path

MARK = b"sdpo-bench footer"
SIZE = 16
"""Bytes of the digest."""


def sealed(content: bytes) -> bytes:
    """A whole Parquet file with the digest of its footer before it."""
    start = _footer_start(content)
    return content[:start] + MARK + _digest(content[start:]) + content[start:]


def read_sealed(path: Path) -> bytes:
    """Content of a Parquet file; one without a mark is of an earlier version or of another program.

    Raises:
        ValueError: its footer has another digest. OSError: it cannot be read.
    """
    content = path.read_bytes()
    start = max(0, _footer_start(content))
    mark = content[:start][-len(MARK) - SIZE :]
    if mark.startswith(MARK) and mark.removeprefix(MARK) != _digest(content[start:]):
        raise ValueError("its footer does not have the digest it was written with")
    return content


def _footer_start(content: bytes) -> int:
    return len(content) - 8 - int.from_bytes(content[-8:-4], "little")


def _digest(footer: bytes) -> bytes:
    return hashlib.blake2b(footer, digest_size=SIZE).digest()
