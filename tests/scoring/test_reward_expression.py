"""Which reward a name means, which settings it takes, and which of them make another run."""

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_fixtures import PATHS, damaged_copy

from factories import make_resolved
from sdpo_bench.api import execution_settings
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import UsageError
from sdpo_bench.plugins.registry import find
from sdpo_bench.reward_formula import part_weights, sum_name
from sdpo_bench.scoring.reward_expression import choose, same_reward


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hpsv2", "hpsv2"),
        ("HPSv2.1", "hpsv2.1"),
        ("hpsv2*0.5+aesthetic*0.5", "aesthetic*0.5+hpsv2*0.5"),
        ("  hpsv2 * .5\t+ 2*aesthetic ", "aesthetic*2+hpsv2*0.5"),
        ("jpeg-compressibility*-1e-1+emoji_align", "emoji-align*1+jpeg-compressibility*-0.1"),
        ("hpsv2.1*1e+1+hpsv2", "hpsv2*1+hpsv2.1*10"),
        ("aesthetic*-1", "aesthetic*-1"),
    ],
)
def test_a_sum_has_one_name_however_it_is_written(text, name):
    chosen = choose(text)
    assert chosen.name == name
    assert choose(name) == chosen
    assert chosen.weighted == ("*" in name)
    assert part_weights(name) == ({p.name: w for p, w in chosen.parts} if chosen.weighted else {})
    assert same_reward(text, name)


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9.-]{0,9}", fullmatch=True), st.floats(-1e300, 1e300), min_size=1))
def test_every_weight_survives_the_name(weights):
    assert part_weights(sum_name(list(weights.items()))) == weights


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hpsv2*0.5+foo", "unknown reward 'foo'"),
        ("hpsv2*0+aesthetic*0", "all weights .* are zero"),
        ("hpsv2*0+aesthetic", "'hpsv2' .* weight 0"),
        ("hpsv2*1e999+aesthetic", "weight inf"),
        ("hpsv2+aesthetic+HPSV2", "'hpsv2' twice"),
        ("hpsv2*+aesthetic", r"at '\*\+aesthetic'"),
        ("hpsv2+", "at its end"),
        ("+hpsv2", r"at '\+hpsv2'"),
        ("hpsv2 - aesthetic", "at '- aesthetic'.*negative weight"),
        ("2*hpsv2*2", "not a weighted sum"),
        ("hpsv2*0.5aesthetic", "at 'aesthetic'"),
    ],
)
def test_what_is_wrong_with_a_sum_is_said(text, message):
    with pytest.raises(UsageError, match=message):
        choose(text)


def test_settings_of_a_part_carry_its_name():
    chosen = choose("hpsv2.1+emoji-style")
    given = {"hpsv2.1.precision": "bf16", "emoji-style.style": "noto", "reference_images": 10}
    made = chosen.make(chosen.validate(given))
    assert made.parts["hpsv2.1"].settings.precision == "bf16"
    assert made.parts["emoji-style"].settings.style == "noto"
    assert made.settings.reference_images == 10
    with pytest.raises(UsageError, match=r"reward\.hpsv2\.1\.precision: got 'fp8'"):
        chosen.validate({"hpsv2.1.precision": "fp8"})
    with pytest.raises(UsageError, match=r"Did you mean 'reward\.emoji-style\.style'"):
        resolve(Request(reward=chosen.name, overrides={"reward.emoji-style.styl": "noto"}))


def run_id(reward, **settings):
    return resolve(Request(reward=reward, overrides={f"reward.{k}": v for k, v in settings.items()})).run_id


@pytest.mark.parametrize("name", sorted(PATHS))
def test_what_only_says_where_and_how_fast_makes_no_other_run(name):
    usual = run_id(name)
    assert run_id(name, batch_size=3) == usual
    assert run_id(name, precision="bf16") != usual
    settings = find("rewards", name).load().Settings
    assert execution_settings(settings) == {k for k in asdict(settings()) if k.endswith("path") or k == "batch_size"}


@pytest.mark.parametrize("name", sorted(PATHS))
def test_a_local_checkpoint_is_known_by_its_content_and_not_by_its_place(name, tmp_path):
    paths = {key: str(value) for key, value in PATHS[name].items()}
    copy = damaged_copy(name, tmp_path / "copy", lambda state: None)
    moved = damaged_copy(name, tmp_path / "elsewhere", lambda state: None)
    other = damaged_copy(name, tmp_path / "other", lambda state: state.update({max(state): state[max(state)] + 1}))
    first, second, third = (run_id(name, **paths | {"path": str(path)}) for path in (copy, moved, other))
    assert first == second != third
    assert run_id(name) not in (first, third)


def test_the_record_has_the_settings_that_the_identity_leaves_out(tiny_pipe):
    resolved = make_resolved(tiny_pipe)
    assert resolved.data["reward"] == {"name": "jpeg-incompressibility", "settings": {}}
    resolved = resolve(Request(reward="hpsv2*1+aesthetic*1", overrides={"reward.hpsv2.batch_size": 3}))
    assert "hpsv2.batch_size" not in resolved.data["reward"]["settings"]
    assert resolved.config.reward.settings["hpsv2.batch_size"] == 3


def test_parts_and_weights_make_the_run_and_the_order_does_not():
    usual = run_id("hpsv2*0.5+aesthetic*0.5")
    assert run_id("aesthetic*.5+0.5*hpsv2") == usual
    others = ["hpsv2*0.5+aesthetic*0.4", "hpsv2*0.5+aesthetic*-0.5", "hpsv2*0.5+pickscore*0.5", "hpsv2"]
    assert len({usual, *(run_id(other) for other in others)}) == 5
    assert run_id("hpsv2*0.5+aesthetic*0.5", standardise="none") != usual
    assert run_id("hpsv2*0.5+aesthetic*0.5", reference_images=64) != usual
