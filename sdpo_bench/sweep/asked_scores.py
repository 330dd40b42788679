"""The scores that a job asks for, and whether its evaluation file has them.

How a run is judged is no part of its id. A finished run may have been judged for another suite, or for an earlier text
of this one: on other prompts, at other step counts, by other rewards or with another sampler. Nor is the version of a
held-out reward part of the id: scores by an earlier version are not the asked ones.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from sdpo_bench.config.resolve import Resolved
from sdpo_bench.config.sampler_id import sampler_id
from sdpo_bench.errors import SdpoBenchError
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.scoring.reward_expression import choose, same_reward
from sdpo_bench.scoring.weighted_sum import Basis
from sdpo_bench.statistics.eval_table import Block, PanelKey, Scores


@dataclass(frozen=True)
class AskedScores:
    """Every prompt at every step count with every image, by every reward."""

    sampler: str
    prompts: Mapping[str, tuple[str, ...]]
    """Sorted, by split."""
    steps: tuple[int, ...]
    images: tuple[int, ...]
    trained: str
    """The trained reward as results name it."""
    held_out: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    """Present version by reward. Of a reward that cannot be asked for it here, any version is taken."""

    def is_current(self, reward: str, version: str) -> bool:
        """Whether scores by this version of an asked reward may stand for it."""
        return self.versions.get(reward, version) == version

    def block(self, scores: Scores, split: str, reward: str, *, filed_as: str = "") -> tuple[PanelKey, Block] | None:
        """The asked scores ``[P, K, I]`` of a split by one reward; None where one of them is missing.

        Args:
            filed_as: the name that results give the reward, where it is another one.
        """
        for key, block in scores.blocks.items():
            named = (key.sampler, key.split, key.reward) == (self.sampler, split, filed_as or reward)
            if named and self.is_current(reward, key.version):
                part = block.part(self.prompts[split], self.images)
                if part is not None and set(self.steps) <= set(part.steps):
                    return key, part.restrict(self.steps, self.images)
        return None

    def missing(self, scores: Scores) -> str:
        """The first asked scores that are not there, in words; empty where all are."""
        for split in self.prompts:
            for reward in (self.trained, *self.held_out):
                if self.block(scores, split, reward):
                    continue
                name = served_name(reward)
                if not self.block(scores, split, reward, filed_as=name):
                    steps, images = ", ".join(map(str, self.steps)), len(self.images)
                    stale = {key.version for key in scores.blocks if (key.split, key.reward) == (split, name)}
                    version = self.versions.get(reward)
                    words = f"{reward} (version {version})" if stale and version not in {None, *stale} else reward
                    return f"it lacks scores by {words} on {split} prompts ({steps} steps, {images} images a prompt)"
        return ""


def asked_scores(resolved: Resolved) -> AskedScores:
    """What the configuration of a run asks for."""
    config = resolved.config
    named = {split: getattr(config.eval, split) for split in ("train", "validation", "unseen")}
    held_out = [choose(name).name for name in config.eval.rewards if not same_reward(name, config.reward.name)]
    basis = Basis(config.model, config.schedule, config.sample.prompts)
    return AskedScores(
        sampler_id(config.eval),
        {split: tuple(sorted(load_prompts(name))) for split, name in named.items() if name},
        config.eval.steps,
        tuple(range(config.eval.images_per_prompt)),
        resolved.reward_name,
        tuple(held_out),
        {
            resolved.reward_name: resolved.described.full_version,
            **_versions(held_out, basis, config.eval.images_per_prompt),
        },
    )


def _versions(rewards: Iterable[str], basis: Basis, pictures: int) -> dict[str, str]:
    """Version of each reward as an evaluation makes it; without those whose service or package is not here."""
    versions = {}
    for name in rewards:
        with suppress(SdpoBenchError):
            versions[name] = choose(name).make({}, basis=basis, pictures=pictures).full_version
    return versions


def served_name(reward: str) -> str:
    """The name under which results file a held-out reward that a service computes."""
    with suppress(SdpoBenchError):  # where no service answers, nothing can be scored either
        return choose(reward).make({}).filed_as or reward
    return reward
