"""Inference-time search: sample many candidates for each image that is delivered, keep the best by the trained reward.

The reference that a trained method has to beat. It changes no weight and pays for every image again, so its bill is
that of the images delivered in the evaluation, each call of it counted. Candidate 0 has the noise that every method's
image has, so that differences stay paired; the others come from the run's own seed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sdpo_bench.api import Method, Search
from sdpo_bench.config.resolve import make_method
from sdpo_bench.errors import RunFailed
from sdpo_bench.hashing import digest
from sdpo_bench.ledger import Ledger
from sdpo_bench.models.policy import Policy
from sdpo_bench.plugins.call import plugin_code
from sdpo_bench.plugins.registry import find
from sdpo_bench.rollout.sampling import Noise, replay
from sdpo_bench.rollout.schedule import Schedule
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.scoring.scorer import Scorer, supervise
from sdpo_bench.settings import EvaluationSettings
from sdpo_bench.system.distributed import ALONE, Processes
from sdpo_bench.system.files import atomic_write
from sdpo_bench.training.bill_text import SEARCH_FILE, read_search

Pairs = Sequence[tuple[str, int]]


class Candidates:
    """Draws candidates, chooses, and keeps the bill.

    Args:
        scorer: the trained reward, ready to score; asked through a scorer of its own, whose cache starts empty, so
            that the bill does not depend on what else was evaluated before.
        seed: the run's seed.
    """

    def __init__(self, method: Search, scorer: Scorer, seed: int):
        self.method, self.seed = method, seed
        self.ledger = Ledger()
        self._source = scorer
        self._scorer = self._fresh_scorer()

    def _fresh_scorer(self) -> Scorer:
        return supervise(self._source.name, self._source.reward, self.ledger, timeout=self._source.deadline.seconds)

    @contextmanager
    def billed(
        self, run: RunFolder, block: str, prompts: Sequence[str], delivered: int, processes: Processes = ALONE
    ) -> Iterator[None]:
        """Calls inside this context are one block of an evaluation; doing a block again replaces its bill.

        Args:
            block: its sampler, split and step count.
            prompts: of the block; a split may have other ones in each call of ``eval``.
            delivered: number of images.
        """
        self.ledger = Ledger()
        self._scorer = self._fresh_scorer()
        yield
        bills = processes.gather(self.ledger)
        if not processes.is_main:
            return
        self.ledger.images = sum(bill.images for bill in bills)
        self.ledger.absorb(bills, Ledger())
        blocks = read_search(run.path).get("blocks", {})
        # Files from before block names had a digest of the prompts: as many images are taken for the same prompts.
        if block in blocks and blocks[block]["delivered"] == delivered:
            del blocks[block]
        blocks[f"{block}, prompts {digest(sorted(prompts), 8)}"] = {"delivered": delivered, "bill": self.ledger.bill()}
        text = json.dumps({"samples_per_image": self.method.candidates, "blocks": blocks}, indent=1, sort_keys=True)
        atomic_write(run.path / SEARCH_FILE, text + "\n")

    @torch.no_grad()
    def sample(
        self, policy: Policy, schedule: Schedule, settings: EvaluationSettings, pairs: Pairs, micro_batch: int = 64
    ) -> Tensor:
        """The best image ``[n, 3, H, W]`` of each (prompt, image number) pair."""
        before, policy.on_call = policy.on_call, self.ledger.charge_call
        try:
            with self.ledger.during("search"):
                parts = [pairs[i : i + micro_batch] for i in range(0, len(pairs), micro_batch)]
                return torch.cat([self._search(policy, schedule, settings, part) for part in parts])
        finally:
            policy.on_call = before

    def _search(self, policy: Policy, schedule: Schedule, settings: EvaluationSettings, pairs: Pairs) -> Tensor:
        prompts = [prompt for prompt, _ in pairs]
        best = self._noise(policy, schedule, settings, pairs, 0)
        images = self._draw(policy, schedule, settings, prompts, best)
        scores = self._scorer(images, prompts)
        for j in range(1, self.method.candidates):
            fresh = self._noise(policy, schedule, settings, pairs, j)
            noise = self._propose(best, fresh)
            tried = self._draw(policy, schedule, settings, prompts, noise)
            answers = self._scorer(tried, prompts)
            better = answers > scores
            chosen = better.to(images.device).view(-1, 1, 1, 1)
            images, scores = torch.where(chosen, tried, images), torch.where(better, answers, scores)
            best = torch.where(better.view(-1, 1, 1, 1, 1), noise, best)
        return images

    def _propose(self, best: Tensor, fresh: Tensor) -> Tensor:
        """The method's noise.

        Raises:
            RunFailed: it raises, or proposes what is no noise of this shape.
        """
        who = f"method '{type(self.method).__name__}': propose()"
        with plugin_code(who):
            noise = self.method.propose(best, fresh)
        like = lambda x: (x.shape, x.dtype, x.device) == (fresh.shape, fresh.dtype, fresh.device)  # noqa: E731
        if not isinstance(noise, Tensor) or not like(noise):
            got = f"{noise.dtype} {tuple(noise.shape)} on {noise.device}" if isinstance(noise, Tensor) else type(noise)
            raise RunFailed(f"{who} gave {got}; expected {fresh.dtype} {tuple(fresh.shape)} on {fresh.device}.")
        if not torch.isfinite(noise).all():
            raise RunFailed(f"{who} gave noise that is NaN or infinite.")
        return noise

    def _noise(
        self, policy: Policy, schedule: Schedule, settings: EvaluationSettings, pairs: Pairs, candidate: int
    ) -> Tensor:
        """All noise of one candidate ``[n, T + 1, C, h, w]``: the initial latents, then each step's."""
        axes = ("evaluation", settings.noise_bank)
        noise = Noise(axes if candidate == 0 else (*axes, "search", self.seed, candidate))
        names = [f"{prompt}\n{number}" for prompt, number in pairs]
        start = noise.initial(policy.latent_shape, names, 1, shared=False)
        return torch.cat([start, noise.steps(policy.latent_shape, names, 1, schedule.num_steps)[:, 0]], 1)

    def _draw(
        self, policy: Policy, schedule: Schedule, settings: EvaluationSettings, prompts: Sequence[str], noise: Tensor
    ) -> Tensor:
        drawn = replay(
            policy, schedule, prompts, noise[:, :1], noise[:, None, 1:], shared_start=False, micro_batch=len(prompts)
        )
        self.ledger.images += len(prompts)
        return policy.decode(drawn.latents[:, 0, -1] if settings.image == "sample" else drawn.x0[:, 0, -1])


def recorded_search(config: Mapping[str, Any], scorer: Scorer) -> Candidates:
    """The search of a run whose record says that it searches, from the record's configuration.

    Raises:
        UsageError: its method is not installed here.
    """
    found = find("methods", config["method"]["name"]).load()
    method = make_method(config["method"]["name"], found, config["method"]["settings"])
    assert isinstance(method, Search)
    return Candidates(method, scorer, config["seed"])


def candidates_of(method: Method, scorer: Scorer, seed: int) -> Candidates | None:
    """The search of a method that searches; ``None`` for one that trains."""
    return Candidates(method, scorer, seed) if isinstance(method, Search) else None
