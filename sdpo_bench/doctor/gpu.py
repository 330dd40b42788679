"""The first minutes of a run on a GPU, and whether the rest of it is worth its hours: go or no-go for each check.

The run's own code does everything, at the run's own settings, on fewer images. What it computes is thrown away.
"""

import gc
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import Tensor

from sdpo_bench.config.resolve import Request, Resolved, build_method, resolve
from sdpo_bench.config.training_schedule import training_schedule
from sdpo_bench.doctor.contract import Nonconforming, NotHere, require
from sdpo_bench.doctor.machine import device_text
from sdpo_bench.doctor.methods import adapter, make_trainer, same
from sdpo_bench.errors import MissingError, SdpoBenchError
from sdpo_bench.estimates import measure_speed, memory_estimate
from sdpo_bench.estimates.time_estimate import reward_keys, run_work, seconds
from sdpo_bench.evaluation.evaluate import evaluation_schedule, splits
from sdpo_bench.evaluation.mean_scores import evaluation_guidance, mean_scores
from sdpo_bench.ledger import Ledger
from sdpo_bench.models.base_model import load_policy, pick_device, scheduler_config, set_float32_products
from sdpo_bench.models.policy import Policy, Precision
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.results.published_numbers import BASE, paper
from sdpo_bench.rollout.replay_step import step_pass
from sdpo_bench.rollout.sampling import Noise, Trajectories, rollout
from sdpo_bench.rollout.schedule import Schedule
from sdpo_bench.scoring.make_scorers import evaluation_scorers
from sdpo_bench.scoring.scorer import Scorer
from sdpo_bench.seeds import seed_for
from sdpo_bench.settings import DEFAULT_MODEL, BudgetSettings, Runtime
from sdpo_bench.system.console_text import duration, gigabytes
from sdpo_bench.system.distributed import ALONE
from sdpo_bench.system.memory_retry import is_out_of_memory
from sdpo_bench.training import collapse_guards
from sdpo_bench.training.loss_scale import INITIAL, SMALLEST

LEAST_COSINE = 0.99
"""Of the gradient in the run's precision with that in float32."""
COMPARED_STEPS = 4
"""Denoising steps whose log-probabilities that gradient is of."""
BASE_STEPS = (1, 4)
"""Numbers of steps at which the base model is scored."""


@dataclass(frozen=True)
class Verdict:
    """Outcome of one check, with its reason."""

    name: str
    state: Literal["go", "no-go", "skipped"]
    text: str


def find_gpu(device: str) -> str:
    """The device of this name.

    Raises:
        MissingError: it is not here, or ``auto`` finds no GPU.
    """
    found = pick_device(device)
    if device == "auto" and found == "cpu":
        raise MissingError(
            "no GPU is here. Without one, the same checks of a small model: "
            f"sdpo-bench doctor --gpu --device cpu --model {DEFAULT_MODEL}"
        )
    return found


def configuration(model: str | None, overrides: dict[str, Any]) -> Resolved:
    """The run to check: the published one, or the default run of another model."""
    published = paper()[0]
    if model in (None, published.model):
        return resolve(Request(reward=published.reward, model=published.model, overrides=overrides))
    return resolve(Request(model=model, overrides=overrides))


