"""What a person sees while a run works: one live bar on a terminal, plain lines elsewhere, tables at the end.

Progress goes to standard error, results to standard output, so that output can be piped. One bar is for the whole run:
training, evaluation of the tuned model, evaluation of the base model (``RunPlan``).
"""

import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from sdpo_bench.reward_formula import part_weights
from sdpo_bench.system.console_text import clean, clock, number, print_table
from sdpo_bench.system.progress import RunPlan, Tick

PLAIN_SHARE = 0.05  # of the run, after which there is a plain line
PLAIN_SECONDS = 60.0  # after which there is one at the latest, while the run is young
PLAIN_OF_ELAPSED = 0.05  # of the time so far: later, lines are this far apart, so that a log of days stays short
SETTLED = 5.0  # seconds of a stage after which its own speed is better than that of the whole run
MOST_LABEL = 30  # columns
TREND_EPOCHS = 10


class Live:
    """Progress of one run; use as a context manager and hand its methods to the runner.

    Args:
        label: the run in words.
        plan: its work.
    """

    def __init__(self, label: str, plan: RunPlan, *, quiet: bool = False):
        self.label, self.plan, self.quiet = clean(label), plan, quiet
        self.started = time.monotonic()
        self._work = {"train": plan.training, "tuned": plan.tuned, "base": plan.base}
        self._done = dict.fromkeys(self._work, 0.0)
        self._speed = _Speed()
        self._stage = self._phase = ""
        self._epoch = 0
        self._rewards: dict[int, float] = {}  # mean reward by epoch
        self._shown_share, self._last_line = 0.0, -math.inf
        self._console: Any = None
        self._display: Any = None

    def __enter__(self) -> "Live":
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live as Display

            self._console = Console(stderr=True)
            self._display = Display(get_renderable=self._renderable, console=self._console, transient=True)
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = None
        if self._stage and not self.quiet:
            self._print(f"{stamp()} {self.label}: {self._end(kind is None)}")

    # -- reports of the runner -------------------------------------------------------------------------------

    def tick(self, tick: Tick) -> None:
        """Take in progress of the training."""
        if tick.phase == "warning":
            self.warn(tick.metrics["warning"])
            return
        self._epoch = tick.epoch
        self._phase = "" if tick.phase == "epoch" else tick.phase
        reward, epoch = tick.metrics.get("reward_mean"), tick.metrics.get("epoch", tick.epoch)
        if reward is not None:
            self._rewards[epoch] = reward
        if self.plan.denoiser_calls:
            share = tick.denoiser_calls / self.plan.denoiser_calls
        else:
            share = tick.used / tick.limit
            if tick.used > 0:  # what a training of so many seconds will have cost
                self._work["train"] = tick.denoiser_calls * tick.limit / tick.used
        self._reach("train", share)

    def evaluation(self, text: str, done: int, total: int) -> None:
        """Take in progress of an evaluation, in denoiser calls."""
        subject, _, self._phase = text.partition(", ")
        subject = subject.partition(":")[0]
        if subject not in ("base", self.plan.method):
            self._phase = subject
            self._show(changed=False)  # counted with the training: learning curve, choice, reward statistics
            return
        stage = "base" if subject == "base" else "tuned"
        if done < total or self._stage:  # a finished run has nothing to show
            self._reach(stage, done / total)

    def second_process(self) -> None:
        """Another process scores the base model during the training, and then half of the run."""
        self._work["base"] = 0.0
        self._work["tuned"] /= 2

    def warn(self, text: str) -> None:
        """Show a warning."""
        self._print(f"warning: {text}")

    # -- state -----------------------------------------------------------------------------------------------

    def _reach(self, stage: str, share: float) -> None:
        """A ``share`` of a stage is done; a stage that begins ends the training before it."""
        changed = stage != self._stage
        self._stage = stage
        if stage != "train":
            self._done["train"] = 1.0
        self._done[stage] = max(self._done[stage], min(share, 1.0))
        self._speed.reach(stage, self._units, changed)
        self._show(changed)

    @property
    def _units(self) -> float:
        return sum(self._work[stage] * share for stage, share in self._done.items())

    @property
    def _total(self) -> float:
        return max(sum(self._work.values()), 1e-9)

    @property
    def share(self) -> float:
        """Share of the run's work that is done, 0 to 1."""
        return min(1.0, self._units / self._total)

    def phase(self) -> str:
        """What the run does at present."""
        if self._stage in ("tuned", "base"):
            return f"evaluate {self._stage}{f', {self._phase}' if self._phase else ''}"
        of = f" of {max(self.plan.epochs, self._epoch)}" if self.plan.epochs else ""
        if self._stage == "train" and not self._phase:
            return f"epoch {self._epoch}{of} done"
        if self._stage == "train":
            last = self.plan.epochs and self._epoch >= self.plan.epochs
            return f"epoch {self._epoch if last else self._epoch + 1}{of}, {self._phase}"
        return self._phase or "load"

    def lines(self, width: int, *, ascii_only: bool = False) -> list[str]:
        """The two lines of the terminal: the bar with its times, and what the run does; ``width`` columns at most."""
        left = self._speed.seconds_left(self._total)
        times = f" {self.share:4.0%}  {clock(self.elapsed)}  ETA {'-' if left is None else clock(left)}"
        label = self.label if len(self.label) <= MOST_LABEL else self.label[: MOST_LABEL - 3] + "..."
        columns = max(0, width - len(label) - len(times) - 2)
        full = round(columns * self.share)
        bar = ("#" * full + "-" * (columns - full)) if ascii_only else ("━" * full + "─" * (columns - full))
        text = f"  {self.phase()}   {trend(self._rewards)}"
        if len(text) > width:
            text = f"  {self.phase()}   {trend(self._rewards, short=True)}"
        return [f"{label} {bar}{times}"[:width], text[:width]]

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    # -- display ---------------------------------------------------------------------------------------------

    def _renderable(self) -> Any:
        from rich.text import Text

        ascii_only = not str(self._console.encoding).lower().startswith("utf")
        return Text("\n".join(self.lines(self._console.width - 1, ascii_only=ascii_only)), no_wrap=True)

    def _show(self, changed: bool) -> None:
        """A plain line where there is no terminal and it has something to say."""
        if self.quiet or self._display is not None:
            return
        now = time.monotonic()
        pause = max(PLAIN_SECONDS, PLAIN_OF_ELAPSED * self.elapsed)
        if not changed and self.share - self._shown_share < PLAIN_SHARE and now - self._last_line < pause:
            return
        self._shown_share, self._last_line = self.share, now
        left = self._speed.seconds_left(self._total)
        parts = [self.phase(), trend(self._rewards), clock(self.elapsed), "" if left is None else f"ETA {clock(left)}"]
        self._print(f"{stamp()} {self.share:4.0%} {self.label}: {', '.join(part for part in parts if part)}")

    def _end(self, done: bool) -> str:
        """The line that stays."""
        parts = [f"{'done in' if done else f'stopped at {self.share:.0%} after'} {clock(self.elapsed)}"]
        if self._epoch:
            parts.append(f"{self._epoch} epoch{'s' * (self._epoch != 1)}")
        if self._rewards:
            parts.append(trend(self._rewards))
        return ", ".join(parts)

    def _print(self, text: str) -> None:
        if self._display is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif not self.quiet:
            with suppress(OSError):  # nobody listens any more, or a log's disk is full: no reason to stop training
                print(text, file=sys.stderr, flush=True)


