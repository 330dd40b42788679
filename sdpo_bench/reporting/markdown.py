"""A report as Markdown, LaTeX, CSV or JSON.

Names, messages and prompts come from outside, so each format escapes every text it prints: nothing in a prompt can
become markup, a LaTeX command or a spreadsheet formula.
"""

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from sdpo_bench.reporting.content import Report, Section
from sdpo_bench.reporting.study_view import StudyView
from sdpo_bench.reporting.templates import render_template
from sdpo_bench.statistics.chart import chart_data
from sdpo_bench.statistics.table import Cell, Table, table_data, text_column
from sdpo_bench.system.console_text import clean
from sdpo_bench.system.json_toml import json_text

LATEX_CHARS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"{'}",
    "`": r"\textasciigrave{}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "-": "{-}",
    "±": r"$\pm$",
    "\u2212": "$-$",
    "λ": r"$\lambda$",
    "γ": r"$\gamma$",
    "η": r"$\eta$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "…": r"\ldots{}",
    "–": "--",
    "—": "---",
    "·": r"$\cdot$",
}


# -- Markdown ------------------------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """GitHub-flavoured Markdown: headings, pipe tables, notes as lists."""
    text = render_template("report.md.j2", md, report=report, text_column=text_column, cell_text=_markdown_cell)
    lines = "\n".join(line.rstrip(" ") for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip() + "\n"


def md(text: str) -> str:
    """Plain text in Markdown: all that could be markup is escaped, and no more, so that the source reads well too."""
    escaped = re.sub(r"([\\`*_{}\[\]#+!|~$<>&-])", r"\\\1", clean(text))
    return re.sub(r"(?<=\w)\\([-+]|_(?=\w))", r"\1", escaped)


def _markdown_cell(cell: Cell) -> Markup:
    text = re.sub(r"^\\(?=[-+]([\d.]|$))", "", md(cell.text))  # a sign at the start of a cell begins no list
    return Markup(f"**{text}**" if cell.strong else text)


# -- LaTeX ---------------------------------------------------------------------------------------------------


def latex(report: Report) -> str:
    r"""Tables for a paper, to be read with ``\input``; the first lines name the packages they need."""
    return render_template("report.tex.j2", tex, tags="<>", report=report).rstrip("\n") + "\n"


def tex(text: str) -> str:
    """Plain text in LaTeX; characters that common fonts lack are named by their code."""
    return "".join(_tex_char(char) for char in clean(text))


def _tex_char(char: str) -> str:
    if char in LATEX_CHARS:
        return LATEX_CHARS[char]
    return char if char.isascii() or "À" <= char <= "ÿ" else rf"\texttt{{U+{ord(char):04X}}}"


# -- CSV and JSON --------------------------------------------------------------------------------------------

CSV_COLUMNS = ("section", "table", "group", "row", "column", "text", "value", "low", "high", "seeds")


def as_csv(report: Report) -> str:
    """One line a cell, in full precision; a table's notes follow it with the column name ``note``, verdicts end it."""
    stream = io.StringIO(csv_tables([*report.tables, ("", report.runs)]))
    stream.seek(0, io.SEEK_END)
    writer = csv.writer(stream, lineterminator="\n")
    for verdict in report.verdicts:
        writer.writerow([csv_field(value) for value in ("", "against", "", "", "verdict", verdict, "", "", "", "")])
    return stream.getvalue()


def csv_tables(tables: Iterable[tuple[str, Table]]) -> str:
    """The same of any tables, each with the title of its section."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for section, table in tables:
        for group in table.groups:
            for row in group.rows:
                label = row.cells[text_column(table)].text
                for column, cell in zip(table.columns, row.cells):
                    numbers = [cell.value, cell.low, cell.high, cell.seeds]
                    fields = [section, table.name, group.title, label, column.key, cell.text, *numbers]
                    writer.writerow([csv_field(value) for value in fields])
        for note in table.all_notes:
            writer.writerow([csv_field(value) for value in (section, table.name, "", "", "note", note, "", "", "", "")])
    return stream.getvalue()


def csv_field(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets an apostrophe in front."""
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(value)
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if re.match(r"[=@]|[+-](?![\d.]|$)", text) else text


def as_json(report: Report) -> str:
    """The whole report as data."""
    data = {
        "title": report.title,
        "summary": list(report.summary),
        "selection": report.selection,
        "main": [table_data(table) for table in report.main],
        "settings": [_section_data(section) for section in report.sections],
        "studies": [study_data(study) for study in report.studies],
        "runs": table_data(report.runs),
        "versions": table_data(report.versions),
        "notices": [{"where": notice.where, "text": notice.text} for notice in report.notices],
        **({"verdicts": list(report.verdicts)} if report.verdicts else {}),
    }
    return json_text(data) + "\n"


def study_data(study: StudyView) -> dict[str, Any]:
    """A study as data."""
    return {
        "title": study.title,
        "question": study.question,
        "conclusion": list(study.conclusion),
        "design": dict(study.facts),
        "statistics": list(study.statistics),
        "tables": [table_data(table) for table in study.tables],
    }


def _section_data(section: Section) -> dict[str, Any]:
    parts = [
        {
            "title": part.title,
            "sampler": part.sampler,
            "finding": part.finding,
            "tables": [table_data(table) for table in part.tables],
        }
        for part in section.parts
    ]
    charts = [{"title": title, "charts": [chart_data(chart) for chart in group]} for title, group in section.charts]
    return {
        "title": section.title,
        "reason": section.reason,
        "facts": dict(section.facts),
        "parts": parts,
        "tables": [table_data(table) for table in section.tables],
        "configuration": table_data(section.configuration),
        **({"charts": charts} if charts else {}),
    }
