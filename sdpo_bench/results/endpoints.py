"""The endpoints of a panel: their names on the command line and in words, and the scores that each uses."""

from sdpo_bench.errors import UsageError
from sdpo_bench.results.panels import Panel
from sdpo_bench.statistics.eval_table import at, only_steps, reduced
from sdpo_bench.statistics.matrices import FEW_STEPS, Endpoint, Matrix, ScoreGrid
from sdpo_bench.statistics.ranking import ENDPOINT_WORDS
from sdpo_bench.system.json_toml import whole_number


def endpoint_words(endpoint: Endpoint) -> str:
    """For example ``at 4 steps`` or ``on the mean over step counts``."""
    if isinstance(endpoint, str):
        return ENDPOINT_WORDS[endpoint]
    return f"at {endpoint} step{'s' * (endpoint != 1)}"


def parse_metric(text: str) -> Endpoint:
    """``mean``, ``few``, ``area`` or a step count.

    Raises:
        UsageError: anything else.
    """
    if text in ENDPOINT_WORDS:
        return text
    if steps := whole_number(text, 1, 1000):
        return steps
    raise UsageError(
        f"unknown metric '{text}'. Valid: mean (over step counts), few (mean over 1, 2 and 4 steps), area (under the "
        "step curve), or a number of denoising steps. Example: --metric 4"
    )


def metric_grid(grid: ScoreGrid, panel: Panel, endpoint: Endpoint) -> ScoreGrid | None:
    """The scores that the endpoint uses; None if the method has none at that step count."""
    if endpoint == "few" and not set(FEW_STEPS) <= set(panel.common):
        return None
    if isinstance(endpoint, str):
        return at(only_steps(grid, panel.common), endpoint) if panel.common else None
    return at(grid, endpoint) if endpoint in grid.steps else None


def matrix_at(grid: ScoreGrid, panel: Panel, endpoint: Endpoint) -> Matrix | None:
    """The S x P matrix of a method at an endpoint; None if it has no scores at that step count."""
    part = metric_grid(grid, panel, endpoint)
    return None if part is None else reduced(part, endpoint)
