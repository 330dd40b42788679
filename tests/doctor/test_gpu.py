"""``doctor --gpu`` on a CPU with the embedded model: what is a go there, and faults that each check must stop."""

import json
from dataclasses import replace

import pytest
import torch

from sdpo_bench.cli.entry import main
from sdpo_bench.doctor import gpu
from sdpo_bench.results.published_numbers import Published
from sdpo_bench.training import updater

SMALL = {
    "schedule.steps": 2,
    "sample.images_per_epoch": 4,
    "update.minibatch": 1,
    "update.accumulation": 1,
    "budget.images": 64,
}


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", *map(str, arguments)])
    return stop.value.code or 0, capsys.readouterr()


@pytest.fixture
def small(tmp_path):
    """Settings of a run that takes a second."""
    (tmp_path / "prompts.txt").write_text("cat\ndog\n")
    return SMALL | {"eval.train": str(tmp_path / "prompts.txt"), "eval.steps": 1}


@pytest.fixture
def rehearsal(small):
    return gpu.Rehearsal(gpu.configuration("emoji-turbo", small), "cpu", 2)


def judged(rehearsal, *names):
    """Verdicts of some checks, by name."""
    return {name: rehearsal._judge(name, getattr(rehearsal, name)) for name in names}


def test_the_embedded_model_is_a_go_on_the_cpu(small, capsys):
    sets = [f"--set={key}={value}" for key, value in small.items()]
    code, shown = run(capsys, "--gpu", "--device", "cpu", "--model", "emoji-turbo", "--micro-batch", 2, "--json", *sets)
    report = json.loads(shown.out)
    assert code == 0 and report["ok"], shown
    state = {check["name"]: check["state"] for check in report["checks"]}
    assert state.pop("base score") == "skipped", "nothing is published of this model"
    assert state.pop("gradient") == "skipped", "the run is in float32"
    assert set(state.values()) == {"go"} and len(state) == 6
    text = {check["name"]: check["text"] for check in report["checks"]}
    # An epoch is as small as its largest call: one pair, and the micro-batch is one pair. A step each of T = 2.
    assert text["update"].startswith("2 optimiser steps on 2 images")


def test_a_machine_without_a_gpu_or_weights_gets_one_line_and_exit_code_3(capsys, monkeypatch):
    monkeypatch.setattr(gpu, "pick_device", lambda name: "cpu")
    code, shown = run(capsys, "--gpu")
    assert code == 3 and "no GPU is here" in shown.err and "--device cpu --model emoji-turbo" in shown.err
    code, shown = run(capsys, "--gpu", "--device", "cpu")
    assert code == 3 and "Type: sdpo-bench fetch sd-turbo aesthetic" in shown.err


@pytest.mark.parametrize("options", [["--micro-batch", 2], ["--set", "update.lr=1"], ["--gpu", "--plugin", "sdpo"]])
def test_options_that_would_be_ignored_are_refused(capsys, options):
    code, shown = run(capsys, *options)
    assert code == 2 and "--gpu" in shown.err


def test_no_go_if_training_and_sampling_disagree_on_the_log_probabilities(rehearsal, monkeypatch):
    real = updater.step_pass

    def shifted(*arguments, **options):
        found = real(*arguments, **options)
        return replace(found, log_probs=found.log_probs + 0.05)

    monkeypatch.setattr(updater, "step_pass", shifted)
    found = judged(rehearsal, "update", "ratio")
    assert found["ratio"].state == "no-go"
    assert found["ratio"].text.startswith("off 1 by 0.051 before the first update")  # exp(.05) - 1


def test_the_compared_gradients_are_those_of_the_run_under_guidance(small):
    """Before the update, so that both precisions and the update differentiate the same branches."""
    overrides = small | {"model.guidance_scale": 3.0, "update.guidance_gradient": "conditional"}
    guided = gpu.Rehearsal(gpu.configuration("emoji-turbo", overrides), "cpu", 2)
    assert guided.policy.guidance_gradient == "conditional"


def test_no_go_if_a_gradient_is_not_a_number(rehearsal, monkeypatch):
    real = updater.ask_loss

    def with_nan_gradient(method, batch):
        loss = real(method, batch)
        return replace(loss, value=loss.value + (0 * loss.value).sqrt())  # 0 * the infinite slope of sqrt at 0

    monkeypatch.setattr(updater, "ask_loss", with_nan_gradient)
    found = judged(rehearsal, "update", "ratio", "peak")
    assert found["update"].state == "no-go" and "the gradient norm is nan" in found["update"].text
    assert found["ratio"].state == found["peak"].state == "skipped"


def test_no_go_if_the_card_is_too_small_for_a_whole_epoch(rehearsal, monkeypatch):
    whole = 4 * 4 * (3 * 2 + 1) * 4 * 8 * 8  # float32 of 4 images: T + 1 states, T originals and T noises of 4x8x8
    for total, state in ((1e9 + whole / 2, "go"), (1e9 + whole / 2 - 1, "no-go")):
        monkeypatch.setattr(gpu, "peak_bytes", lambda device, total=total: (1e9, total))
        assert judged(rehearsal, "update", "peak")["peak"].state == state  # half of them were there at the peak


def test_no_go_if_memory_ran_out_on_the_way(rehearsal, monkeypatch):
    """The run goes on with half the micro-batch, so that every run would waste the time until then."""
    real, calls = updater.step_pass, []

    def full_at_first(*arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments, **options)

    monkeypatch.setattr(updater, "step_pass", full_at_first)
    found = judged(rehearsal, "update", "peak")
    assert found["update"].state == "go"
    assert found["peak"].state == "no-go" and "going on with --micro-batch 1" in found["peak"].text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("CUDA error: no kernel image\nMore."), "RuntimeError: CUDA error: no kernel image"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory; use --micro-batch 1"),
    ],
)
def test_what_a_driver_raises_is_a_no_go_with_its_first_line(rehearsal, monkeypatch, error, said):
    def broken(*arguments):
        raise error

    monkeypatch.setattr(rehearsal, "_load", broken)
    found = judged(rehearsal, "base_score")["base_score"]
    assert (found.state, found.text) == ("no-go", said)


def test_base_scores_are_held_against_the_published_ones(rehearsal, monkeypatch):
    facts = {"publication": "p", "source": "s", "digitised": False, "tolerance": 0, "model": "emoji-turbo"}
    facts |= {"reward": "emoji-align", "steps": (1, 4), "agreement": (0.3, 0.15)}
    # "cat" and "dog" of the embedded model, one picture each, have means of -2.08 at 1 step and -2.35 at 4.
    for base, state in (((-2.3, -2.3), "go"), ((-2.3, -2.6), "no-go")):
        monkeypatch.setattr(gpu, "paper", lambda base=base: [Published(**facts, scores={"base": base, "sdpo": base})])
        found = judged(rehearsal, "base_score")["base_score"]
        assert found.state == state, found
        assert "at 1 steps (published -2.30, tolerance 0.3), " in found.text


def test_no_go_if_the_gradient_of_half_precision_points_elsewhere(monkeypatch):
    rehearsal = gpu.Rehearsal(gpu.configuration("emoji-turbo", SMALL | {"model.precision": "fp16"}), "cpu", 2)
    assert judged(rehearsal, "gradient")["gradient"].state == "go"
    load = rehearsal._load

    def with_another_adapter(precision):
        policy = load(precision)
        for parameter in policy.lora_parameters().values():
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        return policy

    monkeypatch.setattr(rehearsal, "_load", with_another_adapter)
    found = judged(rehearsal, "gradient")["gradient"]
    assert found.state == "no-go" and "at least 0.99" in found.text
