"""The site of the docs has every page, and links that leave it name the file instead."""

from pathlib import Path

import yaml

from tools.docs_links import on_page_markdown

ROOT = Path(__file__).parents[2]


def pages_of(nav):
    for entry in nav:
        for value in entry.values():
            yield from pages_of(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation_once_and_tutorials_come_first():
    text = (ROOT / "mkdocs.yml").read_text()
    pages = list(pages_of(yaml.safe_load(text)["nav"]))
    assert sorted(pages) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    assert pages[0] == "index.md" and [page.startswith("tutorial-") for page in pages[1:5]] == [True] * 4


def test_links_to_files_outside_the_docs_become_paths():
    page = "See [a notebook](../examples/a.ipynb), [`examples/b`](../examples/b) and [concepts](concepts.md)."
    assert on_page_markdown(page, page=None) == (
        "See a notebook (`examples/a.ipynb` in the repository), `examples/b` in the repository and "
        "[concepts](concepts.md)."
    )
