"""Doctor and fetch on machines where something is missing; a third-party package from installation to report."""

import importlib
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdpo_bench.cli.commands.doctor import folded
from sdpo_bench.cli.entry import main
from sdpo_bench.doctor import machine
from sdpo_bench.doctor.checks import check_plugin
from sdpo_bench.errors import MissingError
from sdpo_bench.models import hub
from sdpo_bench.plugins import registry

SOURCE = Path(__file__).parents[1] / "support" / "plugin_package"


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return stop.value.code or 0, capsys.readouterr()


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """The third-party package, installed by pip into a folder of its own (no network, no dependencies)."""
    work = tmp_path_factory.mktemp("third-party")
    source = shutil.copytree(SOURCE, work / "source")
    target = work / "site"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--no-build-isolation",
            "--no-compile",
            "--disable-pip-version-check",
            "--target",
            str(target),
            str(source),
        ],
        check=True,
        capture_output=True,
    )
    return target


@pytest.fixture
def third_party(installed, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))
    importlib.invalidate_caches()
    return installed


def test_a_third_party_package_is_found_run_and_reported(third_party, tiny_pipe, tmp_path, capsys):
    code, shown = run(capsys, "list", "methods", "--json")
    row = next(r for r in json.loads(shown.out) if r["name"] == "reinforce-example")
    assert row["from"] == "sdpo-bench-reinforce"
    assert row["what"].startswith("Policy gradient of the final image's reward")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("cat\ndog\n")
    settings = [
        "schedule.steps=2",
        "sample.images_per_epoch=4",
        "update.minibatch=2",
        "update.accumulation=1",
        "update.lr=0.01",
        f"eval.train={prompts}",
        f"sample.prompts={prompts}",
        "eval.steps=1",
        "method.scale=2",
        "eval.images_per_prompt=1",
    ]
    sets = [part for text in settings for part in ("--set", text)]
    code, shown = run(
        capsys,
        "run",
        "--method",
        "reinforce-example",
        "--reward",
        "redness_example",
        "--model",
        tiny_pipe,
        "--budget",
        "images=8",
        "--device",
        "cpu",
        "--out",
        tmp_path / "results",
        *sets,
    )
    assert code == 0, shown.err
    assert "redness-example (trained on)" in shown.out
    record = json.loads(next((tmp_path / "results" / "runs").glob("reinforce*/run.json")).read_text())
    assert record["reward_version"] == "redness-example/1"
    assert record["plugin_sha256"]["method"] and record["config"]["method"]["settings"] == {"scale": 2}
    code, shown = run(capsys, "report", "--results", tmp_path / "results", "--format", "markdown")
    assert code == 0 and "reinforce-example" in shown.out and "redness-example" in shown.out


@pytest.mark.slow
def test_a_third_party_package_is_checked_like_a_built_in_one(third_party, capsys):
    for kind, name in (("methods", "reinforce-example"), ("rewards", "redness-example")):
        checks = list(check_plugin(registry.find(kind, name)))
        assert {c.status for c in checks} == {"ok"}, [c for c in checks if c.status != "ok"]
    code, shown = run(capsys, "doctor", "--plugin", "redness-example", "--json")
    assert code == 0 and json.loads(shown.out)["ok"]
    code, shown = run(capsys, "doctor", "--plugin", "redness-exmple")
    assert code == 2 and "Did you mean 'redness-example'" in shown.err


def broken_package(folder, name, source):
    """A distribution whose reward module has the given source."""
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[sdpo_bench.rewards]\n{name} = {name}:Broken\n")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_package\n", "pip install no_such_package"),
        ("class Broken(:\n", "cannot be imported"),
        ("print('HELLO')\nraise RuntimeError('no licence')\n", "no licence"),
        ("import sys\nsys.exit(0)\n", "SystemExit: 0"),
        ("from sdpo_bench.api import Reward\nclass Broken(Reward):\n    version = 1.5\n", "expected a text"),
        ("class Broken:\n    '''Not a reward.'''\n", "not a subclass"),
        ("", "has no attribute 'Broken'"),
    ],
)
def test_plugins_that_fail_to_import_are_problems_and_break_nothing_else(tmp_path, monkeypatch, capsys, source, said):
    name = f"broken{abs(hash(source)) % 10**8}"
    broken_package(tmp_path, name, source)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    monkeypatch.setattr(hub, "out_of_reach", lambda timeout=None: "not asked.")
    code, shown = run(capsys, "doctor", "--json", "--out", tmp_path / "r", "--device", "cpu")
    report = json.loads(shown.out)
    assert code == 3 and not report["ok"]
    (problem,) = [f for f in report["findings"] if f["state"] == "problem"]
    assert problem["name"] == name and said in problem["text"]
    code, shown = run(capsys, "doctor", "--plugin", name)
    assert code == 1 and "failed" in shown.out and said in shown.out
    code, shown = run(capsys, "list", "rewards")
    assert code == 0 and name in shown.out and "emoji-align" in shown.out


