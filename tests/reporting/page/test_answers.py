"""One sentence answers a report; flags and notices stand beside the method that they are about."""

import json
from functools import partial

import pytest
from report_factory import base_frame, frame, make_base, make_run, spread

from sdpo_bench.reporting.assemble import Request, build_report
from sdpo_bench.reporting.html import html
from sdpo_bench.reporting.page.notices import kind_words
from sdpo_bench.results.read_results import load_results


def _section(folder):
    return build_report(load_results(folder), Request()).sections[0]


def test_the_sentence_says_who_wins_by_how_much_how_surely_and_at_which_budget(tmp_path):
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    for seed in range(3):
        for method, gain in (("sdpo", 2.0), ("ddpo", 1.0)):
            make_run(tmp_path, method, seed, spread([gain + 0.01 * seed] * 3))
    answer = _section(tmp_path).answer
    assert answer.sentence.startswith("sdpo wins: +2.01 [")
    assert "over the base model, p < 0.001, 3 seeds" in answer.sentence
    assert answer.sentence.endswith("3 train prompts); significantly different from every other method.")


def test_the_few_step_gain_stands_beside_the_mean_over_all_step_counts(tmp_path):
    """By hand: 2 at 1, 2 and 4 steps and 6 at 8 steps, so 3 on the mean; each seed adds .01."""
    make_base(tmp_path, base_frame(spread([0, 0, 0])), base_frame(spread([0]), steps=(8,)))
    for seed in range(3):
        extra = [partial(frame, spread([6 + 0.01 * seed]), steps=(8,))]
        make_run(tmp_path, "sdpo", seed, spread([2 + 0.01 * seed] * 3), frames=extra)
    sentence = _section(tmp_path).answer.sentence
    assert sentence.startswith("sdpo gains +3.01 [2.99, 3.03] over the base model, p < 0.001, 3 seeds (on the mean")
    assert "3 train prompts), and +2.01 [1.99, 2.03] on the few-step mean (1, 2 and 4 steps); the only" in sentence
    sentence = build_report(load_results(tmp_path), Request(endpoint="few")).sections[0].answer.sentence
    assert sentence.count("2.01") == sentence.count("few-step") == 1


def test_the_winners_gain_by_a_held_out_reward_on_the_same_prompts_stands_in_the_answer(tmp_path):
    """By accuracy sdpo loses .1 and ddpo .5; on the unseen prompts, that the sentence leaves out, sdpo loses 7."""
    zero = partial(base_frame, spread([0, 0, 0]), reward="accuracy")
    make_base(tmp_path, base_frame(spread([0, 0, 0])), zero(), zero(split="unseen"))
    for seed in range(3):
        for method, own, other in (("sdpo", 2.0, -0.1), ("ddpo", 1.0, -0.5)):
            by_accuracy = partial(frame, spread([other + 0.01 * seed] * 3), reward="accuracy")
            unseen = partial(frame, spread([-7 + 0.01 * seed] * 3), reward="accuracy", split="unseen")
            make_run(tmp_path, method, seed, spread([own + 0.01 * seed] * 3), frames=[by_accuracy, unseen])
    sentence = _section(tmp_path).answer.sentence
    assert sentence.startswith("sdpo wins: +2.01 [")
    # The interval: -.09 -+ t(.975, 2) * .01 / sqrt(3); p = .0041 of t = -15.59, and ddpo's is smaller.
    assert sentence.endswith(
        "every other method. Gain of sdpo by accuracy (not trained on) -0.09 [-0.115, -0.0652], p = 0.004."
    )


def test_who_is_ahead_of_the_winner_on_other_prompts_is_named(tmp_path):
    """ddpo wins on the train prompts; on the unseen ones it ends below sdpo and the base model."""
    make_base(tmp_path, base_frame(spread([0, 0, 0])), base_frame(spread([0, 0, 0]), split="unseen"))
    for seed in range(3):
        for method, train, unseen in (("sdpo", 1.0, 0.5), ("ddpo", 2.0, -1.0)):
            frames = [partial(frame, spread([unseen + 0.01 * seed] * 3), split="unseen")]
            make_run(tmp_path, method, seed, spread([train + 0.01 * seed] * 3), frames=frames)
    sentence = _section(tmp_path).answer.sentence
    assert sentence.startswith("ddpo wins: +2.01 [")
    assert sentence.endswith("On 3 unseen prompts sdpo and the base model are significantly ahead of ddpo.")
    for number, method in enumerate(("grpo", "d3po")):
        for seed in range(3):
            frames = [partial(frame, spread([number / 10 + 0.01 * seed] * 3), split="unseen")]
            make_run(tmp_path, method, seed, spread([number / 10 + 0.01 * seed] * 3), frames=frames)
    sentence = _section(tmp_path).answer.sentence
    assert sentence.endswith(
        "On 3 unseen prompts the base model and 3 of 3 other methods are significantly ahead of ddpo."
    )


