"""The template engine of the pages: every text is escaped for its format, control characters become visible escapes."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from sdpo_bench.system.console_text import clean

ASSETS = Path(str(files("sdpo_bench"))) / "assets"


def render_template(name: str, escape: Callable[[str], str] | None = None, *, tags: str = "{}", **values: Any) -> str:
    """A file of ``assets`` filled in.

    Args:
        escape: from plain text to the format; by default for HTML.
        tags: the brackets of the template's tags, ``{}`` or ``<>``.
        values: what the template uses by name.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        if type(value) is not str:  # numbers, and text that the engine has escaped
            return value
        return Markup(escape(value)) if escape else clean(value)

    start, end = tags[0], tags[1]
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        block_start_string=f"{start}%",
        block_end_string=f"%{end}",
        variable_start_string=2 * start,
        variable_end_string=2 * end,
        comment_start_string=f"{start}#",
        comment_end_string=f"#{end}",
    )
    environment.filters["plain"] = lambda text: Markup(clean(text))
    return environment.get_template(name).render(values)
