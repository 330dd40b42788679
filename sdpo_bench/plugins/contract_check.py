"""What a plugin says of itself, held against the contract of ``api`` when it is loaded and when it is made.

One row for each attribute that the engine reads. What breaks the contract is refused here by the plugin's name and the
attribute's, before some line of the engine trips over it. What a plugin *answers* when it is called is checked where
that is: ``scoring``, ``method_loss``, ``critic``, ``candidates``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from reprlib import repr as short
from typing import Any, get_args

from sdpo_bench.api import Backprop, Granularity, Method, Reward, RewardGuard, RewardMode, Search, Signal
from sdpo_bench.errors import UsageError
from sdpo_bench.hashing import canonical
from sdpo_bench.plugins.call import plugin_code

_NONE = object()


@dataclass(frozen=True)
class Due:
    """What an attribute must be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def one_of(*names: str) -> Due:
    return Due(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


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


TEXT = Due("a text", _is_text)
SWITCH = Due("True or False", lambda value: isinstance(value, bool))
COUNT = Due("a whole number from 1", is_count)
DATACLASS = Due("a dataclass", lambda value: isinstance(value, type) and is_dataclass(value))
KEYS = Due(
    "a dict of settings by name", lambda value: isinstance(value, Mapping) and all(isinstance(k, str) for k in value)
)
MADE = Due("a call of super().__init__() in its __init__()", lambda value: True)

CLASS: dict[type, dict[str, Due]] = {
    Method: {
        "Settings": DATACLASS,
        "signal": one_of(*get_args(Signal)),
        "final_image": one_of("sample", "predicted"),
        "granularity": one_of(*get_args(Granularity)),
        "defaults": KEYS,
        "fixed": KEYS,
        "variant_of": Due("a text", lambda value: isinstance(value, str)),
    },
    Reward: {
        "Settings": DATACLASS,
        "version": TEXT,
        "scale": TEXT,
        "source": TEXT,
        "native_model": TEXT,
        "differentiable": SWITCH,
    },
}
"""Read from the class, by the base class of its kind."""

_BASES: dict[str, type] = {"methods": Method, "rewards": Reward}

INSTANCE: dict[type, dict[str, Due]] = {
    Method: {
        "settings": MADE,
        "members": COUNT,
        "shared_noise": SWITCH,
        "needs_reference": SWITCH,
        "needs_kl": SWITCH,
        "reward_mode": one_of(*get_args(RewardMode)),
        "reward_guard": one_of(*get_args(RewardGuard)),
    },
    Search: {"candidates": COUNT},
    Reward: {
        "settings": MADE,
        "device": MADE,
        "full_version": TEXT,
        "scale": TEXT,
        "source": TEXT,
        "differentiable": SWITCH,
        "filed_as": Due("a text or None", lambda value: value is None or _is_text(value)),
        "identity_settings": Due("a dict of texts, numbers, true, false and None", _is_plain),
        "commits": Due("a dict of texts", _texts),
    },
}
"""Read from what was made of it."""

IDENTITY = ("full_version", "identity_settings")
IDENTITY_DUE = "A run is named by it; it must follow from the settings alone."


def add_kind(kind: str, base: type, attributes: Mapping[str, Due]) -> None:
    """Add a kind of plugin whose contract a higher layer owns, such as studies."""
    _BASES[kind] = base
    CLASS[base] = dict(attributes)


def base_class(kind: str) -> type:
    """Base class of a kind of plugin; KeyError before its layer has called :func:`add_kind`."""
    return _BASES[kind]


def check_class(who: str, base: type, found: type) -> None:
    """Refuse a plugin class that breaks the contract of its ``base`` class.

    Raises:
        UsageError: names the plugin (``who``), the attribute, what it is and what is due.
    """
    for name, due in CLASS[base].items():
        _hold(who, name, getattr(found, name, _NONE), due)
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise UsageError(f"{who} does not define {', '.join(missing)}, which its base class {base.__name__} asks for.")
    if getattr(found, "signal", "") == "none" and not issubclass(found, Search):
        raise UsageError(f"{who} has signal = 'none', which belongs to subclasses of sdpo_bench.api.Search.")


def check_made(who: str, made: Any) -> None:
    """The same for an instance.

    Raises:
        UsageError: as :func:`check_class`. RunFailed: an attribute raises.
    """
    for base, table in INSTANCE.items():
        for name, due in table.items() if isinstance(made, base) else ():
            with plugin_code(f"{who}: {name}"):
                value = getattr(made, name, _NONE)
                again = getattr(made, name) if name in IDENTITY else value
            _hold(who, name, value, due)
            if value != again:
                both = f"{short(value)}, then {short(again)}"
                raise UsageError(f"{who} has a {name} that changes: {both}. {IDENTITY_DUE}")


def check_backprop(who: str, method: Method, steps: int) -> None:
    """The same for what a method that follows the reward's gradient says of ``steps`` denoising steps.

    Raises:
        UsageError: as :func:`check_class`. RunFailed: it raises.
    """
    with plugin_code(f"{who}: backprop()"):
        plan = method.backprop(steps)
    due = Due("a sdpo_bench.api.Backprop of whole numbers", lambda value: isinstance(value, Backprop))
    _hold(who, "backprop()", plan, due)
    for name in ("depth", "window"):
        _hold(who, f"backprop().{name}", getattr(plan, name), Due("a whole number", lambda v: type(v) is int))


def _hold(who: str, name: str, value: object, due: Due) -> None:
    if isinstance(value, property | cached_property) or (value is not _NONE and due.holds(value)):
        return
    if value is _NONE:
        raise UsageError(f"{who} has no {name}; {due.words} is due. See sdpo_bench.api.")
    text = f": '{value}'" if due is TEXT and isinstance(value, int | float) else ""
    raise UsageError(f"{who} has {name} = {short(value)}; {due.words} is due{text}. See sdpo_bench.api.")
