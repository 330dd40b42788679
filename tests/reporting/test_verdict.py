"""The verdict above a leaderboard says what both kinds of rewards show, and no more."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from report_factory import base_frame, frame, make_base, make_run, spread

from sdpo_bench.reporting.assemble import Request, build_report
from sdpo_bench.results.read_results import load_results
from sdpo_bench.statistics.intervals import Estimate, crossed_interval
from sdpo_bench.statistics.matrices import Matrix

STEPS = (1, 2, 4)
CLEAR = (-0.02, 0.0, 0.02)
"""Of three seeds: an effect of 1 is shown."""
WIDE = (-9.0, 0.0, 9.0)
"""Of three seeds: nothing is shown."""


def runs(out: Path, method: str, gain: float, seeds=CLEAR, held_out: float | None = None, held_out_seeds=CLEAR, **more):
    """A method that gains so much at every step count over a base model at 0, by both rewards."""
    for seed, (own, other) in enumerate(zip(seeds, held_out_seeds, strict=True)):
        frames = []
        if held_out is not None:
            frames = [partial(frame, spread([held_out + other] * 3), reward="accuracy")]
        make_run(out, method, seed, spread([gain + own] * 3), frames=frames, **more)


def verdict(out: Path, held_out: bool = False, **options) -> str:
    frames = [base_frame(spread([0, 0, 0]))]
    frames += [base_frame(spread([0, 0, 0]), reward="accuracy")] if held_out else []
    make_base(out, *frames)
    return build_report(load_results(out), Request(**options)).sections[0].parts[0].finding


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        (
            {"sdpo": (5, CLEAR), "ddpo": (1, CLEAR)},
            "sdpo is highest at 4 steps and differs significantly from all other methods.",
        ),
        (
            {"sdpo": (5, CLEAR), "ddpo": (4.99, (0.05, 0.0, -0.05))},
            "sdpo is highest at 4 steps; not significantly different from it: ddpo.",
        ),
        ({"sdpo": (1, WIDE)}, "sdpo is highest at 4 steps, but does not differ significantly from the base model."),
        ({"sdpo": (-5, CLEAR)}, "No method is above the base model at 4 steps. sdpo differs by -5 [-5.05, -4.95]"),
        ({"sdpo": (-1, WIDE)}, "No method is above the base model at 4 steps."),
    ],
)
def test_who_is_highest(tmp_path, gains, said):
    for method, (gain, seeds) in gains.items():
        runs(tmp_path, method, gain, seeds)
    assert verdict(tmp_path, endpoint=4).startswith(said)


ONE_SEED = {"seeds": (0.0,), "held_out_seeds": (0.0,)}


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        (
            {"sdpo": 5, "d3po": 1},
            "sdpo is highest of the methods of several seeds on the mean over step counts and differs significantly "
            "from all other methods of several seeds. Higher, but not tested (1 seed): ddpo. sdpo gains 5 [",
        ),
        (
            {"sdpo": 5},
            "sdpo is the only method of several seeds. Higher, but not tested (1 seed): ddpo. sdpo gains 5 [",
        ),
        (
            {"sdpo": -5},
            "No method of several seeds is above the base model on the mean over step counts. "
            "Higher, but not tested (1 seed): ddpo.",
        ),
        (
            {"sdpo": 12, "d3po": 1},
            "sdpo is highest on the mean over step counts and differs significantly from all other methods of several "
            "seeds. sdpo gains 12 [",
        ),
    ],
)
def test_a_method_of_one_seed_is_neither_highest_nor_different(tmp_path, gains, said):
    runs(tmp_path, "ddpo", 9, **ONE_SEED)
    for method, gain in gains.items():
        runs(tmp_path, method, gain)
    assert verdict(tmp_path).startswith(said)


def test_the_best_and_the_reference_have_their_gains_in_numbers(tmp_path):
    for method, gain in (("sdpo", 1), ("ddpo", 3), ("d3po", 2)):
        runs(tmp_path, method, gain)
    text = verdict(tmp_path)
    assert "ddpo gains 3 [2.95, 3.05] (95 %, 3 seeds x 3 prompts) over the base model on the mean over step" in text
    assert "sdpo gains 1 [0.95, 1.05]" in text and "d3po gains" not in text
    assert "few-step" not in text  # all that was judged


def test_one_seed_shows_nothing(tmp_path):
    runs(tmp_path, "sdpo", 3, seeds=(0.0,), held_out_seeds=(0.0,))
    text = verdict(tmp_path)
    assert text.startswith("1 seed: no difference to the base model can be shown. sdpo gains 3")
    assert "By " not in text


def test_the_held_out_reward_stands_in_the_verdict_and_a_disagreement_is_named(tmp_path):
    runs(tmp_path, "sdpo", 1, held_out=0.0, held_out_seeds=WIDE)
    runs(tmp_path, "draft", -2, held_out=1.0)
    text = verdict(tmp_path, held_out=True)
    assert "By emoji-align (trained on): a significant gain over the base model for sdpo (+1.000 ±0.050, p" in text
    assert "; a significant loss against the base model for draft (-2.000 ±0.050, p" in text
    assert "By accuracy (not trained on): a significant gain over the base model for draft (+1.000 ±0.050, p" in text
    assert "no significant difference, and the interval includes 0, for sdpo (+0.0" in text
    assert text.endswith(
        "The two rewards disagree: draft fall by emoji-align and rise by accuracy (both intervals exclude 0)."
    )


RISING = np.array([0.0, 0.1, 0.2])


def barely_significant() -> tuple[float, Estimate]:
    """What to add to :data:`RISING` so that the mean's own p is .03: significant alone, but not among three."""
    for middle in np.linspace(0.1, 2, 1000):
        estimate = crossed_interval(Matrix(np.add.outer(RISING + middle, [0.0, 0.0, 0.0]), range(3), "abc"))
        if estimate.p_value() < 0.03:
            break
    return middle, estimate


