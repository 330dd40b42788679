"""The best checkpoint on validation prompts: candidates are judged during training, on prompts that no report shows.

A checkpoint that was chosen for its score on the reported prompts would flatter itself, so the choice has prompts of
its own. Each candidate leaves one line in ``validation.jsonl``; its adapter is kept while it is the best so far. The
cost of the choice stands in that log, beside the training bill and not in it.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdpo_bench.config.sampler_id import sampler_id
from sdpo_bench.errors import UsageError
from sdpo_bench.evaluation import evaluate as ev
from sdpo_bench.evaluation.mean_scores import evaluation_guidance, mean_scores
from sdpo_bench.models.policy import Policy
from sdpo_bench.plugins.parse_settings import validate
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.runs.adapter import LORA_FILE
from sdpo_bench.runs.input_digests import has_numbers
from sdpo_bench.runs.run_folder import VALIDATION as LOG
from sdpo_bench.runs.run_folder import RunFolder, best_row
from sdpo_bench.runs.saved_adapter import save_adapter
from sdpo_bench.scoring.scorer import Scorer
from sdpo_bench.settings import CheckpointSettings, EvaluationSettings, RunConfig
from sdpo_bench.system.distributed import ALONE, Processes
from sdpo_bench.system.memory_retry import MicroBatch
from sdpo_bench.system.progress import Watcher
from sdpo_bench.training import collapse_guards


def refuse_other_sampler(run: RunFolder, config: RunConfig) -> None:
    """Candidates are judged by the sampler of the evaluation, which is no part of a run's identity.

    Raises:
        UsageError: the run has begun with another sampler, and its checkpoint is chosen.
    """
    if config.checkpoint is None or not (run.path / "run.json").exists() or not has_numbers(run):
        return
    before: EvaluationSettings = validate(EvaluationSettings, run.record()["config"]["eval"], "eval")
    if (earlier := sampler_id(before)) != (now := sampler_id(config.eval)):
        raise UsageError(
            f"the checkpoint of run '{run.run_id}' is chosen with the sampler '{earlier}', not with '{now}'. "
            f"To score it with the latter: sdpo-bench eval {run.run_id} --set eval.KEY=VALUE. To choose with the "
            "latter: the same command with another --out FOLDER."
        )


class Validator:
    """Judges the checkpoints of one run.

    Args:
        sampler: evaluation settings whose sampler is used, with the choice's own prompts, steps and image count.
        scorer: the trained reward, charged to nobody.
    """

    def __init__(
        self,
        policy: Policy,
        settings: CheckpointSettings,
        sampler: EvaluationSettings,
        scorer: Scorer,
        run: RunFolder,
        micro_batch: MicroBatch,
        watcher: Watcher,
        processes: Processes = ALONE,
    ):
        self.policy, self.settings, self.scorer, self.run = policy, settings, scorer, run
        self.sampler = replace(sampler, steps=settings.steps, images_per_prompt=settings.images_per_prompt)
        self.micro_batch, self.watcher, self.processes = micro_batch, watcher, processes
        texts = load_prompts(settings.prompts)
        self.pairs = [(text, i) for text in texts for i in range(settings.images_per_prompt)]
        self.schedules = {k: ev.evaluation_schedule(policy, self.sampler, k) for k in settings.steps}

    @property
    def chosen(self) -> dict[str, Any]:
        """Line of the candidate that is the run's result."""
        return collapse_guards.before_collapse(self.rows, self._collapse)

    @property
    def _collapse(self) -> int | None:
        """The epoch of the collapse, where it matters."""
        if self.settings.choose != "before-collapse":
            return None
        return self.processes.share(lambda: collapse_guards.collapsed_at(self.run))

    def after_epoch(self, epoch: int, *, last: bool) -> None:
        """Judge the policy as it is after ``epoch`` epochs, if that is a candidate and was not judged before."""
        rows = self.rows
        if rows and self._collapse is not None:
            return
        due = last or epoch % self.settings.every == 0
        if epoch == 0 or not due or any(row["epoch"] == epoch for row in rows):
            return
        row = {"epoch": epoch, **self._judge()}
        if not self.processes.is_main:
            return
        if best_row([*rows, row]) is row:
            save_adapter(self.policy, self._adapter(epoch))
        # After the adapter: a line in the log means that its adapter is on disk.
        self.run.append(LOG, row)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.processes.share(lambda: self.run.log(LOG))

    def forget_after(self, epoch: int) -> None:
        """Drop candidates of epochs that a resumed run will do again."""
        if self.processes.is_main:
            self.run.forget_after(LOG, epoch)

    def best_adapter(self) -> Path:
        """Folder of the best candidate's adapter.

        Raises:
            UsageError: it was removed, as it is once the run has its result.
        """
        folder = self._adapter(self.chosen["epoch"])
        if not (folder / LORA_FILE).exists():
            raise UsageError(
                f"the chosen adapter '{folder}' is gone, and only a new training brings it back. "
                f"Delete '{self.run.path}' and give the same command again."
            )
        return folder

    def clear(self) -> None:
        """Drop the candidates' adapters; the log stays."""
        if self.processes.is_main:
            shutil.rmtree(self.run.path / "candidates", ignore_errors=True)

    def _adapter(self, epoch: int) -> Path:
        return self.run.path / "candidates" / f"epoch-{epoch:06d}"

    def _judge(self) -> dict[str, Any]:
        with evaluation_guidance(self.policy, self.sampler):
            by_steps = {str(k): self._mean_score(k) for k in self.settings.steps}
            branches = self.policy.branches
        return {
            "score": sum(by_steps.values()) / len(by_steps),
            "score_by_steps": by_steps,
            "denoiser_calls": branches * len(self.pairs) * sum(self.settings.steps),
            "reward_calls": self.scorer.calls_per_image * len(self.pairs) * len(by_steps),
        }

    def _mean_score(self, steps: int) -> float:
        self.watcher.evaluation(f"checkpoint on {self.settings.prompts}, {steps} steps", 0, 1)
        size, schedule = self.micro_batch.size, self.schedules[steps]
        return mean_scores(self.policy, schedule, self.sampler, [self.scorer], self.pairs, size, self.processes)[0]
