"""One setting's section of a report: its parts by way of judging, its bill, ablations, figures and grids."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

from sdpo_bench.reporting.content import Grid, Part, Section
from sdpo_bench.reporting.curve_figures import curve_charts, curve_figure, equal_reward_chart, equal_reward_figure
from sdpo_bench.reporting.figures import Figure, board_figures, training_figures
from sdpo_bench.reporting.page.answers import Answer, answer_words, arm_badges, best_cautions
from sdpo_bench.reporting.page.pictures import picture_grid
from sdpo_bench.reporting.tables import ablation
from sdpo_bench.reporting.tables.cost_tables import bill_table, picture_table
from sdpo_bench.reporting.tables.curve_tables import CurveOptions, curve_table, steps_words
from sdpo_bench.reporting.tables.equal_reward_table import equal_reward_table, equal_reward_words
from sdpo_bench.reporting.tables.method_tables import leaderboard, step_table, variety_of, version_of
from sdpo_bench.reporting.tables.run_tables import configuration_table
from sdpo_bench.reporting.tables.verdict import verdict_words
from sdpo_bench.results.comparability import Setting, amount, apart, sampler_words, shown
from sdpo_bench.results.equal_reward import CurvePair
from sdpo_bench.results.learning_curves import MEAN, CurveKey, CurvePanel
from sdpo_bench.results.panels import Panel
from sdpo_bench.results.scoreboard import Board
from sdpo_bench.reward_formula import part_weights
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.chart import Chart
from sdpo_bench.statistics.eval_table import Scores

MOST_GRIDS = 6


@dataclass(frozen=True, eq=False)
class Judged:
    """A setting with its boards, in the order of panels."""

    setting: Setting
    boards: tuple[Board, ...]
    base: Scores
    """Scores and picture statistics of the base model."""


@dataclass(frozen=True, eq=False)
class Curves:
    """The learning curves of a setting in the selected splits."""

    panels: Sequence[CurvePanel]
    pairs: Sequence[CurvePair]
    """Each beside the trained reward's curve on training prompts, whether or not these are selected."""


@dataclass(frozen=True, eq=False)
class _EqualReward:
    """What the learning curves of a setting say at equal training reward."""

    pairs: Sequence[CurvePair]
    reference: str
    options: CurveOptions

    def words(self, boards: Sequence[Board]) -> str:
        """A sentence about the trained reward on the prompts of some boards; empty without such curves."""
        keys = {(board.panel.key.sampler, board.panel.key.split) for board in boards if board.panel.trained}
        for pair in self.pairs:
            if pair.other.trained and (pair.other.key.sampler, pair.other.key.split) in keys:
                return equal_reward_words(pair, self.reference, self.options)
        return ""


def _reference(one: Judged) -> str:
    return next((board.reference for board in one.boards if board.panel.trained), "")


def section(
    one: Judged,
    settings: Sequence[Setting],
    scores: Mapping[str, Scores],
    families: Sequence[ablation.Family],
    curves: Curves,
    curve_options: CurveOptions,
    *,
    illustrated: bool,
    number: int,
) -> Section:
    setting, name = one.setting, f"setting-{number + 1}"
    own = [f for f in families if f.variants[0].board.panel.setting is setting]
    tables = [ablation.ablation_table(family, f"{name}-ablation-{i + 1}") for i, family in enumerate(own)]
    if any(arm.done for arm in setting.arms):
        tables.insert(0, bill_table(setting, f"{name}-bill"))
    tables += _curve_tables(setting, curves.panels, curve_options, name)
    panels = enumerate(curves.panels, 1)
    drawn = [curve_figure(panel, curve_options.level, f"{name}-learning-{i}") for i, panel in panels]
    equal = _EqualReward(curves.pairs, _reference(one), curve_options)
    for i, pairs in enumerate(_by_trained(equal.pairs), 1):
        table = equal_reward_table(setting, pairs, equal.reference, curve_options, f"{name}-equal-reward-{i}")
        tables += [table] if table else []
        drawn += [equal_reward_figure(pairs, curve_options.level, f"{name}-equal-reward-{i}")]
    parts = tuple(_parts(one, scores, name, equal, illustrated=illustrated))
    figures = (*drawn, *training_figures(setting.arms, name)) if illustrated else ()
    return Section(
        name,
        setting.title,
        apart(setting, settings),
        tuple(_facts(setting)),
        parts,
        tuple(tables),
        figures,
        tuple(_grids(setting)) if illustrated else (),
        configuration_table(setting, f"{name}-configuration"),
        "" if illustrated else "Figures and picture grids are drawn for the first settings only; --select narrows.",
        tuple(_curve_data(curves, curve_options.level)),
        _answer(one, parts, figures, scores),
    )


