"""Judge checkpoints and the base model at any number of denoising steps: one row an image, step count and reward.

Evaluation owns its sampler. A k-step score is that of a k-step run; every method, every training seed and the base
model meet the same prompts and the same noise bank, so that differences are paired. Rows already there are kept:
a second call adds rewards, splits or step counts, and an interrupted one goes on.
"""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from sdpo_bench.config.sampler_fit import check_evaluation
from sdpo_bench.config.sampler_id import sampler_id
from sdpo_bench.errors import Unwritable, UsageError
from sdpo_bench.evaluation.inference_search import Candidates
from sdpo_bench.evaluation.score_rows import COLUMNS, KEYS, read_rows, step_table, write_rows
from sdpo_bench.models.base_model import scheduler_config
from sdpo_bench.models.policy import Policy
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.rollout.sampling import Noise, sample
from sdpo_bench.rollout.schedule import Schedule, lint, make_schedule
from sdpo_bench.runs.input_digests import record_reward_digests
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.scoring import image_statistics
from sdpo_bench.scoring.scorer import Scorer, VarietyScorer
from sdpo_bench.scoring.variety import distances
from sdpo_bench.settings import EvaluationSettings
from sdpo_bench.system.distributed import ALONE, Processes
from sdpo_bench.system.signals import raise_pending_stop

if TYPE_CHECKING:  # a run trains for a while before it needs a table
    import pandas as pd

FEATURES = "features"
"""Column of what is compared when all pictures of a block are there; it is not kept."""

Pair = tuple[str, int]
"""A prompt and the number of one of its images."""


@dataclass(frozen=True)
class Subject:
    """Whose checkpoint is judged; part of every row."""

    run: str
    method: str
    seed: int


@dataclass(frozen=True)
class Block:
    """What is sampled together: the prompts of a split, at one step count.

    Attributes:
        calls: of the denoiser that its images cost.
    """

    split: str
    texts: tuple[str, ...]
    steps: int
    calls: int


class Helper(Protocol):
    """Another process that scores some blocks of an evaluation."""

    def take(self, run: RunFolder, blocks: Sequence[Block], scorers: Sequence[Scorer], micro_batch: int) -> list[Block]:
        """The blocks that it will score by these scorers, with the adapter of the run."""

    def rows(self, block: Block) -> "pd.DataFrame | None":
        """Rows of a block that it took, as soon as they are there; None where it has failed."""


def splits(settings: EvaluationSettings) -> dict[str, list[str]]:
    """Prompts of each split that is to be evaluated."""
    named = {"train": settings.train, "validation": settings.validation, "unseen": settings.unseen}
    chosen = {split: load_prompts(name) for split, name in named.items() if name}
    if not chosen:
        raise UsageError("no prompts to evaluate: set eval.train, eval.validation or eval.unseen.")
    return chosen


def evaluation_schedule(policy: Policy, settings: EvaluationSettings, steps: int) -> Schedule:
    """Schedule of a k-step run of the evaluation sampler; a list of sigmas serves the step count that is its length.

    Raises:
        UsageError: a step count that the model does not have, or a sampler that is not its own.
    """
    check_evaluation(settings)
    options: dict[str, Any] = {"eta": settings.eta, "spacing": settings.spacing}
    if len(settings.sigmas) == steps:
        options["sigmas"] = settings.sigmas
    schedule = make_schedule(scheduler_config(policy), steps, sampler=settings.sampler, **options)
    lint(schedule, needs_log_prob=False)
    return schedule