class _Speed:
    """Units of work a second: of the present stage once it is settled, of everything so far before."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None  # time and units where this process began
        self._stage = self._now = (0.0, 0.0)

    def reach(self, stage: str, units: float, changed: bool) -> None:
        """``units`` of work are done; ``changed`` where they are the first of a stage."""
        self._now = time.monotonic(), units
        if self._first is None:
            self._first = self._now
        if changed:
            self._stage = self._now

    def seconds_left(self, total: float) -> float | None:
        """Time for the rest of ``total`` units, counted down since the last report; None where no speed is known."""
        if self._first is None:
            return None
        at, units = self._now
        for since, before in (self._stage, self._first):
            if units > before and (at - since > SETTLED or since == self._first[0]):
                left = (total - units) * (at - since) / (units - before)
                return max(0.0, left - (time.monotonic() - at))
        return None


def trend(by_epoch: Mapping[int, float], *, short: bool = False) -> str:
    """Where the reward stands, from the mean rewards of the epochs so far; empty before there is one.

    After a resume the epochs before it are not among them.

    Each epoch has prompts of its own, and their mix moves its mean reward more than a few updates do. So means over
    several epochs are compared: a quarter of them at each end, at most :data:`TREND_EPOCHS`; from 8 epochs on.
    """
    if not by_epoch:
        return ""
    epochs, rewards = list(by_epoch), list(by_epoch.values())
    window = min(len(rewards) // 4, TREND_EPOCHS)
    if window < 2:
        return f"reward {rewards[-1]:.4g}"
    now = statistics.fmean(rewards[-window:])
    rise = now - statistics.fmean(rewards[:window])
    if short:
        return f"reward {now:.4g} ({rise:+.3g})"
    return (
        f"reward {now:.4g} in the last {window} epochs ({rise:+.3g} since epochs {epochs[0]} to {epochs[window - 1]})"
    )


def stamp() -> str:
    """Local date and time for a line of a log."""
    return time.strftime("[%Y-%m-%d %H:%M:%S]")


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
