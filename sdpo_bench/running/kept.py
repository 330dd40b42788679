"""What a finished run has to show from its files alone, for a results folder that refuses to be written.

Everywhere else a command locks the run, does what is missing and records it; here what is missing is refused.
"""

import shlex
from collections.abc import Sequence
from typing import Any

from sdpo_bench.errors import Unwritable
from sdpo_bench.evaluation import evaluate as ev
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.scoring.scorer import Scorer
from sdpo_bench.settings import EvaluationSettings


def kept_table(
    run: RunFolder, base: RunFolder, settings: EvaluationSettings, scorers: Sequence[Scorer], refused: Unwritable
) -> list[dict[str, Any]]:
    """Base against tuned of a run that is done, as ``evaluate.step_table`` makes it.

    Args:
        base: folder of the base model's scores.
        refused: why nothing can be written.

    Raises:
        Unwritable: the run has not begun, is not done, or scores are missing; says how to go on elsewhere.
        UsageError: a file of the run is damaged.
    """
    if not run.path.exists():
        raise refused
    if run.known_state != "done":
        raise _elsewhere(run, f"'{run.run_id}' is not done (state: {run.known_state})", refused)
    tuned, before = (ev.kept_rows(folder, settings, scorers) for folder in (run, base))
    if tuned is None or before is None:
        lacking = run if tuned is None else base
        raise _elsewhere(run, f"'{lacking.run_id}' lacks scores that are asked for", refused)
    return ev.step_table(before, tuned)


def _elsewhere(run: RunFolder, problem: str, refused: Unwritable) -> Unwritable:
    out = run.path.parent.parent
    return Unwritable(
        f"{problem}, and the results folder '{out}' cannot be written: {refused.strerror}. Go on in a copy of it: "
        f"cp -r {shlex.quote(str(out))} COPY, then the same command for {run.run_id} with --out COPY.",
        refused.strerror,
    )