def evaluate(
    policy: Policy,
    settings: EvaluationSettings,
    scorers: Sequence[Scorer],
    run: RunFolder,
    subject: Subject,
    *,
    micro_batch: int = 64,
    progress: Callable[[str, int, int], None] = lambda text, done, total: None,
    search: Candidates | None = None,
    processes: Processes = ALONE,
    helper: Helper | None = None,
) -> "pd.DataFrame":
    """Complete ``eval.parquet`` of a run for the asked step counts, splits and rewards; returns those rows.

    Args:
        scorers: rewards to score with (not charged to any training budget).
        progress: called with a text, denoiser calls done and in all.
        search: how images are chosen among candidates, for methods that search; billed in the run folder.
        processes: who shares the work; the main one writes, all return the rows.
        helper: scores some of the blocks, without a search.

    Raises:
        UsageError: a step count outside the model's range. RunFailed: images or scores that are not finite.
    """
    known = processes.share(lambda: read_rows(run))
    blocks = blocks_of(settings)
    schedules = {k: evaluation_schedule(policy, settings, k) for k in settings.steps}
    guidance = policy.guidance_scale
    total = sum(block.calls for block in blocks)
    done = 0
    elsewhere = _blocks_elsewhere(helper, known, settings, scorers, run, micro_batch) if search is None else []
    policy.set_guidance(settings.guidance_scale)
    try:
        for block in sorted(blocks, key=lambda b: b in elsewhere):
            raise_pending_stop()
            wanted = _missing_in_block(known, settings, scorers, block)
            if wanted:
                text = f"{subject.method}, {block.split} prompts, {block.steps} steps"
                tell = partial(_tell_calls, progress, text, done, block.calls, total)
                tell(0)
                rows = helper.rows(block) if helper is not None and block in elsewhere else None
                if rows is None:
                    name = f"{sampler_id(settings)}, {block.split}, {block.steps} steps"
                    images = len(block.texts) * settings.images_per_prompt
                    with search.billed(run, name, block.texts, images, processes) if search else nullcontext():
                        schedule = schedules[block.steps]
                        with _counted(policy, tell):
                            rows = _rows(
                                policy, schedule, settings, wanted, block.texts, micro_batch, search, processes
                            )
                scored = set(zip(known.reward, known.version))
                # The bill first: rows that are there have been paid for, a block without rows is billed again.
                known = _add(known, rows, subject, settings, block)
                if processes.is_main:
                    record_reward_digests(run, wanted, scored)
                    write_rows(run, known)
            done += block.calls
    finally:
        policy.set_guidance(guidance)
    progress(f"{subject.method}: done", total, total)
    return of_versions(select(known, settings, [s.name for s in scorers]), scorers)


def _tell_calls(
    progress: Callable[[str, int, int], None], text: str, before: int, of_block: int, total: int, calls: int
) -> None:
    """Report the calls of a block on top of those ``before`` it."""
    progress(text, before + min(calls, of_block), total)


