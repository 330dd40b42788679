"""From a suite to the ordered list of its jobs, with the state and cost of each.

The plan is a pure function of the suite and the results folder. What ``--dry-run`` prints is what ``sweep`` executes;
the sweep plans again whenever a tuning run has ended. Nothing here imports torch (a plugin may).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sdpo_bench.config.compatibility import refuse_reported
from sdpo_bench.config.resolve import Request, Resolved, resolve
from sdpo_bench.errors import UsageError, nearest
from sdpo_bench.estimates.time_estimate import Rates, Work, run_work, seconds
from sdpo_bench.hashing import canonical_json
from sdpo_bench.ledger import limit_text
from sdpo_bench.results.read_results import flat_settings
from sdpo_bench.results.select_runs import ALIASES, METHOD, same, with_methods, with_unrecorded
from sdpo_bench.runs.run_folder import CURVE, RunFolder
from sdpo_bench.statistics.score_reader import read_scores
from sdpo_bench.sweep.asked_scores import AskedScores, asked_scores
from sdpo_bench.sweep.later_runs import later_runs
from sdpo_bench.sweep.search import Round, Search
from sdpo_bench.sweep.suite import Group, Suite, shown_names
from sdpo_bench.sweep.tuning import (
    Choice,
    TuningRun,
    choice_data,
    read_tuning_run,
    search_data,
    search_settings,
    tuning_overrides,
)

JobState = Literal["new", "done", "unfinished", "failed", "waiting"]
"""``waiting``: its settings are known once its tuning runs have ended."""
STATES: dict[str, JobState] = {
    "new": "new",
    "done": "done",
    "failed": "failed",
    "running": "unfinished",
    "interrupted": "unfinished",
}
Role = Literal["reported", "tuning"]
JobKey = tuple[str, ...]
RatesOf = Callable[[Resolved], Rates | None]
JOB_SECONDS = 2.5
"""Time of a job beside its counted work: process, imports, loading the model, files. Measured in CPU seconds on two
cores (benchmarks/README.md, "Jobs of a sweep"). At load 3.8 a job of 16 images on the embedded model took 3.6 s from
"started" to "done", of which the rates explained 0.5 s."""


@dataclass(frozen=True)
class Job:
    """One run of a suite."""

    method: str
    reward: str
    model: str
    variant: str
    seed: int
    role: Role
    overrides: Mapping[str, Any]
    """All settings above the presets; with the names and the seed they are the whole request."""
    preset: str | None
    run_id: str
    """Empty while ``waiting``."""
    state: JobState
    message: str
    work: Work | None
    """Cost; None where the budget is a time."""
    seconds: float | None
    """Estimated time; None without a calibration."""
    settings: Mapping[str, Any]
    """The resolved configuration by ``section.key``, for ``--filter``."""
    search_group: Group
    """Jobs that share their tuned settings, and the tuning jobs that find them."""
    asked: AskedScores
    """What a finished run must have been judged on."""
    models: int = 1
    """Number of models of the suite; with several, the label names the job's."""

    @property
    def group(self) -> Group:
        """Jobs that differ in the seed."""
        return Group(self.method, self.reward, self.model, self.variant)

    @property
    def key(self) -> JobKey:
        """Identity of the job, unchanged when a choice gives it settings and a run id."""
        return (self.role, *self.group, str(self.seed), self.run_id if self.role == "tuning" else "")

    @property
    def request(self) -> Request:
        return Request(self.method, self.reward, self.model, self.preset, self.seed, dict(self.overrides))

    @property
    def label(self) -> str:
        """The job in words."""
        model = [self.model] if self.models > 1 else []
        parts = [self.method, self.reward, *model, *([self.variant] if self.variant else []), f"seed {self.seed}"]
        return " ".join(parts) + (" (tuning)" if self.role == "tuning" else "")

    def command(self) -> list[str]:
        """Arguments of ``sdpo-bench`` that repeat this job alone."""
        words = ["run", "--method", self.method, "--reward", self.reward, "--model", self.model]
        words += ["--preset", self.preset] if self.preset else []
        words += ["--seed", str(self.seed)]
        for key, value in self.overrides.items():
            shown = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
            shown = str(shown).lower() if isinstance(shown, bool) else shown
            words += ["--set", f"{key}={shown}"]
        return words


