"""What README and docs tell people to type works: every block of commands is run or, where that is dear, resolved.

A block is handed to a shell in which ``sdpo-bench``, ``pip`` and the like are recorders, so that loops, quotes and
comments mean what they mean to a reader. What was recorded is then done for real (lists, reports, comparisons, scoring,
pictures, exports) or as far as resolving the settings (trainings, sweeps). A comment before a block, invisible in
rendered text, says what it needs: see :data:`MARKERS`.
"""

import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt
from report_factory import base_frame, make_base, make_run, spread

from sdpo_bench.cli.commands import run as run_command
from sdpo_bench.cli.commands import sweep
from sdpo_bench.cli.commands.fetch import items_of
from sdpo_bench.cli.main import cli
from sdpo_bench.doctor.checks import check_plugin
from sdpo_bench.plugins.parse_settings import validate
from sdpo_bench.plugins.registry import Plugin, find, is_file, plugins
from sdpo_bench.prompts.published_sets import PUBLISHED
from sdpo_bench.reporting import plots
from sdpo_bench.running import tracking
from sdpo_bench.sweep.plan import filter_jobs, make_plan
from sdpo_bench.sweep.suite import find_suite
from tools import command_reference

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "results").glob("**/*.md"),
        *(ROOT / "examples").glob("**/*.md"),
    ]
)
MARKERS = {"needs a GPU", "needs the hub", "long"}
"""``needs the hub``: only options and names are checked. The others are resolved all the same, down to each setting."""
SHELL = {"bash", "sh", "console"}
DATA = {"text", "bibtex", "python", "toml"}
RECORDED = (
    "git",
    "sdpo-bench",
    "pip",
    "python",
    "python3",
    "pytest",
    "ruff",
    "mypy",
    "lint-imports",
    "pre-commit",
    "mkdir",
    "accelerate",
    "torchrun",
    "ssh",
)
RECORDER = '#!/bin/bash\n{ printf "%s\\x1f" "${0##*/}" "$@"; printf "\\x1e"; } >> "$COMMAND_LOG"\n'


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: Path
    line: int
    kind: str
    text: str
    marker: str


def blocks_of(page: Path) -> list[Block]:
    found, marker = [], ""
    for token in MarkdownIt().enable("table").parse(page.read_text()):
        if token.type == "html_block":
            comment = re.fullmatch(r"<!--\s*(.*?)\s*-->", token.content.strip())
            shown = comment and (comment[1] == "end" or " of: sdpo-bench " in comment[1])  # see tools/shown_output.py
            marker = comment[1] if comment and not shown else ""
        elif token.type in ("fence", "code_block"):
            kind = token.info.strip() if token.type == "fence" else "bash"
            found.append(Block(page, token.map[0] + 1, kind, token.content, marker))
            marker = ""
        else:
            assert not marker or marker not in MARKERS, f"{page.name}: '{marker}' stands before no block"
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS = [block for block in BLOCKS if block.kind in SHELL]


def name_of(block: Block) -> str:
    return f"{block.page.relative_to(ROOT)}:{block.line}"


