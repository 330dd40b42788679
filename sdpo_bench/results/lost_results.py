"""What a run that calls itself done has lost since: its status is one file, and its results are others.

Nothing here imports torch.
"""

from sdpo_bench.errors import UsageError
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.statistics.eval_table import read_scores


def what_is_lost(run: RunFolder) -> str:
    """What a finished run lacks of its record and its scores; empty where all is there.

    Its adapter may be gone: scores are kept and shared without weights.
    """
    try:
        run.record()
    except UsageError as error:
        return str(error)
    if not run.evaluation.exists():
        return "its eval.parquet is gone"
    problems = read_scores(run.evaluation, pictures=False).problems
    return problems[0] if problems else ""
