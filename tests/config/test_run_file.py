"""Run files: what they may hold, what wins over them, and that a written or recorded one gives the same run."""

import json

import pytest
from finished_run import call, words_of

from factories import METHODS, make_resolved
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.config.run_file import read_run_file, run_file_text
from sdpo_bench.errors import UsageError
from sdpo_bench.plugins.registry import find

TOML = """\
method = "ddpo"
seed = 3
update.lr = 2e-3

[budget]
images = 640
[reward]
name = "emoji-align"
"""
YAML = """\
method: ddpo
seed: 3
update:
  lr: 2e-3
budget.images: 640
reward: {name: emoji-align}
"""


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def of_file(path, **more):
    return resolve(Request(file=read_run_file(path), **more))


@pytest.mark.parametrize(("name", "text"), [("my.toml", TOML), ("my.yaml", YAML), ("my.yml", YAML)])
def test_a_run_file_is_the_run_of_the_same_flags(tmp_path, name, text):
    flags = Request("ddpo", "emoji-align", seed=3, overrides={"update.lr": 2e-3, "budget.images": 640})
    assert of_file(write(tmp_path, name, text)).run_id == resolve(flags).run_id


def test_the_command_line_wins_over_the_file(tmp_path):
    file = write(tmp_path, "my.toml", TOML)
    resolved = of_file(file, method="sdpo", seed=4, overrides={"update.lr": 5e-4, "budget.reward_calls": 320})
    config = resolved.config
    assert (config.method.name, config.seed, config.update.lr) == ("sdpo", 4, 5e-4)
    assert (config.budget.axis, config.budget.amount) == ("reward_calls", 320)


def test_what_the_command_line_replaces_is_said_with_its_line(tmp_path, capsys):
    file = write(tmp_path, "my.toml", TOML)
    words = ["run", "--config", file, "--method", "sdpo", "--seed", "3", "--set", "update.lr=1e-3", "--dry-run"]
    code, _, err = call(capsys, *words, "--budget", "reward_calls=320", "--out", tmp_path / "out")
    assert code == 0
    assert err.splitlines() == [
        f"--set update.lr=0.001 replaces update.lr = 0.002 of {file}, line 3",
        f"--method sdpo replaces method.name = ddpo of {file}, line 1",
        f"--budget reward_calls=320 replaces budget.images = 640 of {file}, line 6",
    ]


@pytest.mark.parametrize(
    ("name", "text"), [("my.toml", "[update]\nlearn = 1\nlrr = 2e-3\n"), ("my.yml", "update:\n  lrr: 1")]
)
def test_an_unknown_setting_is_named_with_its_line(tmp_path, name, text):
    file = write(tmp_path, name, text.replace("learn = 1", "lr = 1e-3"))
    line = 3 if name.endswith("toml") else 2
    with pytest.raises(UsageError, match=rf"'update.lrr' \(from .*{name}, line {line}\)\. Did you mean 'update.lr'"):
        of_file(file)


