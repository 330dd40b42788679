"""The trainings of a study: its suites as one plan, and what their runs left as seed x prompt matrices.

Scores are read by the rules of the report (``scores``): a run that failed or diverged is counted, never averaged.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdpo_bench.errors import UsageError
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.results.read_results import MODEL_KEYS, flat_settings
from sdpo_bench.runs.run_folder import RunFolder, run_folders
from sdpo_bench.statistics.eval_table import BASE, Block, PanelKey, Scores, at, stack
from sdpo_bench.statistics.matrices import Endpoint, Matrix, ScoreGrid
from sdpo_bench.statistics.score_reader import read_scores
from sdpo_bench.sweep.plan import Job, Plan, RatesOf, make_plan
from sdpo_bench.sweep.suite import Suite, make_suite


class Arm(NamedTuple):
    """Runs that differ in the seed alone. A study of several models tells these apart by their variants."""

    method: str
    reward: str
    variant: str


def study_suite(
    name: str, overrides: Mapping[str, Any], preset: str | None, cells: Mapping[str, Any], **tables: Any
) -> Suite:
    """A suite made in memory. The user's ``overrides`` win over the study's own common settings.

    Args:
        cells: as in a suite file; ``preset`` is added where one is asked for.
        tables: further tables of a suite file, e.g. ``budget={"images": 64}``, ``variants={...}``.
    """
    chosen = dict(cells) | ({"preset": preset} if preset else {})
    suite = make_suite(name, {"cells": chosen, **tables})
    own = set(suite.variant_keys)
    if clash := own & set(overrides):
        raise UsageError(f"--set {sorted(clash)[0]}: this study varies that setting itself.")
    return replace(suite, common={**suite.common, **overrides})


def merged_plan(name: str, suites: Sequence[Suite], out: Path, rates: RatesOf = lambda resolved: None) -> Plan:
    """One plan of several suites, in their order.

    Raises:
        UsageError: as ``make_plan``.
    """
    jobs: dict[tuple[str, ...], Job] = {}
    for suite in suites:
        for job in make_plan(suite, out, rates).jobs:
            if jobs.setdefault(job.key, job) is not job:
                raise UsageError(f"study '{name}': two of its suites have a job '{job.label}'.")
    return Plan(replace(suites[0], name=name), out, tuple(jobs.values()))


def reopen(plan: Plan) -> int:
    """Reopen finished runs whose base model lacks scores that the plan needs; returns how many.

    Runs that lack scores of their own are unfinished in the plan already.
    """
    reopened = 0
    bases = Trainings.of(plan).bases
    for job in plan.jobs:
        if job.state != "done":
            continue
        if not any(_judged(job, base.scores) for base in bases if base.model == _model_of(_folder(plan, job))):
            _folder(plan, job).set_status("interrupted", "to be evaluated as a study asks")
            reopened += 1
    return reopened


def _folder(plan: Plan, job: Job) -> RunFolder:
    return RunFolder(plan.out / "runs" / job.run_id)


def _model_of(folder: RunFolder) -> list[Any]:
    settings = flat_settings(folder.record())
    return [settings.get(key) for key in MODEL_KEYS]


def _judged(job: Job, scores: Scores) -> bool:
    names = {str(job.settings["reward.name"]), *job.settings["eval.rewards"]}
    splits = [split for split in ("train", "validation", "unseen") if job.settings[f"eval.{split}"]]
    return all(_block_of(job, scores, name, split) is not None for name in names for split in splits)


def _block_of(job: Job, scores: Scores, reward: str, split: str) -> tuple[PanelKey, Block] | None:
    """The scores that the job's evaluation settings ask for, cut to exactly these.

    Raises:
        UsageError: there are several, by different samplers, or by versions of a reward whose present one is unknown.
    """
    s = job.settings
    prompts = tuple(sorted(load_prompts(s[f"eval.{split}"])))
    steps, images = tuple(sorted(s["eval.steps"])), tuple(range(s["eval.images_per_prompt"]))
    matches = []
    for key, block in scores.blocks.items():
        asked = (key.split, key.reward) == (split, reward) and job.asked.is_current(reward, key.version)
        part = block.part(prompts, images) if asked else None
        if part is not None and set(steps) <= set(part.steps):
            matches.append((key, part.restrict(steps, images)))
    if len(matches) > 1:
        samplers = ", ".join(f"{key.sampler} (version {key.version})" for key, _ in matches)
        raise UsageError(f"run '{job.run_id}' was judged in several ways: {samplers}. Use another --results FOLDER.")
    return matches[0] if matches else None


@dataclass(frozen=True, eq=False)
class Trained:
    """One run, read from its folder."""

    job: Job
    folder: RunFolder

    @property
    def arm(self) -> Arm:
        return Arm(self.job.method, self.job.reward, self.job.variant)

    @cached_property
    def scores(self) -> Scores:
        return read_scores(self.folder.evaluation, pictures=False) if self.folder.evaluation.exists() else Scores()

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """Training log, one row an epoch."""
        return self.folder.log()

    def values(self, statistic: str = "") -> Scores:
        """The scores, or a picture statistic of the same images in their place."""
        return read_scores(self.folder.evaluation, pictures=False, value=statistic) if statistic else self.scores

    @property
    def bill(self) -> dict[str, Any]:
        return dict(self.log[-1]["bill"]) if self.log else {}

    @property
    def seconds(self) -> float:
        """Seconds of training."""
        return self.folder.seconds

    @property
    def why_not(self) -> str:
        """Why the run's scores cannot be used; empty if they can."""
        if self.job.state != "done":
            return f"{self.job.state}: {self.job.message}" if self.job.message else self.job.state
        return f"diverged: {self.scores.bad} scores are not finite" if self.scores.bad else ""


