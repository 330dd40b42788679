"""What a report says about how a suite's settings were searched: every round, every candidate, and the cost."""

import pytest
from report_factory import base_frame, make_base, make_run, spread

from sdpo_bench.reporting.assemble import Request, build_report
from sdpo_bench.reporting.tables.suite_tables import suite_tables
from sdpo_bench.results.read_results import load_results
from sdpo_bench.results.suite_records import SuiteRecord, write_record


def tuned(score, out=""):
    """A tuning run as a suite's record has it."""
    return {"run": "id", "state": "done", "score": score, "out": out}


TEXTS = {"description": "", "reproduces": "", "departs": ""}
BILL = {"images": 7, "denoiser_calls": 0, "reward_calls": 0, "optimiser_steps": 0}
CHOICE = {
    "method": "sdpo",
    "reward": "good",
    "model": "model",
    "variant": "",
    "candidates": [
        {"settings": {"update.lr": 0.001}, "state": "done", "score": 0.3, "rounds": [[tuned(0.3)]]},
        {"settings": {"update.lr": 0.1}, "state": "out", "score": None, "rounds": [[tuned(0.9)], [tuned(None, "why")]]},
        {
            "settings": {"update.lr": 0.01},
            "state": "done",
            "score": 0.5,
            "rounds": [[tuned(0.4)], [tuned(0.2), tuned(0.8)]],
        },
        {"settings": {"update.lr": 0.2}, "state": "failed", "score": None, "rounds": [[tuned(None)]]},
    ],
    "chosen": {"update.lr": 0.01},
    "score": 0.5,
    "on_edge": ["update.lr"],
    "cost": BILL,
}
ROUNDS = {
    "by": "validation",
    "prompts": "emoji-validation",
    "steps": [1, 4],
    "extend": ["update.lr"],
    "require": {"reward": "emoji-accuracy", "drop": 0.02},
    "rounds": [
        {"seeds": [1000], "budget": {"budget.images": 2560}, "keep": None},
        {"seeds": [1000, 1001], "budget": {"budget.images": 2560}, "keep": 4},
    ],
}
ONE_ROUND = {"by": "reward", "prompts": "", "steps": [1], "seed": 9, "budget": {"budget.images": 64}}
"""As suites were recorded before searches had rounds."""


def tables_of(search):
    record = SuiteRecord("mine", TEXTS, (), {}, (), 0, search, (CHOICE,))
    _, choices, candidates = suite_tables(record, [], lambda runs: [])
    return choices, candidates


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (ROUNDS, "Each candidate was trained with seed 1000, not reported, for 2560 images."),
        (ROUNDS, "Round 2: each of the best 4 was trained with seeds 1000, 1001, not reported, for 2560 images."),
        (
            ROUNDS,
            "The highest mean score of the last round on validation prompts (emoji-validation) at 1, 4 steps was "
            "chosen.",
        ),
        (ONE_ROUND, "The highest mean score on the training prompts at 1 steps was chosen."),
        (ROUNDS, "A candidate whose emoji-accuracy there fell below the base model's minus 0.02 was out."),
        (ROUNDS, "Where an end of the list of update.lr won, the list grew by its next value."),
        (ROUNDS, "sdpo: the chosen update.lr is still at an end of its list."),
        (ONE_ROUND, "Each candidate was trained with seed 9, not reported, for 64 images."),
    ],
)
def test_the_notes_say_how_settings_were_searched(search, said):
    choices, _ = tables_of(search)
    assert said in choices.notes


def test_values_at_an_edge_of_a_list_that_does_not_grow_are_named_once_for_all_methods():
    """The records hold nothing of it: it follows from what was tried."""
    clips = [1e-3, 1e-2]
    candidates = [
        {"settings": {"update.lr": 0.1, "method.clip_range": clip}, "state": "done", "score": clip, "rounds": []}
        for clip in clips
    ]
    chosen = {"candidates": candidates, "chosen": candidates[1]["settings"], "on_edge": []}
    waiting = {"candidates": candidates, "chosen": None, "on_edge": []}
    choices = tuple({**CHOICE, "method": m, **c} for m, c in (("sdpo", chosen), ("ddpo", chosen), ("d3po", waiting)))
    record = SuiteRecord("mine", TEXTS, (), {}, (), 0, ROUNDS, choices)
    notes = suite_tables(record, [], lambda runs: [])[1].notes
    said = (
        "sdpo good, ddpo good: the chosen method.clip_range is at an edge of its values; nothing was tried beyond it."
    )
    assert [note for note in notes if "edge of its values" in note] == [said]