@dataclass(frozen=True)
class Plan:
    """All jobs in the order in which they are run: tuning first, then one seed of everything after the other."""

    suite: Suite
    out: Path
    jobs: tuple[Job, ...]
    choices: tuple[Choice, ...] = ()

    def count(self, state: str) -> int:
        return sum(job.state == state for job in self.jobs)


def make_plan(suite: Suite, out: Path, rates: RatesOf = lambda resolved: None) -> Plan:
    """Resolve every job and look at its folder.

    Raises:
        UsageError: settings that do not resolve (naming the job), two jobs that are the same run, methods of one
            reward and model that would not stop at the same budget.
    """
    planner = _Planner(suite, out, rates)
    tuning, choices = planner.tuning()
    chosen = {choice.group: choice for choice in choices}
    pairs = [(group, seed) for seed in suite.seeds for group in suite.groups]
    reported = [planner.reported(group, seed, chosen.get(suite.searched_group(group))) for group, seed in pairs]
    _refuse_twins(suite, [*tuning, *reported])
    _refuse_unmatched(suite, reported)
    return Plan(suite, out, (*tuning, *reported), choices)


def later_jobs(plan: Plan, rates: RatesOf = lambda resolved: None) -> tuple[Job, ...]:
    """The jobs of later rounds of the plan's searches, whose number and cost are known before the candidates are."""
    search, groups = plan.suite.search, {job.search_group for job in plan.jobs}
    if search is None:
        return ()
    searcher = _Planner(plan.suite, plan.out, rates).searcher()
    jobs = []
    for choice in plan.choices:
        if choice.group in groups:
            for run in later_runs(search, choice):
                jobs.append(searcher.tuning_job(choice.group, search, run.settings, run.round, run.seed))
    return tuple(jobs)