@contextmanager
def _counted(policy: Policy, tell: Callable[[int], None]) -> Iterator[None]:
    """Tell after each denoiser call how many latents have been through it; a search has its own bill instead."""
    before, calls = policy.on_call, 0

    def count(latents: int) -> None:
        nonlocal calls
        calls += latents
        tell(calls // policy.branches)
        if before is not None:
            before(latents)

    policy.on_call = count
    try:
        yield
    finally:
        policy.on_call = before


def missing_scorers(run: RunFolder, settings: EvaluationSettings, scorers: Sequence[Scorer]) -> list[Scorer]:
    """Those of the scorers by which :func:`evaluate` would add rows.

    Raises:
        UsageError: the file is damaged or lacks columns.
    """
    if not run.evaluation.exists():
        return list(scorers)  # without pandas, before a run has trained
    return _missing_in_rows(read_rows(run), settings, scorers)


def _missing_in_rows(known: "pd.DataFrame", settings: EvaluationSettings, scorers: Sequence[Scorer]) -> list[Scorer]:
    absent = [set(_missing_in_block(known, settings, scorers, block)) for block in blocks_of(settings)]
    return [scorer for scorer in scorers if any(scorer in wanted for wanted in absent)]


def blocks_of(settings: EvaluationSettings) -> list[Block]:
    """All blocks of an evaluation: every split at every step count."""
    images = settings.images_per_prompt
    return [
        Block(split, tuple(texts), k, k * len(texts) * images)
        for split, texts in splits(settings).items()
        for k in settings.steps
    ]


def _blocks_elsewhere(
    helper: Helper | None,
    known: "pd.DataFrame",
    settings: EvaluationSettings,
    scorers: Sequence[Scorer],
    run: RunFolder,
    micro_batch: int,
) -> list[Block]:
    """The blocks that the helper takes, of those without any rows."""
    if helper is None:
        return []
    untouched = [b for b in blocks_of(settings) if len(_missing_in_block(known, settings, scorers, b)) == len(scorers)]
    return helper.take(run, untouched, scorers, micro_batch)


def recorded_table(
    run: RunFolder, base: RunFolder, settings: EvaluationSettings, scorers: Sequence[Scorer], refused: Unwritable
) -> list[dict[str, Any]]:
    """:func:`step_table` of a finished run from its files alone, for a results folder that cannot be written.

    Args:
        base: folder of the base model's scores.
        refused: why nothing can be written.

    Raises:
        Unwritable: the run is not done, or scores are missing; says how to go on in a copy of the folder.
        UsageError: a file of the run is damaged.
    """
    if not run.path.exists():
        raise refused
    out = run.path.parent.parent
    way_on = (
        f"and the results folder '{out}' cannot be written: {refused.strerror}. Go on in a copy of it: "
        f"cp -r {shlex.quote(str(out))} COPY, then the same command for {run.run_id} with --out COPY."
    )
    if run.state_or_unknown != "done":
        raise Unwritable(f"'{run.run_id}' is not done (state: {run.state_or_unknown}), {way_on}", refused.strerror)
    tuned, before = (_recorded_rows(folder, settings, scorers) for folder in (run, base))
    if tuned is None or before is None:
        name = (run if tuned is None else base).run_id
        raise Unwritable(f"'{name}' lacks scores that are asked for, {way_on}", refused.strerror)
    return step_table(before, tuned)


def _recorded_rows(run: RunFolder, settings: EvaluationSettings, scorers: Sequence[Scorer]) -> "pd.DataFrame | None":
    """What :func:`evaluate` would return, where nothing is left for it to do; else ``None``.

    Raises:
        UsageError: the file is damaged or lacks columns.
    """
    known = read_rows(run)
    if _missing_in_rows(known, settings, scorers):
        return None
    return of_versions(select(known, settings, [s.name for s in scorers]), scorers)


def _missing_in_block(
    known: "pd.DataFrame",
    settings: EvaluationSettings,
    scorers: Sequence[Scorer],
    block: Block,
) -> list[Scorer]:
    """Scorers whose rows for this block are not all there yet."""
    mine = known[(known.sampler == sampler_id(settings)) & (known.split == block.split) & (known.steps == block.steps)]
    mine = mine[mine.image < settings.images_per_prompt]
    needed = {(text, i) for text in block.texts for i in range(settings.images_per_prompt)}
    missing = []
    for scorer in scorers:
        rows = mine[(mine.reward == scorer.name) & (mine.version == scorer.reward.full_version)]
        if not needed <= set(zip(rows.prompt, rows.image)):
            missing.append(scorer)
    return missing


def score_block(
    policy: Policy, settings: EvaluationSettings, scorers: Sequence[Scorer], block: Block, micro_batch: int
) -> "pd.DataFrame":
    """Rows of one block without the columns of their subject and block: what :func:`evaluate` adds to the file."""
    guidance = policy.guidance_scale
    policy.set_guidance(settings.guidance_scale)
    try:
        schedule = evaluation_schedule(policy, settings, block.steps)
        return _rows(policy, schedule, settings, scorers, block.texts, micro_batch, None, ALONE)
    finally:
        policy.set_guidance(guidance)


def _rows(
    policy: Policy,
    schedule: Schedule,
    settings: EvaluationSettings,
    scorers: Sequence[Scorer],
    texts: Sequence[str],
    micro_batch: int,
    search: Candidates | None,
    processes: Processes,
) -> "pd.DataFrame":
    """Sample one split at one step count and score every image with every reward."""
    import pandas as pd

    pairs = [(text, i) for text in texts for i in range(settings.images_per_prompt)]
    frames = []
    for part in my_batches(pairs, micro_batch, processes):
        images = sample_images(policy, schedule, settings, part, micro_batch, search)
        numbers = {name: value.tolist() for name, value in image_statistics.statistics(images).items()}
        base = {"prompt": [text for text, _ in part], "image": [i for _, i in part], **numbers}
        for scorer in scorers:
            scorer.cache.clear()
        for scorer in scorers:  # a sum and its parts share what is scored here; nothing outlives the batch
            named = {"reward": scorer.name, "version": scorer.reward.full_version}
            if isinstance(scorer, VarietyScorer):
                answers = {"score": float("nan"), FEATURES: list(scorer.features(images).cpu())}
            else:
                answers = {"score": scorer(images, [text for text, _ in part]).tolist()}
            frames.append(pd.DataFrame(base | named | answers))
    rows = pd.concat([frame for part in processes.gather(frames) for frame in part], ignore_index=True)
    for scorer in scorers:
        if isinstance(scorer, VarietyScorer):
            mine = rows[rows.reward == scorer.name]
            rows.loc[mine.index, "score"] = distances(torch.stack(list(mine[FEATURES])), list(mine.prompt)).tolist()
    return rows.drop(columns=FEATURES, errors="ignore")


def my_batches(pairs: list[Pair], micro_batch: int, processes: Processes = ALONE) -> list[list[Pair]]:
    """This process's part of the work, in batches of at most ``micro_batch``."""
    size = min(micro_batch, -(-len(pairs) // processes.count))
    batches = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    return batches[processes.rank :: processes.count]


@torch.no_grad()
def sample_images(
    policy: Policy,
    schedule: Schedule,
    settings: EvaluationSettings,
    pairs: Sequence[tuple[str, int]],
    micro_batch: int = 64,
    search: Candidates | None = None,
) -> Tensor:
    """Images ``[n, 3, H, W]`` of (prompt, image number) pairs; the noise depends on the pair and the bank alone."""
    if search is not None:
        return search.sample(policy, schedule, settings, pairs, micro_batch)
    noise = Noise(("evaluation", settings.noise_bank))
    names = [f"{prompt}\n{number}" for prompt, number in pairs]
    prompts = [prompt for prompt, _ in pairs]
    final, original = sample(policy, schedule, prompts, noise, groups=names, micro_batch=micro_batch)
    latents = final if settings.image == "sample" else original
    return torch.cat([policy.decode(chunk) for chunk in latents.split(micro_batch)])


def _add(
    known: "pd.DataFrame", rows: "pd.DataFrame", subject: Subject, settings: EvaluationSettings, block: Block
) -> "pd.DataFrame":
    """Known rows plus those of a block, which replace rows with the same keys; in one fixed order."""
    import pandas as pd

    rows = rows.assign(
        run=subject.run,
        method=subject.method,
        seed=subject.seed,
        sampler=sampler_id(settings),
        split=block.split,
        steps=block.steps,
    )
    both = pd.concat([known, rows[COLUMNS]], ignore_index=True) if len(known) else rows[COLUMNS]
    return both.drop_duplicates(KEYS, keep="last").sort_values(KEYS, ignore_index=True)


def select(rows: "pd.DataFrame", settings: EvaluationSettings, rewards: Sequence[str]) -> "pd.DataFrame":
    """Rows of these evaluation settings and rewards."""
    prompts = splits(settings)
    mine = rows[
        (rows.sampler == sampler_id(settings))
        & rows.steps.isin(settings.steps)
        & rows.reward.isin(list(rewards))
        & (rows.image < settings.images_per_prompt)
    ]
    in_split = [prompt in prompts.get(split, []) for split, prompt in zip(mine.split, mine.prompt)]
    return mine[in_split].reset_index(drop=True)


def of_versions(rows: "pd.DataFrame", scorers: Sequence[Scorer]) -> "pd.DataFrame":
    """Rows by exactly these versions of the rewards; those of others stay in the file and out of the table."""
    wanted = {(scorer.name, scorer.reward.full_version) for scorer in scorers}
    chosen = [pair in wanted for pair in zip(rows.reward, rows.version)]
    return rows[chosen].reset_index(drop=True)
