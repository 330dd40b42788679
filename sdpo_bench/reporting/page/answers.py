"""The answer of a setting in one sentence, and the flags that a reader of any of its rows must know."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

from sdpo_bench.reporting.tables.verdict import (
    base_numbers,
    role_words,
    shared_seed_words,
    tied_words,
    untested_words,
)
from sdpo_bench.results.comparability import Arm, Setting
from sdpo_bench.results.endpoints import endpoint_words
from sdpo_bench.results.scoreboard import Board, Line
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.contrasts import listed
from sdpo_bench.statistics.eval_table import BASE
from sdpo_bench.statistics.intervals import Estimate
from sdpo_bench.statistics.matrices import FEW_STEPS

if TYPE_CHECKING:
    from sdpo_bench.reporting.figures import Figure
    from sdpo_bench.reporting.page.pictures import PictureGrid

MOST_NAMED = 3
"""Rows that a sentence names; of more it gives the number."""
FAR_KL = 20.0
"""Mean KL to the base model at the end of training from which on a row has a badge. Above it, diversity is below .9 of
the first epoch's in 95 % of the epochs of ``results/reference/runs`` and 98 % of those of ``long``."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What the first screen shows of a setting."""

    sentence: str
    reward: str
    model: str
    cautions: tuple[str, ...] = ()
    """Flags of the best method, which belong beside the sentence."""
    steps: "Figure | None" = None
    learning: "Figure | None" = None
    pictures: "Callable[[], PictureGrid | None] | None" = None
    badges: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Flags by label of the arm."""


def answer_words(setting: Setting, boards: Sequence[Board]) -> str:
    """Who wins, by how much and how surely, on the first prompts that the trained reward judges.

    The gain is given at the endpoint and on the few-step mean, and beside both that by the rewards not trained on.
    The budget is in the setting's title, beside which the sentence stands.
    """
    board = next((board for board in boards if board.panel.trained), None)
    if board is None or board.first is None:
        return f"No finished run of {setting.reward} has usable scores yet."
    prompts = len(board.panel.prompts)
    where = f"{endpoint_words(board.endpoint)}, {prompts} {board.panel.key.split} prompt{'s' * (prompts != 1)}"
    if seeds := shared_seed_words(board):
        where += f", {seeds}"
    leaders = board.leaders.get(board.endpoint, frozenset())
    few, held_out = _few_words(board, board.first), _held_out_words(board, boards)
    if not leaders:
        notes = " ".join(board.pairs.notes)
        return f"{_lead(board, board.first, 'scores highest')} ({where}){few}. {notes}".rstrip() + held_out
    if board.pairs.best == BASE:
        methods = "method of several seeds" if board.untested_above else "method"
        return f"No {methods} is above the base model ({where}).{untested_words(board)}"
    verb = "wins" if leaders == {board.pairs.best} else "leads"
    if board.untested_above:
        verb = "is highest of the methods of several seeds"
    elsewhere = _ahead_elsewhere(board, boards)
    lead, certainty = _lead(board, board.first, verb), _certainty(board, leaders)
    return f"{lead} ({where}){few}; {certainty}.{untested_words(board)}{held_out}{elsewhere}"


def _few_words(board: Board, best: Line) -> str:
    """The gain on the few-step mean; empty where it is the endpoint, or the mean over the same step counts."""
    if best.few_gain is None or board.endpoint == "few" or board.panel.common == FEW_STEPS:
        return ""
    return f", and {_interval_words(best.few_gain)} {endpoint_words('few')}"


def _held_out_words(board: Board, boards: Sequence[Board]) -> str:
    """The best method's gain by the rewards that it was not trained on, on the same prompts."""
    clauses = []
    for other in boards:
        key, own = other.panel.key, board.panel.key
        if other.panel.trained or (key.split, key.sampler) != (own.split, own.sampler) or board.first is None:
            continue
        line = next((line for line in other.lines if line.label == board.first.label), None)
        if line is not None and line.gain is not None:
            p = "" if line.adjusted_p is None else f", {t.p_words(line.adjusted_p)}"
            clauses.append(f"by {role_words(other)} {_interval_words(line.gain)}{p}")
    return f" Gain of {board.first.label} {listed(clauses)}." if clauses and board.first else ""


