"""Pictures by method and step count, cut out of the grids of runs."""

from base64 import b64decode
from functools import partial
from io import BytesIO

import numpy as np
import pytest
from report_factory import base_frame, frame, make_base, make_run, spread

from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.reporting.assemble import Request, build_report
from sdpo_bench.reporting.html import html
from sdpo_bench.results.read_results import load_results
from sdpo_bench.scoring import image_statistics

LIST = "simple-animals"
STEPS = (1, 2, 4)


def _grid(path, prompts, shade):
    """A grid of 32 x 32 pictures: base model black, tuned of one grey."""
    torch = pytest.importorskip("torch")
    rows = []
    for prompt in prompts:
        rows.append((f"{prompt} (base)", torch.zeros(3, 3, 32, 32)))
        rows.append((f"{prompt} (tuned)", torch.full((3, 3, 32, 32), shade)))
    image_statistics.grid(rows, [f"{k} steps" for k in STEPS], path)


def _opened(uri):
    from PIL import Image

    return Image.open(BytesIO(b64decode(uri.partition(",")[2])))


def test_every_method_with_a_grid_has_a_row_with_its_rewards(tmp_path):
    texts = load_prompts(LIST)
    chosen = [texts[i] for i in (0, 9, 18, 27, 36)]  # of 45
    make_base(tmp_path, base_frame(spread([0, 0, 0], prompts=len(chosen)), prompts=chosen))
    for method, shade in (("sdpo", 0.25), ("ddpo", 0.75), ("grpo", None)):
        scores = spread([2, 3, 4] if method == "sdpo" else [1, 2, 3], prompts=len(chosen))
        folder = make_run(tmp_path, method, 0, frames=[partial(frame, scores, prompts=chosen)])
        if shade is not None:
            _grid(folder / "grid.png", chosen, shade)
    report = build_report(load_results(tmp_path), Request())
    grid = report.sections[0].answer.pictures()
    assert grid.steps == STEPS and [one.prompt for one in grid.prompts] == chosen
    assert grid.missing == ("grpo",)
    first = grid.prompts[0]
    assert [row.label for row in first.rows] == ["base model", "sdpo", "ddpo"]  # the best first
    # prompt 0 lies 0.3 and image 0 0.1 below the mean of its step count
    assert first.rows[0].scores == ("-0.4", "-0.4", "-0.4")
    assert first.rows[2].scores == ("0.6", "1.6", "2.6")
    for row, shade in zip(first.rows, (0, 64, 191)):
        tile = _opened(row.sources[0])
        assert tile.size == (16, 16)  # of the enlarged 96 x 96 pixels, one colour needs no more
        assert np.abs(np.asarray(tile, dtype=int) - shade).max() <= 1
    page = html(report)
    # 5 prompts with 2 images each, while a tile is one of them
    assert "its reward (<bdi>emoji-align</bdi>): one image of one prompt." in page
    assert "The numbers in the tables are means over 10 images for each step" in page
    assert page.count(first.rows[0].sources[0]) == len(chosen) * len(STEPS)  # the base model's, all black, once
    assert page.count('class="tiles"') == len(chosen) and 'type="range"' in page


@pytest.mark.parametrize("other", [{"sampler": "ddim trailing eta=0 guidance=1 sample bank=0"}, {"version": "0"}])
def test_numbers_beside_pictures_are_by_the_sampler_that_drew_them_and_the_trained_version(tmp_path, other):
    """A run draws its grid with its own sampler; a later evaluation at eta 0 gave other pictures, which score 9. One by
    another version of the reward gives the same pictures 9."""
    texts = load_prompts(LIST)
    chosen = [texts[i] for i in (0, 9, 18, 27, 36)]
    own, later = spread([1, 2, 3], prompts=5), spread([9, 9, 9], prompts=5, images=4)
    frames = [partial(frame, own, prompts=chosen), partial(frame, later, prompts=chosen, **other)]
    folder = make_run(tmp_path, "sdpo", 0, frames=frames)
    make_base(tmp_path, base_frame(spread([0, 0, 0], prompts=5), prompts=chosen))
    _grid(folder / "grid.png", chosen, 0.25)
    grid = build_report(load_results(tmp_path), Request()).sections[0].answer.pictures()
    assert [row.scores for row in grid.prompts[0].rows] == [("-0.4", "-0.4", "-0.4"), ("0.6", "1.6", "2.6")]
    assert grid.images == 10  # 5 prompts with the 2 images that the tables have


def test_a_grid_of_another_shape_is_no_row(tmp_path):
    from PIL import Image

    folder = make_run(tmp_path, "sdpo", 0, spread([1, 1, 1]))
    Image.new("RGB", (40, 40)).save(folder / "grid.png")
    assert build_report(load_results(tmp_path), Request()).sections[0].answer.pictures() is None