@dataclass(frozen=True, eq=False)
class Base:
    """Scores of a base model by one sampler."""

    folder: RunFolder

    @cached_property
    def model(self) -> list[Any]:
        """What tells it from other base models."""
        return _model_of(self.folder)

    @cached_property
    def scores(self) -> Scores:
        return read_scores(self.folder.evaluation, pictures=False)

    def values(self, statistic: str = "") -> Scores:
        """As :meth:`Trained.values`."""
        return read_scores(self.folder.evaluation, pictures=False, value=statistic) if statistic else self.scores


@dataclass(frozen=True, eq=False)
class Trainings:
    """All runs of a study."""

    out: Path
    runs: tuple[Trained, ...]

    @classmethod
    def of(cls, plan: Plan) -> "Trainings":
        return cls(plan.out, tuple(Trained(job, _folder(plan, job)) for job in plan.jobs))

    @cached_property
    def arms(self) -> dict[Arm, tuple[Trained, ...]]:
        """Runs by arm, in the order of the plan."""
        by_arm: dict[Arm, list[Trained]] = {}
        for run in self.runs:
            by_arm.setdefault(run.arm, []).append(run)
        return {arm: tuple(sorted(runs, key=lambda run: run.job.seed)) for arm, runs in by_arm.items()}

    @cached_property
    def bases(self) -> list[Base]:
        """The base models whose scores are here."""
        return [Base(folder) for folder in run_folders(self.out) if folder.run_id.startswith("base-")]

    def bases_of(self, arm: Arm) -> list[Base]:
        """The base model of an arm's usable runs, once for each sampler that judged it."""
        models = [_model_of(run.folder) for run in self.arms[arm] if not run.why_not]
        return [base for base in self.bases if base.model in models]

    def grids(self, arm: Arm, reward: str = "", statistic: str = "") -> tuple[ScoreGrid, ScoreGrid] | None:
        """Scores on train prompts of an arm's usable runs and of the base model, with the same prompts, step counts and
        images; None if no run is usable.

        Args:
            statistic: a picture statistic (``picture_means.PICTURES``) to have in place of the scores.

        Raises:
            UsageError: the base model lacks scores, or the runs were judged in different ways.
        """
        blocks, keys = {}, dict[PanelKey, str]()
        for run in self.arms[arm]:
            name = reward or str(run.job.settings["reward.name"])
            match = _block_of(run.job, run.values(statistic), name, "train") if not run.why_not else None
            if match is not None:
                blocks[run.job.seed] = match[1]
                keys.setdefault(match[0], run.job.run_id)
        if not keys:
            return None
        if len(keys) > 1:
            raise UsageError(_different_ways(arm, keys))
        (key,) = keys
        for one in self.bases_of(arm):
            scores = one.values(statistic)
            if key not in scores.blocks:
                continue
            base = _block_of(self.arms[arm][0].job, Scores({key: scores.blocks[key]}), key.reward, "train")
            if base is not None:
                key = key._replace(reward=statistic or key.reward)  # so that no table mixes it with scores
                return stack(blocks, key, arm.method), stack({0: base[1]}, key, BASE)
        raise UsageError(f"the base model has no scores by {key.reward} on train prompts. Run the study again.")

    def gain(self, arm: Arm, endpoint: Endpoint = "mean", reward: str = "", statistic: str = "") -> Matrix | None:
        """Arm minus base model ``[S, P]`` in units of the reward or statistic; None where no run is usable."""
        grids = self.grids(arm, reward, statistic)
        if grids is None:
            return None
        tuned, base = (at(grid, endpoint) for grid in grids)
        values = tuned.reduce(tuned.scores) - base.reduce(base.scores)
        return Matrix(values, tuned.seeds, tuned.prompts, tuned.measure, f"{arm.method} - {BASE}")

    def spread(self, arm: Arm, endpoint: Endpoint = "mean", reward: str = "") -> float:
        """Standard deviation (ddof=1) of the base model's images at the endpoint; NaN without scores."""
        grids = self.grids(arm, reward)
        return float(at(grids[1], endpoint).per_image().std(ddof=1)) if grids else math.nan

    def base_mean(self, arm: Arm, endpoint: Endpoint, statistic: str) -> float:
        """Mean picture statistic of the arm's base model at the endpoint; NaN without scores."""
        grids = self.grids(arm, statistic=statistic)
        return float(at(grids[1], endpoint).scores.mean()) if grids else math.nan

    def standardised_gain(self, arm: Arm, endpoint: Endpoint = "mean", reward: str = "") -> Matrix | None:
        """:meth:`gain` in standard deviations of the base model's images; None where these do not vary."""
        gain, spread = self.gain(arm, endpoint, reward), self.spread(arm, endpoint, reward)
        return replace(gain, values=gain.values * (1 / spread)) if gain is not None and spread > 0 else None

    def pictures(self, arm: Arm, statistic: str) -> tuple[float, float]:
        """Means of a picture statistic over the same prompts, step counts and images: the usable runs' of the arm and
        the base model's; NaN if no run is usable.

        Raises:
            UsageError: the base model lacks scores.
        """
        grids = self.grids(arm, statistic=statistic)
        return (float(grids[0].scores.mean()), float(grids[1].scores.mean())) if grids else (math.nan, math.nan)

    def failures(self) -> list[Trained]:
        """Runs without usable scores."""
        return [run for run in self.runs if run.why_not]


