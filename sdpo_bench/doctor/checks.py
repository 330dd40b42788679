"""Does a plugin keep its side of the contract? The same checks for built-in and third-party plugins.

``sdpo-bench doctor --plugin NAME`` prints them, the test suite runs them over every plugin it finds. A check is a
function that raises :class:`Nonconforming` with what it saw; everything runs on the embedded model, so nothing is
downloaded.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sdpo_bench.doctor.contract import Nonconforming, NotHere, require
from sdpo_bench.errors import SdpoBenchError, UsageError, nearest
from sdpo_bench.plugins.contract_check import check_instance
from sdpo_bench.plugins.registry import Plugin, field_docs, find, is_file, plugin_tag, plugins
from sdpo_bench.system.plugin_guard import preserve_process_state

Status = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """Outcome of one check of one plugin."""

    plugin: str
    kind: str
    name: str
    status: Status
    detail: str = ""


def find_everywhere(name: str) -> list[Plugin]:
    """Methods and rewards of that name, or the method of a single file.

    Raises:
        UsageError: there are none; the message has the nearest name.
    """
    if is_file(name):
        return [find("methods", name)]
    available = [plugin for kind in ("methods", "rewards") for plugin in plugins(kind).values()]
    selected = [plugin for plugin in available if plugin.tag == plugin_tag(name)]
    if not selected:
        raise UsageError(f"no method or reward '{name}'.{nearest(name, [p.name for p in available])}")
    return selected


def check_plugin(plugin: Plugin) -> Iterator[Check]:
    """All checks of one plugin, as they are done; after a plugin that cannot be loaded nothing else is checked."""
    try:
        loaded = plugin.load()
    except SdpoBenchError as error:
        yield Check(plugin.name, plugin.kind, "can be imported", "failed", str(error))
        return
    yield Check(plugin.name, plugin.kind, "can be imported", "ok")
    for name, check in _checks(plugin.kind, loaded).items():
        with tempfile.TemporaryDirectory() as scratch:
            yield _run(plugin, name, partial(check, plugin, loaded, Path(scratch)))


def _run(plugin: Plugin, name: str, work: Callable[[], None]) -> Check:
    try:
        with preserve_process_state():
            work()
    except Nonconforming as seen:
        return Check(plugin.name, plugin.kind, name, "failed", str(seen))
    except NotHere as reason:
        return Check(plugin.name, plugin.kind, name, "skipped", str(reason))
    except SdpoBenchError as error:
        return Check(plugin.name, plugin.kind, name, "failed", str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything, and that is a finding
        return Check(plugin.name, plugin.kind, name, "failed", f"{type(error).__name__}: {error}")
    return Check(plugin.name, plugin.kind, name, "ok")


def _checks(kind: str, loaded: Any) -> dict[str, Callable[[Plugin, Any, Path], None]]:
    if kind == "methods" and loaded.signal == "none":
        from sdpo_bench.doctor.search import CHECKS
    elif kind == "methods":
        from sdpo_bench.doctor.methods import CHECKS
    else:
        from sdpo_bench.doctor.rewards import CHECKS
    return {"settings and declarations": check_declarations, **CHECKS}


def check_declarations(plugin: Plugin, loaded: Any, folder: Path) -> None:
    """A first docstring line, a frozen settings dataclass with documented fields and valid defaults, and an instance
    that declares what the contract requires."""
    from sdpo_bench.plugins.parse_settings import validate

    require(plugin.summary, "the class has no docstring; its first line is what 'sdpo-bench list' prints.")
    settings = loaded.Settings
    require(settings.__dataclass_params__.frozen, f"{settings.__name__} is not frozen (@dataclass(frozen=True)).")
    undocumented = [name for name in settings.__dataclass_fields__ if not field_docs(settings).get(name)]
    require(not undocumented, f"settings without a docstring below them: {', '.join(undocumented)}.")
    first, second = (validate(settings, {}, plugin.kind[:-1]) for _ in range(2))
    require(first == second, "two sets of default settings are not equal.")
    if not getattr(loaded, "unavailable", lambda: None)():  # or it has nothing to say on this machine
        check_instance(f"{plugin.kind[:-1]} '{plugin.name}'", loaded(first))
