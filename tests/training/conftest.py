"""A base model and shards for the runs of these tests, each of which starts without the state of the last."""

import pytest
import tiny_training
from training_fixtures import (  # noqa: F401
    base,
    faces,
)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    tiny_training.reset_accelerate()
