"""Small pipelines with transformers, shared by the tests of this folder."""

import pytest

from tools.random_pipeline import SMALL_FLOW, write_pipeline


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Pipeline folders by shape, written when they are first asked for."""
    written = {}

    def folder(shape):
        if shape not in written:
            written[shape] = write_pipeline(SMALL_FLOW[shape], tmp_path_factory.mktemp("flow") / shape)
        return written[shape]

    return folder
