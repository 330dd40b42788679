"""Unfinished runs that a command does not go on with, since a file or a plugin has changed under its name.

An edited prompt file makes another run, as it must; whoever only meant to resume has to be told.
"""

from collections.abc import Iterator
from pathlib import Path

from sdpo_bench.config.resolve import Resolved
from sdpo_bench.errors import SdpoBenchError
from sdpo_bench.runs.run_folder import RunFolder


def left_behind(runs: Path, resolved: Resolved) -> list[str]:
    """What is to be said of unfinished runs that differ from a new one only in what their settings name.

    Args:
        runs: folder of all runs. The new one has no folder there yet; otherwise there is nothing to say.
    """
    if (runs / resolved.run_id).exists():
        return []
    alike = runs.glob(f"{resolved.run_id.rpartition('-')[0]}-*")
    return [
        f"notice: run '{run.run_id}' has the same settings and is not finished, but began with another content of "
        f"{' and '.join(changed)}. This is a new run; to go on with that one, put back what has changed."
        for run in sorted((RunFolder(path) for path in alike), key=lambda run: run.run_id)
        if run.known_state != "done" and (changed := list(_changed(run, resolved)))
    ]


def _changed(run: RunFolder, resolved: Resolved) -> Iterator[str]:
    """What had another content when the run began; nothing for a run with other settings."""
    try:
        before, now = run.record(), resolved.record
    except (SdpoBenchError, OSError):  # the reports say what is wrong with it
        return
    if before["config"] != now["config"]:
        return
    if before.get("reward_version") != now["reward_version"]:
        yield f"the reward ({before.get('reward_version')}, now {now['reward_version']})"
    if before.get("model_digest") != now["model_digest"]:
        yield f"the pipeline '{resolved.config.model.name}'"
    files = now["prompt_files"]
    for key, digest in (before.get("prompt_files") or {}).items():
        if digest != files.get(key):
            section, name = key.split(".")
            yield f"the prompt file '{before['config'][section][name]}'"
