"""Runs behind a number: diverged and failed runs are counted and shown, never dropped silently.

A method that diverges on two seeds of five and shines on the other three is not a method that shines. The
matrices refuse scores that are not finite; this module says whose they were.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from sdpo_bench.statistics.matrices import check_columns, not_finite


@dataclass(frozen=True)
class RunCounts:
    """A method's runs by outcome; printed beside every number that rests on fewer than all of them."""

    method: str
    scored: tuple[str, ...]
    """Runs whose scores are all finite."""
    diverged: tuple[str, ...]
    """Runs with at least one NaN or infinite score."""
    failed: tuple[str, ...]
    """Runs without a usable evaluation: failed, or not finished."""
    bad_scores: int
    """NaN and infinite scores over all runs."""

    @property
    def total(self) -> int:
        """All runs that were started."""
        return len(self.scored) + len(self.diverged) + len(self.failed)

    def words(self) -> str:
        """For example ``sdpo: 3 of 5 runs scored, 1 diverged (r2), 1 without a result (r4)``."""
        text = f"{self.method}: {len(self.scored)} of {self.total} runs scored"
        for what, runs in (("diverged", self.diverged), ("without a result", self.failed)):
            text += f", {len(runs)} {what} ({', '.join(runs)})" if runs else ""
        return text


def run_counts(rows: pd.DataFrame, failed: Mapping[str, str] | None = None) -> tuple[RunCounts, ...]:
    """Scored, diverged and failed runs of each method, sorted by method.

    Args:
        rows: evaluation rows of any number of methods, rewards and splits; scores may be NaN or infinite.
        failed: ``{run: method}`` of failed runs; they usually have no rows. A failed run with rows counts as failed,
            once.
    """
    check_columns(rows)
    failed = dict(failed or {})
    table = pd.DataFrame(
        {"run": rows["run"].astype(str), "method": rows["method"].astype(str), "bad": not_finite(rows)}
    )
    bad = table.groupby(["method", "run"], sort=True)["bad"].sum()
    counts = []
    for method in sorted({*table["method"], *failed.values()}):
        bad_by_run = {run: int(n) for (owner, run), n in bad.items() if owner == method}
        counts.append(
            RunCounts(
                method,
                scored=tuple(run for run, n in bad_by_run.items() if n == 0 and run not in failed),
                diverged=tuple(run for run, n in bad_by_run.items() if n > 0 and run not in failed),
                failed=tuple(sorted(run for run, owner in failed.items() if owner == method)),
                bad_scores=sum(bad_by_run.values()),
            )
        )
    return tuple(counts)


def scored_runs(
    rows: pd.DataFrame, failed: Mapping[str, str] | None = None
) -> tuple[pd.DataFrame, tuple[RunCounts, ...]]:
    """The rows of runs whose scores are all finite, together with the count of the others.

    A diverged run is excluded whole, never image by image. Numbers from the remaining rows hold "given that the
    run did not diverge", so print the counts beside them.
    """
    counts = run_counts(rows, failed)
    scored_ids = {run for count in counts for run in count.scored}
    return rows[rows["run"].astype(str).isin(scored_ids)], counts
