"""Results shared without weights say in a report what the whole ones say."""

import json
import shutil
import zipfile

import pytest
from click.testing import CliRunner
from report_factory import base_frame, make_base, make_run, spread

from sdpo_bench.cli.main import cli
from sdpo_bench.errors import UsageError
from tools.share_results import main, share, told


@pytest.fixture
def whole(tmp_path):
    out = tmp_path / "whole"
    make_base(out, base_frame(spread([0, 0, 0])))
    for seed in (0, 1):
        for i, method in enumerate(("sdpo", "ddpo")):
            folder = make_run(out, method, seed, spread([1, 2, 3 + i + 0.1 * seed]))
            for name in (
                "lora/adapter",
                "checkpoints/epoch-000001",
                "lock",
                "grid.png",
                "search.json",
                ".status.7.tmp",
            ):
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text("x")
    make_run(out, "d3po", 0, state="interrupted")
    (out / "suites").mkdir()
    (out / "suites" / "mine.json").write_text("{}")
    return out


def test_weights_stay_behind_and_the_report_is_the_same(whole, tmp_path):
    target = tmp_path / "shared"
    result = CliRunner().invoke(main, [str(whole), str(target), "--grids", "sdpo", "--seed", "1"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("4 runs, ")
    names = {path.name for path in target.rglob("*") if path.is_file()}
    expected = {"run.json", "status", "train.jsonl", "timing.jsonl", "eval.parquet", "grid.png", "search.json"} | {
        "mine.json"
    }
    assert names == expected
    (grid,) = target.rglob("grid.png")
    assert (
        grid.parent.name.startswith("sdpo")
        and json.loads((grid.parent / "run.json").read_text())["config"]["seed"] == 1
    )
    assert not list((target / "runs").glob("d3po*"))
    assert '"ddpo"' in told(target)


def test_a_copy_that_tells_something_else_is_found(whole, tmp_path):
    target = tmp_path / "shared"
    make_run(target, "rebel", 0, spread([9, 9, 9]))
    result = CliRunner().invoke(main, [str(whole), str(target)])
    assert result.exit_code == 1
    assert "Is there more in it?" in result.output


def test_another_run_of_the_same_name_is_not_overwritten(whole, tmp_path):
    target = tmp_path / "shared"
    share(whole, target)
    record = next(target.glob("runs/sdpo*/run.json"))
    changed = json.loads(record.read_text())
    changed["config"]["eval"]["steps"] = [1]  # which is not part of the name
    record.write_text(json.dumps(changed))
    with pytest.raises(UsageError, match="another run of the same name"):
        share(whole, target)
    assert json.loads(record.read_text()) == changed


def test_nothing_finished_is_nothing_to_share(tmp_path):
    make_run(tmp_path / "out", "sdpo", 0, state="interrupted")
    with pytest.raises(UsageError, match="no finished run"):
        share(tmp_path / "out", tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize("harm", ["nothing", "source", "target", "same"])
def test_refusals_are_messages(whole, tmp_path, harm):
    target = tmp_path / "shared"
    if harm == "nothing":
        whole = tmp_path / "empty"
        whole.mkdir()
    if harm == "source":
        next(whole.glob("runs/sdpo*/run.json")).write_text("{")
    if harm == "target":
        share(whole, target)
        next(target.glob("runs/ddpo*/run.json")).write_text("{")
    result = CliRunner().invoke(main, [str(whole), str(whole if harm == "same" else target)])
    said = {
        "nothing": "no finished run",
        "source": "is damaged",
        "target": "is damaged",
        "same": "Choose another folder",
    }
    assert result.exit_code == 1 and said[harm] in result.output and "Traceback" not in result.output
    assert harm != "source" or not target.exists()


def test_a_zip_of_the_copy_is_reported_elsewhere(whole, tmp_path):
    share(whole, tmp_path / "shared")
    archive = shutil.make_archive(str(tmp_path / "results"), "zip", tmp_path / "shared")
    with zipfile.ZipFile(archive) as file:
        assert not [name for name in file.namelist() if "lora/" in name or "checkpoints/" in name]
    shutil.unpack_archive(archive, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "shared")
    assert json.loads(told(tmp_path / "elsewhere")) == json.loads(told(whole))
    done = CliRunner().invoke(cli, ["report", "--results", str(tmp_path / "elsewhere"), "--only", "leaderboard"])
    assert done.exit_code == 0 and "ddpo" in done.output, done.output
