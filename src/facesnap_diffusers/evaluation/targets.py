"""Where the face of a case should be: the reference's proportions in the pose and expression of the case."""

from __future__ import annotations

import numpy as np
import torch

from ..errors import InputError
from ..identity import FaceIdentity
from ..models.landmark_predictor import LandmarkPredictor
from ..steering import ImageSteering, as_boxes, steer
from .cases import Case
from .features import FoundFace


@torch.no_grad()
def retargeted_landmarks(
    predictor: LandmarkPredictor, case: Case, reference: FoundFace, height: int, width: int
) -> np.ndarray:
    r"""
    The landmarks that FaceSnap follows: what all methods are measured against, and some are given.

    Args:
        predictor ([`LandmarkPredictor`]): Reads the reference and draws the target.
        case ([`Case`]): Its pose, expression and face box, those of the reference where it has none.
        reference ([`FoundFace`]): The person's face in the first reference photo. The case's `reference_landmarks`
            replace those that were detected.
        height (`int`), width (`int`): Of the generated image, in pixels.

    Returns:
        `np.ndarray` of shape `(72, 2)`: in pixels of the generated image.
    """
    landmarks = reference.landmarks
    if case.reference_landmarks is not None:
        landmarks = np.array(case.reference_landmarks, dtype=np.float32)
    identity = FaceIdentity(
        face_embeds=torch.from_numpy(reference.embedding),
        face_encoder_id="",
        landmarks=torch.from_numpy(landmarks),
        photo_size=reference.size,
    )
    boxes = as_boxes(case.face_box)
    box = boxes[0] if boxes else None
    target = steer(predictor, identity, ImageSteering(None, case.pose, case.expression, box), height, width)
    return target[0].cpu().numpy()


def driving_landmarks(case: Case) -> np.ndarray:
    """The other face's landmarks `(72, 2)` of a case, in pixels of the image. Raises [`InputError`] where it has none."""
    if case.driving_landmarks is None:
        raise InputError(
            f"case {case.id} has no driving_landmarks; use landmarks: retargeted, or add them to the data"
        )
    return np.array(case.driving_landmarks, dtype=np.float32)
