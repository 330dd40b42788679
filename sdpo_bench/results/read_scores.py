"""The scores of runs that were read: whose they are, without gaps, on the prompts that each run names."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from sdpo_bench.errors import SdpoBenchError
from sdpo_bench.prompts.hub_prompts import parse_hub
from sdpo_bench.prompts.prompt_sets import file_digest, load_prompts, prompt_cache, shipped_sets
from sdpo_bench.prompts.published_sets import PUBLISHED
from sdpo_bench.results.read_results import Notice, Run
from sdpo_bench.runs.run_folder import RunFolder, read_object
from sdpo_bench.statistics.eval_table import Scores, own_part
from sdpo_bench.statistics.score_reader import ScoreReader


def foreign_run_ids(run: Run, scores: Scores) -> list[str]:
    """Ids of other runs whose scores are in this run's eval.parquet, e.g. after a wrong copy.

    The run id in the record counts as the run's own, so a renamed folder has no foreign scores.
    """
    return sorted(set(scores.runs) - {run.id, str(run.record.get("run"))})


def own_prompts(folder: RunFolder, record: Mapping[str, Any]) -> dict[str, list[str]]:
    """Prompts by split that a run's configuration names, of shipped sets and of files that are as the run read them.

    Sets of the hub are left out: reading them can take a download.
    """
    config = record.get("config")
    names = config.get("eval") if isinstance(config, dict) else None
    prompts = {}
    for split in ("train", "validation", "unseen"):
        name = names.get(split) if isinstance(names, dict) else None
        if isinstance(name, str) and name:
            with suppress(SdpoBenchError):
                if texts := _known_prompts(folder, name):
                    prompts[split] = texts
    return prompts


def _known_prompts(folder: RunFolder, name: str) -> list[str]:
    if name in shipped_sets():
        return load_prompts(name)
    if name in PUBLISHED or parse_hub(name) or not folder.inputs.exists():
        return []
    recorded = read_object(folder.inputs).get("prompts", {}).get(os.path.normpath(name))
    return load_prompts(name) if recorded and file_digest(name) == recorded else []


def read_all_scores(runs: Iterable[Run]) -> tuple[dict[str, Scores], list[Notice]]:
    """Scores by run id, and a notice for each problem of an evaluation file.

    Runs' scores are without gaps (:func:`own_part`); base models' are as in the file, for all runs to be cut to theirs.
    """
    by_run: dict[str, Scores] = {}
    notices = []
    for run, scores in with_scores(runs):
        if scores is None:
            continue
        notices += [Notice(run.id, problem) for problem in scores.problems]
        if others := foreign_run_ids(run, scores):
            notices.append(Notice(run.id, f"eval.parquet holds scores of {', '.join(others)}: not used"))
        elif scores.blocks:
            by_run[run.id] = scores
        if scores.damaged or others:
            notices.append(Notice(run.id, f"score it again: delete its eval.parquet, then {run.folder.rescoring}"))
    return by_run, notices


def with_scores(runs: Iterable[Run], *, pictures: bool = True) -> Iterator[tuple[Run, Scores | None]]:
    """Each run with its scores as :func:`read_all_scores` gives them; None without an evaluation file."""
    reader = ScoreReader(pictures=pictures)
    with prompt_cache():
        for run in runs:
            if not run.folder.evaluation.exists():
                yield run, None
                continue
            scores = reader.read(run.folder.evaluation)
            yield run, scores if _is_base(run) else own_part(scores, own_prompts(run.folder, run.record))


def _is_base(run: Run) -> bool:
    return run.record.get("kind") == "base"
