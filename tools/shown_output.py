"""Put into pages what commands print: a table of results is never typed by hand.

    python -m tools.shown_output                  # all pages that show results
    python -m tools.shown_output --check          # exit code 1 where a page shows something else

A page says what it shows, in comments that readers do not see::

    <!-- tables of: sdpo-bench report --results results/reference --format markdown -->
    ...
    <!-- end -->
    <!-- first 3 lines of: sdpo-bench compare sdpo ddpo --results results/reference -->
    ...
    <!-- end -->

Commands run in the root of the repository.
"""

import re
import shlex
import sys
from contextlib import chdir
from pathlib import Path

import click
from click.testing import CliRunner

from sdpo_bench.cli.main import cli

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "results" / "reference"
PAGES = (
    ROOT / "README.md",
    *(REFERENCE / place / "README.md" for place in (".", "long", "t20", "long-ablations", "flow", "newer")),
)
BLOCK = re.compile(r"(<!-- (tables|first (\d+) lines) of: sdpo-bench (.+?) -->\n).*?(<!-- end -->)", re.S)


def refreshed(text: str) -> str:
    """A page's text with every block as its command prints it now.

    Raises:
        RuntimeError: a command that fails.
    """

    def block(found: re.Match[str]) -> str:
        head, kind, lines, command, end = found.groups()
        printed = output(command)
        shown = tables(printed) if kind == "tables" else fenced(printed, int(lines))
        return f"{head}\n{shown}\n\n{end}"

    return BLOCK.sub(block, text)


def output(command: str) -> str:
    """Standard output of an ``sdpo-bench`` command."""
    with chdir(ROOT):
        done = CliRunner().invoke(cli, shlex.split(command))
    if done.exit_code:
        raise RuntimeError(f"sdpo-bench {command}: {done.output}")
    return done.stdout


def tables(markdown: str) -> str:
    """The tables of a Markdown text, each under its title, without notes."""
    found: list[str] = []
    title, within = "", False
    for line in markdown.splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ")
        if line.startswith("|"):
            found += [line] if within else ["", f"**{title}**", "", line]
        within = line.startswith("|")
    return "\n".join(found).strip()


def fenced(text: str, lines: int) -> str:
    """The first lines as a block of text."""
    return "\n".join(["```text", *text.splitlines()[:lines], "```"])


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 if a page is not as it should be.")
def main(check: bool) -> None:
    """Refresh what pages show of commands' output."""
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (new := refreshed(text)) != text:
            stale.append(page)
            if not check:
                page.write_text(new, encoding="utf-8")
    for page in stale:
        click.echo(page)
    sys.exit(bool(stale and check))


if __name__ == "__main__":
    main()
