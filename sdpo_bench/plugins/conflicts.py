"""Options of which one would silently void another: refused, naming both."""

from collections.abc import Mapping
from typing import Any

from sdpo_bench.errors import UsageError


def refuse_two_values(overrides: Mapping[str, Any], flags: Mapping[str, tuple[str, Any]]) -> None:
    """A flag and a ``--set`` that name two values for one setting.

    Args:
        overrides: settings given by ``--set``.
        flags: by setting, the flag as it was typed and its value, None where it was not given.

    Raises:
        UsageError: names both.
    """
    for key, (typed, value) in flags.items():
        if value is not None and key in overrides and not same_value(overrides[key], value):
            raise UsageError(f"{typed} and --set {key}={overrides[key]} contradict each other. Give one of them.")


def same_value(a: Any, b: Any) -> bool:
    """Whether two values mean the same: ``1, 2`` is ``1,2``, and ``4`` is the one step count 4."""
    return a == b or str(a).replace(" ", "") == str(b).replace(" ", "")


def refuse_idle_devices(device: str, jobs: int) -> None:
    """Devices are given to the jobs in turn, so that more of them than jobs would wait for nothing.

    Raises:
        UsageError: names the number of jobs that uses all.
    """
    count = len(device.split(","))
    if count > jobs:
        raise UsageError(
            f"--device {device} names {count} devices, and --jobs {jobs} uses {jobs} of them. Use --jobs {count}, or "
            f"name {jobs}."
        )


STUDY_FLAGS = {"seed": "--seeds 0,1,2", "model.name": "--model NAME", "reward.name": "--reward NAME"}


def refuse_what_a_study_owns(overrides: Mapping[str, Any]) -> None:
    """Settings that a study takes from a flag or decides itself.

    Raises:
        UsageError: names the flag, if there is one.
    """
    for key in overrides:
        if key.startswith("budget."):
            raise UsageError(f"--set {key}: a study owns its budget. Use --size FACTOR.")
        if key in STUDY_FLAGS:
            raise UsageError(f"--set {key}: in a study that is {STUDY_FLAGS[key]}.")
        if key == "method.name":
            raise UsageError(f"--set {key}: a study compares methods of its own choice. Leave it out.")