def test_an_interval_without_its_corrected_p_has_both_in_its_sentence(tmp_path):
    middle, estimate = barely_significant()
    runs(tmp_path, "sdpo", middle, seeds=RISING)
    for method in ("ddpo", "d3po"):
        runs(tmp_path, method, 0, WIDE)
    text, half, p = verdict(tmp_path), (estimate.high - estimate.low) / 2, estimate.p_value()
    number = f"sdpo (+{estimate.value:.4f} ±{half:.4f}, p = {3 * p:.3f})"
    assert f"not significant after the correction, though the interval excludes 0: {number}" in text
    assert text.startswith(
        "sdpo is highest on the mean over step counts, but does not differ significantly from the base model after the "
        "correction over all pairs, though the interval of the difference excludes 0 "
        f"(-{estimate.value:.4f} ±{half:.4f}, p = {6 * p:.2f})."  # six pairs of four rows, this the smallest p
    )


def test_a_leader_whose_gain_is_significant_over_more_seeds_than_the_letters_use_has_both_tests(tmp_path):
    """sdpo gains .6, .9 and .75 with seeds 0 to 2; the letters have seeds 0 and 1, for which ddpo alone has scores."""
    runs(tmp_path, "sdpo", 0, seeds=(0.6, 0.9, 0.75))
    runs(tmp_path, "ddpo", 0, seeds=(0.0, 0.1), held_out_seeds=(0.0, 0.0))
    gain = crossed_interval(Matrix(np.add.outer([0.6, 0.9, 0.75], [0.0, 0.0, 0.0]), range(3), "abc"))
    said = (
        "among all pairs of rows; its gain over all of its seeds, corrected over the gains alone, is significant "
        f"(p = {2 * gain.p_value():.3f})"  # the smaller p of two methods
    )
    where = "sdpo is highest on the mean over step counts (ranked by the shared seeds 0 and 1), but does not differ"
    assert verdict(tmp_path).startswith(f"{where} significantly from the base model {said}.")
    answer = build_report(load_results(tmp_path), Request()).sections[0].answer.sentence
    assert answer.endswith(f"not significantly different from the base model {said}.")


def test_a_method_that_only_the_correction_ties_with_the_best_has_its_numbers(tmp_path):
    """Both gain significantly, and d3po shows nothing: of the six pairs ddpo - sdpo has the third smallest p."""
    behind, estimate = barely_significant()
    runs(tmp_path, "sdpo", 5, seeds=(0.0, 0.0, 0.0))
    runs(tmp_path, "ddpo", 5 - behind, seeds=-RISING)
    runs(tmp_path, "d3po", 0, WIDE)
    half, p = (estimate.high - estimate.low) / 2, estimate.p_value()
    said = (
        "not significantly different from it: d3po; not significantly different after the correction over all pairs, "
        f"though the interval of the difference excludes 0: ddpo (-{estimate.value:.3f} ±{half:.3f}, p = {4 * p:.2f})."
    )
    assert verdict(tmp_path).startswith(f"sdpo is highest on the mean over step counts; {said}")
    answer = build_report(load_results(tmp_path), Request()).sections[0].answer.sentence
    assert answer.startswith("sdpo leads: ") and answer.endswith(f"; {said}")


def test_long_lists_are_counted_with_the_reference_in_numbers(tmp_path):
    methods = ["sdpo", "ddpo", "d3po", "rebel", "grpo", "tdpo", "dpok", "pso", "refl"]
    for method in methods:
        runs(tmp_path, method, 1)
    assert "a significant gain over the base model for all 9 methods, among them sdpo (+1.000 ±0.050, p" in verdict(
        tmp_path
    )
