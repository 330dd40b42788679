"""Scores that were given already: the same picture and prompt are not scored twice by one reward version.

The cache is part of a run's state. Whether a score is remembered decides what is charged and, by rounding, in which
company the other pictures are scored, so a resumed run must remember exactly what one that never stopped would. Hence
it is bounded by a fixed rule (the oldest entry goes first) and travels in the checkpoint.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

CAPACITY = 131_072
"""Entries, about 20 MB of memory and 2.6 MB of checkpoint; an SDPO run of 25,600 images asks for 64,000 scores."""
KEY_BYTES = 16


def picture_digests(images: Tensor) -> list[bytes]:
    """A hash of the exact float32 values of each image of ``[B, 3, H, W]``."""
    plain = images.detach().float().cpu().contiguous()
    shape = repr(tuple(plain.shape[1:])).encode()
    return [hashlib.blake2b(shape + image.numpy().tobytes(), digest_size=KEY_BYTES).digest() for image in plain]


def score_key(reward: str, version: str, picture: bytes, prompt: str) -> bytes:
    """16 bytes for one question: reward, version, picture and prompt."""
    question = b"\0".join([reward.encode(), version.encode(), picture.hex().encode(), prompt.encode()])
    return hashlib.blake2b(question, digest_size=KEY_BYTES).digest()


class ScoreCache:
    """At most ``capacity`` scores by key, the oldest forgotten first."""

    def __init__(self, capacity: int = CAPACITY):
        self.capacity = capacity
        self._scores: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, key: bytes) -> float | None:
        return self._scores.get(key)

    def put(self, keys: Sequence[bytes], scores: Sequence[float]) -> None:
        """Remember scores (float32 values)."""
        for key, score in zip(keys, scores, strict=True):
            self._scores[key] = score
        while len(self._scores) > self.capacity:
            del self._scores[next(iter(self._scores))]

    def mark(self) -> set[bytes]:
        """What is known now, for :meth:`since`."""
        return set(self._scores)

    def since(self, mark: set[bytes]) -> dict[bytes, float]:
        """Scores that came after :meth:`mark`."""
        return {key: score for key, score in self._scores.items() if key not in mark}

    def clear(self) -> None:
        self._scores.clear()

    def state(self) -> dict[str, Tensor]:
        """``keys`` uint8 ``[n, 16]`` and ``scores`` float32 ``[n]``, oldest first; nothing where it is empty."""
        if not self._scores:
            return {}
        keys = torch.frombuffer(bytearray(b"".join(self._scores)), dtype=torch.uint8).view(-1, KEY_BYTES)
        return {"keys": keys, "scores": torch.tensor(list(self._scores.values()), dtype=torch.float32)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Remember what :meth:`state` returned and nothing else."""
        self.clear()
        if state:
            self.put([row.numpy().tobytes() for row in state["keys"]], state["scores"].tolist())
