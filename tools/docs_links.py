"""Hook of mkdocs: what links outside ``docs/`` (``../examples/...``) is not part of the site: name its path."""

import re
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)\s]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with ``[text](../PATH)`` as ``text (PATH in the repository)``."""
    return LINK.sub(lambda found: named(found[1], found[2]), markdown)


def named(text: str, path: str) -> str:
    """How a page of the site names a file of the repository."""
    return f"`{path}` in the repository" if text.strip("`") == path else f"{text} (`{path}` in the repository)"
