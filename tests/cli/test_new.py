"""``sdpo-bench new``: what it writes installs, passes its own tests and keeps the contract."""

import subprocess
import sys
import tomllib

import pytest
from finished_run import call

from sdpo_bench.plugins import registry
from sdpo_bench.sweep.suite import find_suite


def installed(folder, monkeypatch):
    """The package as pip would leave it: its metadata, and its folder on the path."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in entries.items()) for group, entries in groups]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(folder))


@pytest.fixture(params=["method", "reward"])
def package(request, tmp_path, capsys, monkeypatch):
    """Kind, name and folder of a package that was written and installed."""
    name = f"fresh-{request.param}"
    code, out, _ = call(capsys, "new", request.param, name, "--to", tmp_path / "work" / name)
    assert code == 0 and f"sdpo-bench doctor --plugin {name}" in out
    assert ("sdpo-bench sweep search.toml" in out) == (request.param == "method")
    installed(tmp_path / "work" / name, monkeypatch)
    return request.param, name, tmp_path / "work" / name


def test_it_is_found_and_passes_its_own_tests(package):
    kind, name, folder = package
    plugin = registry.find(f"{kind}s", name)
    assert plugin.owner == name and "replace this line" in plugin.summary
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_it_keeps_the_contract(package, capsys):
    code, out, _ = call(capsys, "doctor", "--plugin", package[1])
    assert code == 0 and " 0 failed, 0 skipped" in out, out


def test_the_search_of_a_method_is_a_suite(tmp_path, capsys, monkeypatch):
    call(capsys, "new", "method", "fresh-search", "--to", tmp_path / "fresh")
    installed(tmp_path / "fresh", monkeypatch)
    suite = find_suite(str(tmp_path / "fresh" / "search.toml"))
    assert suite.methods == ("fresh-search",) and suite.search is not None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method", "My_Method"], "small letters, digits and hyphens, e.g. my-method"),
        (["method", "sdpo"], "there is a method 'sdpo' already (built-in)"),
        (["reward", "emoji-align"], "there is a reward 'emoji-align' already"),
        (["method", "fresh", "--to", "."], "is there already"),
    ],
)
def test_names_and_folders_that_cannot_be_taken(capsys, words, said):
    code, _, err = call(capsys, "new", *words)
    assert code == 2 and said in err
