"""Which denoiser calls an optimiser step makes: minibatches too small to fill a call share one.

The gradient of an optimiser step is a sum over its minibatches, so it makes no difference beyond rounding which of
them meet the denoiser together. Every loss still sees its own minibatch alone.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sdpo_bench.api import Method
from sdpo_bench.training.update_order import Task

CALL_ELEMENTS = 2**17
"""Latent elements up to which a call is filled with further minibatches: 512 latents of 4 x 8 x 8, 8 of 4 x 64 x 64.
Larger calls are no faster for each latent and hold more activations than the settings ask for."""


def call_size(parts: Sequence[Task], most: int, latent_shape: tuple[int, int, int], members: int) -> int:
    """Groups in one call: the largest minibatch, or more as long as the call stays small; at most ``most``."""
    channels, height, width = latent_shape
    filled = CALL_ELEMENTS // (channels * height * width * members)
    return min(most, max(filled, *(len(part.groups) for part in parts), 1))


def calls(parts: Sequence[Task], size: int, num_steps: int, method: Method) -> Iterator[list[Task]]:
    """The minibatches of each call, in their order and in calls of about equal size.

    A method that differentiates samples has one minibatch a call. A loss over whole trajectories counts each
    group once a step; where that is more than ``size``, its steps are spread over several calls later.
    """
    if method.signal == "gradient" or method.granularity == "sample":
        yield from ([part] for part in parts)
        return
    each = num_steps if method.granularity == "trajectory" else 1
    total = sum(len(part.groups) for part in parts) * each
    enough = -(-total // -(-total // size)) if total else size
    call, filled = list[Task](), 0
    for part in parts:
        rows = len(part.groups) * each
        if call and (filled >= enough or filled + rows > size):
            yield call
            call, filled = [], 0
        call.append(part)
        filled += rows
    if call:
        yield call


def together(parts: Sequence[Task]) -> Task:
    """The groups of several minibatches, one after another."""
    if len(parts) == 1:
        return parts[0]
    return Task(
        torch.cat([part.groups for part in parts]),
        torch.cat([part.steps for part in parts]),
        sum(part.share for part in parts),
    )


def even_split(rows: Tensor, size: int) -> list[Tensor]:
    """As few pieces of at most ``size`` as there can be, of about equal length."""
    if not len(rows):
        return []
    pieces = -(-len(rows) // size)
    return list(rows.split(-(-len(rows) // pieces)))
