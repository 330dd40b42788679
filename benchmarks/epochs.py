"""What the speed and memory measurements share: a 13 M-parameter pipeline, one epoch of a run, and its floor.

The floor of an epoch is the calls it made, and nothing else: the same UNet forward (and backward) passes, decodings and
reward calls on tensors of the same shapes. It is recorded from a real epoch, put together to the largest batches that
give the same gradients, and replayed without the harness.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

UNET_13M = {
    "block_out_channels": [64, 128, 256],
    "layers_per_block": 1,
    "cross_attention_dim": 256,
    "sample_size": 32,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 8,
}
VAE = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "latent_channels": 4,
    "sample_size": 64,
}
TEXT = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "projection_dim": 256,
    "vocab_size": 518,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
}


def pipeline_13m(folder: Path) -> Path:
    """A random Stable Diffusion pipeline: UNet of 12.8 M parameters, latents of 32 x 32, pictures of 64 x 64."""
    from tools.random_pipeline import NOISE, write_pipeline

    scheduler = {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"} | NOISE
    parts = {"unet": UNET_13M, "vae": VAE, "text_encoder": TEXT, "scheduler": scheduler}
    return write_pipeline(parts, folder)


def make_trainer(
    model: str,
    method: str,
    out: Path,
    *,
    steps: int | None = None,
    pairs: int | None = None,
    reward: str = "jpeg-incompressibility",
    runtime: dict[str, Any] | None = None,
    policy: Any = None,
    watch: Callable[[Any], None] = lambda tick: None,
    **settings: Any,
) -> Any:
    """A trainer whose epoch has ``2 * pairs`` images at ``steps`` denoising steps; ``None``: as the preset has it.

    Args:
        policy: the model with an adapter; loaded from ``model`` if not given.
        watch: called with a tick now and then.
    """
    from sdpo_bench.config.resolve import Request, build_method, resolve
    from sdpo_bench.models.base_model import load_policy
    from sdpo_bench.runs.run_folder import RunFolder
    from sdpo_bench.scoring.make_scorers import make_scorer
    from sdpo_bench.scoring.scorer import supervise
    from sdpo_bench.seeds import seed_for
    from sdpo_bench.settings import Runtime
    from sdpo_bench.training.loop import Trainer, run_context

    overrides: dict[str, Any] = {"budget.images": 10**6}
    if steps is not None and pairs is not None:
        overrides |= {"schedule.steps": steps, "sample.images_per_epoch": 2 * pairs}
        overrides |= {"update.minibatch": 4, "update.accumulation": 1}
    overrides |= settings
    resolved = resolve(Request(method=method, model=model, reward=reward, overrides=overrides))
    config = resolved.config
    run = RunFolder(out / "runs" / resolved.run_id)
    run.create({"kind": "run", "config": resolved.data})
    how = Runtime(**{"out": out, "device": "cpu", "threads": 1} | (runtime or {}))
    if policy is None:
        policy = load_policy(config.model, device=how.device, lora_seed=seed_for(config.seed, "lora"))
    scorer = make_scorer(config.reward.name, config.reward.settings, how.device)
    scorer.load()
    context = run_context(config, how, policy, build_method(config, resolved.method))
    billed = supervise(config.reward.name, scorer.reward, context.ledger)
    trainer: Any = Trainer(context, config, run, billed, watch)
    policy.on_call = trainer.ledger.charge_call
    trainer.resolved = resolved
    return trainer


def epoch(trainer: Any) -> None:
    """One epoch as ``train()`` does it."""
    groups = trainer.groups_per_epoch
    trainer._epoch(groups, groups, time.monotonic())


@dataclass(frozen=True)
class Call:
    """One call of a network or of the reward, with what it was given."""

    kind: str
    arguments: tuple[Any, ...]
    differentiated: bool = False
    adapter: bool = True
    waits: bool = False
    """Whether it needs the answer of the call before it, as in sampling, in the completions of a dense reward, in a
    chain of differentiated steps and after an optimiser step."""


def record(trainer: Any) -> list[Call]:
    """Do an epoch and return its calls."""
    calls: list[Call] = []
    stepped = False
    step = trainer.updater.optimiser.step

    def watched_step() -> None:
        nonlocal stepped
        step()
        stepped = True

    policy, scorer = trainer.policy, trainer.scorer
    call, decode = policy._call, policy.decode
    reward, differentiable = scorer._call, scorer.differentiable

    def watched_call(latents: Any, timesteps: Any, arguments: Any) -> Any:
        off = any(getattr(m, "disable_adapters", False) is True for m in policy.denoiser.modules())
        nonlocal stepped
        waits = stepped or latents.requires_grad or trainer.ledger.phase in ("rollout", "reward")
        stepped = False
        inputs = latents.detach(), timesteps, arguments
        calls.append(Call("unet", inputs, torch.is_grad_enabled(), not off, waits))
        return call(latents, timesteps, arguments)

    def watched_decode(latents: Any) -> Any:
        calls.append(Call("decode", (latents.detach(),), latents.requires_grad))
        return decode(latents)

    def watched_reward(images: Any, prompts: Any) -> Any:
        calls.append(Call("reward", (images, prompts)))
        return reward(images, prompts)

    def watched_gradient(images: Any, prompts: Any) -> Any:
        calls.append(Call("reward", (images.detach(), prompts), True))
        return differentiable(images, prompts)

    policy._call, policy.decode = watched_call, watched_decode
    scorer._call, scorer.differentiable = watched_reward, watched_gradient
    trainer.updater.optimiser.step = watched_step
    try:
        epoch(trainer)
    finally:
        policy._call, policy.decode = call, decode
        scorer._call, scorer.differentiable = reward, differentiable
        trainer.updater.optimiser.step = step
    return calls


def largest_batches(calls: list[Call], micro_batch: int) -> list[Call]:
    """The same UNet calls in as few batches of at most ``micro_batch`` latents as give the same gradients.

    Between two calls that have to wait, those of one kind share a batch, whatever the order in which they were made.
    """
    found: list[Call] = []
    stretch: dict[tuple[bool, bool], list[Call]] = {}

    def close() -> None:
        for alike in stretch.values():
            found.extend(_joined(alike, micro_batch))
        stretch.clear()

    for call in calls:
        if call.kind != "unet":
            found.append(call)
            continue
        if call.waits:
            close()
        stretch.setdefault((call.differentiated, call.adapter), []).append(call)
    close()
    return found


def _joined(calls: list[Call], micro_batch: int) -> list[Call]:
    latents, timesteps = (torch.cat([call.arguments[i] for call in calls]) for i in (0, 1))
    named = {k: torch.cat([call.arguments[2][k] for call in calls]) for k in calls[0].arguments[2]}
    count = -(-len(latents) // micro_batch)
    pieces = torch.arange(len(latents)).tensor_split(count)
    return [
        Call("unet", (latents[p], timesteps[p], {k: v[p] for k, v in named.items()}), c.differentiated, c.adapter)
        for p, c in zip(pieces, calls[:1] * count)
    ]


def replay(trainer: Any, calls: list[Call]) -> None:
    """The calls alone."""
    unet, vae, reward = trainer.policy.denoiser, trainer.policy.vae, trainer.scorer.reward
    for call in calls:
        with trainer.policy.reference() if not call.adapter else nullcontext():
            if call.kind == "unet":
                latents, timesteps, arguments = call.arguments
                with torch.set_grad_enabled(call.differentiated):
                    output = unet(latents, timesteps, return_dict=False, **arguments)[0]
                if call.differentiated:
                    output.backward(torch.ones_like(output))
            elif call.kind == "encode":
                encode_alone(trainer.policy.pipeline, *call.arguments)
            else:
                latents, *others = call.arguments
                given = latents.detach().requires_grad_(call.differentiated)
                with torch.set_grad_enabled(call.differentiated):
                    found = vae.decode(given).sample if call.kind == "decode" else reward(given, *others)
                if call.differentiated:
                    found.sum().backward()
    trainer.policy.denoiser.zero_grad(set_to_none=True)


@torch.no_grad()
def encode_alone(pipeline: Any, prompt: str) -> None:
    """One prompt through the text encoder."""
    pipeline.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU time of this process, all threads: what a shared machine disturbs least."""
    start = time.process_time()
    work()
    return time.process_time() - start


def alternate(ours: Callable[[], Any], other: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """CPU seconds of both in turn, each going first half of the times, and the ratio of their medians."""
    from statistics import median

    times: dict[str, list[float]] = {"ours": [], "other": []}
    for turn in range(repeats):
        both = [("ours", ours), ("other", other)]
        for name, work in both if turn % 2 == 0 else both[::-1]:
            times[name].append(round(cpu_seconds(work), 3))
    ratios = [a / b for a, b in zip(times["ours"], times["other"])]
    ratio = median(times["ours"]) / median(times["other"])
    return times | {"ratio": round(ratio, 3), "ratios": [round(r, 3) for r in ratios]}
