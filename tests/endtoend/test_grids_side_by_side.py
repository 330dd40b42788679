"""Pictures taken from grids are the pictures that were drawn, each under the right heading."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from report_factory import make_run

from sdpo_bench.errors import UsageError
from sdpo_bench.scoring.grid_layout import CELL, GAP, GRID_PROMPTS, HEAD, LABEL_WIDTH
from sdpo_bench.scoring.image_statistics import grid
from tools.grids_side_by_side import cells, side_by_side


def plain(level: float, count: int) -> torch.Tensor:
    """``count`` pictures, the i-th of them ``level + i`` of 255."""
    return torch.stack([torch.full((3, 8, 8), (level + i) / 255) for i in range(count)])


def make_grid(folder, method: int) -> None:
    """Prompt r has base pictures of 20 r + step and tuned ones of 100 + 20 r + step, and more by method."""
    rows = []
    for r in range(GRID_PROMPTS):
        rows += [("base", plain(20 * r, 3)), ("tuned", plain(100 + 20 * r + method, 3))]
    grid(rows, ["1", "2", "4"], folder / "grid.png")


@pytest.fixture
def folders(tmp_path):
    found = {}
    for i, method in enumerate(("sdpo", "ddpo")):
        found[method] = make_run(tmp_path, method, 0)
        make_grid(found[method], 10 * i)
    return found


def test_pictures_come_back_as_they_were_drawn(tmp_path):
    pictures = torch.rand(2, 3, 3, 8, 8).mul(255).round() / 255
    grid([("a", pictures[0]), ("b", pictures[1])], ["1", "2", "4"], tmp_path / "grid.png")
    large = pictures.repeat_interleave(CELL // 8, -1).repeat_interleave(CELL // 8, -2)
    assert torch.equal(cells(tmp_path / "grid.png", 3), large)


def test_each_method_stands_beside_the_base_model(folders, tmp_path):
    side_by_side(folders, [1, 4], tmp_path / "side.png")
    pixels = np.array(Image.open(tmp_path / "side.png"))
    middle = lambda place, start: start + place * (CELL + GAP) + CELL // 2  # noqa: E731
    values = [[int(pixels[middle(r, HEAD), middle(c, LABEL_WIDTH), 0]) for c in range(6)] for r in range(5)]
    assert values[0] == [0, 100, 110, 2, 102, 112]  # base, sdpo, ddpo at the first and the third step count
    assert values[4] == [80, 180, 190, 82, 182, 192]


def test_a_step_count_that_was_not_drawn_is_refused(folders, tmp_path):
    with pytest.raises(UsageError, match="--steps 3 is not in the grids. Valid: 1, 2, 4"):
        side_by_side(folders, [3], tmp_path / "side.png")
    assert json.loads((folders["sdpo"] / "run.json").read_text())["config"]["eval"]["steps"] == [1, 2, 4]
