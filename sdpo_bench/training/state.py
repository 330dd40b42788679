"""Where a training stands: its last whole epoch, kept in memory and in checkpoints.

However a training ends, the last whole epoch is kept and a half one leaves no trace. A training that goes on from it,
in this process or in another, does as one that was never stopped.
"""

from pathlib import Path
from typing import Any, Protocol

from sdpo_bench.advantages.normalise import Normaliser
from sdpo_bench.ledger import Ledger
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.scoring.scorer import Scorer
from sdpo_bench.system.distributed import Processes
from sdpo_bench.training import checkpoint, collapse_guards, training_logs
from sdpo_bench.training.updater import Updater


class Validator(Protocol):
    """Scores candidate checkpoints during training (``validation.Validator``)."""

    def after_epoch(self, epoch: int, *, last: bool) -> None: ...

    def forget_after(self, epoch: int) -> None: ...

    def best_adapter(self) -> Path: ...

    def clear(self) -> None: ...


class Curve(Protocol):
    """Measures the points of the learning curve (``learning_curve.CurveRecorder``)."""

    def after_epoch(self, epoch: int, bill: Ledger, *, last: bool) -> None: ...

    def forget_after(self, epoch: int) -> None: ...


class TrainingState:
    """What a run's training keeps and goes back to; only the main process writes.

    Args:
        updater: holds weights, optimiser and ledger.
        normaliser: holds the buffers of past rewards.
        scorer: remembers the scores of pictures.
        validator: has judged candidates; None where there are none.
        curve: has measured points; None where there is no learning curve.
    """

    def __init__(
        self,
        run: RunFolder,
        updater: Updater,
        normaliser: Normaliser,
        scorer: Scorer,
        validator: Validator | None,
        curve: Curve | None,
        processes: Processes,
    ):
        self.run, self.updater, self.normaliser, self.scorer = run, updater, normaliser, scorer
        self.validator, self.curve, self.processes = validator, curve, processes
        self.epoch = 0
        """Whole epochs so far."""
        self.first: dict[str, Any] = {}
        """Log line of the first whole epoch; ``last`` is that of the last."""
        self.last: dict[str, Any] = {}
        self._seals: training_logs.Seals = {}
        self._kept: tuple[int, checkpoint.Snapshot] = (0, ({}, ""))
        self._saved_epoch = -1

    def add_epoch(self, metrics: dict[str, Any], timing: dict[str, Any]) -> None:
        """Log an epoch that is whole, and keep what it has led to."""
        self.epoch += 1
        self.last = metrics
        if self.processes.is_main:
            self.check_logs()
            self.run.append("train.jsonl", metrics)
            self.run.append("timing.jsonl", {"epoch": self.epoch, **timing})
            self.seal_logs()
            self._kept = self._snapshot()
        self.first = self.first or metrics

    def save(self) -> None:
        """Write the checkpoint of the last whole epoch, unless it is there already."""
        epoch, state = self._kept
        if epoch != self._saved_epoch and self.processes.is_main:
            checkpoint.write(self.run, epoch, state)
            self._saved_epoch = epoch

    def _snapshot(self) -> tuple[int, checkpoint.Snapshot]:
        progress = checkpoint.Progress(self.epoch, self.updater.ledger.state_dict(), self._seals, self.run.run_id)
        return self.epoch, checkpoint.snapshot(progress, self.updater, self.normaliser, self.scorer.cache)

    def resume(self, path: Path | None) -> None:
        """Go on from the checkpoint at ``path``; begin where there is none."""
        progress = self._restore(path) if path else None
        if self.processes.is_main:
            for name in ("train.jsonl", "timing.jsonl"):
                self.run.truncate(name, progress.logs[name][0] if progress else 0)
            collapse_guards.forget_after(self.run, progress.epoch if progress else 0)
        for judge in (self.validator, self.curve):
            if judge is not None:
                judge.forget_after(progress.epoch if progress else 0)
        if progress:
            self.epoch = self._saved_epoch = progress.epoch
            rows = self.processes.share(self.run.log)
            self.first, self.last = (rows[0], rows[-1]) if rows else ({}, {})
        self.seal_logs()
        self._kept = self._snapshot()

    def go_back(self) -> None:
        """Back to the last whole epoch, as if the process had been killed in the one after it."""
        self.save()
        self.updater.optimiser.zero_grad(set_to_none=True)
        self._restore(checkpoint.path_of(self.run, self.epoch))

    def _restore(self, path: Path) -> checkpoint.Progress:
        progress = checkpoint.restore(path, self.updater, self.normaliser, self.scorer.cache)
        self.updater.ledger.__dict__.update(progress.ledger)
        return progress

    def seal_logs(self) -> None:
        """Remember the logs as they are, with a candidate that was judged after its epoch."""
        if self.processes.is_main:
            self._seals = training_logs.seal(self.run)

    def check_logs(self) -> None:
        """Refuse logs that somebody else has changed since the last epoch.

        Raises:
            UsageError: one was changed; the last checkpoint holds what it was.
        """
        if not self.processes.is_main or not self._seals:  # no seals: a method that trains nothing
            return
        training_logs.refuse_changed(self.run, self._seals, f"after epoch {self.epoch}: it was changed from outside")
        for name in ("train.jsonl", "timing.jsonl"):
            self.run.truncate(name, self._seals[name][0])
