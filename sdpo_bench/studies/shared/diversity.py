"""How different the pictures of one prompt are: sampled from every run of a study and compared in two spaces.

Mean distances cannot tell two clusters from an even spread; the Vendi score can.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sdpo_bench.runs.saved_adapter import load_adapter
from sdpo_bench.statistics.vendi import vendi_score
from sdpo_bench.studies.shared.contract import Bench

IMAGES = 4
"""Images of each prompt whose distances are measured."""


@dataclass(frozen=True)
class Spread:
    """Diversity of each prompt's pictures, ``[P]``: mean pairwise distance by space, Vendi score of the features."""

    latents: np.ndarray
    features: np.ndarray
    vendi: np.ndarray


def pairwise(latents: np.ndarray, features: np.ndarray) -> Spread:
    """Distances and Vendi score within prompts.

    Args:
        latents: ``[P, I, D]``; features: ``[P, I, F]``.
    """
    pairs = np.triu_indices(latents.shape[1], 1)
    gaps = latents[:, pairs[0]] - latents[:, pairs[1]]
    unit = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
    cosines = (unit[:, pairs[0]] * unit[:, pairs[1]]).sum(-1)
    return Spread(np.sqrt((gaps**2).mean(-1)).mean(1), 1 - cosines.mean(1), vendi_score(unit @ unit.swapaxes(1, 2)))


def measure_all(bench: Bench, steps: int) -> dict[str, Spread]:
    """Diversity of every usable run at ``steps`` denoising steps by run id, and of the base model under ``""``."""
    import torch

    from sdpo_bench.config.resolve import resolve
    from sdpo_bench.models.base_model import load_policy, pick_device

    usable = [run for run in bench.trainings.runs if not run.why_not]
    if not usable:
        return {}
    if bench.runtime.threads:
        torch.set_num_threads(bench.runtime.threads)
    config = resolve(usable[0].job.request).config
    policy = load_policy(config.model, device=pick_device(bench.runtime.device), lora_seed=0)
    policy.set_guidance(config.eval.guidance_scale)
    with policy.reference():
        by_run = {"": _measure(policy, config.eval, steps, bench.runtime.micro_batch)}
    for i, run in enumerate(usable):
        bench.say(f"measuring diversity, run {i + 1} of {len(usable)}")
        load_adapter(policy, run.folder.lora)
        by_run[run.job.run_id] = _measure(policy, config.eval, steps, bench.runtime.micro_batch)
    return by_run


def _measure(policy: Any, settings: Any, steps: int, micro_batch: int) -> Spread:
    import torch

    from sdpo_bench.evaluation.evaluate import evaluation_schedule
    from sdpo_bench.prompts.prompt_sets import load_prompts
    from sdpo_bench.rollout.sampling import Noise, sample

    prompts = sorted(load_prompts(settings.train))
    names = [f"{prompt}\n{i}" for prompt in prompts for i in range(IMAGES)]
    texts = [prompt for prompt in prompts for _ in range(IMAGES)]
    schedule = evaluation_schedule(policy, settings, steps)
    noise = Noise(("evaluation", settings.noise_bank))
    latents, _ = sample(policy, schedule, texts, noise, groups=names, micro_batch=micro_batch)
    with torch.no_grad():
        features = torch.cat([picture_features(policy.decode(part)) for part in latents.split(micro_batch)])
    shape = (len(prompts), IMAGES, -1)
    return pairwise(latents.double().cpu().reshape(shape).numpy(), features.double().cpu().reshape(shape).numpy())


def picture_features(images: Any) -> Any:
    """What the embedded accuracy network's heads read, ``[B, 192]``; no reward is trained with that network."""
    from sdpo_bench.scoring.emoji_scorer import load_scorer

    return load_scorer("accuracy", str(images.device)).features(images)
