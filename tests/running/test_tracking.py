"""Trackers: what they are told, that they change nothing, and that none of them can fail a run."""

import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from finished_run import call, words_of

from sdpo_bench.running import tracking
from sdpo_bench.running.tracker_backends import BACKENDS
from sdpo_bench.settings import TrackSettings

EPOCHS = 3


@pytest.fixture
def words(tmp_path, tiny_pipe):
    """A run of three epochs of four images."""
    return [*words_of(tmp_path, tiny_pipe, "jpeg-incompressibility", 4 * EPOCHS), "--out", tmp_path / "out"]


def run_folder(tmp_path):
    (run,) = (path for path in (tmp_path / "out" / "runs").iterdir() if not path.name.startswith("base-"))
    return run


def events(folder):
    """Everything that TensorBoard reads in one folder, as its event accumulator."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


def log_of(run, name="train.jsonl"):
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


class Recorder:
    """A tracker that keeps what it is told, and fails where it is asked to."""

    stores_settings_once = True
    scores_follow_epochs = False

    def __init__(self, fail_at=None):
        self.fail_at, self.config, self.logged, self.table, self.pixels, self.ended = (
            fail_at,
            None,
            {},
            None,
            None,
            False,
        )

    def store_settings(self, values):
        assert all(isinstance(value, bool | int | float | str) for value in values.values())
        self.config = values

    def log(self, values, step):
        if step == self.fail_at:
            raise ConnectionError("the server has gone")
        self.logged.setdefault(step, {}).update(values)

    def log_table(self, columns, rows, step):
        self.table = [dict(zip(columns, row)) for row in rows]

    def log_grid(self, pixels, step):
        self.pixels = pixels

    def finish(self):
        self.ended = True


def use(monkeypatch, backend):
    """Have every tracker made by ``backend``, installed or not."""
    monkeypatch.setattr(tracking, "BACKENDS", dict.fromkeys(tracking.NAMES, backend))
    monkeypatch.setattr(tracking, "find_spec", lambda name: object())


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()
    use(monkeypatch, lambda *_: made)
    return made


@pytest.fixture
def stop_after_two(monkeypatch):
    """Interrupt the run after its second epoch; calling the fixture lets the next one go on."""
    real = tracking.Tracking.tick

    def interrupted(self, tick):
        real(self, tick)
        if tick.phase == "epoch" and tick.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(tracking.Tracking, "tick", interrupted)
    return lambda: monkeypatch.setattr(tracking.Tracking, "tick", real)


def test_tensorboard_reads_back_every_epoch_the_settings_the_scores_and_the_grid(words, tmp_path, capsys):
    pytest.importorskip("tensorboard")
    code, _, err = call(capsys, *words, "--track", "tensorboard", "--set", "track.project=mine")
    assert code == 0 and "warning" not in err
    run = run_folder(tmp_path)
    found = events(tmp_path / "out" / "trackers" / "tensorboard" / "mine" / run.name)
    rewards = [(event.step, event.value) for event in found.Scalars("train/reward_mean")]
    assert rewards == [(row["epoch"], pytest.approx(row["reward_mean"])) for row in log_of(run)]
    assert [event.value for event in found.Scalars("bill/images")] == [4, 8, 12]
    assert len(found.Scalars("time/seconds")) == EPOCHS
    for side in ("base", "tuned", "difference"):
        assert [event.step for event in found.Scalars(f"eval/jpeg-incompressibility/train/1/{side}")] == [EPOCHS]
    assert found.Images("pictures")[0].width > 0
    assert b"standard_error" in found.Tensors("eval/table/text_summary")[0].tensor_proto.string_val[0]
    (hparams,) = (tmp_path / "out" / "trackers").rglob("hparams.yml")
    assert "update.lr" in hparams.read_text()


def test_wandb_is_offline_by_default_and_is_told_every_epoch(words, tmp_path, capsys, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    logging.raiseExceptions, before = False, logging.raiseExceptions  # wandb logs to a stream that pytest has closed
    code, _, err = call(capsys, *words, "--track", "wandb")
    logging.raiseExceptions = before
    assert code == 0 and "tracker 'wandb' failed" not in err
    (file,) = (tmp_path / "out" / "trackers" / "wandb").rglob("offline-run-*/*.wandb")
    content = file.read_bytes()
    assert content.count(b"train/reward_mean") >= EPOCHS and b"update.lr" in content
    assert list((tmp_path / "out" / "trackers" / "wandb").rglob("pictures_*.png"))


def run_in_two_processes(words, tracker):
    """A run that is interrupted after its second epoch and resumed: trackers keep state for as long as a process lives.

    Returns: standard output of the second process.
    """
    code = """if True:
        import sys
        from sdpo_bench.cli.entry import main
        from sdpo_bench.running.tracking import Tracking
        real, stop = Tracking.tick, int(sys.argv.pop(1))
        def tick(self, one):
            real(self, one)
            if one.phase == "epoch" and one.epoch == stop:
                raise KeyboardInterrupt
        Tracking.tick = tick
        main(sys.argv[1:])"""
    env = {name: value for name, value in os.environ.items() if not name.startswith(tracker.upper())}
    for stop, code_expected in ((2, 130), (0, 0)):
        command = [sys.executable, "-c", code, str(stop), *map(str, words), "--track", tracker]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=240)
        assert done.returncode == code_expected, done.stderr
        assert f"tracker '{tracker}' failed" not in done.stderr
    return done.stdout


def query(database, text):
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(text).fetchall()


def test_trackio_keeps_a_resumed_run_as_one_with_settings_table_and_grid(words, tmp_path):
    pytest.importorskip("trackio")
    out = run_in_two_processes(words, "trackio")
    run = run_folder(tmp_path)
    assert out.splitlines()[-1] == str(run)  # Trackio prints at exit where a run was left open
    folder = tmp_path / "out" / "trackers" / "trackio"
    rows = query(folder / "sdpo-bench.db", "select run_id, run_name, step, metrics from metrics order by id")
    assert {(row[0], row[1]) for row in rows} == {(rows[0][0], run.name)}
    logged = [(step, json.loads(text)) for _, _, step, text in rows]
    rewards = [(step, values["train/reward_mean"]) for step, values in logged if "train/reward_mean" in values]
    assert rewards == [(row["epoch"], pytest.approx(row["reward_mean"])) for row in log_of(run)]
    last = {name: value for step, values in logged if step == EPOCHS for name, value in values.items()}
    assert {"eval/jpeg-incompressibility/train/1/base", "eval/table", "pictures"} <= set(last)
    ((config,),) = query(folder / "sdpo-bench.db", "select config from configs")
    assert json.loads(config)["method.name"] == "sdpo"
    assert list((folder / "media").rglob("*.png"))


def test_mlflow_keeps_a_resumed_run_as_one_with_settings_table_and_grid(words, tmp_path):
    pytest.importorskip("mlflow")
    run_in_two_processes(words, "mlflow")
    folder = tmp_path / "out" / "trackers" / "mlflow"
    run = run_folder(tmp_path)
    ((name, status),) = query(folder / "mlflow.db", "select name, status from runs")
    assert (name, status) == (run.name, "FINISHED")
    rewards = query(
        folder / "mlflow.db", "select step, value from metrics where key = 'train/reward_mean' order by step"
    )
    assert rewards == [(row["epoch"], pytest.approx(row["reward_mean"])) for row in log_of(run)]
    assert query(folder / "mlflow.db", "select value from params where key = 'method.name'") == [("sdpo",)]
    (table,) = (folder / "files").rglob("table.json")
    assert "standard_error" in json.loads(table.read_text())["columns"]
    assert list((folder / "files").rglob("pictures*.png"))


def test_swanlab_has_the_settings_in_both_parts_of_a_resumed_run_under_one_id(words, tmp_path):
    pytest.importorskip("swanlab")
    run_in_two_processes(words, "swanlab")
    first, second = sorted((tmp_path / "out" / "trackers" / "swanlab").glob("run-*"))
    assert all("update.lr" in (part / "files" / "config.yaml").read_text() for part in (first, second))
    (one,), (other,) = first.glob("*.swanlab"), second.glob("*.swanlab")
    assert one.name == other.name  # its id
    assert list((second / "media" / "image").iterdir()) and list((second / "media" / "echarts").iterdir())


def test_a_tracked_run_is_the_same_run(words, tmp_path, capsys, recorder):
    assert call(capsys, *words, "--track", "wandb", "--set", "track.name=my run")[0] == 0
    alone = [*words[:-1], tmp_path / "alone"]
    assert call(capsys, *alone)[0] == 0
    tracked = run_folder(tmp_path)
    plain = tmp_path / "alone" / "runs" / tracked.name
    assert {path.name for path in tracked.iterdir()} == {path.name for path in plain.iterdir()}
    for name in ("train.jsonl", "lora/pytorch_lora_weights.safetensors"):
        assert (tracked / name).read_bytes() == (plain / name).read_bytes()
    assert "track" not in json.loads((tracked / "run.json").read_text())["config"]


def test_a_tracker_is_told_what_the_logs_say(words, tmp_path, capsys, recorder):
    assert call(capsys, *words, "--track", "wandb")[0] == 0
    assert recorder.config["method.name"] == "sdpo" and recorder.ended
    rows = log_of(run_folder(tmp_path))
    for row in rows:
        logged = recorder.logged[row["epoch"]]
        assert logged["train/reward_mean"] == row["reward_mean"]
        assert logged["train/pictures/diversity"] == row["pictures"]["diversity"]
        assert logged["bill/forward/rollout"] == row["bill"]["forward"]["rollout"]
    assert recorder.pixels.ndim == 3 and recorder.pixels.shape[-1] == 3
    (line,) = recorder.table
    assert line["steps"] == 1 and line["difference"] == pytest.approx(line["tuned"] - line["base"])


def test_no_pictures_where_none_are_wanted(words, capsys, recorder):
    assert call(capsys, *words, "--track", "wandb", "--set", "track.images=false")[0] == 0
    assert recorder.pixels is None


def test_a_tracker_that_fails_is_off_with_one_warning_and_the_run_goes_on(words, tmp_path, capsys, recorder):
    recorder.fail_at = 2
    code, out, err = call(capsys, *words, "--track", "wandb")
    assert code == 0 and out.splitlines()[-1] == str(run_folder(tmp_path))
    assert err.count("tracker 'wandb' failed") == 1 and "ConnectionError: the server has gone" in err
    assert set(recorder.logged) == {1}


def test_a_tracker_that_does_not_start_is_off_with_one_warning(words, capsys, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such project")

    use(monkeypatch, refuse)
    code, _, err = call(capsys, *words, "--track", "mlflow")
    assert (
        code == 0 and err.count("tracker 'mlflow' failed and is off for this run: RuntimeError: no such project") == 1
    )


def test_a_second_process_goes_on_where_the_first_stopped(words, capsys, monkeypatch, recorder, stop_after_two):
    """The first is interrupted after its second epoch; the second trains the third and tells only that."""
    assert call(capsys, *words, "--track", "wandb")[0] == 130
    assert set(recorder.logged) == {1, 2}
    stop_after_two()
    again = Recorder()
    use(monkeypatch, lambda *_: again)
    assert call(capsys, *words, "--track", "wandb")[0] == 0
    assert set(again.logged) == {3} and again.config is None
    last = Recorder()
    use(monkeypatch, lambda *_: last)
    assert call(capsys, *words, "--track", "wandb")[0] == 0
    assert not last.logged


def test_a_tracker_that_keeps_the_parts_of_a_run_apart_has_the_settings_in_each(
    words, capsys, monkeypatch, recorder, stop_after_two
):
    recorder.stores_settings_once = False
    assert call(capsys, *words, "--track", "swanlab")[0] == 130
    stop_after_two()
    first, recorder.config = recorder.config, None
    assert call(capsys, *words, "--track", "swanlab")[0] == 0
    assert recorder.config == first


def test_a_run_that_was_done_before_is_told_whole(words, capsys, recorder):
    assert call(capsys, *words)[0] == 0
    assert not recorder.logged
    assert call(capsys, *words, "--track", "wandb")[0] == 0
    assert set(recorder.logged) == {1, 2, 3}


class AccelerateTracker:
    """One of accelerate's tracker classes that keeps its arguments and starts nothing."""

    def __init__(self, first, **options):
        self.first, self.options = first, options

    def start(self):
        pass


