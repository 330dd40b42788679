"""Prompts that the tests of studies share."""

import pytest


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "four.txt"
    path.write_text("cat\ndog\nbee\nowl\n")
    return path
