"""From what a caller asks of pose, expression and place to landmarks in the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..faces.expression import Expression
from ..faces.face import Face
from ..faces.pose import HeadPose
from ..framing import PORTRAIT_BOX, fit_into_box, photo_to_canvas
from ..identity import FaceIdentity
from ..models.landmark_predictor import FaceCoefficients, LandmarkPredictor


def steer(
    predictor: LandmarkPredictor,
    height: int,
    width: int,
    identity: FaceIdentity,
    driving: Face | None,
    pose: HeadPose | None,
    expression: Expression | None,
    face_box: torch.Tensor | None,
) -> torch.Tensor:
    r"""
    The landmarks of one image: the identity's shape, the driving face's (else the identity's own) expression, pose
    and place, of which `pose`, `expression` and `face_box` replace what they name.

    Returns:
        `torch.Tensor` of shape `(1, 72, 2)`: in pixels of the image.
    """
    own = _own_coefficients(predictor, identity)
    photo_size = identity.photo_size
    if driving is not None:
        coefficients = predictor.encode(_on_device_of(predictor, torch.as_tensor(driving.landmarks)[None]))
        photo_size = (driving.image.shape[0], driving.image.shape[1])
    else:
        coefficients = own
    coefficients = replace(coefficients, shape=own.shape)
    if pose is not None:
        coefficients = replace(
            coefficients, rotation=coefficients.rotation.new_tensor([[pose.yaw, pose.pitch, pose.roll]])
        )
    if expression is not None:
        weights = torch.as_tensor(expression.to_vector(predictor.config.expression_names))
        coefficients = replace(coefficients, expression=weights[None].to(coefficients.expression))

    landmarks = predictor.decode(coefficients)
    if face_box is None and photo_size is not None:
        return photo_to_canvas(landmarks, photo_size, height, width)
    if face_box is None:
        face_box = torch.tensor(PORTRAIT_BOX)
    frontal = replace(
        coefficients,
        expression=torch.zeros_like(coefficients.expression),
        rotation=torch.zeros_like(coefficients.rotation),
    )
    return fit_into_box(landmarks, predictor.decode(frontal), face_box[None].to(landmarks), height, width)


def as_list(value: Any, name: str, kind: type = object) -> list[Any]:
    """One value or a list of them as a list; nothing as an empty one."""
    values = [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
    if value is not None and not values:
        raise InputError(f"{name} is an empty list; give at least one")
    for item in values:
        if not isinstance(item, kind):
            raise InputError(f"{name} must be a {kind.__name__} or a list of them, got {type(item).__name__}")
    return values


def as_expressions(value: Any) -> list[Expression]:
    """One expression, in any form that [`Expression.of`] takes, or a list of them, as a list."""
    return [Expression.of(item) for item in as_list(value, "expression")]


def as_boxes(value: Any) -> list[torch.Tensor]:
    """One face box or a list of them as a list of tensors of shape `(4,)`."""
    if value is None:
        return []
    try:
        boxes = torch.as_tensor(np.asarray(value, dtype=np.float32))
    except (TypeError, ValueError):
        raise InputError(f"face_box must be four numbers (left, top, right, bottom), got {value!r}") from None
    if boxes.ndim not in (1, 2) or boxes.shape[-1] != 4 or boxes.numel() == 0:
        raise InputError(f"face_box must be four numbers (left, top, right, bottom), got {value!r}")
    boxes = boxes.reshape(-1, 4)
    for box in boxes:
        left, top, right, bottom = box.tolist()
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise InputError(
                f"face_box ({left:g}, {top:g}, {right:g}, {bottom:g}) must hold shares of the image from 0 to 1,"
                " left < right and top < bottom"
            )
    return list(boxes)


def as_landmarks(value: Any, name: str, counts: Sequence[int] = (72,)) -> torch.Tensor:
    """Landmarks that a caller gives, as a tensor of shape `(batch, 72, 2)`."""
    try:
        points = torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} must be a tensor or array of numbers, got {type(value).__name__}") from None
    if points.ndim == 2:
        points = points[None]
    if points.ndim != 3 or points.shape[1] not in counts or points.shape[2] not in (2, 3) or len(points) == 0:
        raise InputError(
            f"{name} must have shape ([batch,] {' or '.join(map(str, counts))}, 2 or 3), got {tuple(points.shape)}"
        )
    if not torch.isfinite(points).all():
        raise InputError(f"{name} has values that are not finite")
    return points


def _own_coefficients(predictor: LandmarkPredictor, identity: FaceIdentity) -> FaceCoefficients:
    if identity.landmarks is None:
        return _neutral_coefficients(predictor)
    coefficients = predictor.encode(_on_device_of(predictor, identity.landmarks[None]))
    if identity.shape is not None:
        if len(identity.shape) != coefficients.shape.shape[1]:
            raise InputError(
                f"identity has {len(identity.shape)} shape coefficients, this landmark predictor has"
                f" {coefficients.shape.shape[1]}; encode the face again with encode_face"
            )
        coefficients = replace(coefficients, shape=identity.shape[None].to(coefficients.shape))
    return coefficients


def _neutral_coefficients(predictor: LandmarkPredictor) -> FaceCoefficients:
    options = {"device": predictor.device}
    return FaceCoefficients(
        shape=torch.zeros(1, predictor.shape_basis.shape[0], **options),
        expression=torch.zeros(1, predictor.expression_basis.shape[0], **options),
        rotation=torch.zeros(1, 3, **options),
        scale=torch.ones(1, **options),
        translation=torch.zeros(1, 3, **options),
    )


def _on_device_of(predictor: LandmarkPredictor, landmarks: torch.Tensor) -> torch.Tensor:
    return landmarks.to(predictor.device, torch.float32)
