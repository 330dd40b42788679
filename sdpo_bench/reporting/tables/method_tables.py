"""The tables of one setting: leaderboard and scores by step count (the bill and picture statistics: ``cost_tables``).

Every table carries its own footnotes, so that it can be cut out of a report without losing what a reader must know:
sampler, scheduler settings, seeds, prompts, images, reward version, and what the interval is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from sdpo_bench.reporting.tables.cost_tables import diversity, diversity_notes
from sdpo_bench.results.comparability import Setting, amount, sampler_words, shown
from sdpo_bench.results.endpoints import endpoint_words
from sdpo_bench.results.panels import Panel
from sdpo_bench.results.read_results import Run
from sdpo_bench.results.scoreboard import Board, Line
from sdpo_bench.scoring.variety import PREFIX
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.eval_table import BASE
from sdpo_bench.statistics.matrices import FEW_STEPS, Endpoint

SCHEDULER_KEYS = (
    "prediction_type",
    "beta_schedule",
    "rescale_betas_zero_snr",
    "steps_offset",
    "set_alpha_to_one",
    "clip_sample",
    "spacing",
    "eta",
    "prev_timestep",
    "std_floor",
    "steps",
)
SUMMARIES: tuple[tuple[Endpoint, str, str], ...] = (
    ("few", "few-step mean", "Mean over 1, 2 and 4 steps"),
    ("mean", "mean", "Mean over step counts"),
    ("area", "area", "Mean height of the score curve over log2(steps)"),
)


TITLES = {key: title for key, title, _ in SUMMARIES}
P_WORDS = "p: of the t interval beside it, so over seeds and prompts, adjusted by Holm."


def score_digits(board: Board) -> int:
    """Decimals of a panel's scores: four significant digits of the largest."""
    rows = [*board.lines, *([board.base] if board.base else [])]
    return t.digits_for(estimate.value for line in rows for estimate in line.scores.values())


def step_columns(steps: Iterable[int]) -> list[t.Column]:
    """One column a number of denoising steps."""
    return [t.Column(f"steps_{k}", f"{k} step{'s' * (k != 1)}") for k in steps]


# -- leaderboard ---------------------------------------------------------------------------------------------


def leaderboard(board: Board, name: str, variety: Board | None = None) -> t.Table:
    """Methods by score: every step count, summaries, gain over the base model, difference to the reference, letters.

    Args:
        variety: of the same pictures, where it was measured.
    """
    steps, digits, where = board.panel.steps, score_digits(board), endpoint_words(board.endpoint)
    columns = [
        t.Column("method", "method", numeric=False),
        t.Column(
            "letters", "letters", numeric=False, help=f"Methods that share one do not differ significantly {where}"
        ),
        t.Column("seeds", "seeds"),
        *step_columns(steps),
        *(t.Column(key, title, help=text) for key, title, text in _summaries(board)),
        t.Column("gain", "gain over base", help=f"Paired difference to the base model {where}"),
        t.Column("adjusted_p", "p (Holm)", help="Of the gain, over all methods of this table"),
        t.Column("difference", f"minus {board.reference}", help=f"Paired difference to {board.reference} {where}"),
        t.Column("difference_p", "p (Holm) of it", help="Of that difference, over all other rows of this table"),
        t.Column(
            "diversity", "diversity", help="Of the pictures of the last epoch of training; base model: first epoch"
        ),
        *(_VARIETY_COLUMNS if variety else ()),
    ]
    spread = diversity(board.panel.setting)
    rows = [_leader_row(board, line, steps, digits, spread) for line in board.rows]
    if variety:
        rows = [replace(row, cells=row.cells + extra) for row, extra in zip(rows, _varieties(rows, variety))]
    title = f"{board.panel.key.reward}, {board.panel.key.split} prompts"
    meaning = [*diversity_notes(board.panel.setting), *([_variety_note(variety)] if variety else [])]
    notes = (*panel_notes(board.panel), *interval_notes(board), *_test_notes(board), *meaning)
    cautions = (*board.pairs.notes, *board_cautions(board))
    return t.Table(name, title, tuple(columns), (t.Group("", tuple(rows)),), notes, cautions, board.panel.prompts)


def _summaries(board: Board) -> list[tuple[str, str, str]]:
    if len(board.panel.common) < 2:
        return []
    return [(str(key), title, text) for key, title, text in SUMMARIES if key != "few" or has_few(board.panel)]


def has_few(panel: Panel) -> bool:
    """Whether a panel has a few-step mean beside its mean over all step counts, which is another one."""
    return set(FEW_STEPS) < set(panel.common)


_VARIETY_COLUMNS = (
    t.Column("variety", "variety", help="How different the evaluated pictures of one prompt are"),
    t.Column("variety_gain", "variety over base", help="Paired difference to the base model"),
)


def _variety_note(variety: Board) -> str:
    key = variety.panel.key
    return (
        f"{key.reward}, version {key.version}: mean cosine distance of the features of two evaluated pictures of one "
        f"prompt, {endpoint_words(variety.endpoint)}. Its p values are in the table of held-out rewards."
    )


