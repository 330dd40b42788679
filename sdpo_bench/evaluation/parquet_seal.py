"""A digest of a Parquet file's footer, which the format leaves unprotected: one flipped bit there and rows are missing.

Pages have checksums of their own. The footer says where they are and how many rows they hold; readers find it from the
end of the file and everything else by offsets, so a few bytes before it, which no reader looks at, can hold its digest.
"""

import hashlib
from pathlib import Path

MAGIC = b"PAR1"
MARK = b"sdpo-bench footer"
SIZE = 16
"""Bytes of the digest."""


def sealed(content: bytes) -> bytes:
    """A whole Parquet file with the seal of its footer."""
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    return content[:start] + MARK + _digest(content[start:]) + content[start:]


def check_seal(path: Path) -> None:
    """Refuse a file whose footer is not the one it was sealed with; one without a seal is older, or somebody else's.

    Raises:
        ValueError: it is not. OSError: the file cannot be read.
    """
    with open(path, "rb") as stream:
        end = stream.seek(0, 2)
        stream.seek(max(0, end - 8))
        tail = stream.read()
        length = int.from_bytes(tail[:4], "little")
        start = end - 8 - length - SIZE - len(MARK)
        if tail[4:] != MAGIC or start < 0:
            return  # whoever reads it says what is wrong
        stream.seek(start)
        before, footer = stream.read(len(MARK) + SIZE), stream.read()
    if before.startswith(MARK) and before.removeprefix(MARK) != _digest(footer):
        raise ValueError("its footer does not have the digest it was written with")


def _digest(footer: bytes) -> bytes:
    return hashlib.blake2b(footer, digest_size=SIZE).digest()