@pytest.mark.parametrize("harm", ["raise RuntimeError('no licence')", "import sys\nsys.exit(0)"])
def test_a_package_that_cannot_be_imported_breaks_no_list(tmp_path, monkeypatch, capsys, harm):
    """Looking for the source of ``package.module`` imports the package."""
    name = f"package{abs(hash(harm)) % 10**8}"
    broken_package(tmp_path, name, "")
    (tmp_path / f"{name}.py").unlink()
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(harm)
    (tmp_path / name / "rewards.py").write_text("class Broken: ...\n")
    entry = tmp_path / f"{name}-1.0.dist-info" / "entry_points.txt"
    entry.write_text(f"[sdpo_bench.rewards]\n{name} = {name}.rewards:Broken\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    code, shown = run(capsys, "list", "rewards")
    assert code == 0 and name in shown.out and "emoji-align" in shown.out
    code, shown = run(capsys, "run", "--reward", name, "--model", "emoji-turbo", "--out", tmp_path / "r")
    assert code == 3 and f"reward '{name}' ({name}) cannot be imported" in shown.err


def test_a_healthy_machine_without_network(tmp_path, monkeypatch, capsys):
    """Offline mode and missing weights are notes with what to type, not problems; nothing is written."""
    monkeypatch.setenv("SDPO_BENCH_REWARD_URL", "http://127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    code, shown = run(capsys, "doctor", "--json", "--out", tmp_path / "r", "--device", "cpu")
    report = json.loads(shown.out)
    assert code == 0 and report["ok"], shown.out
    found = {(f["area"], f["name"]): f for f in report["findings"]}
    assert found["model", "emoji-turbo"]["state"] == "ok"
    assert "offline mode" in found["hub", "network"]["text"]
    turbo = found["model", "sd-turbo"]
    assert turbo["state"] == "note" and turbo["mend"] == "sdpo-bench fetch sd-turbo"
    # 1,289,952,427 parameters of 4 bytes
    assert "5.2 GB" in turbo["text"] and "a run needs" in turbo["text"]
    assert found["reward", "hpsv2"]["mend"] == "sdpo-bench fetch hpsv2"
    assert found["reward", "remote"]["mend"] == "sdpo-bench serve-reward NAME"
    assert found["reward", "emoji-align"]["state"] == found["method", "sdpo"]["state"] == "ok"
    assert found["package", "torch"]["state"] == "ok"
    assert not list(tmp_path.iterdir())


def test_what_is_ok_takes_one_line_an_area():
    """Notes and problems keep their lines; --all folds nothing."""
    ok = [machine.Finding("method", name, "ok", "usable (built-in)") for name in ("ddpo", "grpo", "sdpo")]
    note = machine.Finding("method", "new", "note", "not here", "type this")
    device = machine.Finding("device", "cpu", "ok", "2 cores")
    assert folded([*ok[:2], note, ok[2], device]) == [
        machine.Finding("method", "3 of 4", "ok", "ddpo, grpo, sdpo"),
        note,
        device,
    ]


def test_doctor_folds_unless_all_is_asked_for(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    shown = [
        run(capsys, "doctor", *more, "--out", tmp_path / "r", "--device", "cpu")[1].out for more in ([], ["--all"])
    ]
    methods = [[line for line in text.splitlines() if "│ method " in line] for text in shown]
    assert len(methods[0]) == 1 and "sdpo" in shown[0]
    assert len(methods[1]) > 10


def test_old_and_absent_packages_are_problems(monkeypatch):
    lines = ["torch>=99", "no-such-thing>=1", 'pytest>=8; extra == "test"', "click>=8.1"]
    monkeypatch.setattr(machine.metadata, "requires", lambda name: lines)
    found = {f.name: f for f in machine._packages()}
    assert found["torch"].state == "problem" and "torch>=99" in found["torch"].mend
    assert found["no-such-thing"].text == "not installed"
    assert found["click"].state == "ok"
    assert "pytest" not in found


def test_a_full_disk_a_blocked_folder_and_an_absent_device(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    results = next(f for f in machine._disk(blocked / "results") if f.name == "results")
    assert results.state == "problem"
    usage = shutil._ntuple_diskusage(10**12, 10**12 - 10**6, 10**6)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    results = next(f for f in machine._disk(tmp_path) if f.name == "results")
    assert results.state == "problem" and "1.0 MB free" in results.text
    (device,) = machine._device("cuda:99")
    assert device.state == "problem" and "--device cpu" in device.text


@pytest.fixture
def silent_hub(monkeypatch):
    """A hub that takes connections and never answers."""
    from huggingface_hub import constants

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
        monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield


def test_a_hub_that_does_not_answer_is_given_up_soon(silent_hub, monkeypatch):
    monkeypatch.setattr(hub, "PATIENCE", 0.5)
    started = time.monotonic()
    reason = hub.out_of_reach(0.5)
    assert reason and "does not answer" in reason
    with pytest.raises(MissingError, match="neither cached here nor reachable") as caught:
        hub.find_pipeline("stabilityai/sd-turbo", hint="sdpo-bench fetch sd-turbo")
    assert caught.value.exit_code == 3
    assert str(caught.value).endswith("sdpo-bench fetch sd-turbo")
    assert time.monotonic() - started < 10
