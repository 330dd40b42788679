"""Trackers: what they are told, that they change nothing, and that none of them can fail a run."""

import json
import logging

import pytest
from finished_run import call, words_of

from sdpo_bench.running import tracking
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

    def __init__(self, fail_at=None):
        self.fail_at, self.config, self.logged, self.images, self.ended = fail_at, None, {}, {}, False

    def store_init_configuration(self, values):
        assert all(isinstance(value, bool | int | float | str) for value in values.values())
        self.config = values

    def log(self, values, step):
        if step == self.fail_at:
            raise ConnectionError("the server has gone")
        self.logged.setdefault(step, {}).update(values)

    def log_images(self, values, step):
        self.images = values

    def finish(self):
        self.ended = True


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()
    monkeypatch.setattr(tracking, "_backend", lambda *_: made)
    monkeypatch.setattr(tracking, "find_spec", lambda name: object())
    return made


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
    logging.raiseExceptions, before = False, logging.raiseExceptions
    code, _, err = call(capsys, *words, "--track", "wandb")
    logging.raiseExceptions = before
    assert code == 0 and "tracker 'wandb' failed" not in err
    (file,) = (tmp_path / "out" / "trackers" / "wandb").rglob("offline-run-*/*.wandb")
    content = file.read_bytes()
    assert content.count(b"train/reward_mean") >= EPOCHS and b"update.lr" in content
    assert list((tmp_path / "out" / "trackers" / "wandb").rglob("pictures_*.png"))


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
    pixels = recorder.images["pictures"]
    assert pixels.shape[0] == 1 and pixels.shape[-1] == 3


def test_no_pictures_where_none_are_wanted(words, capsys, recorder):
    assert call(capsys, *words, "--track", "wandb", "--set", "track.images=false")[0] == 0
    assert not recorder.images


def test_a_tracker_that_fails_is_off_with_one_warning_and_the_run_goes_on(words, tmp_path, capsys, recorder):
    recorder.fail_at = 2
    code, out, err = call(capsys, *words, "--track", "wandb")
    assert code == 0 and out.splitlines()[-1] == str(run_folder(tmp_path))
    assert err.count("tracker 'wandb' failed") == 1 and "ConnectionError: the server has gone" in err
    assert set(recorder.logged) == {1}


def test_a_tracker_that_does_not_start_is_off_with_one_warning(words, capsys, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such project")

    monkeypatch.setattr(tracking, "_backend", refuse)
    monkeypatch.setattr(tracking, "find_spec", lambda name: object())
    code, _, err = call(capsys, *words, "--track", "mlflow")
    assert (
        code == 0 and err.count("tracker 'mlflow' failed and is off for this run: RuntimeError: no such project") == 1
    )


def test_a_second_process_goes_on_where_the_first_stopped(words, tmp_path, capsys, monkeypatch, recorder):
    """The first is interrupted after its second epoch; the second trains the third and tells only that."""
    real = tracking.Tracking.tick

    def interrupted(self, tick):
        real(self, tick)
        if tick.phase == "epoch" and tick.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(tracking.Tracking, "tick", interrupted)
    assert call(capsys, *words, "--track", "wandb")[0] == 130
    assert set(recorder.logged) == {1, 2}
    monkeypatch.setattr(tracking.Tracking, "tick", real)
    again = Recorder()
    monkeypatch.setattr(tracking, "_backend", lambda *_: again)
    assert call(capsys, *words, "--track", "wandb")[0] == 0
    assert set(again.logged) == {3} and again.config is None
    last = Recorder()
    monkeypatch.setattr(tracking, "_backend", lambda *_: last)
    assert call(capsys, *words, "--track", "wandb")[0] == 0
    assert not last.logged


def test_a_run_that_was_done_before_is_told_whole(words, capsys, recorder):
    assert call(capsys, *words)[0] == 0
    assert not recorder.logged
    assert call(capsys, *words, "--track", "wandb")[0] == 0
    assert set(recorder.logged) == {1, 2, 3}


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
