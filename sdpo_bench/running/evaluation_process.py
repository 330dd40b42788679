"""A second process that scores the base model while the run trains, and half of the evaluation at its end.

The calls of a small denoiser are too short for two threads, so that a run on a CPU leaves a core idle. An evaluation's
noise is named by prompt and image number: the rows are the same whoever samples them. The process writes the base
model's scores in their own folder, under its lock, and sends those of the run to the main process. A process that dies
costs time alone: whatever it has not delivered is scored by the main process.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from sdpo_bench.errors import UsageError
from sdpo_bench.evaluation import evaluate as ev
from sdpo_bench.evaluation.base_scores import evaluate_base
from sdpo_bench.evaluation.reward_scale import apply
from sdpo_bench.models.base_model import load_policy
from sdpo_bench.models.policy import Policy
from sdpo_bench.prompts.prompt_sets import prompt_cache
from sdpo_bench.runs.input_digests import reward_key, reward_source
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.runs.saved_adapter import load_adapter
from sdpo_bench.scoring.make_scorers import evaluation_scorers
from sdpo_bench.scoring.scorer import Scorer
from sdpo_bench.seeds import seed_for
from sdpo_bench.settings import RunConfig, Runtime
from sdpo_bench.system.distributed import Processes, usable_cores
from sdpo_bench.system.progress import Watcher
from sdpo_bench.system.signals import shield_children

if TYPE_CHECKING:
    import pandas as pd

SMALL = 5_000_000
"""Parameters of a denoiser below which a second thread gives nothing; a larger one uses all cores by itself."""
LEAST_CALLS = 2000
"""Denoiser calls of an evaluation below which starting the process costs more than it saves."""
READY, ROWS, FAILED = "ready", "rows", "failed"
"""What the process sends: that it waits for blocks, a block with its rows, why it fails."""


def use_second_process(
    runtime: Runtime, device: str, processes: Processes, policy: Policy, scorers: Sequence[Scorer], calls: int
) -> bool:
    """Whether a run has a second process: as its settings say, or where there are an idle core and the memory.

    Args:
        calls: of the denoiser in one evaluation.

    Raises:
        UsageError: two processes asked for where they cannot be had.
    """
    possible = device == "cpu" and processes.count == 1
    if runtime.processes == 2 and not possible:
        raise UsageError(
            "--processes 2 is for a run on a CPU that accelerate or torchrun has not started. Leave the option out."
        )
    if runtime.processes:
        return runtime.processes == 2
    served = any(scorer.reward.filed_as for scorer in scorers)  # a service has its own order of calls and its own load
    return (
        possible
        and calls >= LEAST_CALLS
        and is_small(policy)
        and not served
        and usable_cores() > 1
        and _memory_for_two()
    )


def is_small(policy: Policy) -> bool:
    """Whether a second thread gives the policy's denoiser nothing."""
    return sum(p.numel() for p in policy.denoiser.parameters()) < SMALL


def set_threads(threads: int, device: str, policy: Policy) -> None:
    """Set the CPU threads of torch; 0 is one for a small denoiser: a second changes last digits and saves no time."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    elif device == "cpu" and is_small(policy):
        torch.set_num_threads(1)


def _memory_for_two() -> bool:
    """The second process loads what this one has loaded; both grow while they work."""
    import psutil

    return bool(psutil.virtual_memory().available > 2 * psutil.Process().memory_info().rss)


@dataclass(frozen=True)
class Assignment:
    """What the process needs to score as the main one would.

    Attributes:
        references: statistics of weighted sums (``reward_scale.calibrate``).
        prompts: digests of the user's own prompt files, by normalised path.
        sources: digest of each reward's source file, by name and version.
        threads: of torch.
    """

    config: RunConfig
    runtime: Runtime
    references: Mapping[str, Any]
    prompts: Mapping[str, str]
    sources: Mapping[str, str | None]
    threads: int


def reward_sources(scorers: Sequence[Scorer]) -> dict[str, str | None]:
    """Digest of each reward's source file, by name and version."""
    return {reward_key(scorer): reward_source(scorer) for scorer in scorers}


