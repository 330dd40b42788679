"""Learning rates that methods have of their own: those of the official code for an adapter, where no preset has one.

And how many optimiser steps an epoch a preset leaves to methods that it has no section for.
"""

import re
from pathlib import Path

import pytest

from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.estimates.time_estimate import make_method, optimiser_steps

OFFICIAL = {
    "ddpo": 3e-4,  # kvablack/ddpo-pytorch, config/base.py at 1958463: learning_rate, beside use_lora = True
    "drpo": 1e-5,  # UGVly/DrPO, scripts/train/sdxl_turbo_drpo_mae.sh at dd473d8: --learning_rate, beside --use_lora
    "d3po": 3e-5,  # yk7333/d3po
}
OF_PRESETS = [("ddpo", "embedded", 1e-3), ("drpo", "embedded", 1.2e-3), ("drpo", "paper-hpsv2", 5e-5)]


@pytest.mark.parametrize("method", OFFICIAL)
def test_without_a_preset_a_method_trains_at_its_official_rate(tiny_pipe, method):
    resolved = resolve(Request(method=method, model=str(tiny_pipe)))
    assert (resolved.preset, resolved.config.update.lr) == ("", OFFICIAL[method])
    assert resolved.sources["update.lr"] == f"method {method}"


@pytest.mark.parametrize(("method", "preset", "rate"), OF_PRESETS)
def test_the_rate_of_a_preset_goes_before_that_of_the_method(tiny_pipe, method, preset, rate):
    assert resolve(Request(method=method, model=str(tiny_pipe), preset=preset)).config.update.lr == rate


def test_optimiser_steps_of_methods_without_a_section_are_those_of_the_page(tiny_pipe):
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    head, _, *rows = page.split("| optimiser steps an epoch | ")[1].split("\n\n")[0].splitlines()
    columns = [re.findall(r"`(\w+)`", cell) for cell in head.strip("| ").split(" | ")]
    assert len(rows) == 3
    for row in rows:
        preset, *counts = row.strip("| ").split(" | ")
        for methods, count in zip(columns, counts, strict=True):
            assert {steps_an_epoch(method, preset.split("`")[1], tiny_pipe) for method in methods} == {int(count)}, row


def steps_an_epoch(name, preset, pipe):
    model = "emoji-flow" if preset == "embedded-flow" else str(pipe)
    resolved = resolve(Request(method=name, model=model, preset=preset))
    method = make_method(resolved)
    return optimiser_steps(resolved.config, method, resolved.config.sample.images_per_epoch // method.members)