def started(monkeypatch, tracker, folder, run, run_id, training="first"):
    """A backend of ``tracker`` on a hand-made class of accelerate, installed or not."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, tracker, AccelerateTracker)
    for variable in ("WANDB_MODE", "TRACKIO_DIR"):
        monkeypatch.setenv(variable, os.environ.get(variable, "offline"))
    return BACKENDS[tracker]("mine", run, run_id, folder, {"training": training})


class Online(Recorder):
    """Weights & Biases online: a resumed run begins one step above its last, and ignores earlier ones silently.

    Args:
        last: last step of the earlier process.
    """

    scores_follow_epochs = BACKENDS["wandb"].scores_follow_epochs

    def __init__(self, last):
        super().__init__()
        self.first = last + 1

    def log(self, values, step):
        if step >= self.first:
            super().log(values, step)

    def log_table(self, columns, rows, step):
        if step >= self.first:
            super().log_table(columns, rows, step)

    def log_grid(self, pixels, step):
        if step >= self.first:
            super().log_grid(pixels, step)


def test_wandb_online_takes_the_scores_of_a_run_that_was_interrupted_after_its_last_epoch(
    words, capsys, monkeypatch, recorder
):
    def interrupted(self, table):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracking.Tracking, "finish", interrupted)
        assert call(capsys, *words, "--track", "wandb")[0] == 130
    assert set(recorder.logged) == {1, 2, 3}
    resumed = Online(EPOCHS)
    use(monkeypatch, lambda *_: resumed)
    assert call(capsys, *words, "--track", "wandb")[0] == 0
    assert "eval/jpeg-incompressibility/train/1/tuned" in resumed.logged[EPOCHS + 1]
    assert resumed.table and resumed.pixels is not None


def test_a_run_that_was_deleted_and_trained_again_is_another_tracker_run(words, tmp_path, capsys, monkeypatch):
    made, told = [], []

    def backend(project, run, run_id, folder, memory):
        made.append(Recorder())
        told.append(dict(memory))
        return made[-1]

    use(monkeypatch, backend)
    assert call(capsys, *words, "--track", "wandb")[0] == 0
    shutil.rmtree(run_folder(tmp_path))
    assert call(capsys, *words, "--track", "wandb")[0] == 0
    first, second = made
    assert set(second.logged) == {1, 2, 3} and second.config == first.config and second.table
    seconds = [row["seconds"] for row in log_of(run_folder(tmp_path), "timing.jsonl")]
    assert [second.logged[epoch]["time/seconds"] for epoch in (1, 2, 3)] == seconds
    assert told[0]["training"] != told[1]["training"] and told[1]["again"]


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "wandb"])
def test_trackers_know_two_trainings_of_one_run_apart(tracker, tmp_path, monkeypatch):
    first, second = (started(monkeypatch, tracker, tmp_path, "run", "run", name) for name in ("first", "second"))
    assert first.own_id != second.own_id
    named = [started(monkeypatch, tracker, tmp_path, "mine", "run", name).own_name for name in ("first", "second")]
    assert named[0] != named[1]


def test_scores_of_a_changed_evaluation_are_sent_to_a_tracker_that_had_others(words, capsys, monkeypatch, recorder):
    recorder.scores_follow_epochs = True
    assert call(capsys, *words, "--track", "wandb")[0] == 0
    resumed = Online(EPOCHS + 1)
    use(monkeypatch, lambda *_: resumed)
    changed = ["eval.steps=1,2" if word == "eval.steps=1" else word for word in words]
    code, _, err = call(capsys, *changed, "--track", "wandb")
    assert code == 0, err
    assert set(resumed.logged) == {EPOCHS + 2}
    assert sorted({row["steps"] for row in resumed.table}) == [1, 2]


def shown_name(backend):
    """The name that TensorBoard takes as its folder and Trackio as its run."""
    return backend.tracker.options.get("name", backend.tracker.first)


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio"])
def test_runs_of_one_track_name_stay_apart_where_a_tracker_knows_runs_by_name(tracker, tmp_path, monkeypatch):
    names = [shown_name(started(monkeypatch, tracker, tmp_path, "first-try", f"run-s{seed}")) for seed in range(5)]
    assert len(set(names)) == 5 and all(name.startswith("first-try-") for name in names)
    resumed = started(monkeypatch, tracker, tmp_path, "first-try", "run-s0")
    assert shown_name(resumed) == names[0]
    assert shown_name(started(monkeypatch, tracker, tmp_path, "run-s0", "run-s0")) == "run-s0"


def test_a_missing_package_is_refused_before_anything_is_loaded(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    code, _, err = call(capsys, *words, "--track", "swanlab")
    assert code == 3 and "pip install 'sdpo-bench[swanlab]'" in err
    assert not (tmp_path / "out").exists()


def test_a_run_file_names_trackers_and_a_flag_replaces_them(tmp_path, capsys, monkeypatch):
    file = tmp_path / "my.toml"
    file.write_text('[track]\nto = ["tensorboard"]\nproject = "mine"\n')
    seen = []
    monkeypatch.setattr(tracking, "find_spec", lambda name: seen.append(name) or object())
    assert call(capsys, "run", "--config", file, "--dry-run")[0] == 0
    code, _, err = call(capsys, "run", "--config", file, "--track", "wandb", "--dry-run")
    assert code == 0 and err == f"--track wandb replaces track.to = tensorboard of {file}, line 2\n"
    assert seen == ["tensorboard", "wandb"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [("track.projct=x", "Did you mean 'track.project'"), ("track.to=excel", "track.to"), ("track.images=5", "images")],
)
def test_wrong_settings_of_trackers_are_refused(capsys, setting, said):
    code, _, err = call(capsys, "run", "--set", setting, "--dry-run")
    assert code == 2 and said in err


def test_every_tracker_is_one_of_accelerate_and_has_an_extra():
    import tomllib
    from pathlib import Path

    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(tracking.NAMES) <= set(LOGGER_TYPE_TO_CLASS) & set(project["optional-dependencies"])
    assert TrackSettings().to == ()