# -- the world in which commands are given ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Recorders, results to read, one small trained run, the guide's plugin and the example package."""
    top = tmp_path_factory.mktemp("docs")
    patch = pytest.MonkeyPatch()
    (top / "bin").mkdir()
    for name in RECORDED:
        path = top / "bin" / name
        path.write_text(RECORDER)
        path.chmod(0o755)
    for place in install_plugins(top):
        patch.syspath_prepend(str(place))
    folders = [reported(top / "one"), reported(top / "two", reward="hpsv2"), reported(top / "three", variants=True)]
    # Drawing is dear.
    patch.setattr(plots, "_drawn", lambda fill, size, **_: b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    patch.setattr(run_command, "show_plan", lambda *_, **__: None)
    patch.setattr(tracking, "find_spec", lambda name: name)  # the pages name trackers that are not installed here
    plan = lru_cache(lambda suite: make_plan(find_suite(suite), top))
    patch.setattr(sweep, "_dry_run", lambda suite, chosen, options: chosen and filter_jobs(plan(suite.name), chosen))
    (top / ".local" / "share" / "bash-completion" / "completions").mkdir(parents=True)
    yield SimpleNamespace(top=top, reports=folders, trained=train_small(top / "trained"), done=set())
    patch.undo()


def install_plugins(top: Path) -> list[Path]:
    """The guide's method as its blocks give it, and the example package, as if they were installed."""
    guide: dict[str, str] = {}
    for block in blocks_of(ROOT / "docs" / "add-a-method.md"):
        guide.setdefault(block.kind, block.text)
    (top / "winner").mkdir()
    for folder in (top / "winner", top):  # as a package, and as a single file
        (folder / "winner.py").write_text(guide["python"])
    example = ROOT / "examples" / "plugin-package"
    projects = [(top / "winner", guide["toml"]), (example, (example / "pyproject.toml").read_text())]
    for _, text in projects:
        project = tomllib.loads(text)["project"]
        info = top / "winner" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1\n")
        entries = [
            f"[{g}]\n" + "\n".join(f"{k} = {v}" for k, v in e.items()) for g, e in project["entry-points"].items()
        ]
        (info / "entry_points.txt").write_text("\n".join(entries) + "\n")
    return [folder for folder, _ in projects]


def reported(folder: Path, reward: str = "emoji-align", variants: bool = False) -> Path:
    """Results of two methods and two seeds, or of one method with two choices of a setting."""
    out = folder / "results"
    make_base(out, base_frame(spread([0, 0, 0]), reward=reward))
    for seed in (0, 1):
        for method in ("sdpo", "ddpo", "winner"):
            make_run(out, method, seed, spread([1 + seed, 1, 1]), reward=reward)
        if variants:
            make_run(out, "sdpo", seed, spread([2 + seed, 1, 1]), **{"method.reward": "full"})
    (folder / "my-numbers.toml").write_text((ROOT / "results" / "paper" / "aesthetic-figure.toml").read_text())
    shutil.copytree(out, folder / "other-results")
    return folder


def train_small(folder: Path) -> Path:
    """A run of eight images, judged on one prompt at one step count."""
    folder.mkdir()
    (folder / "prompts.txt").write_text("cat\n")
    sets = {
        "sample.images_per_epoch": 8,
        "update.minibatch": 4,
        "eval.train": folder / "prompts.txt",
        "eval.images_per_prompt": 1,
        "eval.steps": 1,
        "eval.rewards": "",
    }
    options = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    done = CliRunner().invoke(cli, ["run", "--budget", "images=8", "--results", str(folder / "results"), *options])
    assert done.exit_code == 0, (done.output, done.exception)
    return folder


# -- the tests -------------------------------------------------------------------------------------------------------


def test_pages_are_found_and_markers_are_known():
    assert {"README.md", "CONTRIBUTING.md", "command-line.md", "troubleshooting.md"} <= {page.name for page in PAGES}
    assert len(COMMANDS) > 30
    for block in BLOCKS:
        assert block.kind in SHELL | DATA, f"{name_of(block)}: a block of '{block.kind}' is not checked by anything"
        assert block.marker in MARKERS | {""}, f"{name_of(block)}: unknown marker '{block.marker}'"


@pytest.mark.parametrize("block", COMMANDS, ids=name_of)
def test_what_a_page_says_to_type(block: Block, world, monkeypatch):
    for argv in recorded(block, world):
        key = (block.marker, *argv)
        if key not in world.done:  # the same line stands on several pages
            CHECKS[argv[0]](argv[1:], block, world, monkeypatch)
            world.done.add(key)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind in ("python", "toml")], ids=name_of)
def test_python_and_toml_blocks_are_whole(block: Block):
    if block.kind == "toml":
        assert tomllib.loads(block.text)
    else:
        compile(block.text, name_of(block), "exec")


