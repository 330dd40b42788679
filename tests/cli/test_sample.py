"""``sample``: base beside tuned from the same noise, at the step counts asked for."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from factories import make_resolved
from sdpo_bench.cli.commands.sample import parse_steps
from sdpo_bench.cli.report_commands import sample as sample_cli
from sdpo_bench.errors import UsageError
from sdpo_bench.runs.adapter import seal_log
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.runs.saved_adapter import save_adapter


@pytest.fixture
def results(tmp_path: Path, tiny_pipe: Path, tiny_policy) -> Path:
    """One finished run of the tiny pipeline with a strong adapter."""
    resolved = make_resolved(tiny_pipe)
    run = RunFolder(tmp_path / "results" / "runs" / resolved.run_id)
    run.create(resolved.record)
    run.set_status("done")
    for parameter in tiny_policy.lora_parameters().values():
        parameter.data *= 4
    save_adapter(tiny_policy, run.lora)
    return tmp_path / "results"


def run(*arguments):
    return CliRunner().invoke(sample_cli, [str(a) for a in arguments], standalone_mode=False, catch_exceptions=False)


def pictures(path: Path, rows: int, columns: int) -> np.ndarray:
    """The pictures of a grid ``[rows, columns, h, w, 3]``, labels cut off."""
    image = np.asarray(Image.open(path))
    # pictures.grid: labels 190 wide, headings 22 high, cells of 96 with a gap of 4.
    cells = [[image[22 + r * 100 :, 190 + c * 100 :][:96, :96] for c in range(columns)] for r in range(rows)]
    assert image.shape[:2] == (22 + rows * 100, 190 + columns * 100)
    return np.asarray(cells)


def test_grid_has_base_and_tuned_of_every_prompt_image_and_step_count(results, tmp_path):
    target = tmp_path / "new" / "grid.png"
    done = run(
        "sdpo",
        "--results",
        results,
        "--prompt",
        "cat",
        "--prompt",
        "dog",
        "--steps",
        "1,3",
        "--images",
        "2",
        "--device",
        "cpu",
        "--out",
        target,
    )
    assert done.stdout == f"{target}\n"
    grid = pictures(target, rows=8, columns=2)  # 2 prompts x 2 images x (base, tuned)
    base, tuned = grid[0::2], grid[1::2]
    assert all((b != t).any() for b, t in zip(base.reshape(8, -1), tuned.reshape(8, -1)))
    flat = base.reshape(8, -1)
    assert len({row.tobytes() for row in flat}) == 8  # other prompts, other noise, other step counts
    again = tmp_path / "again.png"
    run("sdpo", "--results", results, "--prompt", "dog", "--steps", "3", "--device", "cpu", "--out", again)
    assert np.array_equal(pictures(again, 2, 1)[:, 0], grid[4:6, 1])  # no picture depends on its neighbours


@pytest.mark.parametrize("prompt", ["emoji \U0001f600", "\u05e9\u05dc\u05d5\u05dd", "<b>\n\x1b[2J", "x" * 400])
def test_any_text_is_drawn(results, tmp_path, prompt):
    target = tmp_path / "grid.png"
    run("sdpo", "--results", results, "--prompt", prompt, "--steps", "1", "--device", "cpu", "--out", target)
    assert pictures(target, 2, 1).std() > 0


@pytest.mark.parametrize("text", ["0", "1001", "", ",", "a", "1,-2", "1.5"])
def test_step_counts_are_checked(text):
    with pytest.raises(UsageError, match="--steps takes whole numbers from 1 to 1000"):
        parse_steps(text)


def test_refusals_come_before_any_model_is_loaded(results, tmp_path, monkeypatch):
    monkeypatch.setattr("sdpo_bench.models.base_model.load_policy", lambda *a, **k: pytest.fail("loaded a model"))
    common = ("--results", results, "--prompt", "cat")
    os.mkfifo(tmp_path / "pipe.png")
    for arguments, words in (
        (("nothing", *common), "no run 'nothing'"),
        (("sdpo", *common, "--steps", "x"), "--steps takes"),
        (("sdpo", *common, "--out", tmp_path / "x.gif"), "--out is a PNG file"),
        (("sdpo", *common, "--steps", "1,2", "--images", 251), "a grid of 1,004 pictures .* at most 1,000 fit"),
        (("sdpo", *common, "--out", tmp_path / "pipe.png"), "is no regular file"),
        (("sdpo", *common, "--out", results / "runs" / "x.png"), "lies among the runs"),
        (("sdpo", "--results", results, "--prompt", "  "), "--prompt is empty"),
    ):
        with pytest.raises(UsageError, match=words):
            run(*arguments)
    adapter = next((results / "runs").glob("*/lora/*.safetensors"))
    folder = RunFolder(adapter.parents[1])
    seal_log(folder)
    (folder.path / "train.jsonl").write_text("{}\n")  # as where another run's adapter was copied here
    with pytest.raises(UsageError, match=r"its adapter and its train.jsonl do not belong together"):
        run("sdpo", *common)
    adapter.unlink()
    with pytest.raises(UsageError, match="its adapter is not in .* sdpo-bench run with the settings of its run.json"):
        run("sdpo", *common)
    folder.set_status("interrupted", "")
    with pytest.raises(UsageError, match=r"has no trained adapter yet \(state: interrupted\)"):
        run("sdpo", *common)
    RunFolder(results / "runs" / "base-emoji").create({"kind": "base"})
    with pytest.raises(UsageError, match="holds the base model's scores"):
        run("base-emoji", *common)


def test_threads_are_set(results, tmp_path):
    before = torch.get_num_threads()
    try:
        run(
            "sdpo",
            "--results",
            results,
            "--prompt",
            "cat",
            "--steps",
            "1",
            "--threads",
            "1",
            "--out",
            tmp_path / "x.png",
        )
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
