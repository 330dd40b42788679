"""What a person sees while a run works: one live line on a terminal, plain lines elsewhere, tables at the end.

Progress goes to standard error, results to standard output, so that output can be piped.
"""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from sdpo_bench.ledger import limit_text, used_text
from sdpo_bench.reward_formula import part_weights
from sdpo_bench.system.console_text import number, print_table
from sdpo_bench.system.progress import Tick

PLAIN_EVERY = 10.0  # seconds between log lines where there is no terminal


class Live:
    """Progress of one run; use as a context manager and hand :meth:`tick` and :meth:`evaluation` to the runner."""

    def __init__(self, label: str, *, quiet: bool = False):
        self.label = label
        self.quiet = quiet
        self.started = time.monotonic()
        self._last_line = -math.inf
        self._progress: Any = None
        self._task: Any = None
        self._description = ""

    def __enter__(self) -> "Live":
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress.start()
            self._task = self._progress.add_task(self.label, total=1.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def tick(self, tick: Tick) -> None:
        """Show training progress: epoch, budget, reward."""
        if tick.phase == "warning":
            self.warn(tick.metrics["warning"])
            return
        reward = tick.metrics.get("reward_mean")
        doing = f"epoch {tick.epoch} done" if tick.phase == "epoch" else f"epoch {tick.epoch + 1} {tick.phase}"
        text = f"{self.label}: {doing}"
        text += f", {used_text(tick.used)}/{limit_text(tick.limit, tick.axis)}"
        text += f", reward {reward:.4g}" if reward is not None else ""
        self._show(text, tick.used, tick.limit, tick.phase == "epoch")

    def warn(self, text: str) -> None:
        """Show a warning."""
        self._print(f"warning: {text}")

    def evaluation(self, text: str, done: int, total: int) -> None:
        """Show evaluation progress in denoiser calls."""
        self._show(f"evaluating {text}", done, total, True)

    def _show(self, text: str, done: float, total: float, worth_a_line: bool) -> None:
        if self.quiet:
            return
        if self._progress is not None:
            if text.split(":")[0] != self._description:
                self._description = text.split(":")[0]
                self._progress.reset(self._task)
            self._progress.update(self._task, description=text, completed=done, total=max(total, 1e-9))
        elif worth_a_line and time.monotonic() - self._last_line >= PLAIN_EVERY:
            self._last_line = time.monotonic()
            self._print(f"[{self._last_line - self.started:6.0f} s] {text}")

    def _print(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text, markup=False)
        elif not self.quiet:
            with suppress(OSError):  # nobody listens any more, or a log's disk is full: no reason to stop training
                print(text, file=sys.stderr, flush=True)


def print_step_table(table: Sequence[Mapping[str, Any]], trained_reward: str) -> None:
    """Base against tuned at every step count, the trained reward first, its parts and held-out scores after it."""
    order = sorted(table, key=lambda r: (r["split"] != "train", r["split"], r["reward"] != trained_reward, r["reward"]))
    parts = part_weights(trained_reward)
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in order:
        groups.setdefault((row["split"], row["reward"], row.get("version", "")), []).append(row)
    several = {reward for _, reward, version in groups if any(r == reward and v != version for _, r, v in groups)}
    for (split, reward, version), rows in groups.items():
        shown = f"{reward} version {version}" if reward in several else reward
        role = "trained on" if reward == trained_reward else "part" if reward in parts else "held out"
        lines = [
            [
                str(r["steps"]),
                number(r["base"]),
                number(r["tuned"]),
                f"{r['difference']:+.3f}",
                number(r["standard_error"], 4),
                str(r["images"]),
            ]
            for r in rows
        ]
        columns = ["steps", "base", "tuned", "difference", "SE over images", "images"]
        print_table(columns, lines, title=f"{shown} ({role}), {split} prompts")
    print(
        "SE over images: standard error of the paired difference over the images of this one checkpoint. "
        "1 training seed, so no interval for the method."
    )
