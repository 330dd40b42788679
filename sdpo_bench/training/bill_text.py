"""The cost of a run in words, and what the parts of a weighted sum had to say to each other."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdpo_bench.reward_formula import part_weights
from sdpo_bench.system.json_toml import parse_json

SEARCH_FILE = "search.json"
"""What inference-time search has cost, by block of the evaluation."""
PHASE_WORDS = {"diagnostic": "to measure the KL"}
"""Phases of the ledger whose name does not say what they count."""


def read_search(run: Path) -> dict[str, Any]:
    """Content of a run's search file; empty for methods that train, or where the file is damaged."""
    with suppress(OSError, ValueError, KeyError):
        found = parse_json((run / SEARCH_FILE).read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("blocks"), dict) and _is_count(found["samples_per_image"]):
            return found if all(map(_is_block, found["blocks"].values())) else {}
    return {}


def _is_block(block: Any) -> bool:
    """Whether this is what a search writes of one block: a bill of numbers, some of them under names of phases."""
    if not isinstance(block, dict) or not _is_count(block["delivered"]) or not isinstance(block["bill"], dict):
        return False
    nested = [value.values() if isinstance(value, dict) else [value] for value in block["bill"].values()]
    return all(_is_count(count) for counts in nested for count in counts) and "images" in block["bill"]


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def search_bill(run: Path) -> dict[str, Any]:
    """The bill of all images that a search has delivered in evaluation; empty for methods that train."""
    return add_bills(block["bill"] for block in read_search(run).get("blocks", {}).values())


def add_bills(bills: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum of bills, count by count."""
    total: dict[str, Any] = {}
    for bill in bills:
        for key, value in bill.items():
            if isinstance(value, Mapping):
                total[key] = add_bills([total.get(key, {}), value])
            else:
                total[key] = total.get(key, 0) + value
    return total


def search_lines(run: Path) -> list[str]:
    """What a searching method's cost is for; nothing for methods that train."""
    found = read_search(run)
    if not found:
        return []
    delivered = sum(block["delivered"] for block in found["blocks"].values())
    return [
        f"nothing was trained and none of the budget was used: this is the cost of {delivered:,} evaluated images, "
        f"{found['samples_per_image']} samples for each. Every further image costs as much again."
    ]


def bill_text(bill: dict[str, Any], seconds: float) -> str:
    """The whole cost in one line."""
    if not bill:
        return "cost: nothing"
    forward = " + ".join(f"{count:,} {PHASE_WORDS.get(phase, phase)}" for phase, count in bill["forward"].items())
    cached = bill.get("cached", {})
    rewards = ", ".join(_reward_text(name, count, cached.get(name, 0)) for name, count in bill["rewards"].items())
    if bill.get("reward_backward"):
        rewards += f", {bill['reward_backward']:,} of them differentiated"
    if decoded := bill.get("decoded"):
        rewards += f"; decoder calls {decoded:,} forward, {bill['decoded_backward']:,} backward"
    return (
        f"cost: {bill['images']:,} images; denoiser calls {forward} forward, {bill['backward']:,} backward; "
        f"reward calls {rewards}; {bill['optimiser_steps']:,} optimiser steps; {seconds:.0f} s of training"
    )


def skipped_steps(rows: Sequence[Mapping[str, Any]]) -> int:
    """Optimiser steps of a training log that were skipped because fp16 gradients overflowed; the bill counts them."""
    return sum(row.get("skipped_steps", 0) for row in rows)


def _reward_text(name: str, paid: int, cached: int) -> str:
    """``1,234 hpsv2 (+ 56 from the cache, 4.3 %)``; the share is of all questions."""
    if not cached:
        return f"{paid:,} {name}"
    return f"{paid:,} {name} (+ {cached:,} from the cache, {100 * cached / (paid + cached):.1f} %)"


def part_correlation(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Correlation of each two parts of a weighted sum in the first and the last epoch, by ``a|b``."""
    logged = [row["reward_part_correlation"] for row in rows if "reward_part_correlation" in row]
    return {pair: {"first": logged[0][pair], "last": logged[-1][pair]} for pair in logged[-1]} if logged else {}


def part_lines(reward: str, found: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """Whether the parts of a weighted sum pull together, one line a pair; weights of opposite sign turn it round."""
    weights, lines = part_weights(reward), []
    for pair, when in found.items():
        one, other = pair.split("|")
        first, last = ("constant" if value is None else f"{value:+.2f}" for value in (when["first"], when["last"]))
        agreement = (when["last"] or 0) * weights[one] * weights[other]
        verdict = ": with these weights they conflict" if agreement < 0 else ""
        lines.append(
            f"correlation of {one} and {other} over an epoch's images: {first} in the first epoch, {last} in the "
            f"last{verdict}"
        )
    return lines


def reference_lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What it took to standardise weighted sums, which no budget is charged for."""
    return [
        f"outside the budget: {name} standardised over {used['images']:,} images of the base model "
        f"({used['denoiser_calls']:,} denoiser calls, {sum(used['reward_calls'].values()):,} reward calls)"
        for name, used in found.items()
    ]
