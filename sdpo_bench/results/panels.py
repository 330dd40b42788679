"""Panels: one way of judging the arms of a setting, and the runs that take part in it.

A panel has one evaluation sampler, split, set of prompts, reward and version; scores of different panels never share
a table. A panel pairs usable runs with the base model's scores of the same prompts and the same noise; it counts the
other runs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdpo_bench.errors import UsageError
from sdpo_bench.results.comparability import MODEL_KEYS, Arm, Setting
from sdpo_bench.results.read_results import Run
from sdpo_bench.statistics.eval_table import BASE, Block, PanelKey, Scores, stack
from sdpo_bench.statistics.matrices import ScoreGrid

SPLITS = ("train", "validation", "unseen")


@dataclass(frozen=True)
class RunCounts:
    """A method's runs by outcome; printed beside every number that rests on fewer than all of them.

    A method that diverges on two seeds of five and shines on the other three is not a method that shines.
    """

    method: str
    scored: tuple[str, ...]
    """Runs whose scores are all finite."""
    diverged: tuple[str, ...]
    """Runs with at least one NaN or infinite score."""
    failed: tuple[str, ...]
    """Runs without a usable evaluation: failed, or not finished."""

    @property
    def total(self) -> int:
        """All runs that were started."""
        return len(self.scored) + len(self.diverged) + len(self.failed)

    def words(self) -> str:
        """For example ``sdpo: 3 of 5 runs scored, 1 diverged (r2), 1 without a result (r4)``."""
        text = f"{self.method}: {len(self.scored)} of {self.total} runs scored"
        for what, runs in (("diverged", self.diverged), ("without a result", self.failed)):
            text += f", {len(runs)} {what} ({', '.join(runs)})" if runs else ""
        return text


@dataclass(frozen=True, eq=False)
class Panel:
    """The arms of a setting judged in one way."""

    setting: Setting
    key: PanelKey
    prompts: tuple[str, ...]
    images: tuple[int, ...]
    """Image numbers that all of its runs have."""
    common: tuple[int, ...]
    """Step counts that all arms (and the base model) have: what summaries over step counts are made of."""
    arms: Mapping[str, ScoreGrid]
    """By label; seeds whose runs are finished, complete and finite."""
    base: ScoreGrid | None
    counts: Mapping[str, RunCounts]
    notes: tuple[str, ...] = ()
    own: bool = True
    """Whether the configuration of one of its runs names its sampler and prompts, rather than a later ``eval``."""

    @property
    def trained(self) -> bool:
        """Whether its reward is the one that the runs were trained on."""
        return self.setting.trains_on(self.key.reward, self.key.version)

    @property
    def steps(self) -> tuple[int, ...]:
        """All step counts of any row."""
        rows = [*self.arms.values(), *([self.base] if self.base else [])]
        return tuple(sorted({step for grid in rows for step in grid.steps}))


def panel_order(panel: Panel) -> tuple[Any, ...]:
    """The runs' own samplers and prompts, then what was judged later; splits from train to unseen; the trained reward.

    Sentences about a setting are about its first panel, which a later ``eval`` of some runs must not replace.
    """
    key = panel.key
    split = SPLITS.index(key.split) if key.split in SPLITS else len(SPLITS)
    return (not panel.own, key.sampler, split, key.split, not panel.trained, key, -len(panel.prompts), panel.prompts)


def panels_of(setting: Setting, scores: Mapping[str, Scores], bases: Mapping[PanelKey, Block]) -> list[Panel]:
    """All panels of a setting, in the order of a report.

    Args:
        scores: by run id.
        bases: the base model's scores (:func:`base_blocks`).
    """
    by_panel: dict[tuple[PanelKey, tuple[str, ...]], dict[str, dict[int, Block]]] = {}
    own = set()
    for arm in setting.arms:
        for run in arm.done:
            run_scores = scores.get(run.id)
            if run_scores is None or run_scores.bad:
                continue
            for key, block in run_scores.every_block:
                by_panel.setdefault((key, block.prompts), {}).setdefault(arm.label, {})[run.seed] = block
                if key.sampler == run.own_sampler and run_scores.blocks.get(key) is block:
                    own.add((key, block.prompts))
    counts = {arm.label: run_counts(arm, scores) for arm in setting.arms}
    panels = []
    for (key, prompts), rows in by_panel.items():
        panel = _panel(setting, key, prompts, rows, bases.get(key), counts)
        panels += [replace(panel, own=(key, prompts) in own)] if panel else []
    return sorted(panels, key=panel_order)


def panels_of_splits(panels: Sequence[Panel], splits: Sequence[str]) -> list[Panel]:
    """The panels of some splits.

    Raises:
        UsageError: no panel is of one of them; the message has the splits that there are.
    """
    chosen = [panel for panel in panels if panel.key.split in splits]
    if not chosen:
        valid = sorted({panel.key.split for panel in panels})
        raise UsageError(f"no scores of split {', '.join(splits)}. Valid: {', '.join(valid)}.")
    return chosen


def _panel(
    setting: Setting,
    key: PanelKey,
    prompts: tuple[str, ...],
    rows: Mapping[str, Mapping[int, Block]],
    base: Block | None,
    counts: Mapping[str, RunCounts],
) -> Panel | None:
    notes = []
    blocks = [block for runs in rows.values() for block in runs.values()]
    images = _common_to_all(block.images for block in blocks)
    if base is not None:
        base, problem = _matching_base(base, prompts, images)
        notes.append(problem)
    else:
        notes.append("the base model has no scores here: sdpo-bench eval RUN adds them")
    if not images:
        return None
    most = max(len(block.images) for block in blocks)
    if len(images) < most:
        notes.append(f"{len(images)} of up to {most} images a prompt are used: those that every run has")
    notes += [_left_out_steps(label, runs) for label, runs in sorted(rows.items())]
    arms = {label: _arm_grid(runs, key, label, images) for label, runs in sorted(rows.items())}
    base_grid = stack({0: base}, key, BASE) if base is not None else None
    present = {label: grid for label, grid in arms.items() if grid}
    rows_of_table = [*present.values(), *([base_grid] if base_grid else [])]
    common = _common_to_all(grid.steps for grid in rows_of_table)
    texts = tuple(note for note in notes if note)
    return Panel(setting, key, prompts, tuple(images), tuple(common), present, base_grid, counts, texts)


def _common_to_all(groups: Iterable[Iterable[int]]) -> list[int]:
    """Numbers that every group has, ascending; none without groups."""
    sets = [set(group) for group in groups]
    return sorted(set.intersection(*sets)) if sets else []


def _left_out_steps(label: str, runs: Mapping[int, Block]) -> str:
    """Which step counts only some seeds of an arm were judged at; empty where none are."""
    every = {step for block in runs.values() for step in block.steps}
    left_out = sorted(every - set(_common_to_all(block.steps for block in runs.values())))
    if not left_out:
        return ""
    lacking = [seed for seed, block in sorted(runs.items()) if not set(left_out) <= set(block.steps)]
    seeds = ", ".join(map(str, lacking))
    lack = f"training seed {seeds} lacks" if len(lacking) == 1 else f"training seeds {seeds} lack"
    return (
        f"the row of {label} leaves out its scores at {', '.join(map(str, left_out))} steps, which {lack}; sdpo-bench "
        f"eval RUN --steps {','.join(map(str, left_out))} adds them"
    )


def _arm_grid(runs: Mapping[int, Block], key: PanelKey, label: str, images: Sequence[int]) -> ScoreGrid | None:
    steps = _common_to_all(block.steps for block in runs.values())
    if not steps:
        return None
    return stack({seed: block.restrict(steps, images) for seed, block in runs.items()}, key, label)


def _matching_base(base: Block, prompts: tuple[str, ...], images: Sequence[int]) -> tuple[Block | None, str]:
    """The base model's scores of exactly these prompts and images, at the step counts that have all of them."""
    part = base.part(prompts, images)
    if part is None:
        absent = set(prompts) - set(base.prompts)
        what = f"{len(absent)} of {len(prompts)} prompts" if absent else "some of the images"
        return None, f"the base model lacks {what}, so it has no row; sdpo-bench eval RUN completes it"
    if part.bad:
        return None, "the base model's scores here are not all finite, so it has no row"
    return part, ""


def run_counts(arm: Arm, scores: Mapping[str, Scores]) -> RunCounts:
    """An arm's runs by outcome; unfinished runs and runs without evaluation count as failed."""
    usable = [run for run in arm.done if run.id in scores]
    bad = {run.id: scores[run.id].bad for run in usable}
    return RunCounts(
        arm.label,
        scored=tuple(run.id for run in usable if not bad[run.id]),
        diverged=tuple(run.id for run in usable if bad[run.id]),
        failed=tuple(run.id for run in arm.runs if run not in usable),
    )


def base_scores(setting: Setting, bases: Iterable[Run], scores: Mapping[str, Scores]) -> Scores:
    """The scores of a setting's base model; of several folders the first by name that has a panel."""
    model = [setting.settings.get(key) for key in MODEL_KEYS]
    merged = Scores()
    for base in bases:
        if base.id in scores and [base.settings.get(key) for key in MODEL_KEYS] == model:
            more = scores[base.id]
            merged = Scores(more.blocks | merged.blocks, pictures=more.pictures | merged.pictures)
    return merged
