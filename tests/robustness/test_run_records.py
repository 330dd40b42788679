"""A ``run.json`` that is no record of its run, or not of this run, is never taken at face value."""

import json
from pathlib import Path

import pytest
from finished_run import call, copy_of, make, words_of

from sdpo_bench.config.run_id import problem
from sdpo_bench.runs.run_folder import RunFolder

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def words(tiny_pipe, tmp_path_factory):
    return words_of(tmp_path_factory.mktemp("prompts"), tiny_pipe, "jpeg-incompressibility", 4)


@pytest.fixture(scope="module")
def made(words, tmp_path_factory):
    return make(words, tmp_path_factory.mktemp("made") / "results")


@pytest.fixture
def results(made, tmp_path):
    return copy_of(made, tmp_path / "results")


def edit(run, change):
    """Apply ``change(record)`` to the run's record."""
    path = run.path / "run.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


HARM = {
    "empty": (lambda record: record.clear(), "kind is None"),
    "no settings": (lambda record: record.update(config={}), "it lacks method.name"),
    "a setting": (lambda record: record["config"]["update"].update(lr=0.5), "its settings are not those of run"),
    "the seed": (lambda record: record["config"].update(seed=7), "its settings are not those of run"),
    "the reward's version": (lambda record: record.update(reward_version="x/2"), "its settings are not those of run"),
    "a prompt digest": (lambda record: record["prompt_files"].clear(), "its settings are not those of run"),
    "a section": (lambda record: record["config"].update(model="x"), "it lacks model.name"),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_changed_record_is_refused_by_whatever_reads_it(results, words, capsys, tmp_path, harm):
    out, run = results
    change, said = HARM[harm]
    edit(run, change)
    here, lora = ("--results", out), tmp_path / "lora"
    commands = [
        [*words, "--out", out],
        ["eval", run.path, "--out", out],
        ["export", run.path, "--to", lora, *here],
        ["sample", run.path, "--prompt", "cat", "--out", tmp_path / "cat.png", *here],
    ]
    for command in commands:
        code, shown, complaint = call(capsys, *command)
        assert code == 2 and f"'{run.path / 'run.json'}' is damaged: {said}" in complaint, shown
        assert "Delete 'run.json' and give the run command again" in complaint
    code, shown, _ = call(capsys, "report", "--results", out)
    assert "is damaged" in shown and said in " ".join(shown.split())


def test_the_way_on_mends_it(results, words, capsys):
    out, run = results
    before = run.record()
    edit(run, lambda record: record.clear())
    (run.path / "run.json").unlink()
    code, _, complaint = call(capsys, *words, "--out", out)
    assert code == 0, complaint
    assert {**run.record(), "created": ""} == {**before, "created": ""}


def test_a_renamed_run_is_still_itself_and_not_another(results, words, capsys):
    """A folder under the name of another run is refused where that run is asked for."""
    out, run = results
    renamed = RunFolder(run.path.rename(out / "runs" / "mine"))
    code, _, complaint = call(capsys, "eval", "mine", "--out", out)
    assert code == 0, complaint
    code, shown, _ = call(capsys, *words, "--out", out, "--seed", "5", "--dry-run", "--json")
    renamed.path.rename(out / "runs" / json.loads(shown)["run"])
    code, _, complaint = call(capsys, *words, "--out", out, "--seed", "5")
    assert code == 2 and f"holds run '{run.run_id}'" in complaint


def test_records_that_are_kept_are_sound():
    """A record tells its own id, whatever has been added to the settings since."""
    records = [json.loads(path.read_text()) for path in RESULTS.rglob("run.json")]
    assert len(records) > 100 and not [problem(record) for record in records if problem(record)]


def test_a_record_without_digests_is_one_without_files_of_ones_own():
    record = json.loads(next((RESULTS / "reference" / "runs").glob("sdpo*/run.json")).read_text())
    assert not record.pop("prompt_files") and not record.pop("model_digest")
    assert not problem(record)
