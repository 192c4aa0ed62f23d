"""A tiny adapter, in a pipeline and in a folder."""

import shutil

import pytest
import tiny


@pytest.fixture(scope="module")
def trained():
    pipe = tiny.new_pipeline()
    tiny.add_adapter(pipe, base_model="someone/tiny", license="apache-2.0")
    return pipe


@pytest.fixture(scope="module")
def adapter(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    trained.save_facesnap_adapter(folder)
    return folder


@pytest.fixture
def copy(adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "copy")
    return tmp_path / "copy"
