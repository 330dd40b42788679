"""Gradient updates from one epoch's trajectories: exact gradients in little memory, and what gets logged.

A method's loss sees a minibatch of log-probabilities and nothing else. This module recomputes them with the current
policy, one denoising step's graph at a time even for losses over whole trajectories, and steps the optimiser in the
order the settings ask for. Log-ratios carry the step weight here, so that no method needs to know about it.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdpo_bench.advantages.experience import Experience, UpdateLog, take
from sdpo_bench.advantages.run_context import RunContext
from sdpo_bench.api import Loss, Minibatch
from sdpo_bench.errors import RunFailed
from sdpo_bench.plugins.call import plugin_code
from sdpo_bench.rollout.replay_step import StepPass, step_pass
from sdpo_bench.rollout.sampling import Trajectories
from sdpo_bench.rollout.schedule import Schedule
from sdpo_bench.scoring.scorer import Scorer
from sdpo_bench.settings import EmaSettings, UpdateSettings
from sdpo_bench.training import likelihood_free
from sdpo_bench.training.critic import every_value, seeded_critic, state_values
from sdpo_bench.training.followers import Followers
from sdpo_bench.training.loss_scale import loss_scale
from sdpo_bench.training.method_loss import HINT, ask_loss, numbers
from sdpo_bench.training.shared_calls import call_size, calls, even_split, together
from sdpo_bench.training.update_order import Order, Task, part_of, windows

CRITIC = "critic/"


class Updater:
    """Turns experience into optimiser steps on the LoRA weights.

    Args:
        weights: ``[T]``, weight of each denoising step in the present epoch.
        scorer: the trained reward, for methods that follow its gradient.
        seed: the run's seed, for the critic.
        ema: of the moving average; None: none is kept.
    """

    def __init__(
        self,
        context: RunContext,
        settings: UpdateSettings,
        weights: Tensor,
        scorer: Scorer | None = None,
        seed: int = 0,
        ema: EmaSettings | None = None,
    ):
        self.context, self.settings, self.weights, self.scorer = context, settings, weights, scorer
        self.policy, self.method, self.ledger = context.policy, context.method, context.ledger
        policy, method = context.policy, context.method
        lora = policy.lora_parameters()
        groups: list[dict[str, Any]] = [{"params": list(lora.values())}]
        self.critic, learnt = None, dict[str, torch.nn.Parameter]()
        if critic := seeded_critic(method, policy, context.schedule.num_steps, seed):
            self.critic = critic.network
            learnt = {CRITIC + name: p for name, p in critic.network.named_parameters()}
            groups.append({"params": list(learnt.values()), "lr": critic.lr})
        self.parameters = lora | learnt
        """Everything that learns, by name: the adapter's weights, then the critic's (prefix :data:`CRITIC`)."""
        self.optimiser = torch.optim.AdamW(
            groups,
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            eps=settings.epsilon,
            fused=policy.device.type in ("cpu", "cuda"),
        )
        self.scale = loss_scale(policy.dtype, policy.device)
        self.followers = Followers(policy, method, ema)

    @property
    def schedule(self) -> Schedule:
        """Denoising steps of the present epoch."""
        return self.context.schedule

    @property
    def buffers(self) -> dict[str, Tensor]:
        """What the critic keeps besides its weights (running means, counters), by name (prefix :data:`CRITIC`)."""
        return {CRITIC + name: value for name, value in self.critic.named_buffers()} if self.critic else {}

    def fingerprint(self) -> str:
        """Hash of everything that learns or is kept, to tell whether processes still agree."""
        found = hashlib.blake2b(digest_size=8)
        for value in (*self.parameters.values(), *self.buffers.values(), *self.followers.named().values()):
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()

    def inner_epoch(
        self,
        experience: Experience,
        order: Order,
        log: UpdateLog,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int], None] | None = None,
    ) -> bool:
        """One pass over the experience; returns whether ``stop`` (asked before every optimiser step) ended it early.

        Raises:
            RunFailed: a loss or gradient that is not finite; the weights are then still those of the step before.
        """
        for window in windows(order, self.settings, self.method.granularity):
            if stop():
                return True
            fresh, measured = not log.grad_norms, log.grad_square.clone()
            self._accumulate(experience, window, log, fresh, progress)
            self.context.processes.sum_gradients(self.parameters.values())
            if not self._optimiser_step(log):
                log.grad_square = measured  # its gradients may be infinite
        return False

    def _optimiser_step(self, log: UpdateLog) -> bool:
        """Clip and step; returns False for a step skipped because fp16 gradients overflowed. The ledger counts both."""
        self.scale.unscale(self.optimiser)
        # The critic is clipped by itself, so that its errors do not decide how far the policy moves.
        norms = [
            float(torch.nn.utils.clip_grad_norm_(group["params"], self.settings.max_grad_norm))
            for group in self.optimiser.param_groups
        ]
        bad = [norm for norm in norms if not math.isfinite(norm)]
        if not bad:
            self.optimiser.step()
            self.followers.after_update()
        self.optimiser.zero_grad(set_to_none=True)
        used, can_go_on = self.scale.factor, self.scale.update()
        log.loss_scale = self.scale.factor
        if bad and not can_go_on:
            raise RunFailed(
                f"the gradient norm is {bad[0]} at optimiser step {self.ledger.optimiser_steps}{_at(used)}."
            )
        self.ledger.optimiser_steps += 1
        if bad:
            log.skipped_steps += 1
        else:
            log.grad_norms.append(norms[0])
        return not bad

    def _accumulate(
        self,
        experience: Experience,
        window: list[Task],
        log: UpdateLog,
        fresh: bool,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Accumulate the gradient of one optimiser step; minibatches that are small share their denoiser calls."""
        members = experience.trajectories.latents.shape[1]
        most = max(1, self.context.micro_batch.size // members)
        parts = self._parts(experience, window, most)
        size = call_size(parts, most, self.policy.latent_shape, members)
        for call in calls(parts, size, experience.trajectories.num_steps, self.method):
            if self.method.signal == "gradient" or self.method.granularity in ("noised", "sample"):
                self._backward_without_log_probs(experience, call, log, fresh)
            elif self.method.granularity == "step":
                self._backward_steps(experience, call, log, fresh)
            else:
                self._backward_trajectories(experience, call, size, log, fresh)
            if progress is not None:
                progress(sum(len(part.groups) for part in call))

    def _parts(self, experience: Experience, window: list[Task], most: int) -> list[Task]:
        """This process's minibatches of one optimiser step, in parts of at most ``most`` groups that a loss sees."""
        parts = []
        for task in window:
            mine = task if experience.rows is None else part_of(task, experience.rows)
            if self.method.granularity == "step" and len(mine.groups):
                mine = self._without_idle_steps(mine)
            for rows in torch.arange(len(mine.groups)).split(most) if len(mine.groups) else ():
                share = mine.share * len(rows) / len(mine.groups)
                parts.append(Task(mine.groups[rows], mine.steps[rows], share))
        return parts

    def _without_idle_steps(self, task: Task) -> Task:
        """Leave out groups whose step has weight 0: such a step is not trained, also not by a KL penalty."""
        active = self.weights[task.steps[:, 0]] > 0
        if active.all():
            return task
        return Task(task.groups[active], task.steps[active], task.share * active.float().mean().item())

    def _backward_steps(self, experience: Experience, parts: list[Task], log: UpdateLog, fresh: bool) -> None:
        """Gradient of the losses of several minibatches, each at one step a group, from one denoiser call."""
        task = together(parts)
        now = self._pass(experience.trajectories, task.groups, task.steps[:, 0])
        current = {name: value[..., None] for name, value in now.differentiable.items()}
        self._differentiate(self._losses(experience, parts, current, log, fresh))
        self._record_gradient(now.output, now.output_steps, log)
        self._record_ratio(experience, task, now.log_probs.detach()[..., None], log, fresh)

    def _backward_without_log_probs(
        self, experience: Experience, parts: list[Task], log: UpdateLog, fresh: bool
    ) -> None:
        """Gradient of losses that see no log-probability: of noised samples, final latents or rewards."""
        by_gradient = self.method.signal == "gradient"
        if by_gradient:
            assert self.scorer is not None
            found = likelihood_free.reward_minibatch(self.context, self.scorer, experience, parts[0])
            log.rewards.append(found.batches[0].final_rewards.detach().cpu())
        elif self.method.granularity == "noised":
            old = self.followers.old.weights if self.followers.old else None
            found = likelihood_free.noised_minibatches(self.context, experience, parts, old)
        else:
            found = likelihood_free.sample_minibatch(self.context, self.scorer, experience, parts[0])
        losses = []
        for batch, part in zip(found.batches, parts, strict=True):
            loss = self._checked(ask_loss(self.method, batch), batch, log, fresh and by_gradient)
            losses.append(loss * part.share)
        self._differentiate(losses[0] if len(losses) == 1 else torch.stack(losses).sum())
        for output, steps in found.outputs:
            self._record_gradient(output, steps, log)

    def _backward_trajectories(
        self, experience: Experience, parts: list[Task], size: int, log: UpdateLog, fresh: bool
    ) -> None:
        """Exact gradient of losses over all steps with one call's graph in memory, ``size`` groups at one step each.

        First all log-probabilities without gradients, then ``d loss / d log_prob`` of each, then every step again
        with its graph and that coefficient (chain rule). A step of weight 0 is not computed at all: a loss sees the
        policy that sampled there.
        """
        trajectories, num_steps = experience.trajectories, experience.trajectories.num_steps
        parts = [replace(part, steps=torch.arange(num_steps).expand(len(part.groups), -1)) for part in parts]
        task = together(parts)
        groups, steps = task.groups.repeat(num_steps), task.steps.T.flatten()
        # By the step's weight, not by whether its slopes happen to be zero: a bill must not depend on the batch.
        # Nor on the size of a call, which memory limits: so the last call's graph is not kept for the second pass.
        trained = (self.weights[steps] > 0).nonzero()[:, 0]
        with torch.no_grad():
            passes = [self._pass(trajectories, groups[e], steps[e]) for e in even_split(trained, size)]
        sampled = take(trajectories.log_probs, task.groups, task.steps)
        leaves = {}
        for name in passes[0].differentiable:
            values = torch.cat([now.differentiable[name] for now in passes])
            idle = sampled if name == "log_probs" else torch.zeros_like(sampled)
            leaves[name] = _leaf(idle.to(values), trained, values)
        self._differentiate(self._losses(experience, parts, leaves, log, fresh))
        slopes = {name: _rows(leaf.grad) for name, leaf in leaves.items() if leaf.grad is not None}
        for e in even_split(trained, size):
            now = self._pass(trajectories, groups[e], steps[e])
            torch.autograd.backward([getattr(now, name) for name in slopes], [slope[e] for slope in slopes.values()])
            self._record_gradient(now.output, now.output_steps, log)
        active = self.weights > 0
        shown = replace(task, steps=task.steps[:, active])
        self._record_ratio(experience, shown, leaves["log_probs"].detach()[..., active], log, fresh)

    def _losses(
        self,
        experience: Experience,
        parts: list[Task],
        current: Mapping[str, Tensor],
        log: UpdateLog,
        fresh: bool,
    ) -> Tensor:
        """Sum of the minibatches' losses times their shares; ``current`` holds their groups in order, by name."""
        sizes = [len(part.groups) for part in parts]
        pieces = {name: values.split(sizes) for name, values in current.items()}
        losses = []
        for k, part in enumerate(parts):
            batch = self._minibatch(experience, part, {name: values[k] for name, values in pieces.items()})
            losses.append(self._checked(ask_loss(self.method, batch), batch, log, fresh) * part.share)
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _differentiate(self, loss: Tensor) -> None:
        """Autograd meets here what a method has done to its graph."""
        with plugin_code(f"method '{type(self.method).__name__}': the gradient of its loss", HINT):
            self.scale.apply(loss).backward()

    def _checked(self, loss: Loss, batch: Minibatch, log: UpdateLog, fresh: bool) -> Tensor:
        """The value of a finite loss, after logging it with the method's own numbers."""
        if not torch.isfinite(loss.value):
            raise RunFailed(f"the loss is {loss.value.item()} at optimiser step {self.ledger.optimiser_steps}.")
        count = len(batch.final_rewards)
        log.add("loss", loss.value, count)
        for name, value in numbers(self.method, loss).items():
            log.add(name, value, count)
            if fresh and name == "clip_fraction":
                log.add("clip_fraction_at_zero_update", value, count)
        return loss.value

    def _minibatch(self, experience: Experience, task: Task, current: Mapping[str, Tensor]) -> Minibatch:
        """Slices ``[b, G, K]`` of the experience, log-ratios carrying the step weight; the KL to the base model is 0 at
        steps of weight 0, which are not trained.

        Args:
            current: of the present policy, by name: ``log_probs``; ``kl`` and ``drift`` where the method reads them.
        """
        log_probs, drift, kl = current["log_probs"], current.get("drift"), current.get("kl")
        device = log_probs.device
        groups, steps = task.groups.to(device), task.steps.to(device)
        pick = lambda values: None if values is None else take(values, groups, steps)  # noqa: E731
        weight = self.weights.to(device)[steps][:, None]
        old = take(experience.trajectories.log_probs, groups, steps)
        reference = pick(experience.ref_log_probs)
        return Minibatch(
            log_probs=old + weight * (log_probs - old),
            old_log_probs=old,
            ref_log_probs=None if reference is None else old + weight * (reference - old),
            advantages=pick(experience.advantages),
            rewards=take(experience.rewards, groups, steps),
            final_rewards=experience.final_rewards.to(device)[groups],
            steps=steps,
            num_steps=experience.trajectories.num_steps,
            kl=None if kl is None else torch.where(weight > 0, kl, torch.zeros_like(kl)),
            drift=None if drift is None else weight * drift,
            stds=None if drift is None else self.schedule.std().to(device)[steps],
            values=state_values(self.critic, experience.trajectories, groups, steps) if self.critic else None,
            old_values=pick(experience.old_values),
        )

    def sampled_values(self, trajectories: Trajectories) -> Tensor | None:
        """The critic's value ``[N, G, T]`` of every state; ``None`` without a critic."""
        return every_value(self.critic, trajectories, self.context.micro_batch.size) if self.critic else None

    def _pass(self, trajectories: Trajectories, groups: Tensor, steps: Tensor) -> StepPass:
        return step_pass(
            self.policy,
            self.schedule,
            trajectories,
            groups,
            steps,
            self.ledger,
            with_kl=self.method.needs_kl,
            with_drift=self.method.needs_drift,
        )

    def _record_gradient(self, output: Tensor, steps: Tensor, log: UpdateLog) -> None:
        if output.grad is not None:
            square = output.grad.detach().double().flatten(1).square().sum(1).cpu()
            if self.scale.factor is not None:
                square /= self.scale.factor**2
            log.grad_square.index_add_(0, steps, square)

    def _record_ratio(self, experience: Experience, task: Task, current: Tensor, log: UpdateLog, fresh: bool) -> None:
        groups, steps = task.groups.to(current.device), task.steps.to(current.device)
        gap = current - take(experience.trajectories.log_probs, groups, steps)
        log.add("ratio_mean", gap.exp().mean(), len(groups))
        log.add("approx_kl", 0.5 * gap.square().mean(), len(groups))
        if fresh:
            log.zero_gap = max(log.zero_gap, float((gap.exp() - 1).abs().max()))


def _at(scale: float | None) -> str:
    return "" if scale is None else f" at loss scale {scale:g}: fp16 overflows. Use --set model.precision=bf16 or fp32"


def _rows(values: Tensor) -> Tensor:
    """Values ``[b, G, T]`` as rows ``[T * b, G]``, one step of all groups after another."""
    return values.permute(2, 0, 1).flatten(0, 1)


def _leaf(idle: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """``idle [b, G, T]`` with ``values [n, G]`` at some of its rows, as something to differentiate by."""
    flat = _rows(idle).index_copy(0, rows.to(idle.device), values)
    return flat.unflatten(0, (idle.shape[-1], -1)).permute(1, 2, 0).contiguous().requires_grad_()
