"""Where a training stands: its last whole epoch, kept in memory and in checkpoints, and its logs as it wrote them.

However a training ends, the last whole epoch is what stays, and a half one leaves no trace; whoever goes on from it, in
this process or in another, does as one that was never stopped.
"""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from sdpo_bench.advantages.normalise import Normaliser
from sdpo_bench.runs.adapter import log_changed, timing_changed
from sdpo_bench.runs.run_folder import VALIDATION, RunFolder
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


class TrainingState:
    """What a run's training keeps and goes back to; only the main process writes.

    Args:
        updater: holds weights, optimiser and ledger.
        normaliser: holds the buffers of past rewards.
        scorer: remembers the scores of pictures.
        validator: has judged candidates; None where there are none.
        warn: tells whoever watches.
    """

    def __init__(
        self,
        run: RunFolder,
        updater: Updater,
        normaliser: Normaliser,
        scorer: Scorer,
        validator: Validator | None,
        processes: Processes,
        warn: Callable[[str], None],
    ):
        self.run, self.updater, self.normaliser, self.scorer = run, updater, normaliser, scorer
        self.validator, self.processes, self.warn = validator, processes, warn
        self.epoch = 0
        """Whole epochs so far."""
        self.first: dict[str, Any] = {}
        """Log line of the first whole epoch; ``last`` is that of the last."""
        self.last: dict[str, Any] = {}
        self._kept: tuple[int, checkpoint.Snapshot] = (0, ({}, ""))
        self._saved_epoch = -1

    def add_epoch(self, metrics: dict[str, Any], timing: dict[str, Any]) -> None:
        """Log an epoch that is whole, and keep what it has led to."""
        self.epoch += 1
        self.last = metrics
        if self.processes.is_main:
            self.mend_logs()
            self.run.append("train.jsonl", metrics)
            self.run.append("timing.jsonl", {"epoch": self.epoch, **timing})
            self._kept = self._snapshot()
        self.first = self.first or metrics

    def save(self) -> None:
        """Write the checkpoint of the last whole epoch, unless it is there already."""
        epoch, state = self._kept
        if epoch != self._saved_epoch and self.processes.is_main:
            checkpoint.write(self.run, epoch, state)
            self._saved_epoch = epoch

    def _snapshot(self) -> tuple[int, checkpoint.Snapshot]:
        logs = {name: self.run.written.get(name, b"") for name in training_logs.LOGS}
        train, judged = logs["train.jsonl"], logs[VALIDATION]
        sizes = len(train), sha256(train).hexdigest(), len(logs["timing.jsonl"])
        validated = len(judged), sha256(judged).hexdigest()
        ledger = self.updater.ledger.state_dict()
        progress = checkpoint.Progress(self.epoch, ledger, *sizes, self.run.run_id, validated, logs)
        return self.epoch, checkpoint.snapshot(progress, self.updater, self.normaliser, self.scorer.cache)

    def resume(self, path: Path | None) -> None:
        """Go on from the checkpoint at ``path``; begin where there is none."""
        progress = self._restore(path) if path else None
        damaged = []
        if self.processes.is_main:
            damaged = training_logs.go_back(self.run, progress.logs if progress else {})
            self.run.truncate("train.jsonl", progress.log_size if progress else 0)
            self.run.truncate("timing.jsonl", progress.timing_size if progress else 0)
            collapse_guards.forget_after(self.run, progress.epoch if progress else 0)
        if self.validator is not None:
            self.validator.forget_after(progress.epoch if progress else 0)
        if progress:
            self.epoch = self._saved_epoch = progress.epoch
            rows = self.processes.share(self.run.log)
            self.first, self.last = (rows[0], rows[-1]) if rows else ({}, {})
        if self.processes.is_main:
            training_logs.keep(self.run)
            self._say_mended(damaged)
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

    # -- logs ------------------------------------------------------------------------------------------------

    def mend_logs(self) -> None:
        """Undo what others have done to the logs since training began, so that no line of the bill is lost unseen."""
        self._say_mended(training_logs.mend(self.run))

    def mend_finished_logs(self) -> None:
        """Undo what others have done to the logs since training ended, where a checkpoint still has them."""
        if not (log_changed(self.run) or timing_changed(self.run)):
            return
        if found := checkpoint.finished_logs(self.run):
            self.epoch, copies = found
            self.run.written.update(copies)
            self.mend_logs()

    def _say_mended(self, damaged: list[str]) -> None:
        """Record that logs were put back, for whoever wonders what else was changed."""
        for name in damaged:
            text = f"{name} had been damaged or changed from outside; it was put back as this run wrote it"
            collapse_guards.record(self.run, collapse_guards.Warned(self.epoch, "log", text))
            self.warn(text)
