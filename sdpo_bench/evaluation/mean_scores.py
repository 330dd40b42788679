"""Mean scores of a policy during its training: for the choice of a checkpoint, and for the learning curve."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sdpo_bench.evaluation import evaluate as ev
from sdpo_bench.models.policy import Policy
from sdpo_bench.rollout.schedule import Schedule
from sdpo_bench.scoring.scorer import Scorer
from sdpo_bench.settings import EvaluationSettings
from sdpo_bench.system.distributed import Processes


@contextmanager
def evaluation_guidance(policy: Policy, settings: EvaluationSettings) -> Iterator[None]:
    """Inside this context the policy has the guidance of the evaluation; after it that of the training again."""
    guidance = policy.guidance_scale
    policy.set_guidance(settings.guidance_scale)
    try:
        yield
    finally:
        policy.set_guidance(guidance)


def mean_scores(
    policy: Policy,
    schedule: Schedule,
    settings: EvaluationSettings,
    scorers: Sequence[Scorer],
    pairs: list[ev.Pair],
    micro_batch: int,
    processes: Processes,
) -> list[float]:
    """Mean score over ``pairs`` by each scorer, from the evaluation's noise bank.

    Args:
        processes: who shares the images; all return the means over every image.
    """
    rows: list[list[float]] = []
    for part in ev.my_batches(pairs, micro_batch, processes):
        images = ev.sample_images(policy, schedule, settings, part, micro_batch)
        columns = [scorer(images, [text for text, _ in part]).tolist() for scorer in scorers]
        rows += map(list, zip(*columns))
    everyone = [row for part in processes.gather(rows) for row in part]
    return [math.fsum(column) / len(pairs) for column in zip(*everyone)]
