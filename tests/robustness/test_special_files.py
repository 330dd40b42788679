"""A folder in the place of a file, or a file in the place of a folder, is refused with its name."""

import pytest

from sdpo_bench.errors import Unwritable
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.training import checkpoint


@pytest.fixture
def run(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create({"kind": "run"})
    return folder


def test_a_folder_in_the_place_of_a_file_is_named(run):
    (run.path / "status").mkdir()
    with pytest.raises(Unwritable, match=r"status' cannot be written: Is a directory"):
        run.set_status("new")
    assert not list(run.path.glob(".*"))


def test_a_file_in_the_place_of_the_checkpoints_is_named(run):
    run.checkpoints.write_text("")
    with pytest.raises(Unwritable, match=r"/run/checkpoints' cannot be written: File exists"):
        checkpoint.write(run, 1, ({}, "{}"))


def test_what_somebody_has_put_beside_checkpoints_is_none(run):
    run.checkpoints.mkdir()
    (run.checkpoints / "epoch-best.safetensors").write_text("mine")
    assert checkpoint.latest(run) == (None, [])
