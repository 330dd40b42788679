"""Collapse is seen: warned of once, recorded, shown in reports, and never chosen as the best checkpoint."""

import json
import time

import pytest
import torch
from report_factory import make_run, spread

from factories import make_resolved, make_trainer
from sdpo_bench.errors import RunFailed
from sdpo_bench.models.policy import Policy
from sdpo_bench.results.read_results import load_results
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.runs.saved_adapter import save_adapter
from sdpo_bench.scoring import image_statistics
from sdpo_bench.settings import GuardSettings
from sdpo_bench.training import collapse_guards

HEALTHY = {
    "epoch": 1,
    "clip_fraction": 0.4,
    "base_clip_fraction": 0.6,
    "clip_fraction_at_zero_update": 0.0,
    "ratio_at_zero_update": 1e-6,
    "kl_to_base": 0.01,
    "pictures": {"flat_fraction": 0.0, "brightness": 0.5, "diversity": 0.4},
}


def row(epoch=2, **changes):
    shown = {k: changes.pop(k) for k in ("flat_fraction", "brightness", "diversity") if k in changes}
    return HEALTHY | {"epoch": epoch, "pictures": HEALTHY["pictures"] | shown} | changes


@pytest.mark.parametrize(
    ("change", "guard", "said"),
    [
        ({"flat_fraction": 0.5}, "flat", "50% of the pictures are one colour"),
        ({"brightness": 0.02}, "dark", "black"),
        ({"diversity": 0.099}, "diversity", "alike: diversity 0.099, it was 0.4"),
        ({"kl_to_base": 60.0}, "kl", "far from its base: KL 60"),
        ({"clip_fraction": 1.0}, "clip_fraction", "clip fraction 1"),
        ({"base_clip_fraction": 1.0}, "base_clip_fraction", "clip range around the base model: share outside 1"),
        ({"clip_fraction_at_zero_update": 0.01}, "clip_at_start", "before any update"),
        ({"ratio_at_zero_update": 0.01}, "ratio_at_start", "not 1 before the first update"),
    ],
)
def test_each_guard_by_hand(change, guard, said):
    """At the threshold it fires alone, and just this side of it nothing does."""
    found = collapse_guards.look(row(**change), HEALTHY, GuardSettings())
    assert set(found) == {guard}
    assert said in found[guard] and f"guard.{guard} = " in found[guard]
    ((key, value),) = change.items()
    sound = value * (1.02 if guard in ("dark", "diversity") else 0.98)
    assert collapse_guards.look(row(**{key: sound}), HEALTHY, GuardSettings()) == {}


def test_thresholds_are_settings_and_no_part_of_the_identity(tiny_pipe):
    assert collapse_guards.look(row(kl_to_base=80.0), HEALTHY, GuardSettings(kl=90.0)) == {}
    plain, other = make_resolved(tiny_pipe), make_resolved(tiny_pipe, **{"guard.kl": 9, "guard.stop": False})
    assert plain.run_id == other.run_id
    assert other.config.guard.kl == 9 and other.data["guard"]["kl"] == 9
    choice = {"checkpoint.choose": "before-collapse", "checkpoint.prompts": "emoji-validation"}
    chosen = [make_resolved(tiny_pipe, **choice, **more) for more in ({}, {"guard.kl": 9})]
    assert chosen[0].run_id != chosen[1].run_id, "there the thresholds decide which checkpoint is judged"


SMALL = {"schedule.steps": 2, "sample.images_per_epoch": 4}


@pytest.fixture
def black_from(monkeypatch):
    """A function: the trainer's policy draws black pictures after so many epochs."""
    decode = Policy.decode

    def change(trainer, epoch):
        monkeypatch.setattr(Policy, "decode", lambda self, x: decode(self, x) * (trainer.epoch < epoch))

    return change