class Rehearsal:
    """The beginning of one run on one device."""

    def __init__(self, resolved: Resolved, device: str, micro_batch: int):
        self.resolved, self.config, self.device, self.micro_batch = resolved, resolved.config, device, micro_batch
        self.row: dict[str, Any] | None = None
        """Log line of the epoch of :meth:`update`."""
        self.warned: dict[str, str] = {}
        """What guards said of that epoch, by guard."""

    def verdicts(self) -> Iterator[Verdict]:
        """All checks, as they are done."""
        checks: dict[str, Callable[[], str]] = {
            "device": lambda: device_text(self.device),
            "memory by the estimate": self.estimate,
            "speed": self.speed,
            "base score": self.base_score,
            "gradient": self.gradient,
            "update": self.update,
            "importance ratio": self.ratio,
            "peak memory": self.peak,
        }
        for name, check in checks.items():
            yield self._judge(name, check)

    def _judge(self, name: str, check: Callable[[], str]) -> Verdict:
        try:
            return Verdict(name, "go", check())
        except NotHere as reason:
            return Verdict(name, "skipped", str(reason))
        except (Nonconforming, SdpoBenchError) as reason:
            return Verdict(name, "no-go", str(reason))
        except Exception as error:  # drivers and kernels raise anything, and that is a finding
            first_line, *_ = [*str(error).splitlines(), ""]
            text = f"{type(error).__name__}: {first_line}"
            if is_out_of_memory(error):
                text = f"out of memory; use --micro-batch {max(1, self.micro_batch // 2)}"
            return Verdict(name, "no-go", text)

    # -- what the checks share -------------------------------------------------------------------------------

    @cached_property
    def policy(self) -> Policy:
        """The base model with the run's fresh adapter."""
        return self._load(self.config.model.precision)

    def _load(self, precision: Precision) -> Policy:
        model = replace(self.config.model, precision=precision)
        policy = load_policy(model, device=self.device, lora_seed=seed_for(self.config.seed, "lora"))
        policy.guidance_gradient = self.config.update.guidance_gradient
        return policy

    @cached_property
    def scorer(self) -> Scorer:
        """The trained reward, loaded."""
        scorer = evaluation_scorers(self.config, self.device)[0]
        scorer.load()
        return scorer

    @cached_property
    def short(self) -> Resolved:
        """The run with one epoch, as small as its largest denoiser calls allow."""
        config = self.config
        members = build_method(config, self.resolved.method).members
        images = members * max(config.update.minibatch, -(-self.micro_batch // members))
        images = min(images, config.sample.images_per_epoch)
        sample = replace(config.sample, images_per_epoch=images)
        config = replace(config, sample=sample, budget=BudgetSettings("images", images), checkpoint=None)
        return replace(self.resolved, config=config)

    # -- checks: each returns what it saw, or raises what is wrong with it ------------------------------------

    def estimate(self) -> str:
        needed = memory_estimate.estimate(self.config, self.micro_batch, self.device)
        if needed is None:
            raise NotHere("the model's architecture is not known before it is loaded")
        free = memory_estimate.available_bytes(self.device)
        warning = memory_estimate.check(needed, free, self.config.model)
        require(warning is None, str(warning))
        text = gigabytes
        return f"{text(needed.total)} with --micro-batch {self.micro_batch}, of {text(free)} free"

    def speed(self) -> str:
        rewards = [json.loads(key) for key in sorted(reward_keys(self.resolved)[1])]
        rates = measure_speed.measure(self.config.model, rewards, self.device, self.micro_batch)
        time = duration(seconds(self.resolved, run_work(self.resolved), rates))
        return (
            f"{1000 * rates.forward:.3g} ms a denoiser call of one latent in {self.config.model.precision}, "
            f"{1000 * rates.train:.3g} ms with its gradient: {time} for the whole run"
        )

    def base_score(self) -> str:
        """The model before training, one picture a prompt, beside the published score where there is one."""
        settings = self.config.eval
        split, prompts = next(iter(splits(settings).items()))
        pairs, scorers = [(prompt, 0) for prompt in prompts], [self.scorer]
        mine = (self.config.model.name, self.config.reward.name, split)
        published = next((p for p in paper() if (p.model, p.reward, p.split) == mine and p.agreement), None)
        rows = dict(zip(published.steps, zip(published.scores[BASE], published.agreement))) if published else {}
        texts, far = [], False
        with self.policy.reference(), evaluation_guidance(self.policy, settings):
            for steps in BASE_STEPS:
                schedule = evaluation_schedule(self.policy, settings, steps)
                (own,) = mean_scores(self.policy, schedule, settings, scorers, pairs, self.micro_batch, ALONE)
                texts.append(f"{own:.2f} at {steps} steps")
                if published:
                    score, tolerance = rows[steps]
                    texts[-1] += f" (published {score:.2f}, tolerance {tolerance:g})"
                    far = far or abs(own - score) > tolerance
        require(not far, ", ".join(texts))
        if not published:
            raise NotHere(f"{', '.join(texts)}; nothing is published of this model and reward")
        return ", ".join(texts)

    def gradient(self) -> str:
        """Of the log-probabilities of one group, in the run's precision and in float32."""
        precision = self.config.model.precision
        if precision == "fp32":
            raise NotHere("the run computes in float32 itself")
        method = build_method(self.config, self.resolved.method)
        schedule = training_schedule(self.config, scheduler_config(self.policy), method)
        prompts = load_prompts(self.config.sample.prompts)[:1]
        members, shared, noise = method.members, method.shared_noise, Noise(("doctor",))
        trajectories = rollout(self.policy, schedule, prompts, noise, groups=[0], members=members, shared_noise=shared)
        mine, slopes = adapter_gradient(self.policy, schedule, trajectories)
        exact = self._load("fp32")
        trajectories = replace(trajectories, conditioning=exact.encode(prompts))
        theirs, _ = adapter_gradient(exact, schedule, trajectories, slopes)
        set_float32_products(precision, self.device)  # loading has set those of float32
        cosine = float(torch.nn.functional.cosine_similarity(mine, theirs, dim=0))
        text = f"cosine of {precision} with float32 {cosine:.4f} (at least {LEAST_COSINE:g})"
        require(cosine >= LEAST_COSINE, text)
        return text

    def update(self) -> str:
        """An epoch of few images by the run's own trainer."""
        if self.device.startswith("cuda"):
            gc.collect()  # the model in float32
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        before = adapter(self.policy)
        with tempfile.TemporaryDirectory() as folder:
            runtime = Runtime(out=Path(folder), device=self.device, micro_batch=self.micro_batch)
            reward = self.scorer.reward
            trainer = make_trainer(self.short, Path(folder), policy=self.policy, reward=reward, runtime=runtime)
            trainer.train()
            (self.row,) = trainer.run.log()
            (timing,) = trainer.run.log("timing.jsonl")
            self.warned = {warned.guard: warned.text for warned in collapse_guards.warnings(trainer.run)}
        after = adapter(self.policy)
        require(all(bool(torch.isfinite(value).all()) for value in after.values()), "adapter weights are not finite")
        require(
            not same(before, after), f"no adapter weight changed; skipped steps: {self.row.get('skipped_steps', 0)}"
        )
        others = [text for guard, text in self.warned.items() if guard not in ("ratio_at_start", "memory")]
        require(not others, "; ".join(others))
        bill = self.row["bill"]
        return (
            f"{bill['optimiser_steps']} optimiser steps on {bill['images']} images in {duration(timing['seconds'])}, "
            f"loss {self.row['loss']:.3g}, mean gradient norm {self.row['grad_norm']:.3g}, all finite"
        )

    def ratio(self) -> str:
        """Sampling and training must agree on the log-probabilities before the weights have moved."""
        if self.row is None:
            raise NotHere("no epoch was finished")
        gap, limit = self.row["ratio_at_zero_update"], self.config.guard.ratio_at_start
        text = f"off 1 by {gap:.2g} before the first update (guard.ratio_at_start = {limit:g})"
        require(gap < limit, text)
        return text if gap else "exactly 1 before the first update"

    def peak(self) -> str:
        """What the epoch took, and the trajectories that the run's larger epochs add."""
        if self.row is None:
            raise NotHere("no epoch was finished")
        require("memory" not in self.warned, self.warned.get("memory", ""))
        used, total = peak_bytes(self.device)
        expected = used
        whole, short = (memory_estimate.estimate(r.config, 1, self.device) for r in (self.resolved, self.short))
        if whole and short:
            expected += whole.fixed["trajectories of an epoch"] - short.fixed["trajectories of an epoch"]
        texts = [gigabytes(size) for size in (used, expected, total)]
        text = "{} here, {} in a whole epoch, of {}".format(*texts)
        require(expected <= total, text)
        return text


def adapter_gradient(
    policy: Policy, schedule: Schedule, trajectories: Trajectories, slopes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradient of the adapter, flat, of the log-probabilities of one group at some of its steps.

    Every second member's sign is turned, as a comparison of two images does.

    Args:
        slopes: of the loss by the denoiser's outputs; those of the log-probabilities if not given. Two precisions
            need the same ones: a log-probability of one is no log-probability of the other's samples.

    Returns:
        The gradient, and ``slopes``.
    """
    trained, lora = schedule.decision_steps(), list(policy.lora_parameters().values())
    steps = trained[torch.linspace(0, len(trained) - 1, min(COMPARED_STEPS, len(trained))).long()]
    scale = INITIAL if policy.dtype == torch.float16 else SMALLEST
    while True:
        now = step_pass(policy, schedule, trajectories, torch.zeros_like(steps), steps, Ledger(), with_kl=False)
        if slopes is None:
            signs = 1 - 2 * (torch.arange(now.log_probs.shape[1], device=policy.device) % 2)
            (slopes,) = torch.autograd.grad((now.log_probs * signs).sum(), now.output, retain_graph=True)
        found = torch.autograd.grad(now.output, lora, scale * slopes, allow_unused=True)
        flat = torch.cat([value.double().flatten() for value in found if value is not None]).cpu()
        if bool(torch.isfinite(flat).all()) or scale == SMALLEST:
            return flat, slopes
        scale /= 2  # as the training does


def peak_bytes(device: str) -> tuple[float, float]:
    """Most memory that torch has held on a CUDA device, and the device's; elsewhere this process's now, and all."""
    if device.startswith("cuda"):
        return float(torch.cuda.max_memory_reserved(device)), float(torch.cuda.mem_get_info(device)[1])
    return float(psutil.Process().memory_info().rss), float(psutil.virtual_memory().total)
