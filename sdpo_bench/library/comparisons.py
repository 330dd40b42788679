"""``sdpo_bench.compare``: is A better than B, with interval and verdict. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_bench.errors import UsageError
from sdpo_bench.library.results import Run
from sdpo_bench.reporting.compare_view import comparison_data, print_comparison
from sdpo_bench.reporting.console import make_console
from sdpo_bench.reporting.tables.compare import Comparison as Compared
from sdpo_bench.reporting.tables.compare import compare_sides
from sdpo_bench.results.compare_names import find_sides
from sdpo_bench.results.endpoints import parse_metric
from sdpo_bench.results.read_results import load_results
from sdpo_bench.results.select_runs import SPLIT, parse_select
from sdpo_bench.results.select_runs import select as selected

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Comparison:
    """A against B under the trained reward, on training prompts where both were judged on them by it.

    Where it has judged neither side: the first held-out reward.

    Attributes:
        difference: mean of A minus mean of B at the metric.
        low, high: 95 % interval over training seeds and prompts; None with one seed.
        p: of that interval; None with one seed.
        win_rate: share of pairs that A wins, ties half.
        seeds: training seeds that both sides have.
        verdict: the finding in words.
        data: everything, as ``sdpo-bench compare --json``.
    """

    a: str
    b: str
    difference: float
    low: float | None
    high: float | None
    p: float | None
    win_rate: float
    seeds: tuple[int, ...]
    prompts: int
    verdict: str
    data: Mapping[str, Any]
    _compared: Compared

    @property
    def table(self) -> "pd.DataFrame":
        """One row a panel (sampler, split, reward, version) and endpoint (step count or summary)."""
        import pandas as pd

        rows = []
        for panel in self.data["panels"]:
            where = {key: panel[key] for key in ("sampler", "split", "reward", "version", "trained")}
            for one in panel["endpoints"]:
                low, high = one["interval"]
                rest = {key: value for key, value in one.items() if key not in ("interval", "win_rate_interval")}
                rows.append({**where, **rest, "low": low, "high": high})
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        stream = StringIO()
        print_comparison(make_console(stream), self._compared)
        return stream.getvalue()

    def __repr__(self) -> str:
        return f"<Comparison {self.a} - {self.b}: {self.difference:+.3g}, {self.verdict}>"


def compare(
    a: Run | str,
    b: Run | str = "base",
    *,
    results: str | Path = "results",
    select: Sequence[str] = (),
    metric: str | int = "mean",
) -> Comparison:
    """Is A better than B? As ``sdpo-bench compare``.

    Args:
        a, b: methods (all their seeds), runs, or ``base``.
        results: results folder; that of a :class:`Run` goes before it.
        select: only runs that fit, e.g. ``["reward=hpsv2"]``.
        metric: ``mean``, ``few`` or ``area`` over step counts, or a number of steps.

    Raises:
        UsageError: unknown names, runs of two results folders, or sides that differ in what they must share.
    """
    folders = [run.folder.parent.parent for run in (a, b) if isinstance(run, Run)]
    if len({folder.resolve() for folder in folders}) > 1:
        raise UsageError(
            f"runs of two results folders, '{folders[0]}' and '{folders[1]}', are not compared. Copy one run into the "
            "other folder."
        )
    names = [run.id if isinstance(run, Run) else run for run in (a, b)]
    compared = compare_names(folders[0] if folders else Path(results), names[0], names[1], select, str(metric))
    data = comparison_data(compared)
    panel = next((one for one in data["panels"] if one["trained"]), data["panels"][0])
    primary = panel["primary"]
    low, high = primary["interval"]
    return Comparison(
        data["a"],
        data["b"],
        primary["difference"],
        low,
        high,
        primary["p"],
        primary["win_rate"],
        tuple(panel["seeds"]),
        panel["prompts"],
        panel["verdict"],
        data,
        compared,
    )


def compare_names(results: Path, a: str, b: str, select: Sequence[str], metric: str) -> Compared:
    """Read a results folder and compare what two names stand for.

    Raises:
        UsageError: as :func:`compare`.
    """
    selection, endpoint = parse_select(select), parse_metric(metric)
    chosen = selected(load_results(results), selection)
    side_a, side_b = find_sides(chosen, a, b, selection)
    return compare_sides(chosen, side_a, side_b, endpoint, splits=selection.get(SPLIT, ()))
