"""Colour, marker and dash of a method: the same in every figure, table and report, whichever methods are beside it.

``assets/method_styles.toml`` lists the shipped methods. Any other label, also a method with settings in brackets, gets
its style from the hash of its text.
"""

import hashlib
import tomllib
from functools import cache

from sdpo_bench.reporting.templates import ASSETS

# Distinct for colour-blind readers in the order of the list, and on white as well as on near-black.
COLOURS = (
    "#2f7ed8",
    "#e0703a",
    "#1f9e7a",
    "#b45fb0",
    "#c79a1e",
    "#5aa9c9",
    "#d64f6d",
    "#7d8b2f",
    "#6f6fe0",
    "#a8673f",
    "#5fb87a",
    "#8c5a8f",
    "#2f8f8f",
    "#7a93c4",
    "#e08fa5",
    "#9a8250",
)
MARKERS = "osD^vPX*"
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1.5, 1))
"""Lengths of stroke and gap, in line widths; empty for a solid line."""
BASE_COLOUR = "#8a95a1"


@cache
def style_places(label: str) -> tuple[int, int, int]:
    """Places of a label's colour, marker and dash in the three lists."""
    if label in _listed():
        return _listed()[label]
    number = int.from_bytes(hashlib.sha256(label.encode()).digest()[:6], "big")
    colour, rest = number % len(COLOURS), number // len(COLOURS)
    return colour, rest % len(MARKERS), rest // len(MARKERS) % len(DASHES)


@cache
def _listed() -> dict[str, tuple[int, int, int]]:
    data = tomllib.loads((ASSETS / "method_styles.toml").read_text(encoding="utf-8"))
    return {name: (colour, marker, dash) for name, (colour, marker, dash) in data.items()}
