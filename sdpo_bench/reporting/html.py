"""A report as one self-contained HTML page: no network, no second file, light and dark.

Plots are drawn by uPlot (MIT licence, ``assets/uplot``) from data in the page.

Every text reaches the page through the template engine's autoescape, control characters as visible escapes; pictures
are data URIs; a content security policy in the page itself forbids everything else, scripts of others included.
"""

import base64
import hashlib
import re

from sdpo_bench.reporting.content import Grid, Report, Section
from sdpo_bench.reporting.page.figure_data import dot_rows, figure_data, page_figures, script_data
from sdpo_bench.reporting.page.runs import run_data
from sdpo_bench.reporting.plots import THEME
from sdpo_bench.reporting.templates import ASSETS, render_template

DARK = {"ink": "#e8ebee", "muted": "#a0abb6", "rule": "#36414c"}
PAPER = {THEME["ink"]: "#ffffff", DARK["ink"]: "#14191e"}
"""Behind a figure, by the colour of its text."""
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
MOST_LISTED = 500
"""Rows of the list of runs on the page; JSON and CSV have all."""


def html(report: Report) -> str:
    """The page."""
    scripts = [(ASSETS / name).read_text(encoding="utf-8") for name in ("uplot/uPlot.iife.min.js", "report.js")]
    data = figure_data(page_figures(report))
    views = report.run_views[:MOST_LISTED]
    return render_template(
        "report.html.j2",
        report=report,
        runs=report.runs.rows[:MOST_LISTED],
        views=views,
        anchors={view.run.id: view.anchor for view in views},
        scripts=[(script, base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()) for script in scripts],
        data=script_data({**data, **run_data(views)}),
        drawn=set(data["figures"]),
        dot_rows=dot_rows,
        prompt_words=prompt_words,
        all_suites=all(table.name.startswith("suite-") for table in report.main),
        grid=grid_uri,
        halves=halves,
    )


def prompt_words(section: Section) -> str:
    """The training prompts of a section, for the filter."""
    return dict(section.facts).get("training prompts", "")


def alone(svg: bytes) -> bytes:
    """The SVG as a file of its own, see :func:`themed`, on paper: it may lie on a page of the other scheme."""
    text = themed(svg).decode()
    for scheme, paper in PAPER.items():
        text = text.replace(f"svg{{--ink:{scheme}", f"svg{{--paper:{paper};--ink:{scheme}")
    head, tag, rest = text.partition('<g id="figure_1">')
    return f'{head}<rect width="100%" height="100%" style="fill: var(--paper)"/>{tag}{rest}'.encode()


def themed(svg: bytes) -> bytes:
    """The SVG with text and rules that follow the reader's light or dark scheme."""
    text = svg.decode()
    for name, colour in THEME.items():
        text = text.replace(colour, f"var(--{name})")
    light = "".join(f"--{name}:{colour};" for name, colour in THEME.items())
    dark = "".join(f"--{name}:{colour};" for name, colour in DARK.items())
    style = f"<style>svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    head, tag, rest = text.partition("<defs>")
    return f"{head}{style}{tag}{rest}".encode()


def grid_uri(grid: Grid) -> str:
    """A picture grid as a data URI; empty where the file is not a PNG."""
    data = grid.path.read_bytes()
    return _uri("image/png", data) if data.startswith(PNG_MAGIC) else ""


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def halves(text: str) -> tuple[str, str]:
    """``0.28 ±0.01`` -> (``0.28``, ``±0.01``), so that the uncertainty can step back."""
    if re.match(r"-[\d.]", text):
        text = "\N{MINUS SIGN}" + text[1:]
    for mark in (" ±", " ["):
        value, found, rest = text.partition(mark)
        if found and (value[-1:].isdigit() or value.endswith("%")):
            return value, mark.strip() + rest
    return text, ""
