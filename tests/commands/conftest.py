"""The fixtures of the evaluations and of training."""

from evaluation_fixtures import (  # noqa: F401
    astronaut,
    models,
    people,
)
from training_fixtures import (  # noqa: F401
    base,
    faces,
)