def test_black_pictures_are_warned_of_once(tiny_pipe, tmp_path, black_from):
    resolved = make_resolved(tiny_pipe, "ddpo", **SMALL, **{"budget.images": 16, "guard.stop": False})
    trainer = make_trainer(resolved, tmp_path, checkpoint_every=1)
    black_from(trainer, 1)
    told = []
    trainer.watch = lambda tick: told.append(tick.metrics["warning"]) if tick.phase == "warning" else None
    trainer.train()
    lines = [json.loads(line) for line in (trainer.run.path / "warnings.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["guard"]) for line in lines] == [(2, "flat"), (2, "dark"), (2, "diversity")]
    assert len(told) == 3 and told[0].startswith("epoch 2: 100% of the pictures")
    assert len(trainer.run.log()) == 4


def test_a_run_of_black_pictures_stops_and_a_resumed_one_repeats_nothing(tiny_pipe, tmp_path, black_from):
    resolved = make_resolved(tiny_pipe, "ddpo", **SMALL, **{"budget.images": 16})
    stopped = make_trainer(resolved, tmp_path)
    black_from(stopped, 1)
    with pytest.raises(RunFailed, match=r"all pictures of epoch 2 are one colour.*guard\.stop=false"):
        stopped.train()
    again = make_trainer(resolved, tmp_path)
    with pytest.raises(RunFailed, match="epoch 2"):
        again.train()
    assert [warned.epoch for warned in collapse_guards.warnings(again.run)] == [2, 2, 2]
    assert len(again.run.log()) == 2


def test_only_pictures_that_became_flat_end_a_run():
    flat, sound = ({"pictures": {"flat_fraction": share}} for share in (1.0, 0.9))
    assert collapse_guards.all_flat(flat, sound)
    assert not collapse_guards.all_flat(sound, sound)
    assert not collapse_guards.all_flat(flat, flat), "a base model that draws nothing else has not collapsed"


@pytest.mark.slow
def test_a_resumed_run_warns_as_one_never_stopped(tiny_pipe, tmp_path):
    resolved = make_resolved(tiny_pipe, "ddpo", **SMALL, **{"budget.images": 12, "guard.kl": 1e-12})
    whole = make_trainer(resolved, tmp_path / "whole")
    whole.train()
    killed = make_trainer(resolved, tmp_path / "killed", checkpoint_every=9)
    killed._resume()
    for _ in range(2):  # two epochs and no checkpoint: SIGKILL
        started = time.monotonic()
        killed._finish_epoch(4, *killed._epoch(4, 4, started), started)
    again = make_trainer(resolved, tmp_path / "killed")
    told = []
    again.watch = lambda tick: told.append(tick.metrics["warning"]) if tick.phase == "warning" else None
    again.train()
    assert "the run starts again" in told[0]
    assert len(told) == 2, "the epochs that are done again warn again"
    expected = (whole.run.path / "warnings.jsonl").read_bytes()
    assert json.loads(expected)["guard"] == "kl"
    assert (again.run.path / "warnings.jsonl").read_bytes() == expected


@pytest.mark.slow
def test_a_run_stopped_between_an_epoch_and_its_guards_warns_of_that_epoch(tiny_pipe, tmp_path):
    """Trackers and progress are told first, and a stop may come there; guards can choose the checkpoint."""
    resolved = make_resolved(tiny_pipe, "ddpo", **SMALL, **{"budget.images": 12, "guard.kl": 1e-12})
    whole = make_trainer(resolved, tmp_path / "whole")
    whole.train()
    expected = (whole.run.path / "warnings.jsonl").read_bytes()
    stopped = make_trainer(resolved, tmp_path / "stopped")

    def stop(tick):
        if tick.phase == "epoch" and tick.epoch == json.loads(expected)["epoch"]:
            raise KeyboardInterrupt

    stopped.watch = stop
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert not (stopped.run.path / "warnings.jsonl").exists()
    make_trainer(resolved, tmp_path / "stopped").train()
    assert (stopped.run.path / "warnings.jsonl").read_bytes() == expected


def test_the_best_before_the_collapse_by_hand():
    """Pictures of epoch 6 were black: they are the policy's after 5 epochs, so epoch 4 is the last sound candidate."""
    rows = [{"epoch": e, "score": s} for e, s in ((2, 0.3), (3, 0.2), (4, 0.4), (5, 0.9), (6, 0.8))]
    assert collapse_guards.before_collapse(rows, None)["epoch"] == 5
    assert collapse_guards.before_collapse(rows, 6)["epoch"] == 4
    assert collapse_guards.before_collapse(rows, 4)["epoch"] == 2
    assert collapse_guards.before_collapse(rows, 2)["epoch"] == 2, "the earliest, where none is sound"


def test_a_collapse_is_the_first_warning_of_pictures_or_distance(tmp_path):
    """Doubts about updates are none; a later warning of another kind does not move it."""
    run = RunFolder(tmp_path)
    for epoch, guard in ((2, "clip_fraction"), (3, "ratio_at_start")):
        collapse_guards.record(run, collapse_guards.Warned(epoch, guard, "said"))
    assert collapse_guards.collapsed_at(run) is None
    for epoch, guard in ((5, "kl"), (5, "clip_at_start"), (7, "dark")):
        collapse_guards.record(run, collapse_guards.Warned(epoch, guard, "said"))
    assert collapse_guards.collapsed_at(run) == 5


def choosing(folder, every, images):
    """Settings of a small run that keeps its best checkpoint of before a collapse, by prompts of its own."""
    (folder / "train.txt").write_text("cat\ndog\n")
    (folder / "held.txt").write_text("bee\n")
    return {
        **SMALL,
        "sample.prompts": str(folder / "train.txt"),
        "eval.train": str(folder / "train.txt"),
        "eval.steps": 1,
        "checkpoint.choose": "before-collapse",
        "checkpoint.prompts": str(folder / "held.txt"),
        "checkpoint.every": every,
        "checkpoint.steps": 1,
        "budget.images": images,
    }


@pytest.mark.slow
def test_a_run_keeps_its_best_checkpoint_before_the_collapse(tiny_pipe, tmp_path, monkeypatch):
    """The reward prefers what comes after the collapse; the choice does not fall for it."""
    from safetensors.torch import load_file

    from sdpo_bench.cli.commands.run import choice_text
    from sdpo_bench.running.run_one import run_job
    from sdpo_bench.runs.adapter import LORA_FILE
    from sdpo_bench.settings import Runtime
    from sdpo_bench.system.progress import Watcher

    settings = choosing(tmp_path, every=1, images=20) | {"guard.stop": False, "reward.name": "jpeg-compressibility"}
    epoch = [0]
    decode = Policy.decode
    monkeypatch.setattr(Policy, "decode", lambda self, x: decode(self, x) * (epoch[0] < 3))

    def watch(tick):
        epoch[0] = tick.epoch

    outcome = run_job(
        make_resolved(tiny_pipe, "ddpo", **settings), Runtime(out=tmp_path, device="cpu"), Watcher(train=watch)
    )
    rows = outcome.run.log("validation.jsonl")
    assert [r["epoch"] for r in rows] == [1, 2, 3], "after the collapse nothing is judged any more"
    assert max(rows, key=lambda r: r["score"])["epoch"] == 3, "black pictures compress best"
    assert collapse_guards.collapsed_at(outcome.run) == 4
    expected = max(rows[:2], key=lambda r: r["score"])["epoch"]
    assert f"epoch {expected}, best of 3" in choice_text(rows, 4) and "before the collapse in epoch 4" in choice_text(
        rows, 4
    )
    assert outcome.run.status["warnings"] == 3
    stopped = make_trainer(
        make_resolved(tiny_pipe, "ddpo", **settings | {"budget.images": 4 * expected}), tmp_path / "b"
    )
    epoch[0] = 0
    stopped.train()
    ours = load_file(str(outcome.run.lora / LORA_FILE))
    theirs = save_adapter(stopped.policy, tmp_path / "theirs")
    assert all(torch.equal(value, ours[name]) for name, value in load_file(str(theirs)).items())


@pytest.fixture
def collapsing(tiny_pipe, tmp_path, monkeypatch):
    """A function: do a run of ten epochs, with a candidate every second one, whose policy is black after so many."""
    from sdpo_bench.running.run_one import run_job
    from sdpo_bench.settings import Runtime
    from sdpo_bench.system.progress import Watcher

    settings = choosing(tmp_path, every=2, images=40)
    resolved, decode = make_resolved(tiny_pipe, "ddpo", **settings), Policy.decode

    def run(black_after, told=None):
        epoch = [0]
        monkeypatch.setattr(Policy, "decode", lambda self, x: decode(self, x) * (epoch[0] < black_after))

        def watch(tick):
            epoch[0] = tick.epoch
            if told is not None and tick.phase == "warning":
                told.append(tick.metrics["warning"])

        return run_job(resolved, Runtime(out=tmp_path, device="cpu"), Watcher(train=watch)).run

    return run


def test_a_collapsed_run_ends_with_its_checkpoint_from_before(collapsing):
    """Black after three epochs: the pictures of epoch 4 show it, and the candidate of epoch 2 is sound."""
    told = []
    run = collapsing(3, told)
    assert run.state == "done"
    assert [row["epoch"] for row in run.log("validation.jsonl")] == [2]
    assert [row["epoch"] for row in run.log()] == [1, 2, 3, 4]
    assert [warned.guard for warned in collapse_guards.warnings(run)] == ["flat", "dark", "diversity", "stop"]
    assert told[-1].endswith("training ends here, and the result is the best checkpoint from before")


def test_a_run_that_collapsed_before_its_first_candidate_fails(collapsing):
    with pytest.raises(RunFailed, match=r"all pictures of epoch 2 are one colour.*a smaller checkpoint\.every"):
        collapsing(1)


def test_a_run_without_an_optimiser_step_is_warned_of(tiny_pipe, tmp_path):
    """Its time is over after the sampling of the first epoch, and the result is the base model."""
    from sdpo_bench.running.run_one import run_job
    from sdpo_bench.settings import Runtime
    from sdpo_bench.system.progress import Watcher

    told = []
    watch = Watcher(train=lambda tick: told.append(tick.metrics["warning"]) if tick.phase == "warning" else None)
    chosen = choosing(tmp_path, every=1, images=4)
    judged = {key: value for key, value in chosen.items() if not key.startswith(("checkpoint", "budget"))}
    resolved = make_resolved(tiny_pipe, "ddpo", **judged, **{"budget.seconds": 1e-6})
    run = run_job(resolved, Runtime(out=tmp_path, device="cpu"), watch).run
    assert run.log()[-1]["bill"]["optimiser_steps"] == 0
    (warned,) = collapse_guards.warnings(run)
    assert (warned.epoch, warned.guard) == (1, "no_update")
    assert warned.text.startswith("the budget of 1e-06 seconds ended before the first optimiser step")
    assert told == [f"epoch 1: {warned.text}"]
    assert run.status["warnings"] == 1


def test_reports_show_what_a_run_was_warned_of(tmp_path):
    from sdpo_bench.reporting.assemble import Request, build_report

    folder = make_run(tmp_path, "sdpo", 0, spread([1, 2, 3]))
    warned = {"epoch": 7, "guard": "dark", "text": "the pictures are black"}
    (folder / "warnings.jsonl").write_text(json.dumps(warned) + '\n[3]\n{"epoch": "x"}\n{"epo')
    report = build_report(load_results(tmp_path), Request())
    assert [(n.where, n.text) for n in report.notices] == [(folder.name, "warned in epoch 7: the pictures are black")]


@pytest.mark.filterwarnings("error")
def test_a_process_without_pictures_adds_nothing_and_warns_of_nothing():
    """Of three processes that share two groups, one has none."""
    some = image_statistics.Sums.of(torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert image_statistics.Sums.of(torch.zeros(0, 3, 4, 4)) + some == some
