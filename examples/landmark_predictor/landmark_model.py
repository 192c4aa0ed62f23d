"""The ICT FaceKit morphable face model at the 72 landmarks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facesnap_diffusers.data.ict_face_model import IctFaceModel


@dataclass
class LandmarkModel:
    """The morphable model at the 72 landmarks, in cm: x to the person's left, y up, z forward."""

    mean: np.ndarray  # (72, 3), centered on the landmarks' mean
    identity: np.ndarray  # (modes, 72, 3) for coefficients that are standard normal
    expression: np.ndarray  # (expressions, 72, 3) for coefficients from 0 to 1
    expression_names: list[str]


def load_landmark_model(path: str | Path) -> LandmarkModel:
    """The landmarks of the model at a path; see [`IctFaceModel.load`]."""
    model = IctFaceModel.load(path)
    neutral = model.vertices[model.landmarks].astype(np.float64)  # (72, 3)
    return LandmarkModel(
        mean=neutral - neutral.mean(axis=0),
        identity=model.identity[:, model.landmarks].astype(np.float64),
        expression=model.expression[:, model.landmarks].astype(np.float64),
        expression_names=model.expression_names,
    )


def mirror_shape_basis(
    identity: np.ndarray, mirror: list[int], num_symmetric: int, num_asymmetric: int
) -> tuple[np.ndarray, np.ndarray]:
    """
    Principal components of the landmarks over people, split into those that a mirrored face shares and those that
    change their sign in it. Coefficients stay standard normal and become independent of the source's order of modes.

    Returns:
        Arrays of shape `(num_symmetric, 72, 3)` and `(num_asymmetric, 72, 3)`.
    """
    mirrored = identity[:, mirror] * [-1, 1, 1]
    bases = []
    for modes, count in (((identity + mirrored) / 2, num_symmetric), ((identity - mirrored) / 2, num_asymmetric)):
        _, deviation, directions = np.linalg.svd(modes.reshape(len(modes), -1), full_matrices=False)
        bases.append((deviation[:count, None] * directions[:count]).reshape(count, -1, 3))
    return tuple(bases)
