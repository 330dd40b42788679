"""What the rewards of all denoising steps truly are: the trajectories that a request asks for, every step scored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdpo_bench.config.resolve import Request, Resolved, build_method, resolve
from sdpo_bench.errors import UsageError
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.studies.shared.contract import StudyRequest
from sdpo_bench.studies.shared.sampler_noise import kept_noise, sampler_words

MODELS = ("emoji-turbo", "emoji-flow")
"""A diffusion and a flow-matching model of the same prompts, noise and picture size."""
REWARDS = ("emoji-align", "emoji-style", "jpeg-compressibility")
STEPS = (5, 10, 20, 50)


@dataclass(frozen=True)
class Sampled:
    """Trajectories of one number of steps with the true reward of every step."""

    similarity: np.ndarray
    """``[n, T, T]``"""
    truth: Mapping[str, np.ndarray]
    """``[n, T]`` by reward."""
    seeds: np.ndarray
    """``[n]`` position of the seed."""
    prompts: np.ndarray
    """``[n]`` position of the prompt."""
    kept: np.ndarray
    """``[T - 1]`` share of the old noise that each step but the last keeps."""


def study_rewards(request: StudyRequest) -> tuple[str, ...]:
    return request.rewards or REWARDS


def study_steps(request: StudyRequest) -> tuple[int, ...]:
    given = request.overrides.get("schedule.steps")
    counts = tuple(int(n) for n in (str(given).split(",") if given else STEPS))
    if min(counts) < 3:
        raise UsageError("schedule.steps: with fewer than 3 steps every one is asked, so nothing is predicted.")
    return counts


def study_models(request: StudyRequest) -> tuple[str, ...]:
    """The model asked for; all of :data:`MODELS` where neither model, preset nor reward belongs to another one."""
    own = resolved_run(request, study_rewards(request)[0], study_steps(request)[0]).config.model.name
    if request.model or request.preset or own not in MODELS:
        return (own,)
    return MODELS


def resolved_run(request: StudyRequest, reward: str, steps: int) -> Resolved:
    overrides = {**request.overrides, "schedule.steps": steps}
    return resolve(Request("sdpo", reward, request.model or None, request.preset, 0, overrides))


def study_sampler(request: StudyRequest) -> str:
    """How the requested model is sampled, in words."""
    return sampler_words(resolved_run(request, study_rewards(request)[0], study_steps(request)[0]).config.schedule)


def study_prompts(request: StudyRequest) -> list[str]:
    """All training prompts, evenly thinned out below the default size."""
    config = resolved_run(request, study_rewards(request)[0], study_steps(request)[0]).config
    every = load_prompts(config.sample.prompts)
    count = min(len(every), max(4, round(len(every) * request.size)))
    return [every[i] for i in np.linspace(0, len(every) - 1, count).round().astype(int)]


def study_members(request: StudyRequest) -> int:
    return request.amount(2, least=2)


def sample_truth(request: StudyRequest, steps: int, runtime: Any) -> Sampled:
    """Sample the base model, decode every step's predicted original and score it by every reward."""
    import torch

    from sdpo_bench.config.training_schedule import training_schedule
    from sdpo_bench.models.base_model import load_policy, pick_device, scheduler_config
    from sdpo_bench.rollout.sampling import Noise, rollout
    from sdpo_bench.scoring.make_scorers import make_scorer

    resolved = resolved_run(request, study_rewards(request)[0], steps)
    config, device = resolved.config, pick_device(runtime.device)
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    policy = load_policy(config.model, device=device, lora_seed=0)
    schedule = training_schedule(config, scheduler_config(policy), build_method(config, resolved.method))
    scorers = [make_scorer(name, _own_settings(request, name, steps), device) for name in study_rewards(request)]
    prompts, members = study_prompts(request), study_members(request)
    latents, truth = [], {scorer.name: list[Any]() for scorer in scorers}
    for seed in request.chosen_seeds:
        found = rollout(
            policy,
            schedule,
            prompts,
            Noise((seed, "study", "reward-prediction")),
            groups=prompts,
            members=members,
            micro_batch=runtime.micro_batch,
        )
        latents.append(found.x0.flatten(3).flatten(0, 1).cpu())
        names = [prompt for prompt in prompts for _ in range(members * steps)]
        for part in torch.arange(len(names)).split(runtime.micro_batch):
            with torch.no_grad():
                images = policy.decode(found.x0.flatten(0, 2)[part])
            for scorer in scorers:
                truth[scorer.name].append(scorer(images, [names[i] for i in part.tolist()]))
    flat = torch.nn.functional.normalize(torch.cat(latents).double(), dim=-1)
    n_seeds, n_prompts = len(request.chosen_seeds), len(prompts)
    return Sampled(
        (flat @ flat.transpose(1, 2)).numpy(),
        {name: torch.cat(parts).view(-1, steps).double().numpy() for name, parts in truth.items()},
        np.repeat(np.arange(n_seeds), n_prompts * members),
        np.tile(np.repeat(np.arange(n_prompts), members), n_seeds),
        kept_noise(schedule),
    )


def _own_settings(request: StudyRequest, reward: str, steps: int) -> dict[str, Any]:
    return dict(resolved_run(request, reward, steps).config.reward.settings)