def test_a_value_out_of_range_is_named_with_its_line(tmp_path):
    with pytest.raises(UsageError, match=r"update.lr: got -1.*my.toml, line 2"):
        of_file(write(tmp_path, "my.toml", "[update]\nlr = -1\n"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("my.txt", "seed = 1", "expected a .toml or .yaml file, or the run.json of a run"),
        ("my.toml", "seed = ", "not valid TOML"),
        ("my.toml", "seed = 2026-01-01", "not valid TOML"),
        ("my.yaml", "a: [", "not valid YAML"),
        ("my.yaml", "just words", "expected settings by name, got a str"),
        ("my.yaml", "seed: 1\nmethod: ddpo\nseed: 2", "seed stands on line 1 and on line 3"),
        ("my.yaml", "update: {lr: .nan}", "not valid YAML"),
        ("run.json", "{", "not valid JSON"),
        ("run.json", "{}", "not the run.json of a run"),
        ("my.toml", "[for.ddpo.update]\nlr = 1", "Use --preset"),
    ],
)
def test_what_is_no_run_file_is_one_line_and_exit_code_2(tmp_path, capsys, name, text, said):
    file = write(tmp_path, name, text)
    code, out, err = call(capsys, "run", "--config", file, "--dry-run", "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert said in err and str(file) in err and err.count("\n") == 1


def test_a_file_that_is_not_there_is_missing(tmp_path, capsys):
    code, _, err = call(capsys, "run", "--config", tmp_path / "no.toml", "--dry-run")
    assert code == 3 and "No such file" in err


@pytest.mark.parametrize(("method", "suffix"), [(name, "toml") for name in METHODS] + [("sdpo", "yaml")])
def test_a_written_configuration_gives_the_same_run(tiny_pipe, tmp_path, method, suffix):
    resolved = make_resolved(tiny_pipe, method, seed=5)
    path = tmp_path / f"my.{suffix}"
    path.write_text(run_file_text(resolved.config, resolved.method, resolved.run_id, path), encoding="utf-8")
    assert of_file(path).data == resolved.data


def test_a_written_weighted_sum_gives_the_same_run(tmp_path):
    settings = {"reward.emoji-style.style": "noto", "budget.images": 640}
    resolved = resolve(Request("sdpo", "emoji-align+emoji-style*0.5", overrides=settings))
    path = tmp_path / "my.toml"
    path.write_text(run_file_text(resolved.config, resolved.method, resolved.run_id, path), encoding="utf-8")
    assert of_file(path).run_id == resolved.run_id


AVERAGED = """\
[ema]
decay = 0.9
[advantage]
normalisation = "group"
std = "batch"
[update]
guidance_gradient = "conditional"
[model]
guidance_scale = 3.0
"""
PLAIN = {"ema.decay": 0, "advantage.std": "group", "update.guidance_gradient": "both", "budget.images": 64}


@pytest.mark.parametrize("suffix", ["toml", "yaml"])
def test_a_written_configuration_says_what_a_preset_would_bring_back(tmp_path, suffix):
    preset = str(write(tmp_path, "averaged.toml", AVERAGED))
    resolved = resolve(Request("grpo", "emoji-align", preset=preset, overrides=PLAIN))
    assert resolved.config.ema is None
    path = tmp_path / f"run.{suffix}"
    path.write_text(run_file_text(resolved.config, resolved.method, resolved.run_id, path))
    repeated = of_file(path, preset=preset)
    assert (repeated.config.ema, repeated.run_id) == (None, resolved.run_id)


def test_a_record_says_by_leaving_out_what_the_defaults_of_its_method_would_bring_back(tmp_path, monkeypatch):
    """A setting that came later is recorded only where it is not at its default, and an average only where it is."""
    method = find("methods", "grpo").load()
    own = {"ema.decay": 0.9, "advantage.std": "batch", "update.guidance_gradient": "conditional"}
    monkeypatch.setattr(method, "defaults", {**method.defaults, **own})
    resolved = resolve(Request("grpo", "emoji-align", overrides={**PLAIN, "model.guidance_scale": 3.0}))
    path = write(tmp_path, "run.json", json.dumps(resolved.record | {"sources": resolved.sources}))
    assert of_file(path).run_id == resolved.run_id


def test_a_configuration_is_written_and_never_over_the_file_that_was_read(tmp_path, capsys):
    written = tmp_path / "my.toml"
    code, _, err = call(capsys, "run", "--method", "ddpo", "--dry-run", "--write-config", written)
    assert (code, err) == (0, f"settings: {written}\n")
    assert of_file(written).run_id == resolve(Request("ddpo")).run_id
    code, _, err = call(capsys, "run", "--config", written, "--dry-run", "--write-config", written)
    assert code == 2 and "would replace the file" in err


def test_the_record_of_a_finished_run_repeats_it(tiny_pipe, tmp_path, capsys):
    words = [*words_of(tmp_path, tiny_pipe, "jpeg-incompressibility", 4), "--out", tmp_path / "out"]
    code, out, _ = call(capsys, *words)
    assert code == 0
    (run,) = (tmp_path / "out" / "runs").glob("sdpo*")
    for config in (run, run / "run.json"):
        code, out, err = call(capsys, "run", "--config", config, "--out", tmp_path / "out")
        assert code == 0 and "The training of this run was done before; nothing was trained" in out
        assert out.splitlines()[-1] == str(run)
    repeated = of_file(run)
    recorded = json.loads((run / "run.json").read_text())["sources"]
    assert recorded["eval.steps"] == "you"
    assert {key: repeated.sources[key] for key in recorded if "name" not in key} == {
        key: source for key, source in recorded.items() if "name" not in key
    }
    code, out, err = call(capsys, "run", "--config", run, "--seed", 9, "--dry-run", "--out", tmp_path / "out")
    assert code == 0 and err == f"--seed 9 replaces seed = 0 of {run / 'run.json'}\n"
    (tmp_path / "two.txt").write_text("cat\nbee\n")
    code, _, err = call(capsys, "run", "--config", run, "--dry-run", "--out", tmp_path / "out")
    assert code == 0 and err.startswith(f"note: this is not run {run.name} again: the reward's version, a prompt file")
