"""Every format shows the same cells, and no text from outside becomes anything but text."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from report_factory import base_frame, frame, make_base, make_run, spread

from sdpo_bench.cli.report_commands import ONLY
from sdpo_bench.cli.report_commands import report as report_cli
from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.reporting import plots
from sdpo_bench.reporting.assemble import Request, build_report
from sdpo_bench.reporting.console import terminal
from sdpo_bench.reporting.figures import _cost_charts, _distance_chart
from sdpo_bench.reporting.html import alone, halves, html
from sdpo_bench.reporting.markdown import as_csv, as_json, latex, markdown, md, tex
from sdpo_bench.reporting.report_parts import only
from sdpo_bench.reporting.study_view import StudyView
from sdpo_bench.results.read_results import load_results
from sdpo_bench.results.training_log import log_numbers
from sdpo_bench.statistics.table import digits_for, fixed
from sdpo_bench.system.console_text import clean

HOSTILE = (
    "<script>alert(1)</script>",
    "</style></title><img src=x onerror=alert(1)> & \"quoted\" 'too'",
    r"\input{/etc/passwd} $x_1$ 50% #1 ~ ^ { } | `code` **bold** [link](http://x.invalid)",
    "emoji \U0001f600 and 中文 and na\u00efve",
    "\u05e9\u05dc\u05d5\u05dd \u202e reversed",
    "=HYPERLINK(1)",
    "line\nbreak\x1b[2J\ttab",
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """Two methods x two seeds; prompts, a method, a model, a message and a setting are hostile text."""
    out = tmp_path_factory.mktemp("hostile")
    prompts = HOSTILE
    make_base(out, base_frame(spread([0, 0, 0], prompts=len(prompts)), prompts=prompts))
    for seed in (0, 1):
        for method, gain in (("sdpo", 1.0), (HOSTILE[0], 0.5), (HOSTILE[2], 0.25)):
            scores = spread([gain + 0.1 * seed] * 3, prompts=len(prompts))
            rows = lambda scores=scores, **who: frame(scores, **who, prompts=prompts)  # noqa: E731
            make_run(out, method, seed, None, frames=[rows], **{"sample.prompts": HOSTILE[2]})
    make_run(out, HOSTILE[5], 0, None, state="failed", message=HOSTILE[1] + HOSTILE[4] + HOSTILE[6])
    make_run(out, "sdpo", 3, None, **{"model.name": HOSTILE[3]})
    return out


@pytest.fixture(scope="module")
def report(hostile):
    return build_report(load_results(hostile), Request())


@pytest.fixture(scope="module")
def page(report) -> str:
    return html(report)


def test_the_axis_of_gains_names_the_whole_reward(tmp_path, monkeypatch):
    """Axis labels of more than 40 characters are cut: the endpoint belongs into the title."""
    reward = "emoji-align*0.7+jpeg-compressibility*0.3"
    make_base(tmp_path, base_frame(spread([0, 0, 0]), reward=reward))
    make_run(tmp_path, "sdpo", 0, spread([1, 1, 1]), reward=reward)
    drawn = {}
    monkeypatch.setattr(plots, "draw_dots", lambda rows, styles, *words: drawn.update(words=words) or b"")
    (part,) = build_report(load_results(tmp_path), Request()).sections[0].parts
    next(figure for figure in part.figures if figure.name.endswith("intervals")).draw()
    title, x_label, _ = drawn["words"]
    assert plots.safe(x_label) == x_label == reward
    assert title == "Gain over the base model on the mean over step counts"


# -- HTML ----------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects tags with attributes, and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_html_shows_hostile_text_as_text(page):
    reader = read(page)
    text = "".join(reader.text)
    for prompt in HOSTILE:
        assert clean(prompt)[:20].strip() in re.sub(r"\s", " ", text)
    kinds = [attributes.get("type") for tag, attributes in reader.tags if tag == "script"]
    assert kinds == ["application/json", None, None]
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert {tag for tag, _ in reader.tags} <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "h1",
        "h2",
        "h3",
        "h4",
        "p",
        "nav",
        "ul",
        "li",
        "a",
        "span",
        "bdi",
        "main",
        "article",
        "section",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "button",
        "details",
        "summary",
        "dl",
        "dt",
        "dd",
        "small",
        "figure",
        "img",
        "figcaption",
        "code",
        "strong",
        "i",
        "form",
        "label",
        "select",
        "option",
        "input",
        "script",
    }


def test_html_asks_nothing_of_the_network(page):
    reader = read(page)
    for _, attributes in reader.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/"))
    assert "@import" not in page
    assert "url(" not in page
    policy = next(a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_html_has_every_table_and_links_that_lead_somewhere(report, page):
    reader = read(page)
    ids = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {table.name for _, table in report.tables} <= set(ids)
    assert {a["href"][1:] for tag, a in reader.tags if tag == "a"} <= set(ids)


def test_figures_are_well_formed_and_follow_the_colour_scheme(report):
    part = next(section.parts[0] for section in report.sections if section.parts)
    for figure in part.figures:
        text = alone(figure.draw()).decode()
        ElementTree.fromstring(text)
        assert "prefers-color-scheme:dark" in text
        assert plots.INK not in text.partition("</style>")[2]


def test_grids_are_inlined_and_damaged_ones_left_out(tmp_path):
    from PIL import Image

    for seed, method in enumerate(("sdpo", "ddpo")):
        folder = make_run(tmp_path, method, 0, spread([1, 1, 1]))
        Image.new("RGB", (4, 4)).save(folder / "grid.png") if seed else (folder / "grid.png").write_bytes(b"no")
    page = html(build_report(load_results(tmp_path), Request()))
    sources = [a["src"] for tag, a in read(page).tags if tag == "img"]
    assert sum(source.startswith("data:image/png;base64,iVBOR") for source in sources) == 1


def test_uncertainty_steps_back_and_minus_is_a_minus():
    assert halves("-0.28 ±0.01") == ("\u22120.28", "±0.01")
    assert halves("99 % [98, 100]") == ("99 %", "[98, 100]")
    assert halves("sdpo [x]") == ("sdpo [x]", "")
    assert halves("-") == ("-", "")


# -- Chromium ------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PROBE = """<script>
const heading = [...document.querySelectorAll("#main-1 thead th")].findIndex((th) => th.innerText === "2 steps");
const button = document.querySelectorAll("#main-1 thead button")[heading];
button.click(); button.click();
const rows = [...document.querySelectorAll("#main-1 tbody tr:not(.group)")];
dispatchEvent(new Event("beforeprint"));
const inked = (canvas) => {
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return canvas.offsetWidth > 100 && data.some((value) => value > 0);
};
setTimeout(() => {
  const plots = [...document.querySelectorAll(".plot")];
  document.body.dataset.sorted = JSON.stringify(rows.map((row) => row.cells[heading].dataset.v));
  const drawn = (plot) => [...plot.querySelectorAll(".uplot canvas")].every(inked);
  document.body.dataset.visible = plots.filter(drawn).length;
  document.body.dataset.all = plots.length;
}, 1000);
</script></body>"""


def browse(folder: Path, page: str, *options: str) -> tuple[str, str]:
    """The page's DOM after its scripts, and the browser's log."""
    target = folder / "page.html"
    target.write_text(page, encoding="utf-8")
    profile = folder / "profile"
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *options, target.as_uri()]
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=True)
    return done.stdout, done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")
def test_chromium_sorts_a_table_and_shows_the_plots(tmp_path, page):
    # The probe is a script of the test's own, which the page's policy would rightly refuse.
    probed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("</body>", PROBE)
    dom, _ = browse(tmp_path, probed, "--virtual-time-budget=5000", "--dump-dom")
    assert "<title>sdpo-bench report</title>" in dom
    attributes = read(dom)
    body = next(a for tag, a in attributes.tags if tag == "body")
    values = [float(value) for value in json.loads(body["data-sorted"])]
    assert len(values) == 4
    assert values == sorted(values, reverse=True)
    assert values != sorted(values)
    assert body["data-visible"] == body["data-all"]
    assert int(body["data-all"]) >= 4


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")
def test_chromium_runs_the_page_under_its_own_policy(tmp_path, page):
    options = ("--virtual-time-budget=2000", "--dump-dom", "--enable-logging=stderr")
    dom, log = browse(tmp_path, page, *options)
    assert dom.count("<table") == page.count("<table")
    assert "Content Security Policy" not in log
    changed = page.replace('"use strict";', '"use strict"; ')  # a script that the policy does not name
    assert "Content Security Policy" in browse(tmp_path, changed, *options)[1]


# -- Markdown, LaTeX, CSV, JSON, terminal --------------------------------------------------------------------


def test_markdown_tables_parse_to_the_same_cells(report):
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark").enable("table").parse(markdown(report))
    tables: list[list[list[str]]] = []
    for i, token in enumerate(tokens):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type in ("td_open", "th_open"):
            children = tokens[i + 1].children or []
            assert {c.type for c in children} <= {
                "text",
                "strong_open",
                "strong_close",
                "em_open",
                "em_close",
                "text_special",
            }
            tables[-1][-1].append("".join(c.content for c in children))
    shown = [*report.main, *(table for title, table in report.tables if title), report.runs]
    assert len(tables) == len(shown)
    for found, table in zip(tables, shown):
        expected = [[clean(c.text).strip() for c in row.cells] for row in table.rows]
        groups = [clean(group.title) for group in table.groups if group.title]
        body = [[text.strip() for text in row] for row in found[1:]]
        assert found[0] == [column.title for column in table.columns]
        assert [row for row in body if not any(text in groups for text in row)] == expected


def test_markdown_escapes():
    from markdown_it import MarkdownIt

    for text in HOSTILE:
        rendered = MarkdownIt("commonmark").enable("table").render(md(text))
        reader = read(rendered)
        assert [tag for tag, _ in reader.tags] == ["p"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here (Debian: texlive-latex-recommended)")
def test_latex_compiles(tmp_path, report):
    (tmp_path / "tables.tex").write_text(latex(report), encoding="utf-8")
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs}\usepackage{graphicx}"
        r"\begin{document}\input{tables.tex}\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 1000


def test_latex_escapes():
    assert tex("50% #1 $x_1$ & {~^}\\") == (
        r"50\% \#1 \$x\_1\$ \& \{\textasciitilde{}\textasciicircum{}\}\textbackslash{}"
    )
    assert tex("±0.1 na\u00efve \U0001f600") == "$\\pm$0.1 na\u00efve \\texttt{U+1F600}"
    assert tex("[0.1] *") == "{[}0.1{]} {*}"


def test_csv_has_full_precision_and_no_formulas(report):
    rows = list(csv.DictReader(io.StringIO(as_csv(report))))
    gain = next(
        r for r in rows if r["table"].endswith("leaderboard-1") and r["row"] == "sdpo" and r["column"] == "gain"
    )
    assert float(gain["value"]) == pytest.approx(1.05, abs=1e-12)
    assert not any(re.match(r"[=@\t]|[+-](?![\d.]|$)", value) for r in rows for value in r.values())
    assert any(r["text"] == "'=HYPERLINK(1)" for r in rows)


def test_json_holds_the_whole_report(report):
    data = json.loads(as_json(report))
    assert data["summary"][0].startswith("8 runs (7 done, 1 failed)")
    table = next(s["parts"][0]["tables"][0] for s in data["settings"] if s["parts"])
    row = next(row for row in table["groups"][0]["rows"] if row["method"]["text"] == "sdpo")
    assert row["gain"]["seeds"] == 2
    assert row["gain"]["low"] < row["gain"]["value"] < row["gain"]["high"]
    assert table["prompts"] == sorted(HOSTILE)
    assert len(data["notices"]) == 2


@pytest.mark.parametrize("width", [60, 100])
def test_terminal_tables_fit_and_carry_no_control_characters(report, width):
    from rich.cells import cell_len

    text = terminal(report, width=width)
    lines = text.splitlines()
    assert max(cell_len(line) for line in lines) <= max(width, 60)
    assert "reversed" in text and "break" in text  # from a run's message
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e]", text)
    board = next(table for _, table in report.tables if table.name.endswith("leaderboard-1"))
    for column, found in zip(board.columns, next(row for row in board.rows if row.cells[0].text == "sdpo").cells):
        assert column.title in text
        assert found.text in text


def test_the_terminal_prints_a_note_once(report):
    """A note that several parts share stands at the end, one that is of a single part below its tables."""
    text = " ".join(terminal(report, width=100_000).split())
    notes = {" ".join(note.split()) for _, table in report.tables for note in table.all_notes}
    assert notes and {note: text.count(note) for note in notes} == dict.fromkeys(notes, 1)


def test_the_terminal_has_one_line_for_a_study_beside_runs(report):
    study = StudyView("s", "Study: s", "Does it help? " * 20, ("It does.",), (("command", "run it"),), (), (), ())
    both = replace(report, studies=(study, replace(study, title="Study: t")))
    more = len(terminal(both).splitlines()) - len(terminal(report).splitlines())
    assert more == 4  # an empty line, a heading, a line each
    assert "Study: t: Does it help?" in terminal(both) and "It does." not in terminal(both)
    assert "sdpo-bench report --only studies" in terminal(both)
    assert "It does." in terminal(only(both, ["studies"])) and "It does." in markdown(both)


def test_numbers_in_print():
    assert fixed(-0.0004, 2) == "0.00"
    assert fixed(-0.0004, 2, signed=True) == "+0.00"
    assert fixed(0.126, 2, signed=True) == "+0.13"
    assert [digits_for([x]) for x in (0.28123, 5.5, 22.0, 1234.5, 0.0, 1e-9)] == [4, 3, 2, 1, 3, 6]


def test_cost_curves_average_seeds_and_span_them():
    def log(rewards):
        counts = [{"images": 64 * i, "reward_calls": 192 * i, "denoiser_calls": 9 * i} for i in (1, 2)]
        return log_numbers([{"reward_mean": r, "bill": bill} for r, bill in zip(rewards, counts)])

    images, reward_calls, _ = _cost_charts({"sdpo": [log([1.0, 2.0]), log([3.0, 6.0])]})
    (series,) = images.series
    assert (series.x, series.y) == ([64, 128], [2, 4])
    assert (series.low, series.high) == ([1, 2], [3, 6])
    assert list(reward_calls.series[0].x) == [192, 384]


def test_reward_against_distance_is_a_mean_over_seeds_epoch_by_epoch():
    row = lambda kl, reward: {"kl_to_base": kl, "reward_mean": reward}  # noqa: E731
    first = log_numbers([row(0.0, 1.0), row(1.0, 2.0), row(25.0, 9.0)])
    second = log_numbers([row(0.0, 3.0), row(7.0, 4.0)])  # stopped early: its third epoch is not made up
    chart = _distance_chart({"sdpo": [first, second], "best-of-n": [log_numbers([{"reward_mean": 1.0}])]})
    (series,) = chart.series
    assert (series.x, series.y) == ([0, 2], [2, 3])


# -- the command ---------------------------------------------------------------------------------------------


def run(*arguments: str):
    return CliRunner().invoke(report_cli, [str(a) for a in arguments], standalone_mode=False, catch_exceptions=False)


def test_command_prints_or_writes(hostile, tmp_path):
    printed = run("--results", hostile, "--format", "csv")
    target = tmp_path / "new" / "table.csv"
    written = run("--results", hostile, "--out", target)
    assert target.read_text(encoding="utf-8") == printed.stdout
    assert written.stdout == f"{target}\n"
    assert "2 notices" in written.stderr
    assert "main-1" not in run("--results", hostile).stdout


def test_command_writes_all_formats(tmp_path):
    out = tmp_path / "results"
    make_run(out, "sdpo", 0, spread([1, 1, 1]))
    make_base(out, base_frame(spread([0, 0, 0])))
    run("--results", out, "--format", "all")
    names = {path.name for path in (out / "report").iterdir()}
    reports = {f"report.{suffix}" for suffix in ("txt", "md", "csv", "tex", "json", "html")}
    assert names == reports | {f"first-screen.{suffix}" for suffix in ("svg", "png", "csv")} | {"figures"}
    figures = out / "report" / "figures"
    drawn = {path.name for path in figures.glob("*.svg")}
    assert {"setting-1-1-1-steps.svg", "setting-1-1-1-intervals.svg", "setting-1-cost.svg"} <= drawn
    assert all(ElementTree.parse(figures / name).getroot().tag.endswith("svg") for name in drawn)
    for name in drawn:  # dark text on paper of its own, whatever page it lies on
        text = (figures / name).read_text(encoding="utf-8")
        assert "--paper:#ffffff;--ink:#1b2733" in text and "--paper:#14191e;--ink:#e8ebee" in text
        assert text.index("fill: var(--paper)") < text.index('<g id="figure_1">')
    listed = re.findall(r"^\| \[(\S+)\]\((\S+)\) \|", (figures / "README.md").read_text(encoding="utf-8"), re.M)
    assert {name for pair in listed for name in pair} == drawn


def test_a_part_of_a_report_has_the_tables_asked_for_and_no_other(hostile, tmp_path):
    whole = json.loads(run("--results", hostile, "--format", "json").stdout)
    names = {
        kind: table_names(json.loads(run("--results", hostile, "--format", "json", "--only", kind).stdout))
        for kind in ONLY
    }
    assert sorted(name for found in names.values() for name in found) == sorted(table_names(whole))  # each in one kind
    for kind in ("leaderboard", "pictures", "bill"):
        assert names[kind] and all(kind in name for name in names[kind])
    assert "main-1" in names["main"]
    two = run("--results", hostile, "--only", "bill", "--only", "leaderboard", "--format", "json").stdout
    assert sorted(table_names(json.loads(two))) == sorted(names["bill"] + names["leaderboard"])
    text = run("--results", hostile, "--only", "leaderboard", "--format", "markdown").stdout
    assert "| method | letters |" in text
    assert "Runs" not in text and "Notices" in text  # what is damaged stays in sight
    page = tmp_path / "part.html"
    run("--results", hostile, "--only", "leaderboard", "--out", page)
    assert "<img" not in page.read_text(encoding="utf-8")


def test_columns_are_chosen_by_their_names_in_csv(hostile):
    text = run("--results", hostile, "--only", "leaderboard", "--columns", "gain", "--format", "csv").stdout
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["column"] != "note"]
    assert {row["column"] for row in rows} == {"gain", "method"}
    whole = run("--results", hostile, "--only", "leaderboard", "--format", "csv").stdout
    assert rows == [row for row in csv.DictReader(io.StringIO(whole)) if row["column"] in ("gain", "method")]
    bill = run(
        "--results", hostile, "--only", "bill", "--only", "leaderboard", "--columns", "letters", "--format", "json"
    )
    names = table_names(json.loads(bill.stdout))
    assert names and all("leaderboard" in name for name in names)
    with pytest.raises(UsageError, match=r"no table of this report has 'gian'. Did you mean .*Valid: .*gain"):
        run("--results", hostile, "--columns", "gian")
    with pytest.raises(UsageError, match="--columns names no column"):
        run("--results", hostile, "--columns", ",")


def table_names(data: dict) -> list[str]:
    """Names of the tables of a report's JSON, without the lists of runs, versions and settings."""
    parts = [table for section in data["settings"] for part in section["parts"] for table in part["tables"]]
    tables = [*data["main"], *parts, *(table for section in data["settings"] for table in section["tables"])]
    return [table["name"] for table in tables]


def test_command_refuses_clearly(hostile, tmp_path):
    with pytest.raises(UsageError, match=r"does not tell its format.*--format"):
        run("--results", hostile, "--out", tmp_path / "x.docx")
    with pytest.raises(UsageError, match="unknown metric"):
        run("--results", hostile, "--metric", "fast")
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingError, match="cannot be written"):
        run("--results", hostile, "--out", tmp_path / "file" / "x.csv")


def test_the_results_folder_can_be_named_without_an_option(hostile, tmp_path):
    assert run(hostile, "--format", "json").stdout == run("--results", hostile, "--format", "json").stdout
    with pytest.raises(UsageError, match="two results folders"):
        run(hostile, "--results", tmp_path)


def test_a_failed_write_leaves_the_old_report(hostile, tmp_path, monkeypatch):
    target = tmp_path / "x.csv"
    target.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(MissingError, match="No space left"):
        run("--results", hostile, "--out", target)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]
