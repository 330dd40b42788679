"""A report as Markdown, LaTeX, CSV or JSON.

Names, messages and prompts come from outside, so each format escapes every text it prints: nothing in a prompt can
become markup, a LaTeX command or a spreadsheet formula.
"""

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

from sdpo_bench.report.assemble import Report, Section
from sdpo_bench.report.study_view import StudyView
from sdpo_bench.statistics.table import Cell, Row, Table, table_data, text_column
from sdpo_bench.system.console_text import clean
from sdpo_bench.system.json_toml import json_text

LATEX_NEEDS = r"\usepackage[T1]{fontenc}, \usepackage{booktabs}, \usepackage{graphicx}"
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
    lines = [f"# {md(report.title)}", "", *(md(line) for line in report.summary)]
    if report.selection:
        lines += ["", f"Selected: {md(report.selection)}"]
    lines += [line for table in report.main for line in _markdown_table(table, "##")]
    for section in report.sections:
        lines += ["", f"## {md(section.title)}", ""]
        lines += [md(section.reason), ""] if section.reason else []
        lines += [f"- {md(name)}: {md(value)}" for name, value in section.facts]
        for part in section.parts:
            lines += ["", f"### {md(part.title)}", "", md(part.sampler), "", md(part.finding)]
            lines += [line for table in part.tables for line in _markdown_table(table, "####")]
        lines += [line for table in section.tables for line in _markdown_table(table, "###")]
    for study in report.studies:
        lines += _markdown_study(study)
    lines += _markdown_table(report.runs, "##") if report.runs.rows else []
    if report.notices:
        lines += ["", "## Notices", "", *(f"- {md(n.where)}: {md(n.text)}" for n in report.notices)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _markdown_study(study: StudyView) -> list[str]:
    lines = ["", f"## {md(study.title)}", "", md(study.question), "", *(f"- {md(line)}" for line in study.conclusion)]
    lines += ["", "### Design", "", *(f"- {md(name)}: {md(value)}" for name, value in study.facts)]
    lines += [line for table in study.tables for line in _markdown_table(table, "###")]
    return [*lines, "", "### Statistics", "", *(f"- {md(line)}" for line in study.statistics)]


def md(text: str) -> str:
    """Plain text in Markdown: all that could be markup is escaped, and no more, so that the source reads well too."""
    escaped = re.sub(r"([\\`*_{}\[\]#+!|~$<>&-])", r"\\\1", clean(text))
    return re.sub(r"(?<=\w)\\([-+]|_(?=\w))", r"\1", escaped)


def _markdown_table(table: Table, level: str) -> list[str]:
    lines = ["", f"{level} {md(table.title)}", ""]
    lines.append("| " + " | ".join(md(column.title) for column in table.columns) + " |")
    lines.append("|" + "|".join("--:" if column.numeric else ":--" for column in table.columns) + "|")
    place = text_column(table)
    for group in table.groups:
        if group.title:
            lines.append(
                "| "
                + " | ".join(f"*{md(group.title)}*" if i == place else "" for i in range(len(table.columns)))
                + " |"
            )
        lines += ["| " + " | ".join(_markdown_cell(cell) for cell in row.cells) + " |" for row in group.rows]
    return [*lines, "", *(f"- {md(note)}" for note in table.all_notes)]


def _markdown_cell(cell: Cell) -> str:
    text = re.sub(r"^\\(?=[-+]([\d.]|$))", "", md(cell.text))  # a sign at the start of a cell begins no list
    return f"**{text}**" if cell.strong else text


# -- LaTeX ---------------------------------------------------------------------------------------------------


def latex(report: Report) -> str:
    r"""Tables for a paper, to be read with ``\input``; the first lines name the packages they need."""
    lines = [f"% {clean(report.title)}: tables for \\input. Needs {LATEX_NEEDS}.", ""]
    for title, table in report.tables:
        lines += _latex_table(table, title)
    return "\n".join(lines)


def tex(text: str) -> str:
    """Plain text in LaTeX; characters that common fonts lack are named by their code."""
    return "".join(_tex_char(char) for char in clean(text))


def _tex_char(char: str) -> str:
    if char in LATEX_CHARS:
        return LATEX_CHARS[char]
    return char if char.isascii() or "À" <= char <= "ÿ" else rf"\texttt{{U+{ord(char):04X}}}"


def _latex_table(table: Table, section: str) -> list[str]:
    caption = f"{section}: {table.title}" if section else table.title
    spec = "".join("r" if column.numeric else "l" for column in table.columns)
    body = []
    for i, group in enumerate(table.groups):
        if group.title:
            rule = [r"\midrule"] if i else []
            body += [*rule, rf"\multicolumn{{{len(table.columns)}}}{{l}}{{\emph{{{tex(group.title)}}}}} \\"]
        body += [_latex_row(row) for row in group.rows]
    notes = r" \\ ".join(tex(note) for note in table.all_notes)
    return [
        rf"\begin{{table}}[p] % {clean(table.name)}",
        r"\centering",
        rf"\caption{{{tex(caption)}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{spec}}}",
        r"\toprule",
        " & ".join(tex(column.title) for column in table.columns) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        *([rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {notes}}}"] if notes else []),
        r"\end{table}",
        r"\clearpage",
        "",
    ]


def _latex_row(row: Row) -> str:
    cells = [rf"\textbf{{{tex(cell.text)}}}" if cell.strong else tex(cell.text) for cell in row.cells]
    return " & ".join(cells) + r" \\"


# -- CSV and JSON --------------------------------------------------------------------------------------------

CSV_COLUMNS = ("section", "table", "group", "row", "column", "text", "value", "low", "high", "seeds")


def as_csv(report: Report) -> str:
    """One line a cell, in full precision; a table's notes follow it with the column name ``note``."""
    return csv_tables([*report.tables, ("", report.runs)])


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
                    writer.writerow([_csv_field(value) for value in fields])
        for note in table.all_notes:
            writer.writerow(
                [_csv_field(value) for value in (section, table.name, "", "", "note", note, "", "", "", "")]
            )
    return stream.getvalue()


def _csv_field(value: Any) -> Any:
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
    return {
        "title": section.title,
        "reason": section.reason,
        "facts": dict(section.facts),
        "parts": parts,
        "tables": [table_data(table) for table in section.tables],
        "configuration": table_data(section.configuration),
    }
