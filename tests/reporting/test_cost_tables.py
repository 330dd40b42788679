"""Picture statistics are means over the very pictures whose scores stand beside them."""

import numpy as np
import pytest
from report_factory import base_frame, frame, make_base, make_run, spread

from sdpo_bench.reporting.assemble import Request, build_report
from sdpo_bench.results.read_results import load_results

LEVELS = {1: 0.1, 2: 0.2, 4: 0.6}
"""Contrast by step count; the mean is .3."""


def with_contrast(rows, extra=0.0):
    return rows.assign(contrast=[LEVELS[k] + extra for k in rows["steps"]])


def pictured(scores, extra=0.0, **options):
    """Rows of a run whose pictures have the contrast of ``LEVELS``, plus ``extra``."""
    return lambda **who: with_contrast(frame(scores, **who, **options), extra)


def contrasts(out):
    """By title of a part and row: the contrast that the report shows."""
    found = {}
    for section in build_report(load_results(out), Request()).sections:
        for part in section.parts:
            for table in part.tables:
                if table.name.endswith("-pictures"):
                    place = [column.key for column in table.columns].index("contrast")
                    found |= {(part.title, row.cells[0].text): row.cells[place].value for row in table.rows}
    return found


def test_a_reward_that_judged_one_step_count_alone_does_not_cut_the_pictures(tmp_path):
    """Run A was judged again by a reward that sorts before its own, at 1 step alone: contrast .1 there."""
    make_base(tmp_path, with_contrast(base_frame(spread([0, 0, 0]))))
    again = pictured(spread([5]), reward="aesthetic", steps=(1,))
    make_run(tmp_path, "sdpo", 0, frames=[pictured(spread([1, 1, 1])), again])
    make_run(tmp_path, "ddpo", 0, frames=[pictured(spread([1, 1, 1]))])
    part = "3 train prompts"
    expected = {(part, "base model"): 0.3, (part, "sdpo"): 0.3, (part, "ddpo"): 0.3}
    assert contrasts(tmp_path) == pytest.approx(expected)


def test_two_sets_of_prompts_of_a_split_have_pictures_of_their_own(tmp_path):
    """Contrast .3 on two unseen prompts, .4 on three others; the base model's is .1 higher on each."""
    sets = [({"prompts": ("ant", "cow"), "steps": (1, 2, 4)}, 0.0), ({"prompts": ("elk", "fox", "owl")}, 0.1)]
    frames, bases = [], []
    for options, extra in sets:
        scores = spread([1, 1, 1], prompts=len(options["prompts"]), images=1 + bool(extra))
        frames.append(pictured(scores, extra, split="unseen", **options))
        bases.append(with_contrast(base_frame(scores, split="unseen", **options), extra + 0.1))
    make_base(tmp_path, *bases)
    make_run(tmp_path, "sdpo", 0, frames=frames)
    small, large = "2 unseen prompts", "3 unseen prompts"
    expected = {(small, "base model"): 0.4, (small, "sdpo"): 0.3, (large, "base model"): 0.5, (large, "sdpo"): 0.4}
    assert contrasts(tmp_path) == pytest.approx(expected)


def test_pictures_are_cut_to_the_images_that_every_run_has(tmp_path):
    """ddpo has image 0 alone; of sdpo, image 1 is brighter by .2, and counts for nothing."""
    make_base(tmp_path, with_contrast(base_frame(spread([0, 0, 0]))))

    def uneven(**who):
        rows = with_contrast(frame(spread([1, 1, 1]), **who))
        return rows.assign(contrast=rows["contrast"] + 0.2 * rows["image"])

    make_run(tmp_path, "sdpo", 0, frames=[uneven])
    make_run(tmp_path, "ddpo", 0, frames=[pictured(spread([1, 1, 1], images=1))])
    assert contrasts(tmp_path)["3 train prompts", "sdpo"] == pytest.approx(0.3)


def test_pictures_of_a_diverged_run_are_averaged_no_more_than_its_scores(tmp_path):
    """Seed 1 has a score that is not finite; d3po has no other run and keeps its row, for the last epoch's numbers."""
    make_base(tmp_path, with_contrast(base_frame(spread([0, 0, 0]))))
    bad = spread([1, 1, 1])
    bad[0, 0, 0] = np.nan
    make_run(tmp_path, "sdpo", 0, frames=[pictured(spread([1, 1, 1]))])
    make_run(tmp_path, "sdpo", 1, frames=[pictured(bad, 0.3)])
    make_run(tmp_path, "d3po", 1, frames=[pictured(bad, 0.3)])
    found = contrasts(tmp_path)
    assert found["3 train prompts", "sdpo"] == pytest.approx(0.3)
    assert found["3 train prompts", "d3po"] is None