def _answer(one: Judged, parts: Sequence[Part], figures: Sequence[Figure], scores: Mapping[str, Scores]) -> Answer:
    """The sentence, the step curve of the first part, the learning curve where runs measured one, and pictures."""
    badges = arm_badges(one.setting, one.boards)
    steps = next((figure for part in parts for figure in part.figures if figure.name.endswith("-steps")), None)
    learning = next((figure for figure in figures if "-learning-" in figure.name), None)
    order = next(([line.label for line in board.lines] for board in one.boards if board.panel.trained), [])
    draw = cache(partial(picture_grid, one.setting, scores, one.base, order))
    pictures = draw if parts and parts[0].figures else None
    return Answer(
        answer_words(one.setting, one.boards),
        one.setting.reward,
        one.setting.model,
        best_cautions(one.boards, badges),
        steps,
        learning,
        pictures,
        badges=badges,
    )


def _curve_tables(setting: Setting, panels: Sequence[CurvePanel], options: CurveOptions, name: str) -> list[t.Table]:
    """A table for each sampler and split."""
    groups: dict[tuple[str, str], list[CurvePanel]] = {}
    for panel in panels:
        groups.setdefault((panel.key.sampler, panel.key.split), []).append(panel)
    named = enumerate(groups.values(), 1)
    return [curve_table(setting, members, options, f"{name}-learning-curve-{i}") for i, members in named]


def _by_trained(pairs: Sequence[CurvePair]) -> list[list[CurvePair]]:
    """Pairs with one trained panel together."""
    groups: dict[CurveKey, list[CurvePair]] = {}
    for pair in pairs:
        groups.setdefault(pair.trained.key, []).append(pair)
    return list(groups.values())


def _curve_data(curves: Curves, level: float) -> Iterator[tuple[str, tuple[Chart, ...]]]:
    """Every learning curve of a setting as data."""
    for panel in curves.panels:
        for steps in (MEAN, *panel.steps):
            title = f"learning curve, {panel.key.split} prompts, {panel.key.reward}, {steps_words(panel, steps)}"
            yield title, tuple(curve_charts(panel, steps, level, list(panel.arms)))
    for pair in curves.pairs:
        trained, other = pair.trained.key, pair.other.key
        title = f"{other.split} prompts, {other.reward}, against the rise of {trained.reward}, {trained.split} prompts"
        yield title, (equal_reward_chart(pair, level, list(pair.arms)),)


def _facts(setting: Setting) -> list[tuple[str, str]]:
    s = setting.settings
    return [
        ("model", setting.model),
        ("trained reward", f"{setting.reward}, version {version_of(setting)}"),
        ("training prompts", shown(s.get("sample.prompts"))),
        ("denoising steps in training", shown(s.get("schedule.steps"))),
        ("budget", amount(s)),
    ]


def _parts(
    one: Judged, scores: Mapping[str, Scores], name: str, equal: "_EqualReward", *, illustrated: bool
) -> list[Part]:
    """Boards by (sampler, split, prompts): the trained reward leads, held-out rewards and pictures follow."""
    groups: dict[tuple[str, ...], list[Board]] = {}
    for board in one.boards:
        key = board.panel.key
        groups.setdefault((key.sampler, key.split, *board.panel.prompts), []).append(board)
    return [
        _part(one, members, scores, f"{name}-{i + 1}", equal.words(members), illustrated=illustrated)
        for i, members in enumerate(groups.values())
    ]


def _part(
    one: Judged, boards: Sequence[Board], scores: Mapping[str, Scores], name: str, more: str, *, illustrated: bool
) -> Part:
    """The boards of one split under one sampler; ``more`` is a sentence at the end of the finding."""
    trained = [board for board in boards if board.panel.trained]
    held_out = [board for board in boards if not board.panel.trained]
    panel = boards[0].panel
    named = enumerate(trained, 1)
    tables = [leaderboard(board, f"{name}-leaderboard-{i}", variety_of(board, held_out)) for i, board in named]
    if held_out:
        parts = part_weights(panel.setting.reward)
        kind = "Parts and held-out rewards" if parts else "Held-out rewards"
        title = f"{kind}, trained on {panel.setting.reward}, {panel.key.split} prompts"
        tables.append(step_table(held_out, f"{name}-held-out", title, lambda b: _held_out_title(b.panel)))
    tables.append(picture_table(one.setting, panel, scores, one.base, f"{name}-pictures"))
    figures = [figure for i, board in enumerate(trained) for figure in board_figures(board, f"{name}-{i + 1}")]
    prompts = len(panel.prompts)
    title = f"{prompts} {panel.key.split} prompt{'s' * (prompts != 1)}"
    finding = " ".join(text for text in (verdict_words(trained, held_out), more) if text)
    return Part(
        title,
        f"Evaluation sampler: {sampler_words(panel.key.sampler)}",
        finding,
        tuple(tables),
        tuple(figures) if illustrated else (),
    )


def _held_out_title(panel: Panel) -> str:
    role = "a part of the trained sum" if panel.key.reward in part_weights(panel.setting.reward) else "not trained on"
    if panel.key.reward == panel.setting.reward:
        role = "another version of the trained reward"
    return f"{panel.key.reward} (version {panel.key.version}), {role}"


def _grids(setting: Setting) -> list[Grid]:
    """The first finished run of each arm that has a grid."""
    grids = []
    for arm in setting.arms:
        for run in arm.done:
            path = run.folder.path / "grid.png"
            if path.is_file():
                grids.append(Grid(f"{arm.label}, seed {run.seed}", path))
                break
    return grids[:MOST_GRIDS]
