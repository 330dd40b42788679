"""Whatever is typed, read or found on disk: a clear message or a sound result, never a surprise."""

import contextlib
import io
import json
import os
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_factory import base_frame, make_base, make_run, spread

from sdpo_bench.cli import entry
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import SdpoBenchError, UsageError
from sdpo_bench.hashing import canonical_json
from sdpo_bench.models.known_models import known_model
from sdpo_bench.plugins.parse_settings import parse_set
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.rollout.schedule import lint, make_schedule
from sdpo_bench.scoring.dense_rewards import choose_queries, step_rewards
from sdpo_bench.settings import SECTIONS
from sdpo_bench.statistics.intervals import crossed_interval, seed_interval
from sdpo_bench.statistics.matrices import Matrix
from sdpo_bench.sweep.suite import make_suite, read_suite

KEYS = sorted(f"{section}.{name}" for section, owner in SECTIONS.items() for name in owner.__dataclass_fields__)
VALUES = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.booleans(),
    st.text(max_size=8),
    st.just("1,2,4"),
    st.none(),
    st.lists(st.integers(-2, 2000), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)
MANY = int(os.environ.get("SDPO_BENCH_FUZZ", "1"))
"""Times the usual number of examples (a longer search by hand: SDPO_BENCH_FUZZ=50)."""
few = settings(max_examples=30 * MANY, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# -- what is typed -------------------------------------------------------------------------------------------


@few
@given(st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=12)), VALUES, min_size=1, max_size=2))
def test_any_settings_resolve_or_are_refused_in_words(overrides):
    """What resolves has a canonical form, so that it has an identity, and resolves to the same again."""
    try:
        resolved = resolve(Request(overrides=dict(overrides)))
    except SdpoBenchError:
        return
    assert json.loads(canonical_json(resolved.data)) == resolved.data
    assert resolve(Request(overrides=dict(overrides))).run_id == resolved.run_id


@few
@given(st.lists(st.text(max_size=20), max_size=3))
def test_any_text_of_set_is_parsed_or_refused(texts):
    with contextlib.suppress(UsageError):
        assert all(isinstance(key, str) and key for key in parse_set(texts))


@few
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_file_of_prompts_is_read_or_refused(tmp_path, text):
    """A prompt is a line; whatever Unicode it is of, it comes back as it was but for the space around it."""
    path = tmp_path / "prompts.txt"
    path.write_text(text, encoding="utf-8", newline="")
    with contextlib.suppress(UsageError):
        prompts = load_prompts(str(path))
        assert prompts and len(set(prompts)) == len(prompts)
        assert all(prompt == prompt.strip() and prompt in text for prompt in prompts)


WHOLE = """
description = "x"
[cells]
method = ["sdpo", "ddpo"]
reward = "emoji-align"
seed = [0, 1]
[update]
lr = 1e-3
[variants.a.advantage]
gamma = 1.0
"""


@few
@given(position=st.integers(0, len(WHOLE)), cut=st.integers(0, 12), extra=st.text(max_size=6))
def test_any_suite_is_read_or_refused(tmp_path, position, cut, extra):
    path = tmp_path / "mine.toml"
    path.write_text(WHOLE[:position] + extra + WHOLE[position + cut :], encoding="utf-8", errors="replace", newline="")
    try:
        suite = read_suite(path)
    except SdpoBenchError:
        return
    assert set(tomllib.loads(path.read_text())) and suite.methods and suite.seeds


