"""The fixtures of the evaluations."""

from evaluation_fixtures import (  # noqa: F401
    astronaut,
    models,
    people,
)
