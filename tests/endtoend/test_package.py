"""Packaging, the registry, presets, identity and the store: the parts that hold a run together."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sdpo_bench
from factories import GRADIENT_METHODS, METHODS
from sdpo_bench.config.presets import shipped_presets
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import Busy, UsageError
from sdpo_bench.hashing import canonical_json, run_id
from sdpo_bench.plugins import registry
from sdpo_bench.plugins.parse_settings import validate
from sdpo_bench.prompts.prompt_sets import draw_prompts, load_prompts, shipped_sets
from sdpo_bench.runs.run_folder import RunFolder, find_run

ROOT = Path(__file__).parents[2]


def test_every_folder_of_code_is_a_listed_package():
    """Setuptools leaves unlisted packages out of the wheel without a word."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    elsewhere = project["package-dir"]
    mapped = {ROOT / elsewhere.get(name, name.replace(".", "/")) for name in project["packages"]}
    holding_code = {p.parent for top in ("sdpo_bench", "methods", "rewards") for p in (ROOT / top).rglob("*.py")}
    assert holding_code | {ROOT / "results" / "paper"} == mapped
    assert project["package-data"]["sdpo_bench.paper"] == ["*.toml"]
    data = [p for p in (ROOT / "sdpo_bench").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    patterns = project["package-data"]["sdpo_bench"]
    for path in data:
        relative = path.relative_to(ROOT / "sdpo_bench")
        below = any(p.endswith("**/*") and str(relative).startswith(p.removesuffix("**/*")) for p in patterns)
        assert below or any(relative.match(pattern) for pattern in patterns), relative


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == sdpo_bench.__version__
    assert f"\nversion: {sdpo_bench.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    (newest, *_) = re.findall(r"^## ([0-9.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest == sdpo_bench.__version__


def test_the_map_lists_the_packages_in_the_order_of_the_layers_contract():
    """The docstring of the package is the reader's map; import-linter enforces the contract."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    enforced = [set(layer.split(" | ")) for layer in reversed(layers) if layer != "__main__"]
    table = sdpo_bench.__doc__.split("\n=====")[2]
    shown = [set(re.findall(r"``([a-z_]+)``", line[:44])) for line in table.splitlines()[1:]]
    assert shown == enforced


def test_plugin_folders_are_not_importable_by_themselves():
    script = f"import sys; sys.path = [p for p in sys.path if p not in ('', {str(ROOT)!r})]\nimport methods"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/")
    assert "No module named 'methods'" in done.stderr


def test_the_core_imports_no_plugin():
    for path in (ROOT / "sdpo_bench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert not name.startswith(("sdpo_bench.methods", "sdpo_bench.rewards")), (path.name, name)


def test_a_name_clash_names_both_owners(monkeypatch):
    twin = registry.find("methods", "sdpo").__class__("SDPO", "methods", "other-package", "other.module", "X", "", None)
    monkeypatch.setattr(registry, "_third_party", lambda kind, path: [twin])
    with pytest.raises(UsageError, match=r"built-in.*other-package"):
        registry.plugins("methods")


def test_hyphens_and_underscores_are_the_same():
    assert registry.find("methods", "sparse-dpo") == registry.find("methods", "sparse_dpo")


@pytest.mark.parametrize("name", sorted(shipped_presets()))
@pytest.mark.parametrize("method", METHODS)
def test_every_preset_is_valid_for_every_method(name, method):
    preset = shipped_presets()[name]
    model = preset.match.get("model", preset.common.get("model.name"))
    model = model[0] if isinstance(model, list) else model
    reward = preset.match.get("reward", ["emoji-align"])
    reward = reward if isinstance(reward, str) else reward[0]
    if method in GRADIENT_METHODS and not reward.startswith("emoji"):
        with pytest.raises(UsageError, match="gradient"):
            resolve(Request(method=method, model=model, reward=reward))
        return
    if not preset.match:  # only by its name
        assert resolve(Request(method=method, model=model, reward=reward, preset=name)).preset == name
        return
    resolved = resolve(Request(method=method, model=model, reward=reward))
    assert resolved.preset == name
    assert resolve(Request(method=method, model=model, reward=reward, preset=name)).run_id == resolved.run_id


def test_official_hyperparameters():
    """Table in the official configuration (config_sdpo.py), batches of four GPUs counted as one."""
    for reward, lr, minibatch, accumulation, images in [
        ("aesthetic", 1e-4, 8, 8, 25600),
        ("imagereward", 5e-5, 4, 32, 51200),
        ("hpsv2", 5e-5, 4, 32, 51200),
        ("pickscore", 6e-5, 4, 16, 51200),
    ]:
        config = resolve(Request(reward=reward)).config
        assert config.model.name == "sd-turbo"
        assert (config.update.lr, config.update.minibatch, config.update.accumulation) == (lr, minibatch, accumulation)
        assert (config.schedule.steps, config.budget.amount, config.update.order) == (50, images, "step-shuffled")
        assert config.method.settings["clip_range"] == 1e-4
        assert (config.advantage.gamma, config.advantage.buffer_size, config.advantage.min_count) == (0.99, 32, 16)


# -- identity ----------------------------------------------------------------------------------------------------


def test_the_same_settings_have_the_same_id_whatever_their_form():
    a = resolve(Request(overrides={"update.lr": 0.001, "budget.images": 640}))
    b = resolve(Request(overrides={"update.lr": "1e-3", "budget.images": 640.0}))
    assert a.run_id == b.run_id
    assert resolve(Request(seed=1)).run_id != resolve(Request(seed=2)).run_id
    assert resolve(Request(overrides={"eval.steps": "1,3"})).run_id == resolve(Request()).run_id


def test_every_training_setting_is_part_of_the_id():
    base = resolve(Request()).run_id
    for key, value in [
        ("update.lr", 0.5),
        ("schedule.steps", 7),
        ("advantage.gamma", 0.5),
        ("method.log_scale", 2.0),
        ("model.lora_rank", 8),
        ("sample.draw", "cycle"),
        ("budget.images", 64),
        ("update.step_weight", "official"),
    ]:
        assert resolve(Request(overrides={key: value})).run_id != base, key


@given(st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_a_run_id_is_always_a_plain_file_name(method, model):
    config = {"method": {"name": method}, "reward": {"name": "../../x"}, "model": {"name": model}, "seed": 1}
    name = run_id(config, versions={})
    assert Path(name).name == name
    assert name.isascii() and name not in (".", "..") and len(name) < 200


def test_canonical_form():
    assert canonical_json({"b": 1.0, "a": (1, 2.5)}) == '{"a":[1,2.5],"b":1}'
    with pytest.raises(ValueError, match="finite"):
        canonical_json(float("nan"))


# -- store and prompts -------------------------------------------------------------------------------------------


def test_a_log_line_cut_by_a_kill_is_skipped(tmp_path):
    run = RunFolder(tmp_path)
    run.append("train.jsonl", {"epoch": 1})
    with open(tmp_path / "train.jsonl", "a") as stream:
        stream.write('{"epoch": 2, "rew')
    assert run.log() == [{"epoch": 1}]


def test_a_number_that_is_none_does_not_enter_a_log(tmp_path):
    """NaN is no JSON, and whoever reads the log with another program would stumble over the line."""
    run = RunFolder(tmp_path)
    run.append("train.jsonl", {"epoch": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.append("train.jsonl", {"epoch": 2, "loss": float("nan")})
    assert (tmp_path / "train.jsonl").read_text() == '{"epoch": 1}\n'


def test_a_log_that_is_shorter_than_it_should_be_is_not_filled_up(tmp_path):
    """With zero bytes, as the system would: they would join the next line and spoil it."""
    run = RunFolder(tmp_path)
    run.append("timing.jsonl", {"epoch": 1})
    run.truncate("timing.jsonl", 1000)
    run.truncate("warnings.jsonl", 1000)
    run.append("timing.jsonl", {"epoch": 2})
    assert run.log("timing.jsonl") == [{"epoch": 1}, {"epoch": 2}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["timing.jsonl"]


def test_a_failure_is_recorded_by_others_only_where_the_run_is_nobodys_and_not_done(tmp_path):
    """A sweep hears of a dead process when somebody else may have begun the run again, or ended it."""
    run = RunFolder(tmp_path / "run")
    run.record_failure("killed by signal 9")
    assert run.status == {"state": "failed", "message": "killed by signal 9"}
    run.set_status("running")
    with run.locked(), pytest.raises(Busy):
        RunFolder(run.path).record_failure("killed by signal 9")
    assert run.state == "running"
    run.set_status("done")
    run.record_failure("killed by signal 9")
    assert run.status == {"state": "done", "message": ""}


def test_runs_are_found_by_id_beginning_and_path(tmp_path):
    for name in ("sdpo-a-1", "sdpo-b-2", "sdpo-b-21"):
        RunFolder(tmp_path / "runs" / name).create({"kind": "run"})
    assert find_run(tmp_path, "sdpo-a").run_id == "sdpo-a-1"
    assert find_run(tmp_path, "sdpo-b-2").run_id == "sdpo-b-2", "though another one begins with it"
    assert find_run(tmp_path, str(tmp_path / "runs" / "sdpo-b-2")).run_id == "sdpo-b-2"
    with pytest.raises(UsageError, match="fits 3 runs"):
        find_run(tmp_path, "sdpo")
    (tmp_path / "runs" / "sdpo-a-1" / "run.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        find_run(tmp_path, "sdpo-a").record()


def test_prompt_sets():
    assert len(load_prompts("simple-animals")) == 45
    assert len(load_prompts("complex-animals")) >= 4
    assert not set(load_prompts("emoji-unseen")) & set(load_prompts("simple-animals"))
    assert set(shipped_sets()) >= {"simple-animals", "complex-animals", "emoji-unseen"}


def test_a_cut_epoch_keeps_the_prompts_of_its_first_groups():
    texts = [f"p{i}" for i in range(5)]
    drawn = draw_prompts(texts, 12, seed=3, epoch=2, rule="random")
    assert set(drawn) <= set(texts)
    assert drawn != draw_prompts(texts, 12, seed=3, epoch=3, rule="random")
    laps = [p for e in range(5) for p in draw_prompts(texts, 3, seed=3, epoch=e, rule="cycle")]
    assert sorted(laps) == sorted(texts * 3), "a cycle shows every prompt equally often"


def test_prompt_files_that_are_wrong(tmp_path):
    for content, said in [(b"", "no prompts"), (b"cat\ncat\n", "twice"), (b"\xff\xfe\x00", "not UTF-8")]:
        path = tmp_path / "p.txt"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=said):
            load_prompts(str(path))


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path):
    """Editors on Windows begin text with one, and end lines with CRLF."""
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")
    assert load_prompts(str(tmp_path / "p.txt")) == ["cat", "dog"]


def test_run_records_are_plain_json(tmp_path):
    run = RunFolder(tmp_path / "r")
    run.create({"kind": "run", "config": resolve(Request()).data})
    assert json.loads((run.path / "run.json").read_text())["config"]["method"]["name"] == "sdpo"
    assert run.state == "new"


def test_settings_of_a_plugin_are_explained_where_no_single_one_is_wrong():
    """A check of the settings as a whole has no key, and a setting without a default may be missing."""

    @dataclass
    class Settings:
        low: int
        high: int = 1

        def __post_init__(self):
            if self.low > self.high:
                raise ValueError("low is above high")

    with pytest.raises(UsageError, match=r"^method: .*low is above high\.$"):
        validate(Settings, {"low": 2}, "method")
    with pytest.raises(UsageError, match=r"^method\.low: nothing was given\.$"):
        validate(Settings, {}, "method")
