"""``sdpo-bench show``: one run from its folder."""

import json

import pytest
from finished_run import call
from report_factory import base_frame, make_base, make_run, spread

from sdpo_bench.results.run_list import list_runs
from sdpo_bench.runs.run_folder import RunFolder


@pytest.fixture
def out(tmp_path):
    """A run that is 2 better than its base model everywhere, 5 epochs long."""
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    created = {"created": "2026-01-02T03:04:05Z"}
    make_run(tmp_path, "sdpo", 0, spread([2, 2, 2]), epochs=5, you=("update.lr",), record=created)
    return tmp_path


def test_show_as_data_has_settings_bill_scores_curves_and_files(out, capsys):
    code, text, _ = call(capsys, "show", "sdpo", "--results", out, "--json")
    assert code == 0
    data = json.loads(text)
    assert (data["state"], data["date"], data["training_seconds"]) == ("done", "2026-01-02 03:04", 150)
    assert data["bill"]["images"] == 64 * 5
    trained = [row for row in data["table"] if row["reward"] == "emoji-align"]
    assert trained and all(row["difference"] == pytest.approx(2) for row in trained)
    rewards = [point for point in data["curves"] if point["metric"] == "reward_mean"]
    assert [point["value"] for point in rewards] == pytest.approx([-0.9, -0.8, -0.7, -0.6, -0.5])
    assert [point["images"] for point in rewards] == [64, 128, 192, 256, 320]
    assert {"pictures.diversity", "gradient_share_by_step.9"} <= {point["metric"] for point in data["curves"]}
    assert not any("bill" in point["metric"] for point in data["curves"])
    assert set(data["files"]) == {"run.json", "train.jsonl", "timing.jsonl", "eval.parquet"}


def test_the_sampler_is_printed_in_words_and_stored_as_it_is(out, capsys):
    stored = "ddim trailing eta=1 guidance=1 sample bank=0"
    printed = call(capsys, "show", "sdpo", "--results", out)[1]
    assert "evaluation sampler: ddim trailing eta=1 guidance=1, final image, noise bank 0" in printed
    assert f'"{stored}"' in call(capsys, "show", "sdpo", "--results", out, "--json")[1]


def test_only_names_and_what_differs_from_the_defaults_is_shown(out, capsys):
    own = json.loads(call(capsys, "show", "sdpo", "--results", out, "--json")[1])["own_settings"]
    assert {"method.name", "reward.name", "model.name", "seed"} <= set(own)
    assert "update.betas" not in own and "eval.eta" not in own  # AdamW's and the sampler's defaults
    assert own["budget.amount"] == 128  # the default is 25,600 images


def test_show_in_words_names_the_state_the_bill_and_the_way_to_repeat(out, capsys):
    code, text, _ = call(capsys, "show", "sdpo", "--results", out)
    assert code == 0
    assert "cost: 320 images" in text and "training, 5 of 5 epochs" in text
    assert "+2.000" in text
    (folder,) = (out / "runs").glob("sdpo*")
    assert text.splitlines()[-1] == f"repeat it: sdpo-bench run --config {folder / 'run.json'}"


def test_a_run_whose_process_is_gone_is_shown_as_killed(out, capsys):
    """Its status says running for ever; a living process holds the folder's lock."""
    (folder,) = (out / "runs").glob("sdpo*")
    run = RunFolder(folder)
    run.set_status("running", "training")

    def shown():
        text = call(capsys, "show", "sdpo", "--results", out)[1]
        (listed,) = [row for row in list_runs(out)[1] if row[0] == run.run_id]
        data = json.loads(call(capsys, "show", "sdpo", "--results", out, "--json")[1])
        return data["state"], listed[1], "same command resumes it" in text, "same command resumes it" in listed[-1]

    assert shown() == ("killed", "killed", True, True)
    with run.locked():
        assert shown() == ("running", "running", False, False)


def test_show_refuses_what_is_no_whole_run(out, capsys):
    code, _, err = call(capsys, "show", "base", "--results", out)
    assert code == 2 and "holds the base model's scores" in err
    (folder,) = (out / "runs").glob("sdpo*")
    (folder / "run.json").write_text("{")
    code, _, err = call(capsys, "show", "sdpo", "--results", out)
    assert code == 2 and "is damaged" in err
    code, _, err = call(capsys, "show", "nothing", "--results", out)
    assert code == 2 and "no run 'nothing'" in err


def test_a_run_without_scores_names_the_command_that_adds_them(tmp_path, capsys):
    folder = make_run(tmp_path, state="interrupted", message="stopped by Ctrl-C")
    text = call(capsys, "show", "sdpo", "--results", tmp_path)[1]
    assert f"no scores beside a base model yet: sdpo-bench eval {folder.name}" in text
    assert "stopped by Ctrl-C" in text
