"""Nothing that is loaded runs, nothing that is named escapes the results folder, nothing listens that was not asked."""

import ast

import pytest
from places import HERE

from sdpo_bench.cli.main import cli
from sdpo_bench.hashing import run_id
from sdpo_bench.system.console_text import print_table

ROOT = HERE.parent
SOURCES = sorted(
    path
    for folder in ("sdpo_bench", "methods", "rewards", "tools", "examples", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "marshal.loads"}
FORBIDDEN_NAMES = FORBIDDEN_CALLS | {"torch.load", "numpy.load"}
"""Not to be had under a name that the search below would not know."""
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offences(source: str) -> list[str]:
    """What in a module could run something that it has loaded, with line numbers."""
    found = []
    other_names: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: imports {n}" for n in names if n.split(".")[0] in FORBIDDEN_MODULES]
            if isinstance(node, ast.ImportFrom):
                taken = [f"{node.module}.{alias.name}" for alias in node.names]
                found += [f"{node.lineno}: takes {n}" for n in taken if n in FORBIDDEN_NAMES]
            else:
                other_names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        if not isinstance(node, ast.Call):
            continue
        keywords = {k.arg: k.value for k in node.keywords}
        first, dot, rest = dotted(node.func).partition(".")
        name = other_names.get(first, first) + dot + rest
        if name in FORBIDDEN_CALLS:
            found.append(f"{node.lineno}: calls {name}")
        if name == "torch.load":
            safe = keywords.get("weights_only")
            if not (isinstance(safe, ast.Constant) and safe.value is True):
                found.append(f"{node.lineno}: torch.load without weights_only=True")
        if name.endswith(("np.load", "numpy.load")) and "allow_pickle" in keywords:
            found.append(f"{node.lineno}: allow_pickle")
        for key in ("shell", "trust_remote_code"):
            value = keywords.get(key)
            if value is not None and not (isinstance(value, ast.Constant) and value.value is False):
                found.append(f"{node.lineno}: {key}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "run(c, shell=True)",
        "os.system('x')",
        "f(trust_remote_code=True)",
        "from os import system",
        "from torch import load",
        "import torch as t\nt.load(p)",
        "import os as o\no.popen('x')",
    ],
)
def test_the_search_finds_what_it_should(source):
    assert offences(source)


def test_nothing_that_is_loaded_is_run():
    assert len(SOURCES) > 100
    assert {str(path.relative_to(ROOT)): found for path in SOURCES if (found := offences(path.read_text()))} == {}


NAMES = [
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "a/../../b",
    "C:\\x",
    "a\0b",
    "~/x",
    "-rf",
    "con\nx",
    "\u202ex",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_from_outside_stay_in_the_results_folder(tmp_path, name):
    config = {"method": {"name": name}, "reward": {"name": name}, "model": {"name": name}, "seed": 0}
    folder = (tmp_path / "runs" / run_id(config, versions={})).resolve()
    assert folder.parent == (tmp_path / "runs").resolve()
    assert folder.name.isascii() and "/" not in folder.name


def test_what_a_table_shows_cannot_move_the_cursor(capsys):
    """A run folder of somebody else says what it likes in its status."""
    print_table(["run", "mess\x1bage"], [["a", "\x1b]0;title\x07\x1b[2J\u202eecalp"]], title="\x1b[31mred")
    printed = capsys.readouterr().out
    assert not any(char in printed for char in "\x1b\x07\u202e")
    assert "title" in printed and "ecalp" in printed


def test_services_listen_on_this_machine_alone_unless_told():
    options = {parameter.name: parameter for parameter in cli.commands["serve-reward"].params}
    assert options["host"].default == "127.0.0.1"
    assert options["max_mib"].default == 256
