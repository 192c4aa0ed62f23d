"""The fixtures of the evaluations."""

from evaluation_fixtures import (  # noqa: F401
    all_methods,
    astronaut,
    clip_folder,
    dlib_analyzer,
    models,
    people,
    predictor,
)
