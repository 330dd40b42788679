"""Write docs/command-line.md from the click commands themselves, so that the page cannot say anything else.

python -m tools.command_reference            # writes the page
python -m tools.command_reference --check    # exit code 1 if the committed page is another one
"""

import argparse
import inspect
from pathlib import Path

import click

from sdpo_bench.cli.main import cli

PAGE = Path(__file__).parent.parent / "docs" / "command-line.md"
WIDTH = 120
BAR = "\\|"  # a bar would end the table's cell, even in code
INTRODUCTION = """\
# Command line reference

Written by `python -m tools.command_reference` from the commands' own help. `--json` puts JSON on standard output and
everything else on standard error. Exit codes: 0 done, 1 a run or some jobs failed, 2 the request is wrong,
3 something is missing (package, weights, disk space), 130 Ctrl-C, 143 SIGTERM. `sdpo-bench --debug COMMAND` shows
tracebacks instead of short messages. `SDPO_BENCH_OUT` names another results folder than `results`.
"""


def page() -> str:
    """The whole page."""
    root = click.Context(cli, info_name="sdpo-bench")
    names = cli.list_commands(root)
    index = [f"- [`{name}`](#{name}): {_command(name).get_short_help_str(WIDTH)}" for name in names]
    return "\n".join([INTRODUCTION, *index, *(line for name in names for line in _section(root, name))]) + "\n"


def _command(name: str) -> click.Command:
    return cli.commands[name]


def _section(root: click.Context, name: str) -> list[str]:
    command = _command(name)
    context = click.Context(command, info_name=name, parent=root)
    usage = " ".join(command.collect_usage_pieces(context))
    return ["", f"## {name}", "", "```text", f"sdpo-bench {name} {usage}", "```", *_help(command), *_options(context)]


def _help(command: click.Command) -> list[str]:
    """Paragraphs as they are; what click prints unwrapped (examples) as an indented block of commands."""
    lines: list[str] = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if not paragraph.startswith("\b"):
            lines += ["", *paragraph.splitlines()]
            continue
        title, *examples = paragraph.removeprefix("\b").strip("\n").splitlines()
        lines += ["", title, "", *(f"    {example.strip()}" for example in examples)]
    return lines


def _options(context: click.Context) -> list[str]:
    options = [p for p in context.command.get_params(context) if isinstance(p, click.Option)]
    records = [found for option in options if (found := option.get_help_record(context))]
    rows = [
        f"| `{names.replace('|', BAR)}` | {_cell(text)} |" for names, text in records if not names.endswith("--help")
    ]
    return ["", "| option | |", "|---|---|", *rows] if rows else []


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", BAR).replace("<", "&lt;")


def main() -> int:
    """0, or 1 where the committed page differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="Compare instead of writing.")
    if parser.parse_args().check:
        return int(not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
