"""Ask rewards for numbers: decode exactly the latents that are needed, score them once, check and charge every answer.

A reward is somebody else's code, so its answer is checked for shape and finiteness before anything learns from it.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sdpo_bench.api import Reward
from sdpo_bench.errors import RunFailed
from sdpo_bench.ledger import Ledger
from sdpo_bench.models.policy import Policy
from sdpo_bench.plugins.call import plugin_code
from sdpo_bench.rollout.sampling import Trajectories
from sdpo_bench.scoring.dense_rewards import Queries
from sdpo_bench.scoring.score_cache import ScoreCache, picture_digests, score_key
from sdpo_bench.scoring.variety import Variety
from sdpo_bench.scoring.weighted_sum import Composite
from sdpo_bench.system.timeout import Deadline, DeadlinePassed

LARGEST = 1e18
"""Largest magnitude of a score: squares of larger ones overflow float32, which normalises and learns."""

Parts = dict[str, Tensor]
"""Scores ``[B]`` of each part of a weighted sum; empty for a single reward."""


class Scorer:
    """A reward under supervision: never asked the same twice, cut off when it hangs, validated, charged.

    Args:
        name: the reward's name, as results and the ledger carry it.
        ledger: charged one reward call an image; ``None`` for evaluation, which is not part of the training bill.
        cache: shared by the scorers of a run; a fresh one if not given.
        timeout: seconds that one call may take; 0 waits for ever.
    """

    def __init__(
        self,
        name: str,
        reward: Reward,
        ledger: Ledger | None = None,
        *,
        cache: ScoreCache | None = None,
        timeout: float = 0,
    ):
        self.name = name
        self.reward = reward
        self.ledger = ledger
        self.cache = ScoreCache() if cache is None else cache
        self.deadline = Deadline(timeout)

    def load(self) -> None:
        """Get the reward ready to score.

        Raises:
            MissingError: a checkpoint or package that is not here.
        """
        with plugin_code(f"reward '{self.name}': load()"):
            self.reward.load()

    @property
    def calls_per_image(self) -> int:
        """Reward calls that one image costs."""
        return 1

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores ``[B]`` float32 on the CPU of images ``[B, 3, H, W]`` in [0, 1].

        Raises:
            RunFailed: images or scores that are not finite, an answer of the wrong shape or type, a reward that
                raises or takes too long.
        """
        return self.score(images, prompts)[0]

    def score(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Parts]:
        """The same, and the scores of the parts."""
        return self.answers(images, prompts, _digests(images)), {}

    def answers(self, images: Tensor, prompts: Sequence[str], digests: Sequence[bytes]) -> Tensor:
        """Scores of images whose digests are known, remembered ones from the cache."""
        version = self.reward.full_version
        keys = [score_key(self.name, version, digest, prompt) for digest, prompt in zip(digests, prompts, strict=True)]
        scores = {key: score for key in keys if (score := self.cache.get(key)) is not None}
        first = {key: row for row, key in reversed(list(enumerate(keys))) if key not in scores}
        rows = sorted(first.values())
        if rows:
            asked = images if len(rows) == len(keys) else images[torch.tensor(rows, device=images.device)]
            fresh = self._ask(asked, [prompts[row] for row in rows], self._call).detach().float().cpu().tolist()
            scores |= dict(zip((keys[row] for row in rows), fresh))
            self.cache.put([keys[row] for row in rows], fresh)
        if self.ledger is not None:
            self.ledger.charge_reward(self.name, len(rows), cached=len(keys) - len(rows))
        return torch.tensor([scores[key] for key in keys], dtype=torch.float32)

    def _ask(self, images: Tensor, prompts: list[str], call: Callable[[Tensor, list[str]], Tensor]) -> Tensor:
        scores = self._in_time(images, lambda copies: call(copies, list(prompts)))
        self._check(scores, len(prompts))
        return scores

    def _in_time(self, images: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:
        copies = images.clone()  # what a reward does to its pictures must not reach the next one's
        try:
            with plugin_code(f"reward '{self.name}'"):
                return self.deadline(lambda: call(copies))
        except DeadlinePassed as error:
            raise RunFailed(
                f"reward '{self.name}' has not scored {len(images)} images: {error}. Allow more with "
                "--reward-timeout SECONDS (0: no limit) or ask for fewer at once with --micro-batch; the same command "
                "then goes on."
            ) from error

    def differentiable(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores ``[B]`` whose graph reaches back to the images: never remembered, charged as calls and as gradients.

        Raises:
            RunFailed: as :meth:`__call__`, or a reward that declares a gradient and has none.
        """
        _refuse_broken(images)
        scores = self._ask(images, list(prompts), self.reward)
        if not scores.requires_grad:
            raise RunFailed(f"reward '{self.name}' declares itself differentiable, but its scores carry no gradient.")
        if self.ledger is not None:
            self.ledger.charge_reward(self.name, len(prompts))
            self.ledger.reward_backward += len(prompts)
        return scores.float()

    def features(self, images: Tensor) -> Tensor:
        """Features ``[B, D]`` of the reward's own network, with the graph to images that have one.

        Charged as a call each, and as a gradient each where there is a graph.

        Raises:
            RunFailed: images or features that are not finite, features of another shape or without the graph.
        """
        _refuse_broken(images)
        found, wanted = self._in_time(images, self.reward.features), images.requires_grad
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise RunFailed(f"reward '{self.name}': features() returned {got}; expected a tensor ({len(images)}, D).")
        if not torch.isfinite(found).all():
            raise RunFailed(f"reward '{self.name}': features() returned NaN or infinity.")
        if wanted and not found.requires_grad:
            raise RunFailed(f"reward '{self.name}': features() carry no gradient to the images.")
        if self.ledger is not None:
            self.ledger.charge_reward(self.name, len(images))
            self.ledger.reward_backward += len(images) * wanted
        return found.float()

    def _call(self, images: Tensor, prompts: list[str]) -> Tensor:
        with torch.no_grad():
            return self.reward(images, prompts)

    def _check(self, scores: object, count: int) -> None:
        if not isinstance(scores, Tensor) or scores.shape != (count,):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise RunFailed(
                f"reward '{self.name}' returned {got} for {count} images; expected a tensor of shape ({count},)."
            )
        if scores.is_complex():
            raise RunFailed(f"reward '{self.name}' returned complex numbers; higher is better, so they must be real.")
        numbers = scores.detach().cpu().double()
        bad = (~torch.isfinite(numbers)).sum().item()
        if bad:
            raise RunFailed(f"reward '{self.name}' returned {bad} scores of {count} that are NaN or infinite.")
        largest = float(numbers.abs().max()) if count else 0.0
        if largest > LARGEST:
            raise RunFailed(
                f"reward '{self.name}' returned scores up to {largest:.3g}; beyond {LARGEST:.0e} their variance is "
                "infinite in float32. Scale the reward."
            )


class VarietyScorer(Scorer):
    """Asked for features; the pictures of a prompt are compared when all of them are there (``variety.distances``)."""

    reward: Variety


class CompositeScorer(Scorer):
    """A weighted sum: each part is asked, checked, remembered and charged under its own name."""

    reward: Composite

    def __init__(self, name: str, reward: Composite, *args: Ledger | None, **options: Any):
        super().__init__(name, reward, *args, **options)
        seconds = self.deadline.seconds
        self.parts = [
            Scorer(part, one, self.ledger, cache=self.cache, timeout=seconds) for part, one in reward.parts.items()
        ]

    @property
    def calls_per_image(self) -> int:
        return len(self.parts)

    def score(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Parts]:
        parts = self.score_parts(images, prompts)
        return self._combine(parts), parts

    def differentiable(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self._combine({part.name: part.differentiable(images, prompts) for part in self.parts})

    def _combine(self, parts: Parts) -> Tensor:
        combined = self.reward.combine(parts)
        self._check(combined, len(combined))  # parts that are sound may still overflow with their weights
        return combined

    def score_parts(self, images: Tensor, prompts: Sequence[str]) -> Parts:
        """Scores of the parts alone, on their own scales."""
        digests = _digests(images)
        return {part.name: part.answers(images, prompts, digests) for part in self.parts}


def _digests(images: Tensor) -> list[bytes]:
    _refuse_broken(images)
    return picture_digests(images)


def _refuse_broken(images: Tensor) -> None:
    if not torch.isfinite(images).all():
        raise RunFailed(
            "decoded images contain NaN or infinity: the policy has diverged (lower update.lr), or guidance or noise "
            "is far out of range."
        )


def supervise(name: str, reward: Reward, ledger: Ledger | None = None, **options: Any) -> Scorer:
    """The scorer that fits the reward; options as for :class:`Scorer`."""
    kind = (
        CompositeScorer if isinstance(reward, Composite) else VarietyScorer if isinstance(reward, Variety) else Scorer
    )
    return kind(reward.filed_as or name, reward, ledger, **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Answers:
    """Rewards ``[N, G, Q]`` of the queried steps and the final images ``[N, G, 3, H, W]`` that were decoded."""

    rewards: Tensor
    final_images: Tensor
    parts: Parts = field(default_factory=dict)
    """Scores ``[N, G]`` of the final images by each part of a weighted sum."""
    queried_parts: Parts = field(default_factory=dict)
    """The same of the queried steps, ``[N, G, Q]``."""


def ask_rewards(
    policy: Policy,
    trajectories: Trajectories,
    queries: Queries,
    scorer: Scorer,
    *,
    decode_sample: bool,
    micro_batch: int = 64,
    overlap: bool = False,
) -> Answers:
    """Score the queried steps of every trajectory.

    Args:
        decode_sample: score the decoded sample instead of a predicted original; needs a single query, the last step.
        overlap: score a batch in a thread while the next is decoded; the calls, their order and their answers are the
            same. There a reward that hangs cannot be cut off, only refused when it answers.

    Members that share their first step share its predicted original, so it is decoded and scored once a group.
    """
    latents, columns, last = trajectories.x0, queries.steps.cpu(), queries.last
    if decode_sample:
        latents, columns = trajectories.latents[:, :, -1:], torch.zeros_like(columns)
    shared = trajectories.shared_start and not decode_sample
    return _ask(policy, trajectories.prompts, latents, columns, shared, scorer, micro_batch, overlap, last)


def ask_completions(
    policy: Policy,
    trajectories: Trajectories,
    completed: Tensor,
    scorer: Scorer,
    *,
    decode_sample: bool,
    shared_first: bool,
    micro_batch: int = 64,
    overlap: bool = False,
) -> Answers:
    """Score completions ``[N, G, S, C, h, w]`` and, as query S, the final image.

    Args:
        decode_sample: whether the final image is the sample or the predicted original of the last step.
        shared_first: whether the members of a group have the first completion in common; it is scored once.
    """
    final = trajectories.latents[:, :, -1:] if decode_sample else trajectories.x0[:, :, -1:]
    latents = torch.cat([completed, final], 2)
    columns = torch.arange(latents.shape[2]).expand(latents.shape[:3])
    shared = shared_first and latents.shape[2] > 1
    return _ask(policy, trajectories.prompts, latents, columns, shared, scorer, micro_batch, overlap, -1)


def _ask(
    policy: Policy,
    prompts: Sequence[str],
    latents: Tensor,
    columns: Tensor,
    shared_first: bool,
    scorer: Scorer,
    micro_batch: int,
    overlap: bool,
    last: int,
) -> Answers:
    """Answers for ``columns [N, G, Q]`` of latents ``[N, G, S, C, h, w]``, each distinct one decoded and scored once.

    Args:
        shared_first: whether column 0 of all members of a group is the same.
        last: query of the final image.
    """
    (n, g, q), count = columns.shape, latents.shape[2]
    owner = torch.arange(n * g).view(n, g, 1).expand(n, g, q).clone()
    if shared_first:
        first_member = (torch.arange(n) * g).view(n, 1, 1).expand(n, g, q)
        owner = torch.where(columns == 0, first_member, owner)
    unique, inverse = (owner * count + columns).flatten().unique(return_inverse=True)
    rows, at = unique // count, unique % count
    of_row = [prompts[row] for row in (rows // g).tolist()]
    scores, images, parts = _score_rows(policy, latents.flatten(0, 1), rows, at, of_row, scorer, micro_batch, overlap)
    pictured = inverse.view(n, g, q)[..., last]
    final = images[pictured.flatten()].view(n, g, *images.shape[1:])
    return Answers(
        scores[inverse].view(n, g, q),
        final,
        {name: values[pictured] for name, values in parts.items()},
        {name: values[inverse].view(n, g, q) for name, values in parts.items()},
    )


def _score_rows(
    policy: Policy,
    latents: Tensor,
    rows: Tensor,
    columns: Tensor,
    prompts: Sequence[str],
    scorer: Scorer,
    micro_batch: int,
    overlap: bool,
) -> tuple[Tensor, Tensor, Parts]:
    """Scores ``[U]``, images ``[U, 3, H, W]`` (CPU) and the parts' scores of ``latents [n, S, ...]`` at U places."""
    images, answers = [], []
    with _queue(overlap) as ask:
        for part in torch.arange(len(rows)).split(micro_batch):
            with torch.no_grad():
                decoded = policy.decode(latents[rows[part], columns[part]])
            answers.append(ask(partial(scorer.score, decoded, [prompts[i] for i in part.tolist()])))
            images.append(decoded.cpu())
    results = [answer() for answer in answers]
    scores, parts = [values for values, _ in results], [by_part for _, by_part in results]
    return torch.cat(scores), torch.cat(images), {k: torch.cat([p[k] for p in parts]) for k in parts[0]}


Scores = tuple[Tensor, Parts]


@contextmanager
def _queue(overlap: bool) -> Iterator[Callable[[Callable[[], Scores]], Callable[[], Scores]]]:
    """Takes work and returns what fetches its answer; one piece at a time, in order, here or in a thread."""
    if not overlap:
        yield _at_once
        return
    pending: list[Future[Scores]] = []

    def ask(work: Callable[[], Scores]) -> Callable[[], Scores]:
        if len(pending) > 1:  # a slow reward must not pile up pictures on the device
            pending[-2].result()
        pending.append(pool.submit(work))
        return pending[-1].result

    pool = ThreadPoolExecutor(1, thread_name_prefix="reward")
    try:
        yield ask
    finally:
        pool.shutdown(wait=True, cancel_futures=True) if sys.exc_info()[0] else pool.shutdown(wait=True)


def _at_once(work: Callable[[], Scores]) -> Callable[[], Scores]:
    result = work()
    return lambda: result
