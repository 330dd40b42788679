"""Scorers by name and settings: the one place where rewards become ready to score."""

from collections.abc import Sequence
from typing import Any

from sdpo_bench.errors import UsageError
from sdpo_bench.scoring.reward_expression import choose, same_reward
from sdpo_bench.scoring.score_cache import ScoreCache
from sdpo_bench.scoring.scorer import CompositeScorer, Scorer, supervise
from sdpo_bench.scoring.variety import FEWEST
from sdpo_bench.scoring.weighted_sum import Basis
from sdpo_bench.settings import RunConfig


def make_scorer(
    name: str,
    settings: dict[str, Any],
    device: str,
    basis: Basis | None = None,
    pictures: int = FEWEST,
    **options: Any,
) -> Scorer:
    """A reward, or a weighted sum, by name; settings are checked against its own class.

    Args:
        basis: what a weighted sum is standardised over.
        pictures: of each prompt that are judged.
        options: as for :class:`Scorer`.
    """
    choice = choose(name)
    return supervise(choice.name, choice.make(settings, device, basis, pictures), **options)


def make_scorers(
    rewards: Sequence[tuple[str, dict[str, Any]]], basis: Basis, device: str, pictures: int, timeout: float = 0
) -> list[Scorer]:
    """Scorers of rewards by name and settings, each version of a reward once; a weighted sum is followed by its parts.

    They share one cache, so that a part is not asked again for what it has just answered for the sum.

    Args:
        pictures: of each prompt that are judged.
    """
    cache, scorers = ScoreCache(), dict[tuple[str, str], Scorer]()
    for name, settings in rewards:
        scorer = make_scorer(name, settings, device, basis, pictures, cache=cache, timeout=timeout)
        parts = scorer.parts if isinstance(scorer, CompositeScorer) else []
        for one in [scorer, *parts]:
            scorers.setdefault((one.name, one.reward.full_version), one)
    return list(scorers.values())


def evaluation_scorers(config: RunConfig, device: str, timeout: float = 0) -> list[Scorer]:
    """The trained reward with its parts, then the held-out ones."""
    basis = Basis(config.model, config.schedule, config.sample.prompts)
    trained = config.reward.name
    held_out = [(name, dict[str, Any]()) for name in config.eval.rewards if not same_reward(name, trained)]
    rewards = [(trained, config.reward.settings), *held_out]
    return make_scorers(rewards, basis, device, config.eval.images_per_prompt, timeout)


def curve_scorers(config: RunConfig, evaluation: Sequence[Scorer], device: str, timeout: float = 0) -> list[Scorer]:
    """The trained reward, then the held-out ones of the learning curve.

    They have a cache of their own, so that a point of the curve changes no answer of another scorer.

    Args:
        evaluation: scorers of the evaluation, the trained reward first. Their rewards are used again where the curve
            names them; others are new and not loaded yet.
    """
    basis, cache = Basis(config.model, config.schedule, config.sample.prompts), ScoreCache()
    rewards = {evaluation[0].name: evaluation[0].reward}
    for name in config.eval.curve_rewards:
        known = [scorer for scorer in evaluation if same_reward(name, scorer.name)]
        if known:
            rewards.setdefault(known[0].name, known[0].reward)
        else:
            choice = choose(name)
            if choice.variety:
                raise UsageError(
                    f"eval.curve_rewards: '{name}' is measured in evaluations alone. Put it in eval.rewards."
                )
            rewards.setdefault(choice.name, choice.make({}, device, basis))
    return [supervise(name, reward, cache=cache, timeout=timeout) for name, reward in rewards.items()]