def test_the_worked_reward_keeps_the_contract(tmp_path):
    """The guide's second Python block, by the checks of ``doctor --plugin``."""
    _, block = (b for b in blocks_of(ROOT / "docs" / "add-a-method.md") if b.kind == "python")
    (tmp_path / "worked_reward.py").write_text(block.text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        path = tmp_path / "worked_reward.py"
        plugin = Plugin("halves", "rewards", "docs", "worked_reward", "ContrastOfHalves", "A reward.", path)
        checks = list(check_plugin(plugin))
    assert len(checks) > 3 and {check.status for check in checks} == {"ok"}, checks


def test_the_command_line_page_is_what_the_commands_say():
    assert command_reference.PAGE.read_text() == command_reference.page(), "python -m tools.command_reference"


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if not target.startswith(("http:", "https:")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_rows_of_the_readmes_comparison_are_those_of_its_page():
    page = (ROOT / "docs" / "comparison.md").read_text()
    compact = page.split("<!-- compact comparison -->")[1].split("<!-- end of comparison -->")[0].splitlines()
    section = (ROOT / "README.md").read_text().split("## How it differs")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) > 8 and set(rows) <= set(compact)


def test_every_method_and_every_paper_reward_is_described():
    methods, rewards = (ROOT / "docs" / name for name in ("methods.md", "rewards.md"))
    formulas = methods.read_text().split("## The losses")[1].split("##")[0]
    for name, plugin in plugins("methods").items():
        if plugin.owner == "built-in":
            assert f"`{name}`" in formulas, name
    for name in ("hpsv2", "hpsv2.1", "imagereward", "pickscore", "aesthetic", "clipscore", "remote"):
        assert name in rewards.read_text(), name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sdpo-bench run --mehtod sdpo", "--mehtod"),
        ("sdpo-bench run --set update.learning_rate=1", "learning_rate"),
        ("sdpo-bench sweep paper-mian", "paper-mian"),
        ("sdpo-bench report --format htlm", "htlm"),
        ("sdpo-bench eval RUN --rewards emoji-stlye", "emoji-stlye"),
        ("sdpo-bench fetch hpsv3", "hpsv3"),
        ("pip install -e '.[tests]'", "tests"),
        ("python benchmarks/nothing.py", "nothing.py"),
        ("sdpobench run", "not found"),
    ],
)
def test_a_wrong_line_would_be_seen(text, said, world, monkeypatch):
    block = Block(ROOT / "README.md", 0, "bash", text + "\n", "")
    with pytest.raises(AssertionError, match=re.escape(said)):
        test_what_a_page_says_to_type(block, world, monkeypatch)


# -- what is done with a line ----------------------------------------------------------------------------------------


def recorded(block: Block, world) -> list[list[str]]:
    """The commands of a block as a shell gives them to programs."""
    log = world.top / "commands"
    log.write_text("")
    script = ".() { :; }\ncd() { :; }\nset -e\n" + block.text
    done = subprocess.run(
        [shutil.which("bash"), "--norc", "-c", script],
        capture_output=True,
        text=True,
        cwd=world.top,
        env={"PATH": str(world.top / "bin"), "COMMAND_LOG": str(log), "HOME": str(world.top)},
    )
    assert done.returncode == 0, f"{name_of(block)}: {done.stderr}"
    found = [entry.split("\x1f")[:-1] for entry in log.read_text().split("\x1e") if entry]
    assert found, f"{name_of(block)}: nothing is called"
    return found


def check_own(argv: list[str], block: Block, world, monkeypatch) -> None:
    name = argv[0] if argv else ""
    where = f"{name_of(block)}: sdpo-bench {' '.join(argv)}"
    if name in ("run", "sweep") and block.marker != "needs the hub":
        if "my-suite.toml" in argv:
            suite = str(ROOT / "sdpo_bench" / "sweep" / "suites" / "smoke.toml")
            argv = [suite if word == "my-suite.toml" else word for word in argv]
        invoke([*argv, *(["--dry-run"] * ("--dry-run" not in argv))], world.top, monkeypatch, where)
    elif name in ("report", "compare"):
        if any(word.startswith("results/reference") for word in argv):  # run by the tests of these results
            return check_names(argv, where)
        argv = [re.sub(r"^(sdpo-emoji_align-emoji_turbo-s0)-\w{10}$", r"\1", word) for word in argv]
        several(argv, world.reports, monkeypatch, where)
    elif name in ("eval", "sample", "export", "show") and block.marker != "needs the hub":
        run = next((world.trained / "results" / "runs").glob("sdpo-*")).name
        argv = [run if word in ("RUN", "A") or word.startswith("sdpo-") else word for word in argv if word != "B"]
        argv = [re.sub(r"^((?:\d+,)*)(?:50|100)$", r"\g<1>5", word) for word in argv]  # step counts that take long
        invoke([*argv, *(["--force"] if name == "export" else [])], world.trained, monkeypatch, where)
    elif name in ("list", "completion") or any(
        word.startswith("--") and word in ("--help", "--version") for word in argv
    ):
        invoke(argv, world.trained, monkeypatch, where)
    else:
        check_names(argv, where)


