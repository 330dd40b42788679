"""Which runs meet in one table: what parts settings and arms, what does not, and how both are named."""

import json
import shutil

import pytest
from report_factory import add_curve, base_frame, frame, make_base, make_run, spread

from sdpo_bench.results.comparability import apart, group_settings, sampler_words
from sdpo_bench.results.learning_curves import curve_panels
from sdpo_bench.results.panels import base_scores, panels_of
from sdpo_bench.results.read_results import load_results
from sdpo_bench.results.read_scores import read_all_scores
from sdpo_bench.results.run_list import list_runs
from sdpo_bench.runs.run_folder import RunFolder


def settings_of(out):
    """Settings of the runs in a results folder, and what is said of runs that are left out."""
    return group_settings(load_results(out).runs)


@pytest.mark.parametrize(("section", "key"), [("guard", "flat"), ("eval", "images_per_prompt")])
def test_how_a_run_is_judged_and_when_it_warns_makes_no_arm(tmp_path, section, key):
    for seed in range(2):
        path = make_run(tmp_path, "ddpo", seed) / "run.json"
        record = json.loads(path.read_text())
        record["config"].setdefault(section, {})[key] = seed
        path.write_text(json.dumps(record))
    ((setting,), notices) = settings_of(tmp_path)
    assert [len(arm.runs) for arm in setting.arms] == [2] and not notices


def test_guards_that_choose_the_checkpoint_part_arms(tmp_path):
    """With ``before-collapse`` they decide which weights are judged."""
    for kl in (5, 60):
        make_run(tmp_path, "ddpo", **{"guard.kl": kl, "checkpoint.choose": "before-collapse"})
    ((setting,), notices) = settings_of(tmp_path)
    assert [arm.label for arm in setting.arms] == ["ddpo (guard.kl=5)", "ddpo (guard.kl=60)"] and not notices


def test_prompt_files_of_one_name_and_other_content_part_runs(tmp_path):
    for content in ("aa", "bb", "aa"):
        seed = len(list(tmp_path.glob("runs/*")))
        record = {"prompt_files": {"sample.prompts": content}}
        make_run(tmp_path, "ddpo", seed, record=record, **{"sample.prompts": "mine.txt"})
    settings, _ = settings_of(tmp_path)
    assert sorted(len(arm.runs) for setting in settings for arm in setting.arms) == [1, 2]
    assert len({setting.title for setting in settings}) == 2
    assert "sample.prompts.digest is " in apart(settings[0], settings)


def test_records_of_many_runs_hold_equal_sections_once(tmp_path):
    """The record of a run is 10 KB, nearly all of it the same in 10,000 runs of a sweep."""
    for seed in range(2):
        make_run(tmp_path, "ddpo", seed)
    first, second = (run.record["config"] for run in load_results(tmp_path).runs)
    assert first["model"] is second["model"] and first["update"] is second["update"]
    assert (first["seed"], second["seed"]) == (0, 1)


def test_of_two_runs_of_a_seed_the_finished_one_counts(tmp_path):
    folder = make_run(tmp_path, "ddpo", 0)
    for name in ("aa-first-by-name", "zz-last-by-name"):
        shutil.copytree(folder, folder.with_name(name))
    RunFolder(folder.with_name("aa-first-by-name")).set_status("interrupted")
    ((setting,), notices) = settings_of(tmp_path)
    (arm,) = setting.arms
    assert [run.id for run in arm.runs] == [folder.name]
    assert sorted(notice.where for notice in notices) == ["aa-first-by-name", "zz-last-by-name"]


def test_runs_that_are_not_done_belong_to_an_arm_and_are_not_counted(tmp_path):
    for seed, state in enumerate(("done", "running", "failed")):
        make_run(tmp_path, "ddpo", seed, state=state)
    ((setting,), _) = settings_of(tmp_path)
    (arm,) = setting.arms
    assert [run.seed for run in arm.runs] == [0, 1, 2] and [run.seed for run in arm.done] == [0]


