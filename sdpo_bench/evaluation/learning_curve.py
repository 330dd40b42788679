"""The learning curve of a run: mean scores of the policy every few epochs, with what training had cost by then.

A point is measured on the noise bank of the final evaluation, so all methods and seeds meet the same noise and the
base model (epoch 0) is the same for all. Measuring is passive: it draws from no generator of the training, remembers
no score for it and is not on its bill. Each point leaves one line in ``curve.jsonl``, its own cost included.
"""

import time
from dataclasses import replace
from typing import Any

from sdpo_bench import seeds
from sdpo_bench.config.sampler_id import sampler_id
from sdpo_bench.errors import UsageError
from sdpo_bench.evaluation import evaluate as ev
from sdpo_bench.evaluation.mean_scores import evaluation_guidance, mean_scores
from sdpo_bench.hashing import digest
from sdpo_bench.ledger import AXES, Ledger
from sdpo_bench.models.policy import Policy
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.runs.run_folder import CURVE, RunFolder
from sdpo_bench.scoring.scorer import CompositeScorer, Scorer
from sdpo_bench.settings import EvaluationSettings
from sdpo_bench.system.distributed import ALONE, Processes
from sdpo_bench.system.memory_retry import MicroBatch
from sdpo_bench.system.progress import Watcher
from sdpo_bench.system.signals import raise_pending_stop


class CurveRecorder:
    """Measures the points of one run's curve.

    Args:
        scorers: the trained reward and the held-out ones, charged to nobody, with a cache that nobody else uses.

    Raises:
        UsageError: a step count outside the model's range, or no prompts.
    """

    def __init__(
        self,
        policy: Policy,
        settings: EvaluationSettings,
        scorers: list[Scorer],
        run: RunFolder,
        micro_batch: MicroBatch,
        watcher: Watcher,
        processes: Processes = ALONE,
    ):
        self.policy, self.scorers, self.run = policy, scorers, run
        self.micro_batch, self.watcher, self.processes = micro_batch, watcher, processes
        self.sampler = replace(settings, steps=settings.curve_steps, images_per_prompt=settings.curve_images_per_prompt)
        self.schedules = {k: ev.evaluation_schedule(policy, self.sampler, k) for k in settings.curve_steps}
        self.pairs = {split: self._pairs(texts) for split, texts in curve_prompts(settings).items()}

    def _pairs(self, texts: list[str]) -> list[ev.Pair]:
        return [(text, i) for text in texts for i in range(self.sampler.images_per_prompt)]

    def after_epoch(self, epoch: int, bill: Ledger, *, last: bool) -> None:
        """Measure the policy as it is after ``epoch`` epochs, if that is a point and was not measured before.

        Args:
            bill: what training has cost so far; nothing is charged to it.
        """
        is_point = last or epoch % self.sampler.every == 0
        if not is_point or any(row.get("epoch") == epoch for row in self._rows):
            return
        started = time.monotonic()
        with evaluation_guidance(self.policy, self.sampler):
            scores = [entry for split in self.pairs for k in self.schedules for entry in self._scores(split, k)]
            cost = {**self._cost(), "seconds": round(time.monotonic() - started, 4)}
        if self.processes.is_main:
            spent = {axis: int(bill.used(axis)) for axis in AXES if axis != "seconds"}
            seconds = round(bill.seconds, 4)
            self.run.append(CURVE, {"epoch": epoch, **spent, "seconds": seconds, "cost": cost, "scores": scores})

    def forget_after(self, epoch: int) -> None:
        """Drop points of epochs that a resumed run will do again."""
        if self.processes.is_main:
            self.run.forget_after(CURVE, epoch)

    @property
    def _rows(self) -> list[dict[str, Any]]:
        return self.processes.share(lambda: self.run.log(CURVE))

    def _scores(self, split: str, steps: int) -> list[dict[str, Any]]:
        """Mean score of one split at one step count, an entry a reward."""
        raise_pending_stop()
        pairs = self.pairs[split]
        self.watcher.evaluation(f"learning curve, {split} prompts, {steps} steps", 0, 1)
        for scorer in self.scorers:  # they share one cache, for a sum and its parts; nothing outlives the block
            scorer.cache.clear()
        size = self.micro_batch.size
        means = mean_scores(self.policy, self.schedules[steps], self.sampler, self.scorers, pairs, size, self.processes)
        common = {
            "split": split,
            "steps": steps,
            "sampler": sampler_id(self.sampler),
            "images": len(pairs),
            "pictures": digest(pairs),
        }
        return [
            {**common, "reward": scorer.name, "version": scorer.reward.full_version, "mean": mean}
            for scorer, mean in zip(self.scorers, means, strict=True)
        ]

    def _cost(self) -> dict[str, int]:
        """What measuring one point costs, beside the training bill."""
        images = sum(len(pairs) for pairs in self.pairs.values())
        singles = {one.name for s in self.scorers for one in (s.parts if isinstance(s, CompositeScorer) else [s])}
        return {
            "denoiser_calls": self.policy.branches * images * sum(self.schedules),
            "reward_calls": len(singles) * images * len(self.schedules),
        }


def curve_prompts(settings: EvaluationSettings) -> dict[str, list[str]]:
    """Prompts of a point by split; of a long set ``curve_prompts``, always the same ones.

    Raises:
        UsageError: neither the train nor the unseen split has prompts.
    """
    named = {"train": settings.train, "unseen": settings.unseen}
    chosen = {split: _some(load_prompts(name), settings.curve_prompts) for split, name in named.items() if name}
    if not chosen:
        raise UsageError("eval.every needs prompts: set eval.train or eval.unseen, or eval.every=0.")
    return chosen


def _some(texts: list[str], most: int) -> list[str]:
    """At most ``most`` texts in their order; 0 is all. A set sorted by a property is not cut at one end."""
    if not most or len(texts) <= most:
        return texts
    rows = seeds.permutation(len(texts), "curve-prompts")[:most].sort().values
    return [texts[row] for row in rows.tolist()]