def _different_ways(arm: Arm, keys: Mapping[PanelKey, str]) -> str:
    """Why an arm's runs are not averaged; ``keys`` with one run each."""
    ways = [f"run '{run}' has version {key.version} by {key.sampler}" for key, run in keys.items()]
    reward = next(iter(keys)).reward
    return (
        f"runs of {arm.method} were scored by {reward} in different ways: {'; '.join(ways)}. Such scores have no mean. "
        f"Make {reward} available here and run the study again, which scores every run by its present version; or use "
        "another --results FOLDER."
    )


def mean_of(values: Iterable[float]) -> float:
    """Mean of the finite ones; NaN without any."""
    numbers = [value for value in values if math.isfinite(value)]
    return float(np.mean(numbers)) if numbers else math.nan


def difference(a: Matrix | None, b: Matrix | None, name: str = "") -> Matrix | None:
    """``a - b`` over the seeds and prompts that both have; None where one is missing or no seed is shared."""
    if a is None or b is None:
        return None
    seeds = tuple(seed for seed in a.seeds if seed in b.seeds)
    if not seeds or a.prompts != b.prompts:
        return None
    rows = [[m.seeds.index(seed) for seed in seeds] for m in (a, b)]
    missing = len({*a.seeds, *b.seeds}) - len(seeds)
    note = f"{missing} seeds without a partner left out" if missing else ""
    return Matrix(
        a.values[rows[0]] - b.values[rows[1]], seeds, a.prompts, a.measure, name or f"{a.name} - {b.name}", note
    )
