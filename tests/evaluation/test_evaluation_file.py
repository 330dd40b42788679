"""What is written to ``eval.parquet`` is what is read from it, by both of its readers."""

import random
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_factory import base_frame, make_base, make_run, spread

from sdpo_bench.errors import UsageError
from sdpo_bench.evaluation.score_rows import KEYS, NUMBERS, read_rows, write_rows
from sdpo_bench.results.read_results import load_results
from sdpo_bench.results.read_scores import read_all_scores
from sdpo_bench.results.run_list import list_runs
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.scoring import image_statistics
from sdpo_bench.statistics.score_reader import read_scores


def rows_of(scores: list[float], statistic: float = 0.5) -> pd.DataFrame:
    keys = {
        "run": "run",
        "method": "sdpo",
        "seed": 0,
        "sampler": "s",
        "split": "train",
        "prompt": "cat",
        "steps": 1,
        "reward": "good",
        "version": "1",
    }
    rows = pd.DataFrame(keys | {"image": range(len(scores)), "score": scores})
    return rows.assign(**dict.fromkeys(image_statistics.STATISTICS, statistic))[[*KEYS, *NUMBERS]]


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("run") / "run")
    folder.path.mkdir()
    return folder


@given(scores=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
@settings(deadline=None, max_examples=30)
def test_no_score_changes_in_the_file(tmp_path_factory: pytest.TempPathFactory, scores: list[float]) -> None:
    run = RunFolder(tmp_path_factory.mktemp("run") / "run")
    run.path.mkdir()
    write_rows(run, rows_of(scores))
    assert read_rows(run)["score"].tolist() == scores
    (block,) = read_scores(run.evaluation).blocks.values()
    assert np.array_equal(block.scores.ravel(), scores)


@pytest.mark.parametrize(("score", "stored"), [(float(np.float32(0.1)), "float"), (0.1, "double"), (1e300, "double")])
def test_float32_scores_are_stored_as_such_and_others_whole(run: RunFolder, score: float, stored: str) -> None:
    write_rows(run, rows_of([score, 1.0]))
    assert str(parquet.read_schema(run.evaluation).field("score").type) == stored
    assert read_rows(run)["score"].dtype == "float64"


def test_a_flipped_bit_changes_no_score_unseen(run):
    """The pages have checksums."""
    write_rows(run, rows_of([0.1, 0.2, 0.3]))
    before, content = read_rows(run), run.evaluation.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    chosen = random.Random(0)
    for place in chosen.sample(range(footer), 40):
        damaged = bytearray(content)
        damaged[place] ^= 1 << chosen.randrange(8)
        run.evaluation.write_bytes(damaged)
        with suppress(UsageError):
            assert read_rows(run).equals(before), place


def test_scores_of_another_run_are_never_taken_for_its_own(tmp_path):
    """A copy gone wrong: reports, lists and further scoring refuse the file; a renamed folder is still itself."""
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    mine, other = (make_run(tmp_path, method, 0, spread([gain] * 3)) for method, gain in (("sdpo", 1.0), ("ddpo", 5.0)))
    shutil.copyfile(other / "eval.parquet", mine / "eval.parquet")
    found = load_results(tmp_path)
    scores, notices = read_all_scores([*found.runs, *found.bases])
    assert mine.name not in scores and other.name in scores
    assert f"eval.parquet holds scores of {other.name}: not used" in [notice.text for notice in notices]
    columns, rows = list_runs(tmp_path)
    gains = {row[0]: row[columns.index("score - base")] for row in rows}
    assert gains == {mine.name: None, other.name: 5.0}
    with pytest.raises(UsageError, match=f"holds scores of {other.name}.*sdpo-bench eval {mine.name}"):
        read_rows(RunFolder(mine))
    renamed = other.rename(other.with_name("my-best-run"))
    assert len(read_rows(RunFolder(renamed)))
    assert "my-best-run" in read_all_scores(load_results(tmp_path).runs)[0]


def test_a_file_of_somebody_else_is_not_called_damaged(tmp_path, monkeypatch):
    """The advice for damage is to delete it."""
    mine = make_run(tmp_path, "sdpo", 0, spread([1.0] * 3))

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    _, notices = read_all_scores(load_results(tmp_path).runs)
    assert [notice.text for notice in notices] == ["eval.parquet cannot be read: Permission denied"]
    with pytest.raises(UsageError, match=r"cannot be read: Permission denied. Ask whose it is"):
        read_rows(RunFolder(mine))