class EvaluationProcess:
    """The main process's end: starts the process, gives it blocks to score and fetches their rows."""

    def __init__(self, assignment: Assignment):
        self.failure = ""
        """Why the process has ended, empty as long as it has not failed."""
        self._waits = False
        self._rows: dict[ev.Block, pd.DataFrame] = {}
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # A daemon ends with this process, whose end may be an error.
        self._process = context.Process(target=_main, args=(assignment, theirs), daemon=True)
        with theirs, shield_children():
            self._process.start()

    def take(
        self, run: RunFolder, blocks: Sequence[ev.Block], scorers: Sequence[Scorer], micro_batch: int
    ) -> list[ev.Block]:
        """Give the process half of the work, if it waits for some; returns the blocks that it will score."""
        if not self._waits and self._connection.poll():
            self._receive()
        if not self._waits or not (theirs := half(blocks)):
            return []
        self._waits = False
        with self._failing_with_it():
            self._connection.send((theirs, [reward_key(scorer) for scorer in scorers], run.lora, micro_batch))
        return theirs

    def rows(self, block: ev.Block) -> "pd.DataFrame | None":
        """Rows of a block that it took, when they are there; None where it has failed."""
        while block not in self._rows and not self.failure:
            self._receive()
        return self._rows.get(block)

    def _receive(self) -> None:
        with self._failing_with_it():
            kind, content = self._connection.recv()
            if kind == READY:
                self._waits = True
            elif kind == ROWS:
                block, self._rows[block] = content
            else:
                self.failure = content

    @contextmanager
    def _failing_with_it(self) -> Iterator[None]:
        """A block that talks to the process, which may die."""
        try:
            yield
        except (EOFError, OSError):
            self._process.join()
            self.failure = f"it ended with exit code {self._process.exitcode}"

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()
        self._connection.close()


def half(blocks: Sequence[ev.Block]) -> list[ev.Block]:
    """About half of the work without the largest block: each block goes to the side that has less so far."""
    mine, theirs = 0, 0
    taken = []
    for block in sorted(blocks, key=lambda b: b.calls, reverse=True):
        if theirs < mine:
            taken.append(block)
            theirs += block.calls
        else:
            mine += block.calls
    return taken


@contextmanager
def evaluation_process(assignment: Assignment | None) -> Iterator[EvaluationProcess | None]:
    """The process for a block of work; None without an assignment."""
    if assignment is None:
        yield None
        return
    process = EvaluationProcess(assignment)
    try:
        yield process
    finally:
        process.close()


def _main(assignment: Assignment, connection: Connection) -> None:
    """Main function of the process. Its output is dropped: the main process says the same."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C, and ends this one
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    with suppress(OSError, EOFError):  # the main process has ended
        try:
            _work(assignment, connection)
        except Exception as error:
            connection.send((FAILED, f"{type(error).__name__}: {error}"))


def _work(assignment: Assignment, connection: Connection) -> None:
    import torch

    torch.set_num_threads(assignment.threads)
    config, runtime = assignment.config, assignment.runtime
    with prompt_cache(assignment.prompts, "of this evaluation"):
        policy = load_policy(config.model, device="cpu", lora_seed=seed_for(config.seed, "lora"))
        scorers = evaluation_scorers(config, "cpu", runtime.reward_timeout)
        if reward_sources(scorers) != assignment.sources:
            raise UsageError("the source of a reward was changed while the run began")
        for scorer in scorers:
            scorer.load()
        apply(scorers, assignment.references)
        evaluate_base(policy, config.model, config.eval, scorers, runtime, Watcher(), device="cpu")
        connection.send((READY, ""))
        blocks, keys, folder, micro_batch = connection.recv()
        load_adapter(policy, folder)
        wanted = [scorer for scorer in scorers if reward_key(scorer) in keys]
        for block in blocks:
            connection.send((ROWS, (block, ev.score_block(policy, config.eval, wanted, block, micro_batch))))