def _varieties(rows: Sequence[t.Row], variety: Board | None) -> list[tuple[t.Cell, ...]]:
    """Cells of the variety columns for rows whose first cell is the label."""
    lines = {line.label: line for line in variety.rows} if variety else {}
    found: list[tuple[t.Cell, ...]] = []
    for row in rows:
        line = lines.get(row.cells[0].text)
        if line is None or variety is None:
            found.append((t.Cell(t.DASH), t.Cell(t.DASH)))
        else:
            score = t.estimate(line.scores.get(variety.endpoint), 4)
            found.append((score, t.estimate(line.gain, 4, signed=True)))
    return found


def _place(panel: Panel) -> tuple[int, str, str, tuple[str, ...]]:
    """Which pictures a panel's scores are of."""
    return id(panel.setting), panel.key.sampler, panel.key.split, panel.prompts


def variety_of(board: Board, boards: Iterable[Board]) -> Board | None:
    """The board among others that has the variety of a board's pictures."""
    for other in boards:
        panel = other.panel
        if panel.key.reward.startswith(PREFIX) and _place(panel) == _place(board.panel):
            return other
    return None


def _leader_row(
    board: Board, line: Line, steps: Sequence[int], digits: int, spread: Mapping[str, float | None]
) -> t.Row:
    top = line.label in board.leaders.get(board.endpoint, ())
    summaries: list[Endpoint] = [
        key for key, _, _ in SUMMARIES if str(key) in {name for name, _, _ in _summaries(board)}
    ]
    cells = (
        t.word(line.label, strong=top),
        t.word(line.letters),
        _seeds(board.panel, line),
        *(t.estimate(line.scores.get(k), digits, strong=top and k == board.endpoint) for k in (*steps, *summaries)),
        t.estimate(line.gain, digits, signed=True),
        t.p_value(line.adjusted_p),
        t.estimate(line.difference, digits, signed=True),
        t.p_value(line.difference_p),
        t.number(spread.get(line.label), 3),
    )
    return t.Row(cells, base=line.label == BASE)


def _seeds(panel: Panel, line: Line) -> t.Cell:
    if line.label == BASE:
        return t.Cell(t.DASH)
    return t.seeds(len(line.seeds), panel.counts[line.label].total)


# -- scores by step count ------------------------------------------------------------------------------------


def step_table(
    boards: Sequence[Board],
    name: str,
    title: str,
    heading: Callable[[Board], str],
    varieties: Sequence[Board | None] = (),
) -> t.Table:
    """The shape of the paper's main table: base model and methods by step count, one block for each board.

    Args:
        heading: of a board's block.
        varieties: of the same pictures as each board, None where it was not measured; empty: nowhere.
    """
    steps = sorted({step for board in boards for step in board.panel.steps})
    endpoint, trained = boards[0].endpoint, any(board.panel.trained for board in boards)
    summary: list[Endpoint] = ["few"] if all(has_few(board.panel) for board in boards) else []
    summary += [endpoint] if isinstance(endpoint, str) and len(steps) > 1 and endpoint not in summary else []
    columns = (
        t.Column("method", "method", numeric=False),
        *step_columns(steps),
        *(t.Column(str(key), TITLES[key]) for key in summary),
        t.Column("gain", "gain over base", help=f"Paired difference to the base model {endpoint_words(endpoint)}"),
        t.Column("adjusted_p", "p (Holm)", help="Of the gain, over the methods of the block"),
        *([t.Column("diversity", "diversity")] if trained else []),
        *(_VARIETY_COLUMNS if any(varieties) else ()),
    )
    groups = []
    for i, board in enumerate(boards):
        rows = _step_rows(board, [*steps, *summary], trained)
        if any(varieties):
            rows = [replace(row, cells=row.cells + extra) for row, extra in zip(rows, _varieties(rows, varieties[i]))]
        groups.append(t.Group(heading(board), tuple(rows)))
    notes = [note for b in boards for note in (*panel_notes(b.panel), *interval_notes(b))]
    if trained:
        notes.append("Bold: not significantly different from the best of its column, each column on its own.")
        notes += [note for board in boards for note in diversity_notes(board.panel.setting)]
    notes += [_variety_note(board) for board in varieties if board]
    cautions = tuple(dict.fromkeys(note for b in boards for note in board_cautions(b)))
    prompts = sorted({prompt for board in boards for prompt in board.panel.prompts})
    return t.Table(name, title, columns, tuple(groups), tuple(dict.fromkeys(notes)), cautions, tuple(prompts))


def _step_rows(board: Board, endpoints: Sequence[Endpoint], diverse: bool) -> list[t.Row]:
    digits, spread = score_digits(board), diversity(board.panel.setting) if diverse else {}
    lines = [*([board.base] if board.base else []), *sorted(board.lines, key=lambda line: line.label)]
    rows = []
    for line in lines:
        scores = [
            t.estimate(line.scores.get(k), digits, strong=line.label in board.leaders.get(k, ())) for k in endpoints
        ]
        gain = (t.estimate(line.gain, digits, signed=True), t.p_value(line.adjusted_p))
        cells = (t.word(line.label), *scores, *gain, *([t.number(spread.get(line.label), 3)] if diverse else []))
        rows.append(t.Row(cells, base=line.label == BASE))
    return rows


