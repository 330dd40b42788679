"""The model card of an adapter: scores that differ in nothing else are told apart by their sampler."""

from functools import partial

from report_factory import base_frame, frame, make_base, make_run, spread

from sdpo_bench.library.model_card import model_card
from sdpo_bench.runs.run_folder import RunFolder


def test_scores_by_another_sampler_have_a_table_of_their_own(tmp_path):
    eta_0 = "ddim trailing eta=0 guidance=1 sample bank=0"
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    make_base(tmp_path, base_frame(spread([0, 0, 0]), sampler=eta_0), name="base-emoji_turbo-1")
    later = partial(frame, spread([7, 8, 9]), sampler=eta_0)
    card = model_card(RunFolder(make_run(tmp_path, "sdpo", 0, spread([1, 2, 3]), frames=[later])))
    at_0, at_1 = card.split("Evaluation sampler: ")[1:]
    assert at_0.startswith("ddim trailing eta=0") and "+7.000 | 6 |" in at_0 and "+1.000" not in at_0
    assert at_1.startswith("ddim trailing eta=1") and "+1.000 | 6 |" in at_1 and "+7.000" not in at_1


def test_two_versions_of_a_reward_are_told_apart(tmp_path):
    make_base(tmp_path, base_frame(spread([0, 0, 0])), base_frame(spread([0, 0, 0]), version="2"))
    folder = make_run(tmp_path, "sdpo", 0, spread([1, 2, 3]))
    assert "| train | emoji-align | 1 |" in model_card(RunFolder(folder))
    later = partial(frame, spread([7, 8, 9]), version="2")
    card = model_card(RunFolder(make_run(tmp_path, "ddpo", 0, spread([1, 2, 3]), frames=[later])))
    first, *_, last = [line for line in card.splitlines() if line.startswith("| train | emoji-align")]
    assert first.startswith("| train | emoji-align (version 1) | 1 |") and first.endswith("| +1.000 | 6 |")
    assert last.startswith("| train | emoji-align (version 2) | 4 |") and last.endswith("| +9.000 | 6 |")
