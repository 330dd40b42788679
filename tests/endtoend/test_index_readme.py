"""README.md for the package index: every link and picture leads to a file of the repository."""

import click
import pytest

from tools.index_readme import ROOT, absolute

HOME = "https://host.example/owner/sdpo-bench"


def test_links_pictures_folders_and_anchors_become_absolute(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("")
    (tmp_path / "p.png").write_text("")
    text = "![p](p.png) [a](docs/a.md#part) [docs](docs) [out](https://x.org) [here](#top)"
    assert absolute(text, HOME + "/", "v1", tmp_path) == (
        f"![p]({HOME}/raw/v1/p.png) [a]({HOME}/blob/v1/docs/a.md#part) [docs]({HOME}/tree/v1/docs) "
        "[out](https://x.org) [here](#top)"
    )


def test_no_relative_link_is_left_in_this_readme():
    text = absolute((ROOT / "README.md").read_text(encoding="utf-8"), HOME, "v1")
    assert f"]({HOME}/raw/v1/docs/images/" in text and "](docs/" not in text and "](results/" not in text


def test_a_link_to_nothing_is_an_error(tmp_path):
    with pytest.raises(click.UsageError, match="'gone.md', which is not in the repository"):
        absolute("[a](gone.md)", HOME, "v1", tmp_path)