def check_names(argv: list[str], where: str) -> None:
    """Options and the names of plugins, for what cannot be done here."""
    assert argv and argv[0] in cli.commands, where
    try:
        context = cli.commands[argv[0]].make_context(argv[0], [*argv[1:]])
        values = context.params
        names = [values.get("name"), *(values.get("names") or ())]
        unknown = ("sd-turbo", "sdxl-turbo", *PUBLISHED, *(names if argv[0] == "new" else ()))
        for name in [name for name in names if name and name not in unknown]:
            if argv[0] == "fetch":
                items_of(name)
            else:
                find("studies" if argv[0] == "study" else "rewards", name)
        if values.get("plugin") and values["plugin"] != "my-method" and not is_file(values["plugin"]):
            assert values["plugin"] in {**plugins("methods"), **plugins("rewards")}, where
        if argv[0] == "serve-reward":
            given = dict(text.removeprefix("reward.").split("=", 1) for text in values["sets"])
            validate(find("rewards", values["name"]).load().Settings, given, "reward")
        for key in ("method", "reward"):
            if values.get(key):
                find(f"{key}s", values[key])
    except (click.UsageError, Exception) as error:
        raise AssertionError(f"{where}: {error}") from error


def invoke(argv: list[str], folder: Path, monkeypatch, where: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("SDPO_BENCH_OUT", raising=False)  # the pages' commands read the results of this folder
    done = CliRunner().invoke(cli, argv)
    assert done.exit_code == 0, f"{where}: {done.output} {done.exception}"


def several(argv: list[str], folders: list[Path], monkeypatch, where: str) -> None:
    """Results of different kinds answer different questions: one of them must answer this one."""
    said = []
    for folder in folders:
        try:
            return invoke(argv, folder, monkeypatch, where)
        except AssertionError as error:
            said.append(str(error))
    raise AssertionError("\n".join(said))


def check_pip(argv: list[str], block: Block, *_) -> None:
    assert argv[0] == "install", argv
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in argv[1:]:
        asked = re.fullmatch(r"(?:\.|sdpo-bench)\[([\w,]+)\]", word)
        if asked:
            assert set(asked[1].split(",")) <= set(extras), f"{name_of(block)}: {word}"
        elif not word.startswith("-") and word not in (".", "pre-commit"):
            assert (ROOT / word).exists(), f"{name_of(block)}: {word}"


def check_python(argv: list[str], block: Block, *_) -> None:
    """A module or script that is there and has the options given."""
    if argv[:2] in (["-m", "venv"], ["-m", "build"]):
        return
    module = argv[0] == "-m"
    path = ROOT / (argv[1].replace(".", "/") if module else argv[0])
    path = next((p for p in (path.with_suffix(".py"), path / "__main__.py") if p.exists()), path)
    assert path.is_file(), f"{name_of(block)}: {path}"
    for word in argv[1 + module :]:
        assert not word.startswith("--") or f'"{word}"' in path.read_text(), f"{name_of(block)}: {word}"


def check_pytest(argv: list[str], block: Block, *_) -> None:
    for word in argv:
        known = (
            word.startswith("-")
            or word in ("2", "not slow", "not slow and not robustness")
            or (block.page.parent / word).exists()
        )
        assert known, f"{name_of(block)}: {word}"


def check_launcher(argv: list[str], block: Block, world, monkeypatch) -> None:
    """``accelerate launch OPTIONS -m sdpo_bench ...`` or ``torchrun OPTIONS -m sdpo_bench ...``."""
    place = argv.index("-m")
    assert argv[0] == "launch" or argv[0].startswith("--nproc"), argv
    assert argv[place + 1] == "sdpo_bench", argv
    check_own(argv[place + 2 :], block, world, monkeypatch)


CHECKS = {
    "sdpo-bench": check_own,
    "pip": check_pip,
    "python": check_python,
    "python3": check_python,
    "pytest": check_pytest,
    "accelerate": check_launcher,
    "torchrun": check_launcher,
    **dict.fromkeys(("git", "ruff", "mypy", "lint-imports", "pre-commit", "mkdir", "ssh"), lambda *_: None),
}