TOML = st.recursive(
    st.one_of(st.integers(-5, 5), st.booleans(), st.text(max_size=4), st.floats(allow_nan=False)),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["method", "a", "lr"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@few
@given(st.dictionaries(st.sampled_from(["cells", "search", "for", "variants", "update", "seed", "description"]), TOML))
def test_suites_of_any_shape_are_refused_in_words(data):
    with contextlib.suppress(SdpoBenchError):
        make_suite("mine", {"cells": {"method": "sdpo", "reward": "emoji-align", "seed": 0}} | data)


# -- numbers -------------------------------------------------------------------------------------------------


@few
@given(
    steps=st.integers(1, 1000),
    eta=st.floats(0, 1),
    spacing=st.sampled_from(["trailing", "leading", "linspace"]),
    offset=st.integers(0, 1),
    previous=st.sampled_from(["grid", "official"]),
    floor=st.sampled_from([0.0, 1e-3, 0.5]),
)
def test_any_schedule_is_finite_or_refused(tiny_pipe, steps, eta, spacing, offset, previous, floor):
    """After the lint every step has a finite mean, a positive deviation and a finite log-probability."""
    from sdpo_bench.rollout.schedule import gaussian_log_prob

    scheduler = json.loads((tiny_pipe / "scheduler" / "scheduler_config.json").read_text()) | {"steps_offset": offset}
    try:
        schedule = make_schedule(scheduler, steps, eta=eta, spacing=spacing, prev_timestep=previous, std_floor=floor)
        lint(schedule, needs_log_prob=True)
    except UsageError:
        return
    assert len(schedule.timesteps) == steps
    assert schedule.std().min() >= floor * (1 - 1e-6)
    at = torch.tensor([0, steps - 1])
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(steps))
    step = schedule.denoise(-latents, latents, at)
    assert torch.isfinite(step.mean).all() and torch.isfinite(step.x0).all()
    assert (step.std > 0).all() and torch.isfinite(gaussian_log_prob(step.mean, step.mean, step.std)).all()


@few
@given(
    steps=st.integers(1, 9),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    seed=st.integers(0, 2**31),
    mode=st.sampled_from(["predicted", "full"]),
    spread=st.floats(0, 1e6),
)
def test_dense_rewards_stay_within_the_queried_range(steps, scale, seed, mode, spread):
    """Whatever the predicted originals are: equal, opposite, zero or huge."""
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(2, 3, steps, 2, 2, 2, generator=generator) * scale
    x0[0, 0] = -x0[0, 0, :1]
    queries = choose_queries(x0, mode)
    asked = torch.randn(queries.steps.shape, generator=generator) * spread
    rewards = step_rewards(queries, asked, mode, "convex")
    assert rewards.shape == (2, 3, steps) and torch.isfinite(rewards).all()
    low, high = asked.amin(-1, keepdim=True), asked.amax(-1, keepdim=True)
    slack = 1e-5 * (1 + asked.abs().amax(-1, keepdim=True))
    assert (rewards >= low - slack).all() and (rewards <= high + slack).all()
    at_query = rewards.gather(-1, queries.steps)
    assert torch.allclose(at_query, asked, rtol=1e-4, atol=1e-4 * (1 + spread))


# -- what is found on disk -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two methods with two seeds each, and their base model."""
    out = tmp_path_factory.mktemp("results")
    for method in ("sdpo", "ddpo"):
        for seed in (0, 1):
            make_run(out, method, seed, spread([1 + seed, 2, 3]))
    make_base(out, base_frame(spread([0, 0, 0])))
    (out / "suites").mkdir()
    return out


def said(arguments) -> tuple[int, str, str]:
    """Exit code, standard output and error of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        entry.main([str(argument) for argument in arguments])
    return int(stop.value.code or 0), out.getvalue(), err.getvalue()


DAMAGE = st.tuples(st.sampled_from(["cut", "flip", "empty", "junk", "folder", "gone"]), st.floats(0, 1))


def harm(path: Path, how: str, where: float) -> None:
    content = path.read_bytes()
    at = int(where * max(0, len(content) - 1))
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "gone":
        flipped = content[:at] + bytes([content[at] ^ 0x15]) + content[at + 1 :] if content else b"\x15"
        path.write_bytes({"cut": content[:at], "flip": flipped, "empty": b"", "junk": b"\xff\xfe[1]\n{}"}[how])


@settings(max_examples=15 * MANY, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGE, name=st.sampled_from(["run.json", "status", "train.jsonl", "timing.jsonl", "eval.parquet"]))
def test_a_damaged_run_harms_no_other(results, tmp_path, damage, name):
    """Any file of a run cut, flipped, emptied, replaced or gone: every command speaks in words, the others stay."""
    out = tmp_path / "copy"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(results, out)
    runs = sorted(p for p in (out / "runs").iterdir() if not p.name.startswith("base"))
    victim, others = runs[0], runs[1:]
    harm(victim / name, *damage)
    for arguments in (["report", "--results", out], ["list", "runs", "--out", out, "--json"]):
        code, told, error = said(arguments)
        assert code == 0, error
        assert "unexpected" not in error and "Traceback" not in told + error
        if arguments[0] == "list":
            assert {run.name for run in others} <= {row["run"] for row in json.loads(told)}
    for arguments in (
        ["eval", victim.name, "--out", out],
        ["export", victim.name, "--to", out / "x", "--out", out],
        ["compare", victim.name, others[0].name, "--results", out],
    ):
        code, told, error = said(arguments)
        assert code in (0, 2, 3), error
        assert "unexpected" not in error and "Traceback" not in told + error
    assert {p.name for p in (out / "runs").iterdir()} >= {run.name for run in runs}, "nothing is ever deleted"


@few
@given(
    values=st.lists(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), min_size=2, max_size=5),
    shift=st.floats(-1e3, 1e3),
)
def test_intervals_hold_their_mean_and_are_ordered(values, shift):
    scores = np.array(values) + shift
    table = Matrix(scores, range(len(scores)), ["a", "b", "c"], name="x")
    for interval in (crossed_interval, seed_interval):
        found = interval(table)
        assert found.low <= found.value <= found.high


@pytest.mark.parametrize("key", ["update.lr", "budget.images", "method.clip_range", "guard.kl", "update.betas"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), "inf", "nan"])
def test_settings_are_finite(key, value):
    value = (value, value) if key == "update.betas" else value
    with pytest.raises(UsageError, match=rf"{key.replace('images', 'amount')}: got"):
        resolve(Request(overrides={key: value}))


def test_known_models_are_safe_to_ask_for_anything():
    for text in ("", "..", "\0", "a" * 500, "emoji-turbo\n"):
        with contextlib.suppress(SdpoBenchError):
            known_model(text)