def test_who_is_ahead_on_other_prompts_is_read_off_the_seeds_that_the_test_uses(tmp_path):
    """Unseen: ddpo has .9, 1, 1.1 for seeds 0 to 2 and 5 for two more, sdpo 1.9, 2, 2.1 for seeds 0 to 2: sdpo
    is ahead by 1 over the shared seeds, though ddpo's line, 2.6, is the higher one."""
    make_base(tmp_path, base_frame(spread([0, 0, 0])), base_frame(spread([0, 0, 0]), split="unseen"))
    for seed, unseen in enumerate((0.9, 1.0, 1.1, 5, 5)):
        frames = [partial(frame, spread([unseen] * 3), split="unseen")]
        make_run(tmp_path, "ddpo", seed, spread([2 + 0.01 * seed] * 3), frames=frames)
    for seed, unseen in enumerate((1.9, 2.0, 2.1)):
        frames = [partial(frame, spread([unseen] * 3), split="unseen")]
        make_run(tmp_path, "sdpo", seed, spread([1 + 0.01 * seed] * 3), frames=frames)
    sentence = _section(tmp_path).answer.sentence
    assert sentence.startswith("ddpo wins: ")
    assert sentence.endswith("On 3 unseen prompts sdpo is significantly ahead of ddpo.")


def test_a_single_seed_leads_without_a_claim(tmp_path):
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    make_run(tmp_path, "sdpo", 0, spread([2, 2, 2]))
    make_run(tmp_path, "ddpo", 0, spread([1, 1, 1]))
    assert _section(tmp_path).answer.sentence == (
        "sdpo scores highest: +2 over the base model, 1 seed (on the mean over step counts, 3 train prompts). "
        "1 seed: no difference between methods can be shown."
    )


def test_the_winner_is_the_best_over_the_seeds_that_all_methods_have(tmp_path):
    """By hand: ddpo has 3.01 over seeds 0 to 2; sdpo has 2.01 over these and (3 * 2.01 + 2 * 9) / 5 over its own."""
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    for seed in range(3):
        make_run(tmp_path, "ddpo", seed, spread([3 + 0.01 * seed] * 3))
    for seed, gain in enumerate((2, 2.01, 2.02, 9, 9)):
        make_run(tmp_path, "sdpo", seed, spread([gain] * 3))
    section = _section(tmp_path)
    assert section.answer.sentence.startswith("ddpo wins: +3.01 [")
    assert section.answer.sentence.endswith(
        "3 seeds (on the mean over step counts, 3 train prompts, ranked by the shared seeds 0, 1 and 2); "
        "significantly different from every other method."
    )
    assert section.parts[0].finding.startswith(
        "ddpo is highest on the mean over step counts (ranked by the shared seeds 0, 1 and 2) and differs "
        "significantly from all other methods. ddpo gains 3.01 ["
    )


def one_seed_beside(out, **gains):
    """ddpo gains 6 with its only seed; the others have three seeds. The base model scores 0."""
    make_base(out, base_frame(spread([0, 0, 0])))
    make_run(out, "ddpo", 0, spread([6] * 3))
    for method, gain in gains.items():
        for seed in range(3):
            make_run(out, method, seed, spread([gain + 0.01 * seed] * 3))
    return _section(out).answer.sentence


def test_a_method_of_one_seed_above_the_others_is_named_as_untested(tmp_path):
    sentence = one_seed_beside(tmp_path, sdpo=3, d3po=1)
    assert sentence.startswith("sdpo is highest of the methods of several seeds: +3.01 [")
    assert sentence.endswith(
        "3 train prompts); significantly different from every other method of several seeds. "
        "Higher, but not tested (1 seed): ddpo."
    )


