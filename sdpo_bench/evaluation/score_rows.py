"""The rows of an evaluation on disk, ``eval.parquet``, and the table of base against tuned that is made from them."""

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from sdpo_bench.errors import UsageError
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.scoring import image_statistics
from sdpo_bench.system.files import atomic_write
from sdpo_bench.system.signals import preserve_stop

if TYPE_CHECKING:  # a run trains for a while before it needs a table
    import pandas as pd

KEYS = ["run", "method", "seed", "sampler", "split", "prompt", "image", "steps", "reward", "version"]
NUMBERS = ["score", *image_statistics.STATISTICS]
COLUMNS = [*KEYS, *NUMBERS]


def empty_rows() -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame({name: [] for name in COLUMNS})


@preserve_stop()
def read_rows(run: RunFolder) -> "pd.DataFrame":
    """Evaluation rows of a run, empty where it has not been evaluated.

    Raises:
        UsageError: the file is damaged or lacks columns.
    """
    import pandas as pd

    if not run.evaluation.exists():
        return empty_rows()
    try:
        rows = pd.read_parquet(BytesIO(run.evaluation.read_bytes()), page_checksum_verification=True)
    except PermissionError as error:  # sound, for all that is known
        raise UsageError(f"'{run.evaluation}' cannot be read: {error.strerror}. Ask whose it is.") from error
    except Exception as error:  # pyarrow raises many kinds for a damaged file
        raise UsageError(f"'{run.evaluation}' is damaged ({error}). Delete it and run: {run.rescoring}") from error
    missing_columns = [name for name in COLUMNS if name not in rows.columns]
    if missing_columns:
        raise UsageError(f"'{run.evaluation}' lacks the columns {', '.join(missing_columns)}.")
    own = {run.run_id, run.record().get("run")} if (run.path / "run.json").exists() else {run.run_id}
    if others := sorted(set(rows.run.astype(str)) - own):
        raise UsageError(
            f"'{run.evaluation}' holds scores of {', '.join(others)}. If a copy went wrong, delete it and run: "
            f"{run.rescoring}"
        )
    return rows[COLUMNS].astype(dict.fromkeys(NUMBERS, "float64"))


def write_rows(run: RunFolder, rows: "pd.DataFrame") -> None:
    """Write ``eval.parquet`` in one piece; numbers that came from float32 are stored as such, which halves the file."""
    narrow = rows.assign(**{name: _narrowest(rows[name]) for name in NUMBERS})
    stream = BytesIO()
    narrow.to_parquet(stream, index=False, compression="zstd", write_page_checksum=True)
    atomic_write(run.evaluation, stream.getvalue())


def _narrowest(column: "pd.Series") -> "pd.Series":
    """The column as float32 where that loses nothing."""
    with np.errstate(over="ignore"):
        single = column.astype("float32")
    return single if single.astype("float64").equals(column.astype("float64")) else column


def step_table(base: "pd.DataFrame", tuned: "pd.DataFrame") -> list[dict[str, Any]]:
    """Base against tuned by split, reward and step count, paired over images.

    ``standard_error`` is that of the mean paired difference over images: how well this one checkpoint is measured.
    It says nothing about other training seeds.
    """
    keys = ["split", "reward", "version", "steps", "prompt", "image"]
    paired = base[[*keys, "score"]].merge(tuned[[*keys, "score"]], on=keys, suffixes=("_base", "_tuned"))
    table = []
    for (split, reward, version, steps), rows in paired.groupby(["split", "reward", "version", "steps"], sort=True):
        difference = rows.score_tuned - rows.score_base
        error = float(difference.std(ddof=1) / len(rows) ** 0.5) if len(rows) > 1 else float("nan")
        table.append(
            {
                "split": split,
                "reward": reward,
                "version": version,
                "steps": int(steps),
                "images": len(rows),
                "base": float(rows.score_base.mean()),
                "tuned": float(rows.score_tuned.mean()),
                "difference": float(difference.mean()),
                "standard_error": error,
            }
        )
    return table
