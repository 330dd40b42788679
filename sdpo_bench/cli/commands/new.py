"""``sdpo-bench new``: a package with a method or a reward, as a start for one's own."""

import re
import shlex
from importlib.resources import files
from pathlib import Path
from string import Template

import click

from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.plugins.registry import plugin_tag, plugins


def new_command(kind: str, name: str, target: Path | None) -> None:
    """``sdpo-bench new``.

    Raises:
        UsageError: a name that cannot be one or is taken, or a folder that is there. MissingError: not writable.
    """
    _check_name(kind, name)
    folder = target or Path(name)
    if folder.exists():
        raise UsageError(f"'{folder}' is there already. Choose another folder with --to FOLDER.")
    module = name.replace("-", "_")
    words = {"name": name, "module": module, "class": "".join(part.capitalize() for part in name.split("-"))}
    try:
        for place, text in _files(kind, words).items():
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            click.echo(str(path))
    except OSError as error:
        raise MissingError(f"'{folder}' cannot be written: {error.strerror}. Choose another with --to.") from error
    click.echo(f"next: cd {shlex.quote(str(folder))} && pip install -e . && sdpo-bench doctor --plugin {name}")
    if kind == "method":
        click.echo(
            f"note: {name} trains at a preset's common learning rate, which was not searched for it. Search one before "
            "you compare: sdpo-bench sweep search.toml"
        )


def _check_name(kind: str, name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(f"'{name}' is no name for a {kind}: small letters, digits and hyphens, e.g. my-{kind}.")
    if taken := [plugin for plugin in plugins(f"{kind}s").values() if plugin.tag == plugin_tag(name)]:
        raise UsageError(f"there is a {kind} '{name}' already ({taken[0].owner}). Choose another name.")


def _files(kind: str, words: dict[str, str]) -> dict[str, str]:
    """Text of each file by its place in the package."""
    templates = files("sdpo_bench") / "assets" / "scaffold" / kind
    places = {"module.py": f"{words['module']}.py", "test.py": f"tests/test_{words['module']}.py"}
    texts = {}
    for template in sorted(templates.iterdir(), key=lambda one: one.name):
        name = template.name.removesuffix(".txt")
        texts[places.get(name, name)] = Template(template.read_text(encoding="utf-8")).substitute(words)
    return texts
