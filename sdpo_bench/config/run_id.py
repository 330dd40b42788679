"""Whether a ``run.json`` is what a run has written: whole, and with the settings that its id was made from.

Only what the record itself holds is used, so that a run stays readable whatever a later version adds or changes.
"""

from collections.abc import Mapping
from typing import Any

from sdpo_bench.api import execution_settings
from sdpo_bench.hashing import run_id
from sdpo_bench.settings import ModelSettings

NEEDED = ("config.method.name", "config.reward.name", "config.model.name", "config.seed", "reward_version", "run")


def training_id(config: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """Run id of a configuration as plain data; how a checkpoint is judged is not part of it (it can be many times).

    Args:
        versions: what decides the numbers besides the settings (``Resolved.versions``).
    """
    chosen = config.get("checkpoint")
    free_sections = ("eval",) if chosen and chosen["choose"] == "before-collapse" else ("eval", "guard")
    training = {key: value for key, value in config.items() if key not in free_sections}
    if training.get("ema", ...) is None:
        del training["ema"]  # runs without an average keep the ids they had before there was one
    free = execution_settings(ModelSettings)
    training["model"] = {key: value for key, value in training["model"].items() if key not in free}
    return run_id(training, versions=versions)


def problem(record: Mapping[str, Any]) -> str:
    """What is wrong with the content of a ``run.json``; empty where nothing is.

    A run's settings are compared with its own name and not with its folder's, which may be renamed or copied. Settings
    of the evaluation are not part of the name. Of a base model's record only the kind is looked at.
    """
    if record.get("kind") not in ("run", "base"):
        return f"kind is {record.get('kind')!r}, not 'run' or 'base'"
    if record["kind"] == "base":
        return ""
    if missing_keys := [key.removeprefix("config.") for key in NEEDED if at(record, key) in (None, "")]:
        return f"it lacks {', '.join(missing_keys)}"
    try:
        computed_id = training_id(record["config"], versions_of(record))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return f"its settings are not those of a run ({type(error).__name__}: {error})"
    if computed_id != record["run"]:
        return f"its settings are not those of run '{record['run']}': one was changed"
    return ""


def versions_of(record: Mapping[str, Any]) -> dict[str, str]:
    """``Resolved.versions`` of the run that wrote the record."""
    model = {"model": record["model_digest"]} if record.get("model_digest") else {}
    return {"reward": record["reward_version"]} | model | record.get("prompt_files", {})


def at(data: Any, key: str) -> Any:
    """Value of ``a.b.c`` in nested objects; None where there is none."""
    for part in key.split("."):
        data = data.get(part) if isinstance(data, Mapping) else None
    return data