class _Planner:
    """Makes jobs; settings are resolved once for all seeds, which takes most of the time."""

    def __init__(self, suite: Suite, out: Path, rates: RatesOf):
        self.suite, self.out, self.rates = suite, out, rates
        self._resolved: dict[str, tuple[Resolved, Work | None, AskedScores]] = {}

    def tuning(self) -> tuple[list[Job], tuple[Choice, ...]]:
        """The tuning jobs, and the choices so far."""
        search = self.suite.search
        if search is None:
            return [], ()
        searcher = self.searcher()
        jobs: list[Job] = []
        choices = []
        for group in dict.fromkeys(self.suite.searched_group(group) for group in self.suite.groups):
            if search.axes(group.method):  # else no key of the grid is one of its own: there is nothing to tune
                own, choice = searcher._search(group, search)
                jobs += own
                choices.append(choice)
        return jobs, tuple(choices)

    def searcher(self) -> "_Planner":
        """Of the suite that has the search's jobs."""
        other = self.suite.search_suite
        return self if other is None else _Planner(other, self.out, self.rates)

    def tuning_job(self, group: Group, search: Search, settings: Mapping[str, Any], one: Round, seed: int) -> Job:
        """The job of a candidate in a round."""
        common = _common(self.suite.overrides(group.method, group.variant))
        return self.job(group, seed, "tuning", {**common, **tuning_overrides(search, one), **settings})

    def _search(self, group: Group, search: Search) -> tuple[list[Job], Choice]:
        """The tuning jobs of one group that are known by now, each once, and its choice so far."""
        jobs: dict[str, Job] = {}

        def run_of(settings: Mapping[str, Any], one: Round, seed: int) -> TuningRun:
            job = self.tuning_job(group, search, settings, one, seed)
            jobs.setdefault(job.run_id, job)
            return read_tuning_run(RunFolder(self.out / "runs" / job.run_id), job.state, search, job.asked)

        choice = search_settings(group, search, run_of)
        return list(jobs.values()), choice

    def reported(self, group: Group, seed: int, choice: Choice | None) -> Job:
        """A reported job, with the settings that its search has chosen or, before that, those of the first try."""
        overrides = self.suite.overrides(group.method, group.variant)
        if choice is None:
            return self.job(group, seed, "reported", overrides)
        if choice.chosen is not None:
            return self.job(group, seed, "reported", {**overrides, **choice.chosen.settings})
        first = self.job(group, seed, "reported", {**overrides, **choice.candidates[0].settings})
        if choice.settled:
            return replace(first, run_id="", state="failed", message=_nothing_to_choose(choice))
        return replace(first, run_id="", state="waiting", message="after its tuning runs")

    def job(self, group: Group, seed: int, role: Role, overrides: dict[str, Any]) -> Job:
        resolved, work, asked = self._resolve(group, role, overrides)
        resolved = replace(resolved, config=replace(resolved.config, seed=seed))
        state, message = job_state(RunFolder(self.out / "runs" / resolved.run_id), asked)
        rates = self.rates(resolved)
        return Job(
            *group,
            seed,
            role,
            overrides,
            self.suite.preset,
            resolved.run_id,
            state,
            message,
            work,
            seconds(resolved, work, rates) + JOB_SECONDS if rates else None,
            flat_settings(resolved.record),
            self.suite.searched_group(group),
            asked,
            len(self.suite.models),
        )

    def _resolve(
        self, group: Group, role: Role, overrides: dict[str, Any]
    ) -> tuple[Resolved, Work | None, AskedScores]:
        key = canonical_json([group, role, overrides])
        if key not in self._resolved:
            search = self.suite.search
            try:
                resolved = resolve(Request(*group[:3], self.suite.preset, 0, overrides))
                if search is not None and search.settings.prompts and role == "reported":
                    refuse_reported(search.settings.prompts, resolved.config.eval, "search.prompts")
                self._resolved[key] = resolved, run_work(resolved), asked_scores(resolved)
            except UsageError as error:
                variant = f", variant {group.variant}" if group.variant else ""
                where = f"method {group.method}, reward {group.reward}{variant}"
                raise UsageError(f"suite '{self.suite.name}', {where}: {error}{self._way_on()}") from None
        return self._resolved[key]

    def _way_on(self) -> str:
        """What to do about settings that do not fit the model that ``--model`` gave the suite."""
        moved = self.suite.moved
        if moved is None:
            return ""
        return (
            f" The suite was written for {shown_names(moved.written_for)}: give a suite file of your own for "
            f"{moved.model}, or leave --model out."
        )


def _nothing_to_choose(choice: Choice) -> str:
    reasons = sorted({run.out for run in choice.runs if run.out})
    if not reasons:
        return "all its tuning runs failed: nothing to choose"
    return f"no candidate of its search is left: {'; '.join(reasons)}"


