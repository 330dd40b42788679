"""The order of updates: which groups meet the optimiser at which denoising steps, and with what weight.

SDPO's claim that step-shuffled updates help is a claim about this module alone, so it is a plain list of tasks that a
test can count.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from sdpo_bench.settings import UpdateSettings


@dataclass(frozen=True)
class Order:
    """Order of one inner epoch: ``groups [N]`` permutes the groups, ``steps [N, K]`` the denoising steps of each group.

    K is T, or the number of random steps of a flow model where log-probabilities are learnt from.

    ``Trainer._order`` draws them.
    """

    groups: Tensor
    steps: Tensor


@dataclass(frozen=True)
class Task:
    """One backward pass: these groups at these steps, counting for ``share`` of the optimiser step it belongs to."""

    groups: Tensor
    steps: Tensor
    share: float


def part_of(task: Task, rows: Tensor) -> Task:
    """The part of a task that one process does: ``rows [N]`` says where it keeps each group, -1 where it does not.

    Every group keeps its weight, so the parts of all processes add up to the task.
    """
    kept = rows[task.groups] >= 0
    share = task.share * kept.float().mean().item() if len(kept) else 0.0
    return Task(rows[task.groups[kept]], task.steps[kept], share)


def windows(order: Order, settings: UpdateSettings, granularity: str) -> Iterator[list[Task]]:
    """The backward passes of one inner epoch, one list for each optimiser step.

    ``step-shuffled``: for every slot of the step permutation, windows of ``accumulation`` minibatches at that slot, so
    T times more optimiser steps. ``accumulated``: windows of ``accumulation`` minibatches over all slots (the order of
    DDPO and D3PO). Losses of whole trajectories or of samples take each minibatch with all steps at once. An epoch that
    was cut to fit a budget ends with a smaller window in which every sample keeps the same weight.
    """
    chunks = order.groups.split(settings.minibatch)
    whole = [chunks[i : i + settings.accumulation] for i in range(0, len(chunks), settings.accumulation)]
    slots = order.steps.shape[1]
    if granularity in ("trajectory", "sample"):
        for window in whole:
            total = sum(len(chunk) for chunk in window)
            yield [Task(chunk, order.steps[chunk], len(chunk) / total) for chunk in window]
    elif settings.order == "step-shuffled":
        for slot in range(slots):
            for window in whole:
                total = sum(len(chunk) for chunk in window)
                yield [Task(c, order.steps[c, slot : slot + 1], len(c) / total) for c in window]
    else:
        for window in whole:
            total = sum(len(chunk) for chunk in window) * slots
            yield [Task(c, order.steps[c, j : j + 1], len(c) / total) for c in window for j in range(slots)]
