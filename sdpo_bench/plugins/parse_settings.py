"""From plain values, as people and files write them, to settings of their types.

Every value that reaches a settings class passes through here, a plugin's own included, and what is wrong with one is
said to the person who typed it: its key, what was given, what is valid.
"""

import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from reprlib import repr as short
from typing import Any

from sdpo_bench.errors import UsageError
from sdpo_bench.hashing import canonical
from sdpo_bench.plugins.call import plugin_code
from sdpo_bench.plugins.conflicts import same_value
from sdpo_bench.settings import MOST
from sdpo_bench.system.json_toml import parse_toml


def parse_set(texts: Sequence[str]) -> dict[str, Any]:
    """``["update.lr=1e-3", "eval.steps=1,2,4"]`` -> values as TOML reads them, plain text where it cannot.

    Raises:
        UsageError: an entry without ``=``, or two values for one setting.
    """
    result: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set takes section.key=value, got '{text}'. Example: --set update.lr=1e-3")
        key, parsed = key.strip(), _toml_value(key.strip(), value)
        if not same_value(result.setdefault(key, parsed), parsed):
            raise UsageError(f"--set {key}={result[key]} and --set {text} contradict each other. Give one of them.")
    return result


def _toml_value(key: str, text: str) -> Any:
    try:
        parsed = parse_toml(f"x = {text}")
        return parsed["x"] if set(parsed) == {"x"} else text.strip()
    except tomllib.TOMLDecodeError:
        return text.strip()
    except ValueError as error:
        raise UsageError(f"--set {key}: got {error}, which no setting can be.") from None


def validate(owner: type, values: Mapping[str, Any], section: str) -> Any:
    """An instance of the settings dataclass ``owner`` from plain values.

    Raises:
        UsageError: one line for each wrong value: the key, what was given, what is valid.
        RunFailed: the settings class itself, a plugin's, raises.
    """
    with plugin_code(f"the settings class {owner.__name__} ({section}.*)"):
        found = _validated(owner, values, section)
        plain = asdict(found)
    for key, value in plain.items():
        items = value if isinstance(value, tuple) else [value]
        if any(isinstance(item, int) and abs(item) > MOST for item in items):
            raise UsageError(f"{section}.{key}: got {value}, expected at most {MOST}.")
        try:
            canonical(value)
        except (TypeError, ValueError):
            raise UsageError(
                f"{section}.{key}: got {short(value)}, which no record of a run can hold. Settings are texts, finite "
                "numbers, true, false, None, and tuples or dicts of these."
            ) from None
    return found


def _validated(owner: type, values: Mapping[str, Any], section: str) -> Any:
    from pydantic import ValidationError

    hints = typing.get_type_hints(owner, include_extras=True)
    prepared = {key: _split(value, hints.get(key)) for key, value in values.items()}
    try:
        return _adapter(owner).validate_python(prepared)
    except ValidationError as error:
        # The first of each setting: a tuple whose items are all wrong is said to be too short besides.
        first = {str(problem["loc"][:1]): problem for problem in reversed(error.errors())}
        raise UsageError("\n".join(_explain(problem, section) for problem in reversed(first.values()))) from None


@lru_cache
def _adapter(owner: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(owner)


def _split(value: Any, hint: Any) -> Any:
    """``"1,2,4"`` for a setting that is a tuple."""
    base = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
    is_tuple = typing.get_origin(base) is tuple
    if is_tuple and isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if is_tuple and isinstance(value, int | float):
        return [value]
    if isinstance(value, bool) and base in (int, float):
        return str(value)  # true is not a number here
    return value


def _explain(problem: Mapping[str, Any], section: str) -> str:
    if not problem["loc"]:  # of the settings as a whole
        return f"{section}: {problem['msg']}."
    place = f"{section}.{problem['loc'][0]}"
    if problem["type"] == "missing":
        few = f"got {problem['input']!r}, expected more items" if len(problem["loc"]) > 1 else "nothing was given"
        return f"{place}: {few}."
    given, form = problem["input"], ""
    if len(problem["loc"]) > 1 and isinstance(given, str) and re.fullmatch(r"\d+-\d+", given):
        form = f" A list names every number, e.g. {place}=1,2,4."
    return f"{place}: got {given!r}. {problem['msg']}.{form}"


def describe_type(hint: Any) -> str:
    """A settings type in words, for ``list settings``."""
    if typing.get_origin(hint) is typing.Annotated:
        return describe_type(typing.get_args(hint)[0])
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(str(a) for a in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(describe_type(a) for a in typing.get_args(hint))
    return getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)