# -- footnotes -----------------------------------------------------------------------------------------------


def panel_notes(panel: Panel) -> list[str]:
    """Origin of a panel's scores."""
    key, setting = panel.key, panel.setting
    seeds = {label: panel.arms[label].seeds for label in panel.counts if label in panel.arms}
    images = len(panel.images)
    lines = [
        f"Evaluation: {sampler_words(key.sampler)}; {len(panel.prompts)} {key.split} prompts x {images} "
        f"image{'s' * (images != 1)} a step count; reward {key.reward}, version {key.version}.",
        f"Training: {training_words(setting)}.",
        f"Training seeds: {'; '.join(f'{label} {_seed_list(arm_seeds)}' for label, arm_seeds in seeds.items())}.",
    ]
    if scheduler := scheduler_words(setting):
        lines.append(f"Scheduler in training: {scheduler}.")
    if panel.common and len(panel.steps) > 1:
        several = "s" * (panel.common != (1,))
        few = "; the few-step mean (1, 2 and 4 steps) is" if has_few(panel) else ""
        lines.append(
            f"mean and area: over {', '.join(map(str, panel.common))} step{several}, which every row has. Not "
            f"comparable with means over other step counts{few}."
        )
    return lines + [f"{note[0].upper()}{note[1:]}." for note in panel.notes]


def _seed_list(seeds: Iterable[int]) -> str:
    return ", ".join(str(seed) for seed in seeds)


def training_words(setting: Setting) -> str:
    """What all runs of a setting trained on, in a phrase."""
    s = setting.settings
    return (
        f"{s['reward.name']} (version {version_of(setting)}) on {s['model.name']}, prompts "
        f"{shown(s.get('sample.prompts'))}, {shown(s.get('schedule.steps'))} denoising steps, budget {amount(s)}"
    )


def version_of(setting: Setting) -> str:
    """Version of the trained reward without its name."""
    text = str(setting.settings.get("reward.version") or "unknown")
    return text.removeprefix(f"{setting.reward}/")


def scheduler_words(setting: Setting) -> str:
    """Resolved scheduler settings of the training trajectories, from the runs' records."""
    texts = {_scheduler(run) for arm in setting.arms for run in arm.runs} - {""}
    return " | ".join(sorted(texts))


def _scheduler(run: Run) -> str:
    schedule = run.record.get("schedule")
    if not isinstance(schedule, dict):
        return ""
    return ", ".join(f"{key}={shown(schedule[key])}" for key in SCHEDULER_KEYS if key in schedule)


def interval_notes(board: Board) -> list[str]:
    """Kind of the intervals of a table."""
    several = [line for line in board.lines if len(line.seeds) > 1]
    if not several:
        return ["1 seed, no interval: how a method varies from one training to the next is not known."]
    return [f"{interval_words(board.level)} Gains and differences are paired on prompt and noise. {P_WORDS}"]


def _test_notes(board: Board) -> list[str]:
    """Families of the tests of a leaderboard."""
    if not any(line.letters for line in board.lines):
        return []
    rows = sum(bool(line.letters) for line in board.lines) + (board.base is not None)
    return [
        f"Rows by score {endpoint_words(board.endpoint)}. Families of p: the gains of all methods; the differences of "
        f"all rows to {board.reference}. Letters (Piepho 2004): methods that share one do not differ significantly, "
        f"Holm over the {rows * (rows - 1) // 2} pairs of rows. That is a larger family: a method can share a letter "
        f"with {board.reference} although its difference to it is significant.",
        *_power_note(board),
    ]


def _power_note(board: Board) -> list[str]:
    """The difference to the reference that the table's tests would miss one time in five, before correction."""
    found = [line.difference.detectable() for line in board.lines if line.difference is not None]
    sizes = [size for size in found if size is not None]
    if not sizes:
        return []
    return [
        f"Power: the uncorrected test of a difference to {board.reference} finds a true difference of "
        f"{median(sizes):.2g} (median over the methods) with probability .8; corrected for the family, it takes more."
    ]


def interval_words(level: float) -> str:
    """Meaning of ``±``, in a sentence."""
    return (
        f"±: half-width of the {100 * level:g} % interval over training seeds and prompts (crossed random effects, "
        "Satterthwaite); the base model has no training seed."
    )


def board_cautions(board: Board, labels: Iterable[str] | None = None) -> list[str]:
    """Missing runs and the remarks of the estimates: of all arms, or of those with these labels."""
    chosen = set(board.panel.counts if labels is None else labels)
    lines = []
    for label, count in board.panel.counts.items():
        if label in chosen and len(count.scored) < count.total:
            lines.append(f"{count.words()}.")
    notes = {}
    for line in board.lines:
        estimate = line.gain or line.scores.get(board.endpoint)
        if line.label in chosen and estimate:
            notes[line.label] = estimate.note
    return lines + [f"{text}." for text in t.gathered(notes)]
