"""The training loop: sample, score, compare, update, record, until the budget is spent.

The trainer owns everything that methods share. A method adds its loss and says what it needs; a run is a pure function
of its resolved configuration, wherever and however often it was interrupted.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdpo_bench import seeds
from sdpo_bench.advantages.epoch_metrics import Stopwatch, update_rewards
from sdpo_bench.advantages.experience import UpdateLog
from sdpo_bench.advantages.learning_signal import Signals
from sdpo_bench.advantages.normalise import Normaliser
from sdpo_bench.advantages.run_context import RunContext
from sdpo_bench.api import COMPLETED_MODES, Method
from sdpo_bench.config.guidance_gradient import EMBEDDED, no_effect
from sdpo_bench.config.sampler_fit import needs_log_prob
from sdpo_bench.config.training_schedule import trained_weights, training_schedule
from sdpo_bench.errors import RunFailed, UsageError
from sdpo_bench.ledger import Cost, Ledger, Limit, limit_text
from sdpo_bench.models.base_model import scheduler_config
from sdpo_bench.models.policy import Policy
from sdpo_bench.prompts.prompt_sets import draw_prompts, load_prompts
from sdpo_bench.rollout.group_cost import completed_states, group_cost, probe_cost
from sdpo_bench.rollout.sampling import Noise, Trajectories, completions, rollout
from sdpo_bench.rollout.schedule import Schedule
from sdpo_bench.rollout.sde_steps import changes_by_epoch
from sdpo_bench.runs.run_folder import VALIDATION, RunFolder
from sdpo_bench.scoring.sample_features import features_in_parts
from sdpo_bench.scoring.scorer import Scorer
from sdpo_bench.settings import RunConfig, Runtime
from sdpo_bench.system.distributed import ALONE, Processes
from sdpo_bench.system.memory_retry import Attempt, MicroBatch
from sdpo_bench.system.progress import Tick
from sdpo_bench.system.signals import raise_pending_stop
from sdpo_bench.training import checkpoint, collapse_guards
from sdpo_bench.training.state import Curve, TrainingState, Validator
from sdpo_bench.training.update_order import Order
from sdpo_bench.training.updater import Updater

PREFETCHED = 1024
"""Prompts up to which all are encoded before training, so that the text encoders are done (and, offloaded, visit the
device once); an SD-Turbo prompt takes 0.3 MB."""


def run_context(
    config: RunConfig, runtime: Runtime, policy: Policy, method: Method, processes: Processes = ALONE
) -> RunContext:
    """The context of a training, with an empty bill; the policy's gradient under guidance is the run's.

    Raises:
        UsageError: a schedule that the method cannot be trained on, or ``update.guidance_gradient`` for a model whose
            files were not here when settings were checked and that takes guidance as an input.
    """
    policy.guidance_gradient = config.update.guidance_gradient
    if policy.guidance_gradient == "conditional" and policy.branches == 1:
        raise no_effect(EMBEDDED)
    schedule = training_schedule(config, scheduler_config(policy), method)
    return RunContext(policy, schedule, method, Ledger(), processes, runtime, MicroBatch(runtime.micro_batch))


class Trainer:
    """One run's training.

    Args:
        context: its policy carries a fresh adapter drawn from the run's seed (:func:`run_context`).
        scorer: the trained reward, charged to the context's ledger.
        watch: called with a :class:`Tick` now and then.
        validator: judges candidates for the best checkpoint; None where the last one is taken.
        curve: measures the points of the learning curve; None where there is none.
    """

    def __init__(
        self,
        context: RunContext,
        config: RunConfig,
        run: RunFolder,
        scorer: Scorer,
        watch: Callable[[Tick], None] = lambda tick: None,
        validator: Validator | None = None,
        curve: Curve | None = None,
    ):
        self.context, self.config, self.run, self.scorer = context, config, run, scorer
        self.watch, self.validator, self.curve = watch, validator, curve
        self.policy, self.method = context.policy, context.method
        self.ledger, self.processes, self.runtime = context.ledger, context.processes, context.runtime
        self.prompts = load_prompts(config.sample.prompts)
        self.weights = self._step_weights()
        if needs_log_prob(self.method) and not bool((self.weights > 0).any()):
            raise UsageError("every step has weight 0: nothing would be trained. Use update.step_weight=official.")
        self.limit = Limit(config.budget.axis, config.budget.amount)
        a = config.advantage
        self.normaliser = Normaliser(a.normalisation, a.buffer_size, a.min_count, a.std) if a else Normaliser("none")
        self.signals = Signals(context, a, scorer, self.normaliser)
        self.updater = Updater(context, config.update, self.weights, scorer, config.seed, config.ema)
        self.state = TrainingState(run, self.updater, self.normaliser, scorer, validator, curve, self.processes)
        self.groups_per_epoch = config.sample.images_per_epoch // self.method.members
        self._refuse_small_budget()

    @property
    def schedule(self) -> Schedule:
        """Denoising steps of the present epoch."""
        return self.context.schedule

    @property
    def epoch(self) -> int:
        """Whole epochs so far."""
        return self.state.epoch

    # -- the loop --------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train until the budget is spent, from the latest checkpoint if there is one.

        Raises:
            RunFailed: numbers that can no longer be trusted; the last checkpoint is intact.
            KeyboardInterrupt: passed on; whole epochs since the last checkpoint are saved first.
        """
        if self.method.signal == "none":
            return
        self._resume()
        if len(self.prompts) <= PREFETCHED:
            self.policy.encode(self.prompts)
        self.policy.on_call = self.ledger.charge_call
        wanted = self.groups_per_epoch
        try:
            while not self._ends_in_collapse() and (groups := self._groups_of_epoch(wanted)):
                raise_pending_stop()
                before = self.ledger.used(self.limit.axis)
                self._judge(last=False)
                started = time.monotonic()
                for attempt in self.attempts(self._begin_epoch_again):
                    with attempt:
                        metrics, timing = self._epoch(groups, wanted, started)
                self._finish_epoch(groups, metrics, timing, started)
                self._refuse_standstill(before)
                if self.epoch % self.runtime.checkpoint_every == 0:
                    self.state.save()
            self._judge(last=True)
        finally:
            # However the loop ends, the last whole epoch is what stays; a half one leaves no trace.
            self.policy.on_call = None
            self.state.save()

    def _resume(self) -> None:
        path, warnings = self.processes.share(lambda: checkpoint.latest(self.run))
        for warning in warnings:
            self.watch(self._tick("warning", {"warning": warning}))
        self.state.resume(path)
        self._fire_guards()  # a run may have been stopped between an epoch and its guards, which choose a checkpoint

    def _refuse_standstill(self, before: float) -> None:
        """A policy that draws the same few pictures is scored from the cache for ever and spends no reward calls."""
        if self.ledger.used(self.limit.axis) == before:
            raise RunFailed(
                f"epoch {self.epoch} spent no {self.limit.axis.replace('_', ' ')}: every picture had been scored "
                "before, so the policy has collapsed and the budget would never be spent. Lower update.lr, or give "
                "the budget on another axis."
            )

    def _judge(self, *, last: bool) -> None:
        """Judge the present policy if it is a candidate or a point of the curve; never part of the training bill."""
        self.state.check_logs()
        if self.validator is None and self.curve is None:
            return
        self.policy.on_call = None
        for attempt in self.attempts(self.record_out_of_memory):
            with attempt, self.updater.followers.result():
                if self.validator is not None:
                    self.validator.after_epoch(self.epoch, last=last)
                if self.curve is not None:
                    self.curve.after_epoch(self.epoch, self.ledger, last=last)
        self.state.seal_logs()
        self.policy.on_call = self.ledger.charge_call

    def _groups_of_epoch(self, wanted: int) -> int:
        """Set the denoising steps of the next epoch, and count the groups that the budget is enough for.

        The steps are a function of settings and epoch alone, so that a resumed run has the same.
        """
        schedule = self.config.schedule
        if schedule.sampler == "flow" and changes_by_epoch(schedule.sde_steps):
            scheduler = scheduler_config(self.policy)
            self.context.schedule = training_schedule(self.config, scheduler, self.method, self.epoch)
            self.weights = self.updater.weights = self._step_weights()
        return self._groups_left(wanted)

    def _step_weights(self) -> Tensor:
        return trained_weights(self.schedule, self.method, self.config.update.step_weight)

    def _groups_left(self, wanted: int) -> int:
        cost, overhead = self._costs(wanted)
        return self.limit.groups_left(self.ledger, cost, wanted, overhead)

    def _costs(self, wanted: int) -> tuple[Cost, int]:
        """Cost of one group, and what an epoch costs on the budget's axis besides its groups."""
        guided = self.policy.branches > 1
        inner = self.config.update.inner_epochs
        calls = self.scorer.calls_per_image
        cost = group_cost(
            self.method,
            self.weights.tolist(),
            inner_epochs=inner,
            guided=guided,
            calls_per_image=calls,
            drawing=self.schedule.decision_steps().tolist(),
        )
        on_calls = self.limit.axis == "denoiser_calls"
        probe = probe_cost(self.method, self.schedule.num_steps, wanted, guided=guided) if on_calls else 0
        return cost, probe

    def _refuse_small_budget(self) -> None:
        cost, overhead = self._costs(self.groups_per_epoch)
        if self.limit.groups_left(Ledger(), cost, self.groups_per_epoch, overhead) == 0:
            raise UsageError(
                f"a budget of {limit_text(self.limit.amount, self.limit.axis)} is less than one prompt group costs "
                f"({cost.of(self.limit.axis) + overhead:g}). Use a larger --budget."
            )

    def _finish_epoch(self, groups: int, metrics: dict[str, Any], timing: dict[str, float], started: float) -> None:
        """Log a whole epoch and the collapse warnings that it gives reason for."""
        seconds = self.processes.share(lambda: max(time.monotonic() - started, 1e-9))
        self.ledger.seconds += seconds
        timing |= {"seconds": round(seconds, 4), "images_per_second": round(groups * self.method.members / seconds, 3)}
        self.state.add_epoch(metrics, timing)
        self._tell("epoch")
        self._fire_guards()

    def _fire_guards(self) -> None:
        if self.processes.is_main and self.state.epoch:
            for warned in collapse_guards.fire(self.run, self.state.last, self.state.first, self.config.guard):
                self.warn(warned.text)

    def warn(self, text: str) -> None:
        """Pass a warning to the progress display."""
        epoch = f"epoch {self.epoch}: " if self.epoch else ""
        self.watch(self._tick("warning", {"warning": f"{epoch}{text}"}))

    def _ends_in_collapse(self) -> bool:
        """Whether training ends since all pictures are one colour: all rewards are equal, so nothing can be learnt.

        Raises:
            RunFailed: they are, and no checkpoint from before can be the result.
        """
        if not (self.config.guard.stop and collapse_guards.all_flat(self.state.last, self.state.first)):
            return False
        chosen = self.config.checkpoint is not None and self.config.checkpoint.choose == "before-collapse"
        if chosen and self.processes.share(self._has_sound_candidate):
            text = "all pictures are one colour: training ends here, and the result is the best checkpoint from before"
            warned = collapse_guards.Warned(self.epoch, "stop", text)
            if self.processes.is_main and collapse_guards.record_once(self.run, warned):
                self.warn(text)
            return True
        instead = "take a smaller checkpoint.every" if chosen else "use checkpoint.choose=before-collapse"
        raise RunFailed(
            f"all pictures of epoch {self.epoch} are one colour: the policy has collapsed. Lower update.lr, or "
            f"{instead}. To go on all the same: --set guard.stop=false"
        )

    def _has_sound_candidate(self) -> bool:
        collapse = collapse_guards.collapsed_at(self.run)
        return bool(collapse_guards.sound_candidates(self.run.log(VALIDATION), collapse))

    def attempts(self, halved: Callable[[str], None]) -> Iterator[Attempt]:
        """Attempts of a block of work, with smaller micro-batches after each that ran out of memory.

        One of several processes cannot begin again alone, so there it ends the run (:meth:`MicroBatch.attempts`).
        """
        return self.context.micro_batch.attempts(halved, retry=self.processes.count == 1)

    def _begin_epoch_again(self, text: str) -> None:
        """Back to the last whole epoch, and on with smaller micro-batches."""
        self.state.go_back()
        self.record_out_of_memory(text)

    def record_out_of_memory(self, text: str) -> None:
        """Record with the run that it goes on with smaller micro-batches."""
        collapse_guards.record(self.run, collapse_guards.Warned(self.epoch + 1, "memory", text))
        self.warn(text)

    def _epoch(self, groups: int, wanted: int, started: float) -> tuple[dict[str, Any], dict[str, float]]:
        clock, before = Stopwatch(), Ledger.from_state(self.ledger.state_dict())
        remembered = self.scorer.cache.mark() if self.processes.count > 1 else set()
        # Nothing of ours draws from it; what a plugin's network draws (dropout) is the same after a resume.
        torch.manual_seed(seeds.seed_for(self.config.seed, "plugins", self.epoch))
        first = self._order(groups, 0)
        mine = self.processes.mine(first.groups).sort().values
        trajectories = self._sample(mine, groups, wanted)
        clock.lap("sample_seconds")
        self._tell("scoring")
        experience, metrics = self.signals.of(trajectories, mine, groups, self._completions(trajectories))
        if self.method.signal != "gradient":
            experience = replace(experience, old_values=self.updater.sampled_values(trajectories))
        experience = replace(experience, names=tuple(mine.tolist()), ref_samples=self._base_samples(trajectories, mine))
        clock.lap("reward_seconds")
        log, stop = UpdateLog(self.schedule.num_steps), self._stop(started)
        for inner in range(self.config.update.inner_epochs):
            order = self._order(groups, inner) if inner else first
            experience = replace(experience, fresh=Noise((self.config.seed, "fresh", self.epoch, inner)))
            if self.updater.inner_epoch(experience, order, log, stop, lambda _: self._tell("updating")):
                break
        self.updater.followers.after_epoch(self.ledger.optimiser_steps)
        metrics |= self._update_metrics(log)
        clock.lap("update_seconds")
        self._settle(before, remembered)
        bill = self.ledger.bill()
        return {"epoch": self.epoch + 1, "groups": groups, **metrics, "bill": bill}, clock.laps

    def _settle(self, before: Ledger, remembered: set[bytes]) -> None:
        """Bring together what each process has been charged and told in this epoch."""
        if self.processes.count == 1:
            return
        found = self.processes.gather((self.ledger, self.scorer.cache.since(remembered), self.updater.fingerprint()))
        self.ledger.absorb([bill for bill, _, _ in found], before)
        for _, scores, _ in found:
            self.scorer.cache.put(list(scores), list(scores.values()))
        if len({weights for _, _, weights in found}) > 1:
            raise RunFailed(
                f"the processes' weights differ after epoch {self.epoch + 1}: their updates were not equal."
            )

    # -- stages ----------------------------------------------------------------------------------------------

    def _sample(self, mine: Tensor, groups: int, wanted: int) -> Trajectories:
        """Trajectories of the groups that this process owns, out of ``groups`` that are sampled in this epoch."""
        self._tell("sampling")
        config = self.config
        rule = config.sample.draw
        drawn = draw_prompts(self.prompts, wanted, seed=config.seed, epoch=self.epoch, rule=rule)
        prompts = [drawn[g] for g in mine.tolist()]
        with self.ledger.during("rollout"), self.updater.followers.sampling():
            trajectories = self._rollout(prompts, mine)
        self.ledger.images += groups * self.method.members
        return trajectories

    def _rollout(self, prompts: Sequence[str], mine: Tensor) -> Trajectories:
        """Trajectories of the present policy from the epoch's own noise."""
        return rollout(
            self.policy,
            self.schedule,
            prompts,
            Noise((self.config.seed, "train", self.epoch)),
            groups=mine.tolist(),
            members=self.method.members,
            shared_noise=self.method.shared_noise,
            micro_batch=self.context.micro_batch.size,
        )

    def _completions(self, trajectories: Trajectories) -> Tensor | None:
        """Where the states of the trajectories lead without further noise, for methods whose rewards ask for it."""
        method, drawing = self.method, self.schedule.decision_steps().tolist()
        if method.signal == "gradient" or method.reward_mode not in COMPLETED_MODES:
            return None
        with self.ledger.during("reward"), self.updater.followers.sampling():
            return completions(
                self.policy,
                self.schedule,
                trajectories,
                completed_states(method, self.schedule.num_steps, drawing),
                shared_until=min(drawing),
                image=method.final_image,
                micro_batch=self.context.micro_batch.size,
            )

    def _base_samples(self, trajectories: Trajectories, mine: Tensor) -> Tensor | None:
        """Final latents of the base model from the same noise, or their features, where the loss reads them."""
        method = self.method
        if not (method.granularity == "sample" and method.needs_reference):
            return None
        with self.ledger.during("reference"), self.policy.reference():
            base = self._rollout(trajectories.prompts, mine)
        latents = base.latents[:, :, -1] if method.final_image == "sample" else base.x0[:, :, -1]
        if method.sample_features == "latent":
            return latents
        size = self.context.micro_batch.size
        return features_in_parts(self.policy, self.scorer, self.ledger, latents, method.sample_features, size)

    def _stop(self, started: float) -> Callable[[], bool]:
        """Whether the budget ends inside the epoch that began at ``started``; only these two axes can."""
        if self.limit.axis == "optimiser_steps":
            return lambda: self.limit.reached(self.ledger)
        # The ledger has whole epochs only, so the sampling and scoring of this one count by the clock.
        late = lambda: self.ledger.seconds + time.monotonic() - started >= self.limit.amount  # noqa: E731
        return (lambda: self.processes.share(late)) if self.limit.axis == "seconds" else lambda: False

    def _update_metrics(self, log: UpdateLog) -> dict[str, Any]:
        """What all processes' updates of an epoch log."""
        log, *others = self.processes.gather(log)
        for other in others:
            log.absorb(other)
        return log.summary() | update_rewards(log.rewards)

    def _order(self, groups: int, inner: int) -> Order:
        """Samples and, independently for each group, steps in a fresh random order."""
        axes = (self.config.seed, "order", self.epoch, inner)
        trained = torch.arange(self.schedule.num_steps)
        if needs_log_prob(self.method):
            trained = self.schedule.decision_steps()
        steps = [trained[seeds.permutation(len(trained), *axes, "steps", g)] for g in range(groups)]
        return Order(seeds.permutation(groups, *axes, "groups"), torch.stack(steps))

    def _tick(self, phase: str, metrics: dict[str, Any]) -> Tick:
        used = self.ledger.used(self.limit.axis)
        calls = self.ledger.denoiser_calls
        return Tick(self.epoch, used, self.limit.amount, self.limit.axis, phase, metrics, calls)

    def _tell(self, phase: str) -> None:
        self.watch(self._tick(phase, self.state.last))
