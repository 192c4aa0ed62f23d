"""Tiny base models, with an adapter and without."""

import pytest
import tiny


@pytest.fixture(scope="module")
def sd():
    return tiny.sd_pipeline()


@pytest.fixture(scope="module")
def xl():
    return tiny.xl_pipeline()


@pytest.fixture
def pipe(sd):
    return tiny.with_adapter(sd)


@pytest.fixture
def pipe_xl(xl):
    return tiny.with_adapter(xl)