def test_the_only_method_of_several_seeds_does_not_win_against_one_of_one_seed(tmp_path):
    sentence = one_seed_beside(tmp_path, sdpo=3)
    assert sentence.startswith("sdpo gains +3.01 [")
    assert sentence.endswith("; the only method of several seeds. Higher, but not tested (1 seed): ddpo.")


def test_the_base_model_is_not_above_a_method_of_one_seed(tmp_path):
    assert one_seed_beside(tmp_path, sdpo=-3) == (
        "No method of several seeds is above the base model (on the mean over step counts, 3 train prompts). "
        "Higher, but not tested (1 seed): ddpo."
    )


def test_a_method_of_one_seed_below_the_best_is_not_called_different_from_it(tmp_path):
    sentence = one_seed_beside(tmp_path, sdpo=9, d3po=7)
    assert sentence.startswith("sdpo wins: +9.01 [")
    assert sentence.endswith("; significantly different from every other method of several seeds.")


@pytest.mark.parametrize(
    ("gain", "words"), [(1, "sdpo gains +1 over"), (-1, "sdpo is not above the base model: -1 over")]
)
def test_the_only_method_is_measured_against_the_base_model(tmp_path, gain, words):
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    make_run(tmp_path, "sdpo", 0, spread([gain] * 3))
    assert _section(tmp_path).answer.sentence == (
        f"{words} the base model, 1 seed (on the mean over step counts, 3 train prompts). "
        "1 seed: no difference to the base model can be shown."
    )


def test_the_only_method_of_several_seeds_gains_and_does_not_win(tmp_path):
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    for seed in range(3):
        make_run(tmp_path, "sdpo", seed, spread([2 + 0.01 * seed] * 3))
    sentence = _section(tmp_path).answer.sentence
    assert sentence.startswith("sdpo gains +2.01 [") and sentence.endswith("; the only method here.")


def test_a_setting_without_scores_says_so(tmp_path):
    make_run(tmp_path, "sdpo", 0)
    assert _section(tmp_path).answer.sentence == "No finished run of emoji-align has usable scores yet."


def test_flags_say_where_a_method_loses_and_how_far_it_went(tmp_path):
    make_base(tmp_path, base_frame(spread([0, 0, 0])), base_frame(spread([0, 0, 0]), split="unseen"))
    for seed in range(3):
        unseen = partial(frame, spread([-1 - 0.01 * seed] * 3), split="unseen")
        folder = make_run(tmp_path, "draft", seed, spread([1 + 0.01 * seed] * 3), frames=[unseen])
        rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        rows[-1]["kl_to_base"] = 31 + seed  # mean 32
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = build_report(load_results(tmp_path), Request())
    answer = report.sections[0].answer
    assert answer.badges == {"draft": ("below the base model: -1.01 on unseen", "far from the base model: KL 32")}
    assert answer.cautions == answer.badges["draft"]
    row = html(report).partition('id="setting-1-1-leaderboard-1"')[2].partition("</table>")[0]
    assert '<span class="badge"><bdi>far from the base model: KL 32</bdi></span>' in row


def test_notices_of_the_seeds_of_a_method_are_one_line(tmp_path):
    for seed in range(5):
        folder = make_run(tmp_path, "ddpo", seed, spread([1, 1, 1]))
        text = f"the policy has moved very far from its base: KL 1{seed}.1 (guard.kl = 10)"
        warning = {"epoch": 3 + seed, "guard": "kl", "text": text}
        (folder / "warnings.jsonl").write_text(json.dumps(warning) + "\n")
    report = build_report(load_results(tmp_path), Request())
    (group,) = report.notice_groups
    assert len(group.notices) == len(report.notices) == 5
    assert group.title == (
        "ddpo on emoji-align: the policy has moved very far from its base (guard.kl = 10) in 5 of 5 seeds"
    )


def test_different_thresholds_are_different_kinds():
    text = "warned in epoch 4: the policy has moved very far from its base: KL 15.3 (guard.kl = {})"
    assert kind_words(text.format(10)) != kind_words(text.format(20))
    assert kind_words(text.format(10)) == kind_words(text.format(10).replace("15.3", "11"))
