"""Cost of a score and statistics of its pictures: the tables beside every leaderboard."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdpo_bench.results.comparability import Arm, Setting
from sdpo_bench.results.panels import Panel
from sdpo_bench.results.read_results import Run
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.contrasts import listed
from sdpo_bench.statistics.eval_table import BASE, Scores
from sdpo_bench.statistics.picture_means import PICTURES

# Counts that most bills lack, shown where one has them: key of the bill, title, what it is.
OCCASIONAL = (
    ("cached", "from the cache", "Scores remembered from the same run; not charged"),
    ("reward_backward", "reward gradients", "Scores differentiated"),
)

DIVERSITY_NOTE = (
    "diversity: root mean square distance of two sampled pictures in the last epoch of training (base model: in the "
    "first epoch of all methods, before any update), mean over runs, no interval."
)


def bill_table(setting: Setting, name: str) -> t.Table:
    """Cost of a run of each arm: means over its finished runs."""
    runs = [run for arm in setting.arms for run in arm.done]
    rewards = sorted({reward for run in runs for reward in _part(run.bill, "rewards")})
    occasional = [entry for entry in OCCASIONAL if any(_count(run.bill, entry[0]) for run in runs)]
    columns = (
        t.Column("method", "method", numeric=False),
        t.Column("images", "images"),
        t.Column("denoiser_calls", "denoiser calls", help="Forward and backward, counted per latent"),
        t.Column("forward", "forward"),
        t.Column("backward", "backward"),
        *(t.Column(f"reward_calls_{reward}", f"reward calls: {reward}") for reward in rewards),
        *(t.Column(name, label, help=text) for name, label, text in occasional),
        t.Column("optimiser_steps", "optimiser steps"),
        t.Column("minutes", "minutes", help="Training only, on the hardware named below"),
    )
    rows = tuple(_bill_row(arm, rewards, [entry[0] for entry in occasional]) for arm in setting.arms if arm.done)
    hardware = sorted({hardware_words(run) for run in runs} - {""})
    notes = [
        "Mean over the finished runs of each method; evaluation is not counted.",
        *_search_notes(setting),
        *(f"Hardware: {text}." for text in hardware),
    ]
    if len(hardware) > 1:
        notes.append("Minutes on different hardware cannot be compared.")
    return t.Table(name, "Cost of one run", columns, (t.Group("", rows),), tuple(notes))


def _search_notes(setting: Setting) -> list[str]:
    """A note on the cost of methods that train nothing."""
    searching = [arm.label for arm in setting.arms if any(run.search_bill for run in arm.done)]
    if not searching:
        return []
    return [
        f"{', '.join(searching)} trained nothing and used none of the budget: their cost is that of all candidates of "
        "the evaluated images, and every further image costs as much again."
    ]


def _part(bill: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = bill.get(key)
    return part if isinstance(part, dict) else {}


def _mean(values: Iterable[Any]) -> float | None:
    """Mean of the numbers among ``values``; None without any."""
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return sum(numbers) / len(numbers) if numbers else None


def _count(bill: Mapping[str, Any], key: str) -> Any:
    """A count of the bill, summed where the bill has it by reward."""
    count = bill.get(key, 0)
    return sum(count.values()) if isinstance(count, dict) else count


def _bill_row(arm: Arm, rewards: Sequence[str], occasional: Sequence[str]) -> t.Row:
    billed = [run for run in arm.done if run.bill]
    bills = [run.bill for run in billed]
    calls = [_part(bill, "rewards") for bill in bills]
    cells = [
        t.word(arm.label),
        t.count(_mean(bill.get("images") for bill in bills)),
        t.count(_mean(bill.get("denoiser_calls") for bill in bills)),
        t.count(_mean(sum(_part(bill, "forward").values()) for bill in bills)),
        t.count(_mean(bill.get("backward") for bill in bills)),
        *(t.count(_mean(call.get(reward, 0) for call in calls)) for reward in rewards),
        *(t.count(_mean(_count(bill, key) for bill in bills)) for key in occasional),
        t.count(_mean(bill.get("optimiser_steps") for bill in bills)),
        _minutes(_mean(run.seconds / 60 for run in billed)),
    ]
    return t.Row(tuple(cells))


def _minutes(value: float | None) -> t.Cell:
    """One decimal, but two where one would show 0.0 for a training that took time."""
    return t.number(value, 2 if value and value < 0.05 else 1)


def hardware_words(run: Run) -> str:
    """The machine of a run in a phrase; empty where the record does not say."""
    h = run.record.get("hardware")
    if not isinstance(h, dict):
        return ""
    device = h.get("accelerator") or h.get("device")
    return f"{device}, {h.get('machine')}, {h.get('cores')} cores, {h.get('threads')} threads"


def picture_table(setting: Setting, panel: Panel, scores: Mapping[str, Scores], base: Scores, name: str) -> t.Table:
    """Picture statistics: a reward can rise while the pictures collapse.

    Args:
        scores: by run id.
        base: of the base model.
    """
    columns = (
        t.Column("method", "method", numeric=False),
        *(t.Column(statistic, statistic) for statistic in PICTURES),
        t.Column("diversity", "diversity*"),
        t.Column("flat", "flat pictures*"),
        t.Column("kl", "KL to base*"),
    )
    rows = []
    if panel.base is not None and panel.key in base.pictures:
        rows.append(t.Row((t.word(BASE), *_picture_cells([base], panel), *[t.Cell(t.DASH)] * 3), base=True))
    for arm in setting.arms:
        judged = [scores[run.id] for run in arm.done if run.id in scores]
        judged = [one for one in judged if panel.key in one.pictures and one.pictures[panel.key].has(panel.prompts)]
        # An arm without usable scores keeps its row: flat pictures can be why its runs diverged.
        usable = [one for one in judged if not one.bad] if arm.label in panel.arms else []
        if judged:
            rows.append(t.Row((t.word(arm.label), *_picture_cells(usable, panel), *_last_epoch(arm))))
    notes = [
        "Means over images, step counts and seeds. Brightness: mean; contrast: standard deviation of luminance; "
        "saturation: max - min over channels; sharpness: difference of neighbouring luminance; pixels in [0, 1].",
        "* At the last epoch of training: root mean square distance of two images over all pairs, share of pictures "
        "of one colour, and KL divergence of the sampling policy from the base model (nats per latent element, sum "
        "over the steps that draw noise; none where no step does).",
    ]
    return t.Table(name, f"Pictures, {panel.key.split} prompts", columns, (t.Group("", tuple(rows)),), tuple(notes))


def diversity_notes(setting: Setting) -> list[str]:
    """Meaning of the column, and where methods start from where their first epochs differ."""
    by_value: dict[str, list[str]] = {}
    for arm in setting.arms:
        first = _mean(_part(run.first_epoch, "pictures").get("diversity") for run in arm.done)
        if first is not None:
            by_value.setdefault(t.fixed(first, 3), []).append(arm.label)
    if len(by_value) < 2:
        return [DIVERSITY_NOTE]
    starts = "; ".join(f"{value} for {listed(by_value[value])}" for value in sorted(by_value))
    return [
        DIVERSITY_NOTE,
        f"Diversity of the first epoch: {starts}. It differs before any update, since methods draw other batches of "
        "prompts and images: measure a method's change from its own first epoch, not from the base model's row.",
    ]


def diversity(setting: Setting) -> dict[str, float | None]:
    """Diversity of the sampled pictures by row: methods in their last epoch, the base model in the first epochs.

    Nothing was updated before the first epoch, so its pictures are the base model's.
    """
    by_row = {}
    for arm in setting.arms:
        by_row[arm.label] = _mean(_part(run.last_epoch, "pictures").get("diversity") for run in arm.done)
    first = [_part(run.first_epoch, "pictures") for arm in setting.arms for run in arm.done]
    by_row[BASE] = _mean(pictures.get("diversity") for pictures in first)
    return by_row


def _picture_cells(runs: Sequence[Scores], panel: Panel) -> list[t.Cell]:
    """Means over the prompts, step counts and images that the panel's scores are averaged over."""
    found = [run.pictures[panel.key].mean(panel.prompts, panel.common, panel.images) for run in runs]
    means = [mean for mean in found if mean is not None]
    return [
        t.number(sum(mean[statistic] for mean in means) / len(means) if means else None, 3) for statistic in PICTURES
    ]


def _last_epoch(arm: Arm) -> list[t.Cell]:
    rows = [run.last_epoch for run in arm.done]
    pictures = [_part(row, "pictures") for row in rows]
    kl = _mean(row.get("kl_to_base") for row in rows)
    return [
        t.number(_mean(p.get("diversity") for p in pictures), 3),
        t.number(_mean(p.get("flat_fraction") for p in pictures), 3),
        t.Cell(t.DASH) if kl is None else t.Cell(f"{kl:.2g}", kl),
    ]
