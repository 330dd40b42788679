"""The verdict above a leaderboard in sentences: what the trained reward says, and what other rewards say.

Every sentence follows from the numbers of the tables below it. "Significant" means a p value below .05 after Holm's
correction over the methods; where only the interval excludes 0, the sentence has both.
"""

from collections.abc import Sequence
from dataclasses import replace

from sdpo_bench.reporting.tables.method_tables import score_digits
from sdpo_bench.results.endpoints import endpoint_words
from sdpo_bench.results.scoreboard import Board, Line
from sdpo_bench.reward_formula import part_weights
from sdpo_bench.scoring.variety import PREFIX
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.contrasts import listed
from sdpo_bench.statistics.eval_table import BASE
from sdpo_bench.statistics.matrices import FEW_STEPS

MOST_NUMBERS, MOST_NAMES = 4, 8
"""Lists of more methods go without their numbers, then without their names; the tables have both."""


CORRECTED = "after the correction over all pairs, though the interval of the difference"


def verdict_words(trained: Sequence[Board], held_out: Sequence[Board]) -> str:
    """What all rewards of a part of a report say about its methods."""
    texts = []
    for board in trained:
        texts += [*_leader(board), *_headlines(board), *_outcomes(board)]
    for board in held_out:
        texts += _outcomes(board)
        if not board.panel.key.reward.startswith(PREFIX):  # which says nothing of how good a picture is
            texts += [text for own in trained for text in _disagreement(own, board)]
    return " ".join(texts)


def _leader(board: Board) -> list[str]:
    """The highest mean and what is not significantly different from it."""
    if not board.lines:
        return []
    leaders = board.leaders.get(board.endpoint, frozenset())
    if not leaders:
        return list(board.pairs.notes[:1])
    sentence = f"{_leader_sentence(board, leaders)}{untested_words(board)}"
    return [sentence] if sentence else []


def _leader_sentence(board: Board, leaders: frozenset[str]) -> str:
    best, where, tested = board.pairs.best, endpoint_words(board.endpoint), "of several seeds"
    if seeds := shared_seed_words(board):
        where += f" ({seeds})"
    if best == BASE:
        return f"No method {f'{tested} ' if board.untested_above else ''}is above the base model {where}."
    highest = f"highest of the methods {tested}" if board.untested_above else "highest"
    if BASE in leaders:
        unlike = f"does not differ significantly from the base model{base_numbers(board)}"
        return f"{best} is {highest} {where}, but {unlike}."
    if len(leaders) > 1:
        return f"{best} is {highest} {where}; {tied_words(board)}."
    if len(board.lettered) == 1:
        return f"{best} is the only method {tested}." if len(board.lines) > 1 else ""
    rest = "all other methods" if len(board.lettered) == len(board.lines) else f"all other methods {tested}"
    return f"{best} is {highest} {where} and differs significantly from {rest}."


def tied_words(board: Board) -> str:
    """The methods that are not significantly different from the best, those whose interval excludes 0 with numbers."""
    leaders, undecided = board.leaders.get(board.endpoint, frozenset()), board.pairs.undecided(board.level)
    others = [line.label for line in board.lines if line.label in leaders and line.label != board.pairs.best]
    clauses = []
    if including := [label for label in others if label not in undecided]:
        clauses.append(f"not significantly different from it: {listed(including)}")
    if excluding := [label for label in others if label in undecided]:
        numbers = listed(f"{label} ({_to_best_numbers(board, label)})" for label in excluding)
        clauses.append(f"not significantly different {CORRECTED} excludes 0: {numbers}")
    return "; ".join(clauses)


def base_numbers(board: Board) -> str:
    """What is to be said of a best method that the letters do not tell from the base model; else empty.

    In brackets the numbers of the difference where only its interval excludes 0. Then the method's gain where that is
    significant: its family of tests is smaller, and it has all seeds of the method.
    """
    words = ""
    if BASE in board.pairs.undecided(board.level):
        words = f" {CORRECTED} excludes 0 ({_to_best_numbers(board, BASE)})"
    best = board.first
    if best is None or best.adjusted_p is None or best.adjusted_p >= 1 - board.level:
        return words
    over = " over all of its seeds" if best.seeds != board.pairs.seeds else ""
    words = words or " among all pairs of rows"
    return f"{words}; its gain{over}, corrected over the gains alone, is significant ({t.p_words(best.adjusted_p)})"


def _to_best_numbers(board: Board, label: str) -> str:
    """For example ``-0.041 ±0.030, p = 0.12``."""
    test = board.pairs.to_best[label]
    return f"{t.estimate(test.difference, score_digits(board), signed=True).text}, {t.p_words(test.p)}"


