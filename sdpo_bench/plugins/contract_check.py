"""Attributes of a plugin, checked against the contract of ``api`` when its class is loaded and instantiated.

One row for each attribute that the engine reads. The return values of a plugin are checked where it is called:
``scoring``, ``method_loss``, ``critic``, ``inference_search``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from reprlib import repr as short
from typing import Any, get_args

from sdpo_bench.api import (
    Backprop,
    Granularity,
    Method,
    Reward,
    RewardGuard,
    RewardMode,
    SampleFeatures,
    Search,
    Signal,
)
from sdpo_bench.errors import UsageError
from sdpo_bench.hashing import canonical
from sdpo_bench.plugins.call import plugin_code

_NONE = object()


@dataclass(frozen=True)
class Requirement:
    """The valid values of an attribute, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def one_of(*names: str) -> Requirement:
    return Requirement(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_plain(value: object) -> bool:
    try:
        canonical(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, Mapping)


def _texts(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(part, str) for pair in value.items() for part in pair)


def _are_modes(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(mode in get_args(RewardMode) for mode in value)


TEXT = Requirement("a text", _is_text)
SWITCH = Requirement("True or False", lambda value: isinstance(value, bool))
COUNT = Requirement("a whole number from 1", is_count)
DATACLASS = Requirement("a dataclass", lambda value: isinstance(value, type) and is_dataclass(value))
KEYS = Requirement(
    "a dict of settings by name", lambda value: isinstance(value, Mapping) and all(isinstance(k, str) for k in value)
)
INITIALISED = Requirement("a call of super().__init__() in its __init__()", lambda value: True)

CLASS: dict[type, dict[str, Requirement]] = {
    Method: {
        "Settings": DATACLASS,
        "signal": one_of(*get_args(Signal)),
        "final_image": one_of("sample", "predicted"),
        "granularity": one_of(*get_args(Granularity)),
        "defaults": KEYS,
        "fixed": KEYS,
        "variant_of": Requirement("a text", lambda value: isinstance(value, str)),
    },
    Reward: {
        "Settings": DATACLASS,
        "version": TEXT,
        "scale": TEXT,
        "source": TEXT,
        "native_model": TEXT,
        "differentiable": SWITCH,
        "has_features": SWITCH,
    },
}
"""Read from the class, by the base class of its kind."""

_BASES: dict[str, type] = {"methods": Method, "rewards": Reward}

INSTANCE: dict[type, dict[str, Requirement]] = {
    Method: {
        "settings": INITIALISED,
        "members": COUNT,
        "shared_noise": SWITCH,
        "needs_reference": SWITCH,
        "needs_kl": SWITCH,
        "needs_drift": SWITCH,
        "needs_old": SWITCH,
        "keeps_old": SWITCH,
        "guided_loss": SWITCH,
        "same_fresh_noise": SWITCH,
        "sample_features": one_of(*get_args(SampleFeatures)),
        "reward_mode": one_of(*get_args(RewardMode)),
        "reward_modes": Requirement(f"a tuple of {', '.join(get_args(RewardMode))}", _are_modes),
        "reward_guard": one_of(*get_args(RewardGuard)),
    },
    Search: {"candidates": COUNT},
    Reward: {
        "settings": INITIALISED,
        "device": INITIALISED,
        "full_version": TEXT,
        "scale": TEXT,
        "source": TEXT,
        "differentiable": SWITCH,
        "filed_as": Requirement("a text or None", lambda value: value is None or _is_text(value)),
        "identity_settings": Requirement("a dict of texts, numbers, true, false and None", _is_plain),
        "commits": Requirement("a dict of texts", _texts),
    },
}
"""Read from an instance."""


def add_kind(kind: str, base: type, attributes: Mapping[str, Requirement]) -> None:
    """Add a kind of plugin whose contract a higher layer owns, such as studies."""
    _BASES[kind] = base
    CLASS[base] = dict(attributes)


def base_class(kind: str) -> type:
    """Base class of a kind of plugin; KeyError before its layer has called :func:`add_kind`."""
    return _BASES[kind]


def check_class(who: str, base: type, plugin_class: type) -> None:
    """Refuse a plugin class that breaks the contract of its ``base`` class.

    Raises:
        UsageError: names the plugin (``who``), the attribute, its value and the valid ones.
    """
    for name, requirement in CLASS[base].items():
        _check(who, name, getattr(plugin_class, name, _NONE), requirement)
    if missing := sorted(getattr(plugin_class, "__abstractmethods__", ())):
        raise UsageError(f"{who} does not define {', '.join(missing)}, which its base class {base.__name__} asks for.")
    if getattr(plugin_class, "signal", "") == "none" and not issubclass(plugin_class, Search):
        raise UsageError(f"{who} has signal = 'none', which belongs to subclasses of sdpo_bench.api.Search.")
    granularity = getattr(plugin_class, "granularity", "")
    if getattr(plugin_class, "signal", "") == "gradient" and granularity != "trajectory":
        # Tasks of single steps do not say which step is the last one: any state would be scored as the final image.
        raise UsageError(
            f"{who} has signal = 'gradient' with granularity = {granularity!r}; expected granularity = 'trajectory', "
            "since the reward is that of a whole trajectory. See sdpo_bench.api."
        )


def check_instance(who: str, plugin: Any) -> None:
    """Refuse a plugin instance that breaks the contract of its base classes.

    Raises:
        UsageError: as :func:`check_class`. RunFailed: an attribute raises.
    """
    for base, table in INSTANCE.items():
        if isinstance(plugin, base):
            for name, requirement in table.items():
                with plugin_code(f"{who}: {name}"):
                    value = getattr(plugin, name, _NONE)
                _check(who, name, value, requirement)


def check_backprop(who: str, method: Method, steps: int) -> None:
    """Refuse a wrong answer of ``backprop()`` for ``steps`` denoising steps.

    Raises:
        UsageError: as :func:`check_class`. RunFailed: it raises.
    """
    with plugin_code(f"{who}: backprop()"):
        plan = method.backprop(steps)
    requirement = Requirement("a sdpo_bench.api.Backprop of whole numbers", lambda value: isinstance(value, Backprop))
    _check(who, "backprop()", plan, requirement)
    for name in ("depth", "window"):
        _check(who, f"backprop().{name}", getattr(plan, name), Requirement("a whole number", lambda v: type(v) is int))
    if plan.window > 1 and method.final_image == "sample":
        raise UsageError(
            f"{who} has backprop().window = {plan.window} with final_image = 'sample'; expected window = 1, or "
            "final_image = 'predicted': after an earlier step than the last one the latents are still noisy, and only "
            "their predicted original is an image. See sdpo_bench.api."
        )


def _check(who: str, name: str, value: object, requirement: Requirement) -> None:
    if isinstance(value, property | cached_property) or (value is not _NONE and requirement.holds(value)):
        return
    given = "no " + name if value is _NONE else f"{name} = {short(value)}"
    raise UsageError(f"{who} has {given}; expected {requirement.words}. See sdpo_bench.api.")
