"""The text form of a weighted sum of rewards: ``hpsv2*0.5+aesthetic*0.5``. Parsing and printing only, no plugins."""

import re
from contextlib import suppress

from sdpo_bench.errors import UsageError

EXAMPLE = 'Example: --reward "hpsv2*0.5+aesthetic*0.5"'
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_SUM = re.compile(r"[*+]|\s-")
_PART = re.compile(
    rf"\s*(?:(?P<before>{_NUMBER})\s*\*\s*)?(?P<name>[A-Za-z][\w.-]*)\s*(?:\*\s*(?P<after>{_NUMBER})\s*)?"
)


def is_sum(text: str) -> bool:
    """Whether a reward text has the form of a weighted sum."""
    return bool(_SUM.search(text))


def parse_sum(text: str) -> list[tuple[str, float]]:
    """Names and weights as typed.

    Raises:
        UsageError: not ``NAME*WEIGHT+NAME*WEIGHT+...``.
    """
    terms, at = [], 0
    while True:
        match = _PART.match(text, at)
        if not match or (match["before"] and match["after"]):
            raise _bad_syntax(text, at)
        terms.append((match["name"], float(match["before"] or match["after"] or 1)))
        at = match.end()
        if at == len(text):
            return terms
        if text[at] != "+":
            raise _bad_syntax(text, at)
        at += 1


def _bad_syntax(text: str, at: int) -> UsageError:
    where = f"at '{text[at:].strip()}'" if text[at:].strip() else "at its end"
    return UsageError(
        f"'{text}' is not a weighted sum of rewards ({where}): parts are NAME or NAME*WEIGHT, joined by '+'; to "
        f"subtract a reward, give it a negative weight (NAME*-1). {EXAMPLE}"
    )


def sum_name(parts: list[tuple[str, float]]) -> str:
    """The one form of a weighted sum: ``[("b", 0.5), ("a", -1)]`` -> ``a*-1+b*0.5``."""
    return "+".join(f"{name}*{repr(float(weight)).removesuffix('.0')}" for name, weight in sorted(parts))


def part_weights(name: str) -> dict[str, float]:
    """Weights by part of a weighted sum; none for a single reward, or for a damaged record's text that is no sum."""
    with suppress(UsageError):
        return dict(parse_sum(name)) if is_sum(name) else {}
    return {}
