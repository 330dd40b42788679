"""Find plugins without importing them, and import exactly the one that is asked for.

Built-in plugins are the files of three folders (``methods/``, ``rewards/``, ``sdpo_bench/studies/``); third parties
announce theirs through the entry-point groups ``sdpo_bench.methods``, ``sdpo_bench.rewards`` and
``sdpo_bench.studies``. Listing reads names, first docstring lines and plain texts from the source, so
``sdpo-bench list`` needs no torch. The rest of the package knows plugins by name only.

A method may also be a single file, ``./FILE.py:CLASS``. Its name is its class and the digest of its source,
``CLASS@DIGEST``, so that an edited file makes other runs; only commands that are given the file know it.
"""

import ast
import hashlib
import importlib
import inspect
import sys
import textwrap
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from sdpo_bench.errors import MissingError, SdpoBenchError, UsageError, nearest
from sdpo_bench.plugins.call import plugin_code
from sdpo_bench.plugins.contract_check import base_class, check_class
from sdpo_bench.system.plugin_guard import preserve_process_state

BUILT_IN = "built-in"
SINGLE_FILE = "a single file"
_PACKAGE_OF_REWARD = "Only a method may be one; a reward needs a package. Write it: sdpo-bench new reward NAME"
SINGULAR = {"methods": "method", "rewards": "reward", "studies": "study"}
"""The kinds of plugins, and what one of each is called."""


@dataclass(frozen=True)
class Plugin:
    """A plugin that was found but not imported."""

    name: str
    kind: str
    owner: str
    """``built-in``, ``a single file``, or the distribution that brought it."""
    module: str
    class_name: str
    summary: str
    path: Path | None
    formula: str = ""
    source: str = ""
    """Where it comes from; like the formula empty where the class does not say it as a plain text."""

    def load(self) -> Any:
        """The plugin class.

        Raises:
            MissingError: the module needs a package that is not installed.
            UsageError: the class does not derive from the base class of its kind, or breaks its contract.
        """
        who = f"{SINGULAR[self.kind]} '{self.name}' ({self.owner})"
        try:
            with preserve_process_state():
                module = _import_file(self) if self.owner == SINGLE_FILE else importlib.import_module(self.module)
                plugin_class = getattr(module, self.class_name)
        except ModuleNotFoundError as error:
            raise MissingError(
                f"{who} needs the package '{error.name}'. Install it with: pip install {error.name}"
            ) from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin's module may fail in any way
            reason = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise MissingError(f"{who} cannot be imported: {reason}") from error
        base = base_class(self.kind)
        if not (isinstance(plugin_class, type) and issubclass(plugin_class, base)):
            named = (
                f"{self.path}:{self.class_name}" if self.owner == SINGLE_FILE else f"{self.module}:{self.class_name}"
            )
            reward = isinstance(plugin_class, type) and issubclass(plugin_class, base_class("rewards"))
            hint = f" {_PACKAGE_OF_REWARD}" if reward and self.owner == SINGLE_FILE else ""
            raise UsageError(f"'{named}' is not a subclass of {base.__module__}.{base.__name__}.{hint}")
        with plugin_code(who):
            check_class(who, base, plugin_class)
        return plugin_class

    @property
    def tag(self) -> str:
        """How the name is compared: hyphens and underscores are the same."""
        return plugin_tag(self.name)


def plugin_tag(name: str) -> str:
    """Canonical form of a plugin name for look-up."""
    return name.strip().lower().replace("_", "-")


def plugins(kind: str) -> dict[str, Plugin]:
    """All plugins of ``"methods"``, ``"rewards"`` or ``"studies"`` by name, built-in ones first.

    Raises:
        UsageError: two plugins share a name; the message names both owners.
    """
    by_name: dict[str, Plugin] = {}
    by_tag: dict[str, Plugin] = {}
    for plugin in [*_builtin(kind), *_third_party(kind, tuple(sys.path))]:
        other = by_tag.get(plugin.tag)
        if other:
            raise UsageError(
                f"two {kind} are called '{plugin.name}': one from {other.owner} ({other.module}), "
                f"one from {plugin.owner} ({plugin.module}). Uninstall one of them."
            )
        by_tag[plugin.tag] = by_name[plugin.name] = plugin
    return by_name


def find(kind: str, name: str) -> Plugin:
    """The plugin of that name.

    Raises:
        UsageError: no such plugin; the message has the nearest valid name.
    """
    if kind == "methods" and is_file(name):
        return _of_file(kind, name)
    if kind == "rewards" and is_file(name):
        raise UsageError(f"'{name}' is a single file. {_PACKAGE_OF_REWARD}")
    available = plugins(kind)
    for plugin in (*available.values(), *_FILES.values()):
        if plugin.kind == kind and plugin.tag == plugin_tag(name):
            return plugin
    if "@" in name:
        raise UsageError(
            f"the {SINGULAR[kind]} '{name}' is a single file, which this command was not given. Name it, unchanged: "
            f"--{SINGULAR[kind]} ./FILE.py:CLASS"
        )
    raise UsageError(f"unknown {SINGULAR[kind]} '{name}'.{nearest(name, available)} See: sdpo-bench list {kind}")


# -- single files ----------------------------------------------------------------------------------------------------

_FILES: dict[str, Plugin] = {}
"""Plugins of single files that this process was given, by name."""


def is_file(name: str) -> bool:
    """Whether a plugin is named as a Python file: ``./FILE.py`` or ``./FILE.py:CLASS``."""
    return name.partition(".py:")[0] != name or name.endswith(".py")


