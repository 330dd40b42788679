"""The learning signal of sampled trajectories: rewards, advantages, log-probabilities of the base model, and metrics.

Statistics cover the groups of all processes of a run; the experience for the updates covers this process's own groups.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdpo_bench.advantages.epoch_metrics import part_metrics, reward_metrics, spread
from sdpo_bench.advantages.experience import Experience
from sdpo_bench.advantages.normalise import Normaliser, advantages, decoupled_advantages
from sdpo_bench.advantages.run_context import RunContext
from sdpo_bench.api import COMPLETED_MODES
from sdpo_bench.rollout.base_log_probs import base_statistics
from sdpo_bench.rollout.group_cost import PROBE_GROUPS, PROBE_MEMBERS, influential_steps
from sdpo_bench.rollout.sampling import Trajectories
from sdpo_bench.scoring import image_statistics
from sdpo_bench.scoring.dense_rewards import choose_queries, completion_rewards, final_rewards, step_rewards
from sdpo_bench.scoring.scorer import Answers, CompositeScorer, Parts, Scorer, ask_completions, ask_rewards
from sdpo_bench.settings import AdvantageSettings


@dataclass(frozen=True)
class Scored:
    """The epoch's rewards over all processes, in the order of its groups: ``queried [N, G, Q]``, ``rewards [N, G, T]``,
    N prompts, and of the parts of a weighted sum the final scores ``[N, G]`` and, where advantages are decoupled, the
    rewards ``[N, G, T]``."""

    queried: Tensor
    rewards: Tensor
    prompts: Sequence[str]
    parts: Parts
    rewards_by_part: Parts


@dataclass(frozen=True)
class Signals:
    """Queries rewards and turns them into advantages.

    Attributes:
        settings: of the advantages; ``None`` for methods that do without.
    """

    context: RunContext
    settings: AdvantageSettings | None
    scorer: Scorer
    normaliser: Normaliser

    def of(
        self, trajectories: Trajectories, mine: Tensor, groups: int, completed: Tensor | None = None
    ) -> tuple[Experience, dict[str, Any]]:
        """What is learnt from the trajectories of this process's groups, and the epoch's metrics.

        Args:
            mine: int64 ``[n]``, which of the epoch's ``groups`` these trajectories are.
            completed: ``[n, G, S, C, h, w]`` completions, for methods that learn from them.
        """
        if self.context.method.signal == "gradient":
            return self._unscored(trajectories, mine, groups)
        mode = self.context.method.reward_mode
        answers, of_scores = self._rewards(trajectories) if completed is None else self._gains(trajectories, completed)
        queried = answers.rewards.to(trajectories.x0)
        rewards = of_scores(queried)
        by_part = {}
        if self.settings is not None and self.settings.rewards != "summed":
            by_part = {name: of_scores(scores.to(queried)) for name, scores in answers.queried_parts.items()}
        everyone = self._everyone(answers, queried, rewards, by_part, trajectories.prompts, mine)
        normalised = self._advantages(everyone)
        reference, kl = self._reference(trajectories, mine)
        metrics = reward_metrics(everyone.queried, everyone.rewards, mode) | kl
        metrics |= part_metrics(everyone.parts)
        if normalised is not None:
            metrics |= spread("advantage", normalised)
            if self.normaliser.fallback is not None:
                metrics["normalisation_fallback"] = self.normaliser.fallback
            normalised = normalised[mine.to(normalised.device)]
        metrics["pictures"] = self._picture_summary(answers.final_images.flatten(0, 1))
        rows = self._rows(mine, groups)
        final = final_rewards(queried, rewards, mode)
        return Experience(trajectories, rewards, final, normalised, reference, rows=rows), metrics

    def _rewards(self, trajectories: Trajectories) -> tuple[Answers, Callable[[Tensor], Tensor]]:
        """Scores of predicted originals or of the sample, and how scores become rewards ``[n, G, T]`` of the steps."""
        method, mode = self.context.method, self.context.method.reward_mode
        queries = choose_queries(trajectories.x0, mode)
        answers = ask_rewards(
            self.context.policy,
            trajectories,
            queries,
            self.scorer,
            decode_sample=mode == "sparse" and method.final_image == "sample",
            micro_batch=self.context.micro_batch.size,
            overlap=self.context.runtime.async_rewards,
        )
        return answers, lambda scores: step_rewards(queries, scores, mode, method.reward_guard)

    def _gains(self, trajectories: Trajectories, completed: Tensor) -> tuple[Answers, Callable[[Tensor], Tensor]]:
        """Scores of completions and of the final image, and how scores become rewards ``[n, G, T]`` of the steps."""
        method, steps = self.context.method, trajectories.num_steps
        answers = ask_completions(
            self.context.policy,
            trajectories,
            completed,
            self.scorer,
            decode_sample=method.final_image == "sample",
            shared_first=trajectories.shared_start and method.reward_mode != "branch",
            micro_batch=self.context.micro_batch.size,
            overlap=self.context.runtime.async_rewards,
        )
        random = self._random_steps()
        return answers, lambda scores: completion_rewards(scores, random, steps, method.reward_mode)

    def _random_steps(self) -> list[int]:
        """The steps of this epoch that have a reward of their own where completions are scored."""
        schedule = self.context.schedule
        return influential_steps(self.context.method, schedule.num_steps, schedule.decision_steps().tolist())

    def _returned_steps(self) -> list[int]:
        """The steps whose returns become advantages: the random ones, and for losses over whole trajectories the first
        one, whose return is that of the trajectory."""
        random = self._random_steps()
        return sorted({0, *random}) if self.context.method.granularity == "trajectory" else random

    def _everyone(
        self,
        answers: Answers,
        queried: Tensor,
        rewards: Tensor,
        by_part: Parts,
        prompts: Sequence[str],
        mine: Tensor,
    ) -> Scored:
        rows = self.context.processes.rows
        if self.context.processes.count == 1:
            return Scored(queried, rewards, prompts, answers.parts, by_part)
        texts = [pair for part in self.context.processes.gather(list(zip(mine.tolist(), prompts))) for pair in part]
        parts = {name: rows(values, mine) for name, values in answers.parts.items()}
        by_part = {name: rows(values, mine) for name, values in by_part.items()}
        return Scored(rows(queried, mine), rows(rewards, mine), [text for _, text in sorted(texts)], parts, by_part)

    def _picture_summary(self, images: Tensor) -> dict[str, float]:
        first, *others = self.context.processes.gather(image_statistics.Sums.of(images))
        return image_statistics.summary(sum(others, first))

    def _rows(self, mine: Tensor, groups: int) -> Tensor | None:
        """Where this process keeps each group; see :class:`Experience`."""
        if self.context.processes.count == 1:
            return None
        return torch.full((groups,), -1).index_copy(0, mine, torch.arange(len(mine)))

    def _unscored(self, trajectories: Trajectories, mine: Tensor, groups: int) -> tuple[Experience, dict[str, Any]]:
        """Trajectories of a method that asks for rewards in its updates: scoring them here would charge them twice."""
        samples = trajectories.latents[:, :, -1].flatten(0, 1)
        with torch.no_grad():
            images = torch.cat(
                [self.context.policy.decode(part).cpu() for part in samples.split(self.context.micro_batch.size)]
            )
        metrics = {**self._reference(trajectories, mine)[1], "pictures": self._picture_summary(images)}
        none = torch.zeros(*trajectories.latents.shape[:2], 0)
        return Experience(trajectories, none, none, rows=self._rows(mine, groups)), metrics

    def _advantages(self, scored: Scored) -> Tensor | None:
        settings = self.settings
        if settings is None:
            return None
        sparse = self.context.method.reward_mode == "sparse"
        prompts, normaliser = scored.prompts, self.normaliser
        options: dict[str, Any] = {"gamma": settings.gamma, "clip": settings.clip, "sparse": sparse}
        if self.context.method.reward_mode in COMPLETED_MODES:
            options["scored"] = self._returned_steps()
        if settings.rewards != "summed":
            assert isinstance(self.scorer, CompositeScorer)
            weights, options["over_batch"] = self.scorer.reward.weights, settings.rewards == "gdpo"
            return decoupled_advantages(scored.rewards_by_part, weights, prompts, normaliser, **options)
        return advantages(scored.rewards, prompts, normaliser, **options)

    def _reference(self, trajectories: Trajectories, mine: Tensor) -> tuple[Tensor | None, dict[str, float]]:
        """Log-probabilities under the base model where the method needs them, and ``kl_to_base`` (measured on a few
        trajectories otherwise): sum over the steps that draw noise of the mean over latent elements, nats. Without
        such a step there is none."""
        method = self.context.method
        whole = method.needs_reference and method.granularity in ("step", "trajectory")
        chosen = [row for row, g in enumerate(mine.tolist()) if whole or g < PROBE_GROUPS]
        phase, members = ("reference", None) if whole else ("diagnostic", PROBE_MEMBERS)
        context = self.context
        policy, size = context.policy, context.micro_batch.size
        with context.ledger.during(phase), policy.reference():  # type: ignore[arg-type]
            log_probs, kl = base_statistics(policy, context.schedule, trajectories, chosen, size, members)
        kl = self.context.processes.rows(kl, mine[chosen])
        metrics = {} if kl.isnan().all() else {"kl_to_base": float(kl.nansum(-1).mean())}
        return (log_probs if whole else None), metrics
