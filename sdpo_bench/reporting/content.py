"""The content of a report, independent of the format: sections of tables, figures and picture grids."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from sdpo_bench.reporting.figures import Figure
from sdpo_bench.reporting.page.answers import Answer
from sdpo_bench.reporting.page.notices import NoticeGroup
from sdpo_bench.reporting.page.runs import RunView
from sdpo_bench.reporting.study_view import StudyView
from sdpo_bench.results.read_results import Notice
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.chart import Chart


@dataclass(frozen=True)
class Grid:
    """A run's picture grid."""

    caption: str
    path: Path


@dataclass(frozen=True)
class Part:
    """One way of judging the arms of a setting: sampler, split, prompts."""

    title: str
    sampler: str
    finding: str
    tables: tuple[t.Table, ...]
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Section:
    """Everything about one setting."""

    name: str
    title: str
    reason: str
    """What separates it from the other settings."""
    facts: tuple[tuple[str, str], ...]
    parts: tuple[Part, ...]
    tables: tuple[t.Table, ...]
    """Bill, ablations and learning curves."""
    figures: tuple[Figure, ...]
    grids: tuple[Grid, ...]
    configuration: t.Table
    omitted: str = ""
    """What a large report omits."""
    charts: tuple[tuple[str, tuple[Chart, ...]], ...] = ()
    """Content of figures as data, each with a heading, for readers that draw for themselves."""
    answer: Answer | None = None
    """What the first screen of the page shows of it."""


@dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str
    summary: tuple[str, ...]
    main: tuple[t.Table, ...]
    """The paper's table shape over all rewards, the summary across rewards, and what stands against them."""
    sections: tuple[Section, ...]
    runs: t.Table
    versions: t.Table
    notices: tuple[Notice, ...]
    notice_groups: tuple[NoticeGroup, ...] = ()
    """The same notices by setting, method and kind."""
    selection: str = ""
    studies: tuple[StudyView, ...] = ()
    run_views: tuple[RunView, ...] = ()
    """The runs of the list, for their sections on the page."""
    verdicts: tuple[str, ...] = ()
    """Of ``--against``: what is reproduced. The last lines of every format."""
    options: str = ""
    """Options of the command that shape its figures, as typed."""

    def command(self, results: str = "") -> str:
        """What writes the report and its figures again; without a folder, so that a copy's report is the same."""
        place = f"--results {shlex.quote(results)}" if results else ""
        return " ".join(word for word in ("sdpo-bench report", place, "--format all", self.options) if word)

    @property
    def tables(self) -> list[tuple[str, t.Table]]:
        """Every table with the title of its section."""
        titled = [("", table) for table in self.main]
        for section in self.sections:
            within = [table for part in section.parts for table in part.tables]
            titled += [(section.title, table) for table in (*within, *section.tables)]
        return titled + [(study.title, table) for study in self.studies for table in study.tables]

    @property
    def figures(self) -> list[tuple[str, Figure]]:
        """Every figure with the title of its section and part."""
        titled = []
        for section in self.sections:
            titled += [(f"{section.title}, {part.title}", figure) for part in section.parts for figure in part.figures]
            titled += [(section.title, figure) for figure in section.figures]
        return titled
