"""What the numbers of a folder were made from that can change under its name: prompt files, and sources of plugins.

``inputs.json`` beside the numbers keeps digests: of prompt files by name, of rewards' sources by name and version.
They are compared before numbers are added. Before the first number they are replaced, so that a user can correct a
file and try again.
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from sdpo_bench.config.run_id import at
from sdpo_bench.prompts.prompt_sets import file_digest
from sdpo_bench.runs.provenance import class_hash
from sdpo_bench.runs.run_folder import RunFolder, read_object
from sdpo_bench.scoring.scorer import Scorer, VarietyScorer
from sdpo_bench.settings import EvaluationSettings
from sdpo_bench.system.files import atomic_write

Kind = Literal["prompts", "rewards"]


def recorded_digests(folder: RunFolder, kind: Kind) -> dict[str, str]:
    """Digests by name; empty where none were recorded.

    Raises:
        UsageError: the file is damaged or cannot be read.
    """
    return dict(_read(folder).get(kind, {}))


def record_digests(folder: RunFolder, kind: Kind, digests: Mapping[str, str]) -> None:
    """Add digests to a folder whose lock is held; the file is left alone where they are there."""
    before = recorded_digests(folder, kind)
    if not digests.items() <= before.items():
        content = _read(folder) | {kind: before | dict(digests)}
        atomic_write(folder.inputs, json.dumps(content, indent=1, sort_keys=True) + "\n")


def _read(folder: RunFolder) -> dict[str, Any]:
    path = folder.inputs
    return read_object(path, " Put it back, or delete it if no input has changed.") if path.exists() else {}


# -- prompts -------------------------------------------------------------------------------------------------


def has_numbers(run: RunFolder) -> bool:
    """Whether there are numbers that inputs went into: a whole epoch, or scores."""
    return bool(run.log()) or run.evaluation.exists()


def recorded_prompt_digests(run: RunFolder) -> dict[str, str]:
    """Digests that the user's own prompt files must have for more numbers of a run (``prompt_sets.prompt_cache``)."""
    if not (run.path / "run.json").exists():
        return {}
    record = run.record()
    trained = {at(record["config"], key): value for key, value in record.get("prompt_files", {}).items()}
    judged = recorded_digests(run, "prompts") if has_numbers(run) else {}
    return {os.path.normpath(name): value for name, value in (trained | judged).items()}


def record_prompt_digests(run: RunFolder, settings: EvaluationSettings) -> None:
    """Record what the prompt files hold that a run is judged on; its lock is held."""
    names = [name for name in (settings.train, settings.validation, settings.unseen) if name]
    digests = {os.path.normpath(name): file_digest(name) for name in names}
    record_digests(run, "prompts", {name: value for name, value in digests.items() if value})


# -- rewards -------------------------------------------------------------------------------------------------


def reward_source(scorer: Scorer) -> str | None:
    """Digest of a reward's source file; None for sums, which have parts, and for what a service computes."""
    reward = scorer.reward.reward if isinstance(scorer, VarietyScorer) else scorer.reward
    return None if reward.filed_as else class_hash(type(reward))


def reward_key(scorer: Scorer) -> str:
    """Name and version, as rows carry them."""
    return f"{scorer.name}/{scorer.reward.full_version}"


def record_reward_digests(folder: RunFolder, scorers: Iterable[Scorer], scored: Collection[tuple[str, str]]) -> None:
    """Record which sources new rows come from; the folder's lock is held.

    Args:
        scored: name and version of the rewards that have rows, of which the first source stands.
    """
    new = [scorer for scorer in scorers if (scorer.name, scorer.reward.full_version) not in scored]
    digests = {reward_key(scorer): reward_source(scorer) for scorer in new}
    record_digests(folder, "rewards", {key: value for key, value in digests.items() if value})