def test_an_arm_that_differs_in_much_is_named_by_three_keys_and_a_digest(tmp_path):
    changes = {"update.lr": 1.0, "update.order": "accumulated", "advantage.gamma": 0.5, "method.clip_range": 0.2}
    make_run(tmp_path, "ddpo", 0)
    make_run(tmp_path, "ddpo", 0, **changes)
    ((setting,), _) = settings_of(tmp_path)
    labels = [arm.label for arm in setting.arms]
    assert all(label.count("=") == 3 and "1 more, " in label for label in labels) and len(set(labels)) == 2


def test_the_reason_is_told_of_the_most_similar_setting(tmp_path):
    make_run(tmp_path, "ddpo", 0)
    make_run(tmp_path, "ddpo", 0, **{"budget.amount": 256})
    make_run(tmp_path, "ddpo", 0, **{"budget.amount": 512, "schedule.steps": 50})
    settings, _ = settings_of(tmp_path)
    plain = next(s for s in settings if s.settings["budget.amount"] == 128)
    assert apart(plain, settings).endswith(": budget.amount is 128 here and 256 there.")
    assert apart(plain, [plain]) == ""


def test_the_setting_of_most_methods_is_first_then_that_of_most_runs(tmp_path):
    """Names count last, and runs that are not finished not at all."""
    make_run(tmp_path, "sdpo", 0, reward="aa-of-one-method")
    for seed in range(2):
        make_run(tmp_path, "sdpo", seed, reward="bb-of-two-seeds")
    make_run(tmp_path, "sdpo", 0, reward="cc-of-two-methods")
    make_run(tmp_path, "ddpo", 0, reward="cc-of-two-methods")
    for method in ("ddpo", "grpo", "dpok"):
        make_run(tmp_path, method, 0, reward="dd-of-none", state="failed")
    settings, _ = settings_of(tmp_path)
    assert [setting.reward for setting in settings] == [
        "cc-of-two-methods",
        "bb-of-two-seeds",
        "aa-of-one-method",
        "dd-of-none",
    ]


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ("ddim trailing eta=1 guidance=1 sample bank=0", "ddim trailing eta=1 guidance=1, final image, noise bank 0"),
        ("lcm guidance=1 predicted bank=12", "lcm guidance=1, predicted original of the last step, noise bank 12"),
        ("of another version", "of another version"),
    ],
)
def test_a_sampler_is_printed_in_words(stored, words):
    assert sampler_words(stored) == words


def test_another_version_of_the_trained_reward_is_not_the_one_that_was_trained_on(tmp_path):
    """``eval --rewards remote`` adds scores by another version, here one that sorts before the trained one."""
    trained, other = {"reward": "ocr", "version": "1+rapidocr-3"}, {"reward": "ocr", "version": "1+contains+rapidocr-3"}
    folder = make_run(
        tmp_path,
        "sdpo",
        0,
        spread([1, 1, 1]),
        **trained,
        frames=[lambda **who: frame(spread([9, 9, 9]), **who, **other)],
    )
    make_base(tmp_path, base_frame(spread([0, 0, 0]), **trained), base_frame(spread([4, 4, 4]), **other))
    add_curve(folder, [0, 1])
    results = load_results(tmp_path)
    scores, _ = read_all_scores([*results.runs, *results.bases])
    ((setting,), _) = group_settings(results.runs)
    panels = panels_of(setting, scores, base_scores(setting, results.bases, scores).blocks)
    assert [(panel.key.version, panel.trained) for panel in panels] == [
        ("1+rapidocr-3", True),
        ("1+contains+rapidocr-3", False),
    ]
    assert list_runs(tmp_path)[1][0][8] == pytest.approx(1.0)  # the score over the base model's
    assert [panel.trained for panel in curve_panels(setting)[0]] == [True]
    (folder / "curve.jsonl").write_text((folder / "curve.jsonl").read_text().replace("1+rapid", "1+contains+rapid"))
    assert [panel.trained for panel in curve_panels(setting)[0]] == [False]