def shared_seed_words(board: Board) -> str:
    """The seeds behind the order of the lettered methods; empty where these have no other seeds."""
    if all(line.seeds == board.pairs.seeds for line in board.lettered):
        return ""
    return f"ranked by the shared seeds {listed(board.pairs.seeds)}"


def untested_words(board: Board) -> str:
    """A sentence with the methods of one seed above the best tested row; empty where there is none."""
    return f" Higher, but not tested (1 seed): {listed(board.untested_above)}." if board.untested_above else ""


def _headlines(board: Board) -> list[str]:
    """Gains of the best method and of the reference: at the endpoint, and on the few-step mean."""
    texts = []
    by_label = {line.label: line for line in board.lines}
    labels = [*([board.first.label] if board.first else []), board.reference]
    for label in dict.fromkeys(labels):
        line = by_label.get(label)
        if line is None or line.gain is None:
            continue
        numbers = replace(line.gain, note="").words()
        change = f"gains {numbers} over" if line.gain.value >= 0 else f"differs by {numbers} from"
        text = f"{label} {change} the base model {endpoint_words(board.endpoint)}"
        if line.few_gain is not None and board.endpoint != "few" and board.panel.common != FEW_STEPS:
            few = line.few_gain
            interval = "" if few.low is None else f" [{few.low:.3g}, {few.high:.3g}]"
            text += f", and {few.value:.3g}{interval} {endpoint_words('few')}"
        texts.append(f"{text}.")
    return texts


def _outcomes(board: Board) -> list[str]:
    """Which methods have a significant gain or loss, and which have neither."""
    tested = [line for line in board.lines if line.gain is not None and line.adjusted_p is not None]
    if not tested:
        return []
    shown = [line for line in tested if line.adjusted_p is not None and line.adjusted_p < 1 - board.level]
    up = [line for line in shown if line.gain and line.gain.value > 0]
    down = [line for line in shown if line.gain and line.gain.value < 0]
    excluding = [line for line in tested if line not in shown and line.gain and line.gain.excludes_zero]
    including = [line for line in tested if line not in shown and line not in excluding]
    clauses = []
    if up:
        clauses.append(f"a significant gain over the base model for {_names(board, up, len(tested))}")
    if down:
        clauses.append(f"a significant loss against the base model for {_names(board, down, len(tested))}")
    if excluding:
        numbers = listed(_number(board, line) for line in excluding)
        clauses.append(f"not significant after the correction, though the interval excludes 0: {numbers}")
    if including:
        clauses.append(
            f"no significant difference, and the interval includes 0, for {_names(board, including, len(tested))}"
        )
    return [f"By {role_words(board)}: {'; '.join(clauses)}."]


def role_words(board: Board) -> str:
    """The board's reward, and whether it was trained on."""
    reward = board.panel.key.reward
    if board.panel.trained:
        return f"{reward} (trained on)"
    parts = part_weights(board.panel.setting.reward)
    return f"{reward} (a part of the trained sum)" if reward in parts else f"{reward} (not trained on)"


def _names(board: Board, lines: Sequence[Line], total: int) -> str:
    """Methods with their numbers, their names alone, or their count and the numbers of the reference."""
    if len(lines) <= MOST_NUMBERS:
        return listed(_number(board, line) for line in lines)
    if len(lines) <= MOST_NAMES and len(lines) < total:
        return listed(line.label for line in lines)
    count = f"all {total} methods" if len(lines) == total else f"{len(lines)} of {total} methods"
    own = [_number(board, line) for line in lines if line.label == board.reference]
    return f"{count}, among them {own[0]}" if own else count


def _number(board: Board, line: Line) -> str:
    """For example ``draft (-0.358 ±0.213, p = 0.004)``."""
    gain = t.estimate(line.gain, score_digits(board), signed=True).text
    return f"{line.label} ({gain}, {t.p_words(line.adjusted_p)})"


def _disagreement(trained: Board, held_out: Board) -> list[str]:
    """Methods whose intervals lie on opposite sides of 0 by the two rewards."""
    other = {line.label: line.gain for line in held_out.lines}
    up, down = [], []
    for line in trained.lines:
        gain = other.get(line.label)
        if line.gain is None or gain is None or not (line.gain.excludes_zero and gain.excludes_zero):
            continue
        if line.gain.value > 0 > gain.value:
            up.append(line.label)
        elif line.gain.value < 0 < gain.value:
            down.append(line.label)
    one, two = trained.panel.key.reward, held_out.panel.key.reward
    sentences = [(up, f"rise by {one} and fall by {two}"), (down, f"fall by {one} and rise by {two}")]
    return [
        f"The two rewards disagree: {listed(labels)} {words} (both intervals exclude 0)."
        for labels, words in sentences
        if labels
    ]