def _ahead_elsewhere(board: Board, boards: Sequence[Board]) -> str:
    """Which rows are significantly ahead of the winner on other prompts: who stops at the first sentence must know."""
    texts = []
    for other in boards:
        same = other.panel.trained and other.panel.key.sampler == board.panel.key.sampler and other is not board
        ahead = [row.label for row in other.rows if same and other.pairs.ahead(row.label, board.pairs.best)]
        if ahead:
            named = ["the base model" if label == BASE else label for label in ahead]
            if len(named) > MOST_NAMED:
                methods = f"{len(set(ahead) - {BASE})} of {len(other.lines) - 1} other methods"
                named = ["the base model", methods] if BASE in ahead else [methods]
            names = listed(named)
            prompts = f"{len(other.panel.prompts)} {other.panel.key.split} prompts"
            texts.append(
                f" On {prompts} {names} {'are' if len(ahead) > 1 else 'is'} significantly ahead of {board.pairs.best}."
            )
    return "".join(texts)


def _lead(board: Board, best: Line, verb: str) -> str:
    """The best method with its gain; the only one has nobody to win against."""
    if len(board.lettered or board.lines) == 1 and best.gain:
        verb = "gains" if best.gain.value >= 0 else "is not above the base model:"
        return f"{best.label} {verb} {_gain_words(best)}"
    return f"{best.label} {verb}: {_gain_words(best)}"


def _gain_words(line: Line) -> str:
    """For example ``+0.28 [0.2, 0.36] over the base model, p = 0.004, 5 seeds``."""
    gain = line.gain
    seeds = f"{len(line.seeds)} seed{'s' * (len(line.seeds) != 1)}"
    if gain is None:
        return f"no scores of the base model to compare with, {seeds}"
    certainty = "" if line.adjusted_p is None else f", {t.p_words(line.adjusted_p)}"
    return f"{_interval_words(gain)} over the base model{certainty}, {seeds}"


def _interval_words(gain: Estimate) -> str:
    """For example ``+0.28 [0.2, 0.36]``."""
    return f"{gain.shown:+.3g}" + ("" if gain.low is None else f" [{gain.low:.3g}, {gain.high:.3g}]")


def _certainty(board: Board, leaders: frozenset[str]) -> str:
    if BASE in leaders:
        return f"not significantly different from the base model{base_numbers(board)}"
    if len(leaders) > 1:
        return tied_words(board)
    group = "" if len(board.lettered) == len(board.lines) else " of several seeds"
    if len(board.lettered) == 1:
        return f"the only method{group or ' here'}"
    return f"significantly different from every other method{group}"


def arm_badges(setting: Setting, boards: Sequence[Board]) -> dict[str, tuple[str, ...]]:
    """Flags by label: a loss elsewhere, a cost at inference, a long way from the base model."""
    badges = {}
    for arm in setting.arms:
        flags = [*_losses(arm, boards), *_search_cost(arm), *_distance(arm)]
        if flags:
            badges[arm.label] = tuple(flags)
    return badges


def _losses(arm: Arm, boards: Sequence[Board]) -> list[str]:
    """By reward, the gains whose interval lies below 0, with their split."""
    losses: dict[str, list[str]] = {}
    for board in boards:
        line = next((line for line in board.lines if line.label == arm.label), None)
        if line and line.gain and line.gain.excludes_zero and line.gain.value < 0:
            reward = "" if board.panel.trained else f" by {board.panel.key.reward}"
            losses.setdefault(reward, []).append(f"{line.gain.value:.3g} on {board.panel.key.split}")
    return [f"below the base model{reward}: {listed(dict.fromkeys(texts))}" for reward, texts in losses.items()]


def _search_cost(arm: Arm) -> list[str]:
    searching = next((run for run in arm.done if run.search_bill), None)
    candidates = searching.settings.get("method.n") if searching else None
    return [f"{candidates} × inference cost"] if isinstance(candidates, int) else []


def _distance(arm: Arm) -> list[str]:
    distances = [run.last_epoch.get("kl_to_base") for run in arm.done]
    known = [float(value) for value in distances if isinstance(value, int | float)]
    return [f"far from the base model: KL {fmean(known):.0f}"] if known and fmean(known) >= FAR_KL else []


def best_cautions(boards: Sequence[Board], badges: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Flags of the method that the sentence names."""
    board = next((board for board in boards if board.panel.trained and board.lines), None)
    return badges.get(board.first.label, ()) if board and board.first else ()
