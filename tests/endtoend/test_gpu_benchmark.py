"""The benchmark for GPU machines, on a CPU with a tiny model."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from answering import answer_and_die, answer_and_hang
from benchmarks.gpu import NUMBERS, StageClock, in_time, markdown, reason
from factories import make_resolved, make_trainer
from sdpo_bench.errors import RunFailed

ROOT = Path(__file__).parents[2]


def measured(out, *options):
    """What the script writes: the parsed JSON and the Markdown text."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--small", "--steps", "2", "--out", out]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((out / "gpu.json").read_text()), (out / "gpu.md").read_text()


@pytest.mark.slow
def test_each_row_has_its_numbers_and_the_machine_is_named(tmp_path):
    found, table = measured(tmp_path, "--compile", "off", "no-such", "--micro-batch", "4", "--minutes", "4")
    row, failed = found["rows"]
    assert set(NUMBERS) <= set(row)
    assert row["sampling_images_per_second"] > row["training_images_per_second"] > 0
    assert 0 < row["share_reward"] < row["share_outside_unet_and_vae"] < 1
    assert failed["unmeasured"].startswith("UsageError: unknown torch.compile backend 'no-such'")
    assert found["machine"]["torch"] == torch.__version__
    assert found["machine"]["tf32"] == {"matrix products": False, "convolutions": False}
    assert f"| off | 4 | {row['sampling_images_per_second']} |" in table
    assert "| precision | bf16 |" in table


def test_rows_that_time_does_not_allow_say_so(tmp_path):
    found, table = measured(tmp_path, "--compile", "off", "inductor", "--micro-batch", "1", "2", "--minutes", "0.1")
    assert [(row["compile"], row["micro_batch"]) for row in found["rows"]] == [
        ("off", 1), ("off", 2), ("inductor", 1), ("inductor", 2),
    ]  # fmt: skip
    assert {row["unmeasured"] for row in found["rows"]} == {"the model was not written: no time"}
    assert table.count("no time |") == 4


@pytest.mark.parametrize(
    ("target", "error"),
    [(answer_and_hang, "no time"), (answer_and_die, "exit code 7")],
    ids=["hangs", "dies"],
)
def test_answers_stay_when_their_process_hangs_or_dies(target, error):
    answers, started = [], time.monotonic()
    with pytest.raises((TimeoutError, ChildProcessError), match=error):
        for answer in in_time(started + 15, target):
            answers.append(answer)
    assert answers == ["one"]
    assert time.monotonic() - started < 60


def test_a_row_says_why_it_has_no_numbers():
    assert reason(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")) == "out of memory"
    compiling = type("BackendCompilerFailed", (RuntimeError,), {"__module__": "torch._dynamo.exc"})
    wrapped = RunFailed("method 'SDPO': the gradient of its loss failed")
    wrapped.__cause__ = compiling("backend='inductor' raised")
    assert reason(wrapped) == "compile failed: RunFailed: method 'SDPO': the gradient of its loss failed"
    assert reason(ValueError("odd\nlines")) == "ValueError: odd"


def test_the_stage_clock_counts_both_directions_of_the_unet_and_leaves_nothing_behind(tiny_pipe, tmp_path):
    trainer = make_trainer(make_resolved(tiny_pipe), tmp_path)
    clock = StageClock(trainer, lambda: None)
    clock.start()
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    clock.stop()
    assert all(value > 0 for value in clock.seconds.values())
    assert sum(clock.seconds.values()) < seconds
    assert "_call" not in vars(trainer.policy) and "_differentiate" not in vars(trainer.updater)


def test_the_table_is_sorted_by_micro_batch_and_escapes_reasons():
    options = {"small": True, "steps": 2, "minutes": 1.0, "compile": ["off"]}
    rows = [{"compile": "off", "micro_batch": n, "unmeasured": "a | b"} for n in (16, 2)]
    lines = markdown({"card": "none"}, options, rows).splitlines()
    assert [line.split(" | ")[1] for line in lines[-2:]] == ["2", "16"]
    assert lines[-1].endswith("| a \\| b |")