def _common(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What tuning runs share with the reported ones: all but budget and choice of checkpoint."""
    return {k: v for k, v in settings.items() if not k.startswith(("budget.", "checkpoint."))}


def job_state(folder: RunFolder, asked: AskedScores) -> tuple[JobState, str]:
    """A job's state by its folder, and why it failed or must run again.

    A run that is done but lacks a score that the job asks for is unfinished: running the job adds what is missing.
    """
    try:
        status = folder.status
    except UsageError as error:  # running the job repairs a damaged file and reports an unreadable one
        return "unfinished", "its status file is damaged" if "is damaged" in str(error) else str(error)
    state = STATES.get(str(status.get("state")), "unfinished")
    if state == "done" and (fault := _fault_of_results(folder, asked)):
        return "unfinished", fault
    return state, str(status.get("message", ""))


def _fault_of_results(folder: RunFolder, asked: AskedScores) -> str:
    """Why a finished run has to be judged again; empty where its record is sound and has all asked scores.

    Its adapter may be gone: scores are shared without weights.
    """
    try:
        folder.record()
    except UsageError as error:
        return str(error)
    if not folder.evaluation.exists():
        return "its eval.parquet is gone"
    scores = read_scores(folder.evaluation, pictures=False)
    return scores.problems[0] if scores.problems else asked.missing(scores)


def without_curve(plan: Plan) -> list[Job]:
    """Finished jobs without the learning curve that the suite asks for; it is measured during training alone."""
    found = []
    for job in plan.jobs:
        if job.role == "reported" and job.state == "done" and job.settings["eval.every"]:
            folder = RunFolder(plan.out / "runs" / job.run_id)
            if folder.size("train.jsonl") and not folder.size(CURVE):  # a method that trains nothing has neither
                found.append(job)
    return found


def _refuse_twins(suite: Suite, jobs: Sequence[Job]) -> None:
    seen: dict[str, Job] = {}
    for job in jobs:
        twin = seen.setdefault(job.run_id or str(job.key), job)
        if twin is not job:
            raise UsageError(
                f"suite '{suite.name}': two jobs are the same run {job.run_id}: '{twin.label}' and '{job.label}'. "
                "Take one out, or let them differ in a setting."
            )


def _refuse_unmatched(suite: Suite, jobs: Sequence[Job]) -> None:
    budgets: dict[tuple[str, str], tuple[tuple[Any, Any], Job]] = {}
    for job in jobs:
        budget = (job.settings["budget.amount"], job.settings["budget.axis"])
        first_budget, first = budgets.setdefault((job.reward, job.model), (budget, job))
        if budget != first_budget:
            raise UsageError(
                f"suite '{suite.name}': '{first.label}' stops at {limit_text(*first_budget)} but '{job.label}' at "
                f"{limit_text(*budget)}; a comparison needs one budget. Add [budget] to the suite, e.g. images = 2560."
            )


# -- the record for reports ---------------------------------------------------------------------------


def record_of(plan: Plan) -> dict[str, Any]:
    """The plan as ``suite_records`` keeps it: which runs belong to the suite, and how their settings were chosen."""
    suite, other = plan.suite, plan.suite.search_suite
    moved = {"suite": suite.moved.suite, "model": suite.moved.model} if suite.moved else {}
    return {
        **moved,
        "name": suite.name,
        "texts": {"description": suite.description, "reproduces": suite.reproduces, "departs": suite.departs},
        "variant_keys": suite.variant_keys,
        "reported": {c.run_id: c.variant for c in plan.jobs if c.role == "reported" and c.run_id},
        "tuning": [c.run_id for c in plan.jobs if c.role == "tuning"],
        "waiting": sum(c.role == "reported" and not c.run_id for c in plan.jobs),
        "search": search_data(suite.search, other.name if other else "") if suite.search else None,
        "choices": [choice_data(choice) for choice in plan.choices],
    }


# -- which jobs ----------------------------------------------------------------------------------------------


def filter_jobs(plan: Plan, selection: Mapping[str, Sequence[str]]) -> Plan:
    """The jobs that match ``--filter``, with the tuning runs that they need.

    Raises:
        UsageError: an unknown key, or no job left, saying which key left none and what it could be.
    """
    valid = {key for job in plan.jobs for key in filter_values(job)} | set(ALIASES)
    for key in selection:
        if key not in valid:
            raise UsageError(f"--filter: no job has a key '{key}'.{nearest(key, valid)}")
    chosen = {id(job): filter_values(job) for job in plan.jobs if job.role == "reported"}
    methods = {job[METHOD] for job in chosen.values() if METHOD in job}
    for key, values in with_methods(selection, methods).items():
        present = {str(candidate[key]) for candidate in chosen.values() if key in candidate}
        chosen = {i: job for i, job in chosen.items() if any(same(job.get(key), value) for value in values)}
        if not chosen:
            raise UsageError(f"--filter: no job has {key} = {', '.join(values)}.{nearest(values[0], present)}")
    groups = {job.search_group for job in plan.jobs if id(job) in chosen}
    jobs = [job for job in plan.jobs if id(job) in chosen or (job.role == "tuning" and job.search_group in groups)]
    return replace(plan, jobs=tuple(jobs))


def filter_values(job: Job) -> dict[str, Any]:
    """Keys and values for ``--filter``."""
    return {
        **with_unrecorded(job.settings),
        "variant": job.variant,
        "state": job.state,
        "seed": job.seed,
        "run": job.run_id,
    }
