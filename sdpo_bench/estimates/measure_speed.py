"""A short measurement of how fast this machine is: seconds per denoiser call, decoded image, reward and update.

``python -m sdpo_bench.estimates.measure_speed`` reads what to measure as JSON and writes the rates as JSON, so that
planning needs no torch. Several calls each, the fastest counts: the first one warms up, and others share the machine.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from sdpo_bench.errors import SdpoBenchError
from sdpo_bench.estimates.time_estimate import Rates, is_guided, single_key
from sdpo_bench.models.base_model import load_policy, pick_device
from sdpo_bench.models.policy import Policy
from sdpo_bench.plugins.parse_settings import validate
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.scoring.make_scorers import make_scorer
from sdpo_bench.settings import ModelSettings

BATCH = 32


def measure(settings: ModelSettings, rewards: list[tuple[str, dict[str, Any]]], device: str, micro_batch: int) -> Rates:
    """Rates of one base model and some single rewards, given by name and settings.

    Raises:
        MissingError: weights or a device that are not here.
    """
    device = pick_device(device)
    scorers = {single_key(name, own): make_scorer(name, own, device) for name, own in rewards}
    for scorer in scorers.values():
        scorer.load()
    policy = load_policy(settings, device=device, lora_seed=0)
    batch = min(BATCH, micro_batch)
    texts = (load_prompts("simple-animals") * batch)[:batch]
    latents = torch.randn(batch, *policy.latent_shape, generator=torch.Generator().manual_seed(0)).to(policy.device)
    timesteps = torch.full((batch,), 499)
    conditioning = policy.encode(texts)

    def predict() -> torch.Tensor:
        return policy.predict(latents, timesteps, conditioning)

    branches = 2 if is_guided(settings) else 1
    with torch.no_grad():
        forward = fastest(predict, policy)
        images = policy.decode(latents)
        decode = fastest(lambda: policy.decode(latents), policy)
    train = fastest(lambda: predict().float().pow(2).mean().backward(), policy)
    scored = {key: fastest(partial(scorer, images, texts), policy) / batch for key, scorer in scorers.items()}
    calls = batch * branches
    return Rates(forward / calls, train / calls, decode / batch, _optimiser_seconds(policy), scored)


def _optimiser_seconds(policy: Policy) -> float:
    parameters = list(policy.lora_parameters().values())
    optimiser = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()

    return fastest(step, policy)


def fastest(work: Callable[[], Any], policy: Policy) -> float:
    """Seconds of the fastest of five calls."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        work()
        if str(policy.device).startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    request = json.load(sys.stdin)
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    answers: dict[str, Any] = {}
    for model in request["models"]:
        try:
            settings = validate(ModelSettings, model["settings"], "model")
            rates = measure(settings, model["rewards"], request["device"], request["micro_batch"])
            answers[model["key"]] = {"rates": asdict(rates)}
        except SdpoBenchError as error:
            answers[model["key"]] = {"error": str(error)}
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