def _of_file(kind: str, name: str) -> Plugin:
    """The plugin of a single file, known by its name from now on.

    Raises:
        UsageError: no Python, or no such class. MissingError: not readable.
    """
    path_text, _, class_name = name.partition(".py:") if ".py:" in name else (name.removesuffix(".py"), "", "")
    path = Path(f"{path_text}.py").resolve()
    try:
        source = path.read_bytes()
        digest = hashlib.sha256(source).hexdigest()[:8]
        described = _from_source(kind, path, f"sdpo_bench_file_{digest}", SINGLE_FILE, class_name)
    except OSError as error:
        raise MissingError(f"{SINGULAR[kind]} file '{path}' cannot be read: {error.strerror}.") from error
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{SINGULAR[kind]} file '{path}' is not valid Python: {error}.") from error
    if described is None:
        wanted = f"class '{class_name}'" if class_name else "public class with a base class"
        raise UsageError(f"'{path}' has no {wanted}. Name one: --{SINGULAR[kind]} {path_text}.py:CLASS")
    plugin = replace(described, name=f"{described.class_name}@{digest}")
    _FILES[plugin.name] = plugin
    return plugin


def _import_file(plugin: Plugin) -> Any:
    """The module of a single file, imported once."""
    if plugin.module in sys.modules:
        return sys.modules[plugin.module]
    spec = spec_from_file_location(plugin.module, plugin.path)
    assert spec and spec.loader
    module = sys.modules[plugin.module] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[plugin.module]
        raise
    return module


def typed_name(kind: str, name: str) -> str:
    """How a person names a plugin: a single file by its path and class."""
    plugin = _FILES.get(name)
    return f"{plugin.path}:{plugin.class_name}" if plugin and plugin.kind == kind else name


@lru_cache(maxsize=4)
def _builtin(kind: str) -> tuple[Plugin, ...]:
    spec = find_spec(f"sdpo_bench.{kind}")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(f for folder in folders for f in Path(folder).glob("*.py") if not f.name.startswith("_"))
    described = (_from_source(kind, file, f"sdpo_bench.{kind}.{file.stem}", BUILT_IN) for file in files)
    return tuple(plugin for plugin in described if plugin)


@lru_cache(maxsize=8)
def _third_party(kind: str, path: tuple[str, ...]) -> tuple[Plugin, ...]:
    """Plugins of the distributions on the import ``path``. Reading all metadata takes longer than resolving a run, and
    a plan resolves hundreds."""
    result = []
    for entry in metadata.entry_points(group=f"sdpo_bench.{kind}"):
        module, _, class_name = entry.value.partition(":")
        owner = entry.dist.name if entry.dist else "unknown distribution"
        file: Path | None = None
        described: Plugin | None = None
        try:
            with preserve_process_state():
                spec = find_spec(module)  # imports the package around it
            if spec and spec.origin and spec.origin.endswith(".py"):
                file = Path(spec.origin)
                described = _from_source(kind, file, module, owner, class_name)
        except KeyboardInterrupt:
            raise
        except BaseException:  # it is listed all the same; loading it says what is wrong
            pass
        unknown = Plugin(entry.name, kind, owner, module, class_name, "", file)
        result.append(replace(described or unknown, name=entry.name, class_name=class_name))
    return tuple(result)


def _from_source(kind: str, path: Path, module: str, owner: str, class_name: str = "") -> Plugin | None:
    """Read the plugin class of a file: the named class, or its last public class that has bases."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.bases and not n.name.startswith("_")]
    if class_name:
        classes = [n for n in classes if n.name == class_name]
    if not classes:
        return None
    node = classes[-1]
    doc = ast.get_docstring(node) or ast.get_docstring(tree) or ""
    name = _literal(node, "name") or path.stem
    formula, source = _literal(node, "formula") or "", _literal(node, "source") or ""
    return Plugin(name, kind, owner, module, node.name, doc.strip().split("\n")[0], path, formula, source)


def _literal(node: ast.ClassDef, attribute: str) -> str | None:
    for statement in node.body:
        targets: list[ast.expr] = []
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        value = getattr(statement, "value", None)
        named = any(isinstance(t, ast.Name) and t.id == attribute for t in targets)
        if named and isinstance(value, ast.Constant) and isinstance(value.value, str):
            return value.value
    return None


def field_docs(owner: type) -> dict[str, str]:
    """Docstrings that stand below the fields of a settings dataclass (inherited ones too), by field name."""
    docs: dict[str, str] = {}
    for base in reversed(owner.__mro__[:-1]):
        docs |= _own_field_docs(base)
    return docs


def _own_field_docs(owner: type) -> dict[str, str]:
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    except (OSError, TypeError):
        return {}
    docs: dict[str, str] = {}
    previous: str | None = None
    for statement in getattr(body, "body", []):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            previous = statement.target.id
            continue
        value = getattr(statement, "value", None)
        if previous and isinstance(statement, ast.Expr) and isinstance(value, ast.Constant):
            docs[previous] = " ".join(str(value.value).split())
        previous = None
    return docs


def declaring(attribute: str) -> list[str]:
    """Names of all rewards that can be imported here and declare an attribute of the contract as True."""
    names = []
    for plugin in plugins("rewards").values():
        with suppress(SdpoBenchError):  # what cannot be loaded is no advice
            if getattr(plugin.load(), attribute) is True:
                names.append(plugin.name)
    return names
