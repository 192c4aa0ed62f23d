"""A base model and shards, for the tests that train."""

import pytest
import tiny_training


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_training.write_base(folder)
    return folder


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    tiny_training.write_faces(folder)
    return folder
