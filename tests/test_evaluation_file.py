"""What is written to ``eval.parquet`` is what is read from it, by both of its readers."""

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_bench import pictures
from sdpo_bench.evaluate import KEYS, NUMBERS, read_rows, write_rows
from sdpo_bench.scores import read_scores
from sdpo_bench.store import RunFolder


def rows_of(scores: list[float], statistic: float = 0.5) -> pd.DataFrame:
    keys = {
        "run": "r", "method": "sdpo", "seed": 0, "sampler": "s", "split": "train", "prompt": "cat", "steps": 1,
        "reward": "good", "version": "1",
    }  # fmt: skip
    rows = pd.DataFrame(keys | {"image": range(len(scores)), "score": scores})
    return rows.assign(**dict.fromkeys(pictures.STATISTICS, statistic))[[*KEYS, *NUMBERS]]


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    folder.path.mkdir(exist_ok=True)
    return folder


@given(scores=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
@settings(deadline=None, max_examples=30)
def test_no_score_changes_in_the_file(tmp_path_factory: pytest.TempPathFactory, scores: list[float]) -> None:
    run = RunFolder(tmp_path_factory.mktemp("run"))
    write_rows(run, rows_of(scores))
    assert read_rows(run)["score"].tolist() == scores
    (block,) = read_scores(run.evaluation).blocks.values()
    assert np.array_equal(block.scores.ravel(), scores)


@pytest.mark.parametrize(("score", "stored"), [(float(np.float32(0.1)), "float"), (0.1, "double"), (1e300, "double")])
def test_float32_scores_are_stored_as_such_and_others_whole(run: RunFolder, score: float, stored: str) -> None:
    write_rows(run, rows_of([score, 1.0]))
    assert str(parquet.read_schema(run.evaluation).field("score").type) == stored
    assert read_rows(run)["score"].dtype == "float64"
