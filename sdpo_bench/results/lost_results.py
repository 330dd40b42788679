"""Missing or damaged results of a run whose status says done: status and results are separate files.

Nothing here imports torch.
"""

from sdpo_bench.errors import UsageError
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.statistics.eval_table import read_scores


def what_is_lost(run: RunFolder) -> str:
    """The first problem of a finished run's record or scores; empty if there is none.

    A missing adapter is no problem: people share scores without weights.
    """
    try:
        run.record()
    except UsageError as error:
        return str(error)
    if not run.evaluation.exists():
        return "its eval.parquet is gone"
    problems = read_scores(run.evaluation, pictures=False).problems
    return problems[0] if problems else ""