def test_searches_of_two_models_are_told_apart():
    choices = tuple({**CHOICE, "model": model} for model in ("emoji-turbo", "emoji-flow"))
    record = SuiteRecord("mine", TEXTS, (), {}, (), 0, ROUNDS, choices)
    _, table, candidates = suite_tables(record, [], lambda runs: [])
    assert [row.cells[2].text for row in table.rows] == ["emoji-turbo", "emoji-flow"]
    assert [group.title for group in candidates.groups] == ["sdpo, good, emoji-turbo", "sdpo, good, emoji-flow"]


def test_candidates_that_failed_or_are_out_are_counted():
    table, _ = tables_of(ROUNDS)
    row = dict(zip([column.key for column in table.columns], table.groups[0].rows[0].cells))
    texts = {key: cell.text for key, cell in row.items()}
    assert (texts["chosen"], texts["tried"], texts["failed"], texts["images"]) == ("update.lr = 0.01", "4", "2", "7")


def test_every_candidate_has_its_scores_by_round_the_furthest_first():
    _, table = tables_of(ROUNDS)
    assert [[cell.text for cell in row.cells] for row in table.rows] == [
        ["update.lr = 0.01", "0.4000", "0.5000", "chosen"],
        ["update.lr = 0.1", "0.9000", "-", "out: why"],
        ["update.lr = 0.001", "0.3000", "-", "-"],
        ["update.lr = 0.2", "-", "-", "failed"],
    ]


def test_a_report_of_search_runs_alone_says_why_it_is_empty(tmp_path):
    run = make_run(tmp_path, "sdpo", 1000, spread([1, 1, 1]))
    data = {"name": "mine", "texts": TEXTS, "variant_keys": [], "reported": {}, "tuning": [run.name], "waiting": 1}
    write_record(tmp_path, "mine", {**data, "search": ROUNDS, "choices": [CHOICE]})
    report = build_report(load_results(tmp_path), Request())
    (line,) = report.summary
    assert [table.name for table in report.main] == [
        "suite-mine-cells",
        "suite-mine-search",
        "suite-mine-search-candidates",
    ]
    assert line.startswith("No results yet: 1 run of a suite's search for settings")
    assert build_report(load_results(tmp_path), Request({"run": (run.name,)})).summary[0].startswith("1 run (1 done)")


def test_tuning_runs_of_an_edited_suite_stay_out_of_the_tables(tmp_path):
    """The run of tuning seed 1000 chose the settings of the reported runs: it is no third seed of them."""
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    runs = {
        seed: make_run(tmp_path, "sdpo", seed, spread([gain] * 3)).name for seed, gain in ((0, 1), (1, 2), (1000, 9))
    }
    data = {"name": "mine", "texts": TEXTS, "variant_keys": [], "waiting": 0, "search": ROUNDS, "choices": [CHOICE]}
    data |= {"reported": {runs[0]: "", runs[1]: ""}}
    write_record(tmp_path, "mine", {**data, "tuning": [runs[1000]]})
    for tuning in (["of-another-seed"], ["of-yet-another-seed"]):  # the suite is edited twice
        write_record(tmp_path, "mine", {**data, "tuning": tuning})
    (record,) = load_results(tmp_path).suites
    assert record.tuning == ("of-yet-another-seed",) and set(record.former_tuning) == {runs[1000], "of-another-seed"}
    (line,) = build_report(load_results(tmp_path), Request()).sections[0].answer.sentence.splitlines()
    assert line.startswith("sdpo gains +1.5 [") and "2 seeds" in line
    write_record(tmp_path, "mine", {**data, "tuning": [runs[1000]]})
    assert runs[1000] not in load_results(tmp_path).suites[0].former_tuning
