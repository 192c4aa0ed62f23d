"""From what a caller wants of pose, expression and place to landmarks in the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from .errors import InputError, shown
from .faces.expression import Expression
from .faces.face import Face
from .faces.key_points import five_points
from .faces.placing import check_face_box, check_in_pixels
from .faces.pose import HeadPose
from .identity import FaceIdentity
from .models.landmark_predictor import FaceCoefficients, LandmarkPredictor


#: The face box of a head-and-shoulders portrait: left, top, right, bottom as shares of the image.
PORTRAIT_BOX = (0.3, 0.2, 0.7, 0.65)


@dataclass(frozen=True)
class Steering:
    r"""
    How a caller steers the face, for all images of a batch or, with lists, for each. What is `None` follows the identity.

    Attributes:
        pose_image (photo, [`Face`] or list, *optional*): A photo of anyone whose pose, expression and place are taken.
        pose ([`HeadPose`] or list, *optional*): Yaw, pitch and roll in degrees.
        expression (`str`, `dict`, [`Expression`] or list, *optional*): A preset such as `"smile"`, or ARKit weights.
        face_box (`tuple` or list of them, *optional*): Left, top, right, bottom as shares of the image.
        face_index (`int` or [`FaceChoice`], *optional*): Which face of `pose_image`; the largest by default.
    """

    pose_image: Any = None
    pose: HeadPose | Sequence[HeadPose] | None = None
    expression: str | dict[str, float] | Expression | Sequence[Any] | None = None
    face_box: Sequence[float] | Sequence[Sequence[float]] | None = None
    face_index: int | None = None

    @property
    def given(self) -> list[str]:
        """Names of what steers, apart from `face_index`."""
        return [
            field.name
            for field in fields(self)
            if field.name != "face_index" and getattr(self, field.name) is not None
        ]


@dataclass(frozen=True)
class ImageSteering:
    """[`Steering`] of a single image, checked: the face that drives it, and what replaces parts of that."""

    driving_face: Face | None = None
    pose: HeadPose | None = None
    expression: Expression | None = None
    face_box: torch.Tensor | None = None


def steer(
    predictor: LandmarkPredictor,
    identity: FaceIdentity,
    steering: ImageSteering,
    height: int,
    width: int,
    key_points: bool = False,
) -> torch.Tensor:
    r"""
    The landmarks of one image: the identity's shape, the driving face's (else the identity's own) expression, pose
    and place, of which `pose`, `expression` and `face_box` replace what they name. With `key_points` the five points in
    their place: the detector's own where the identity has them, else those of the landmarks.

    Returns:
        `torch.Tensor` of shape `(1, 72, 2)` or `(1, 5, 2)`: in pixels of the image.
    """
    seen = None if identity.landmarks is None else _on_device_of(predictor, identity.landmarks[None])
    fitted = _neutral_coefficients(predictor) if seen is None else predictor.encode(seen)
    own = _with_shape_of(identity, fitted)  # that of several photos is their mean
    coefficients, photo_size = own, identity.photo_size
    driving_face = steering.driving_face
    if driving_face is not None:
        driving = predictor.encode(_on_device_of(predictor, torch.as_tensor(driving_face.landmarks)[None]))
        coefficients, photo_size = replace(driving, shape=own.shape), driving_face.image.shape[:2]
    if steering.pose is not None:
        angles = [[steering.pose.yaw, steering.pose.pitch, steering.pose.roll]]
        coefficients = replace(coefficients, rotation=coefficients.rotation.new_tensor(angles))
    if steering.expression is not None:
        weights = torch.as_tensor(steering.expression.to_vector(predictor.config.expression_names))
        coefficients = replace(coefficients, expression=weights[None].to(coefficients.expression))

    landmarks = predictor.decode(coefficients) if seen is None else predictor.repose(seen, fitted, coefficients)
    own_points = identity.key_points if key_points and seen is not None else None
    if own_points is not None:
        five = repose_key_points(predictor, _on_device_of(predictor, own_points[None]), fitted, coefficients)
        landmarks = torch.cat([landmarks, five], dim=1)  # (1, 77, 2): they are placed together

    def points(placed: torch.Tensor) -> torch.Tensor:
        if not key_points:
            return placed
        return five_points(placed) if own_points is None else placed[:, 72:]

    face_box = steering.face_box
    if face_box is None and photo_size is not None:
        return points(photo_to_canvas(landmarks, photo_size, height, width))
    if face_box is None:
        face_box = torch.tensor(PORTRAIT_BOX)
    frontal = replace(
        coefficients,
        expression=torch.zeros_like(coefficients.expression),
        rotation=torch.zeros_like(coefficients.rotation),
    )
    return points(fit_into_box(landmarks, predictor.decode(frontal), face_box[None].to(landmarks), height, width))


def repose_key_points(
    predictor: LandmarkPredictor, seen: torch.Tensor, own: FaceCoefficients, target: FaceCoefficients
) -> torch.Tensor:
    r"""
    The five key points that a detector itself found, in another pose or expression of the face, as
    [`LandmarkPredictor.repose`] does it for landmarks.

    Args:
        predictor ([`LandmarkPredictor`]): Of the coefficients.
        seen (`torch.Tensor` of shape `(batch, 5, 2)`): The faces' own key points, in pixels.
        own ([`FaceCoefficients`]): What the predictor made of the faces' landmarks.
        target ([`FaceCoefficients`]): What they are to look like.

    Returns:
        `torch.Tensor` of shape `(batch, 5, 2)`: in pixels of the target.
    """
    missed = seen - five_points(predictor.decode(own))
    return five_points(predictor.decode(target)) + predictor.carry(missed, own, target)


def photo_to_canvas(landmarks: torch.Tensor, photo_size: tuple[int, ...], height: int, width: int) -> torch.Tensor:
    r"""
    Moves landmarks from a photo to an image that the photo, scaled, covers; like a centered crop, but one that is
    shifted as far as needed to keep the face inside.

    Args:
        landmarks (`torch.Tensor` of shape `(batch, points, 2)`): In pixels of the photo.
        photo_size (`tuple[int, int]`): Height and width of the photo.
        height (`int`), width (`int`): Size of the image.

    Returns:
        `torch.Tensor` of shape `(batch, points, 2)`: in pixels of the image.
    """
    photo_height, photo_width = photo_size
    scale = max(height / photo_height, width / photo_width)
    canvas = landmarks.new_tensor([width, height])
    offset = (canvas - landmarks.new_tensor([photo_width, photo_height]) * scale) / 2
    moved = landmarks * scale + offset

    low, high = moved.amin(dim=1, keepdim=True), moved.amax(dim=1, keepdim=True)
    shift = (-low).clamp(min=0) - (high - canvas).clamp(min=0)
    center = canvas / 2 - (low + high) / 2
    return moved + torch.where(high - low <= canvas, shift, center)


def fit_into_box(
    landmarks: torch.Tensor, frontal: torch.Tensor, face_box: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    r"""
    Scales and moves landmarks so that the same face, seen from the front with a neutral expression, fits into a box.
    Measuring the frontal face keeps size and place steady when pose and expression change from image to image.

    Args:
        landmarks (`torch.Tensor` of shape `(batch, points, 2)`): The face as posed.
        frontal (`torch.Tensor` of shape `(batch, points, 2)`): The face from the front, in the same unit and with the
            same origin of rotation.
        face_box (`torch.Tensor` of shape `(batch, 4)`): Left, top, right, bottom as shares of the image.
        height (`int`), width (`int`): Size of the image.

    Returns:
        `torch.Tensor` of shape `(batch, points, 2)`: in pixels of the image.
    """
    box = face_box * face_box.new_tensor([width, height, width, height])
    low, high = frontal.amin(dim=1), frontal.amax(dim=1)
    scale = ((box[:, 2:] - box[:, :2]) / (high - low)).amin(dim=-1)
    center = (low + high) / 2
    return (landmarks - center[:, None]) * scale[:, None, None] + ((box[:, :2] + box[:, 2:]) / 2)[:, None]


def as_list(value: Any, name: str, kind: type = object) -> list[Any]:
    """One value or a list of them as a list; nothing as an empty one."""
    values = [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
    if value is not None and not values:
        raise InputError(f"{name} is an empty list; give at least one")
    for item in values:
        if not isinstance(item, kind):
            example = f", such as {_EXAMPLES[kind]}" if kind in _EXAMPLES else ""
            raise InputError(f"{name} must be a {kind.__name__} or a list of them{example}, got {type(item).__name__}")
    return values


_EXAMPLES = {HeadPose: "HeadPose(yaw=20)", FaceIdentity: "pipe.encode_face(photo)"}


def as_expressions(value: Any) -> list[Expression]:
    """One expression, in any form that [`Expression.of`] takes, or a list of them, as a list."""
    return [Expression.of(item) for item in as_list(value, "expression")]


def check_followed(ffrnet: Any, given: Sequence[str]) -> None:
    """Raises [`InputError`] for arguments that steer the face, by their names, where no FFRNet follows landmarks."""
    if given and ffrnet is None:
        raise InputError(
            f"{given[0]}= has no effect: this adapter has no FFRNet, which follows landmarks; leave it out, or load the"
            " adapter with landmarks_from= of one that has"
        )


def as_boxes(value: Any) -> list[torch.Tensor]:
    """One face box or a list of them as a list of tensors of shape `(4,)`."""
    if value is None:
        return []
    try:
        boxes = torch.as_tensor(np.asarray(value, dtype=np.float32))
    except Exception:  # what an argument of any type can raise
        raise InputError(f"face_box must be four numbers (left, top, right, bottom), got {shown(value)}") from None
    if boxes.ndim not in (1, 2) or boxes.shape[-1] != 4 or boxes.numel() == 0:
        raise InputError(f"face_box must be four numbers (left, top, right, bottom), got {shown(value)}")
    boxes = boxes.reshape(-1, 4)
    for box in boxes:
        check_face_box(tuple(box.tolist()))
    return list(boxes)


def as_landmarks(value: Any, name: str, counts: Sequence[int] = (72,)) -> torch.Tensor:
    """Landmarks in pixels that a caller gives, as a tensor of shape `(batch, points, 2 | 3)`."""
    try:
        points = torch.as_tensor(value, dtype=torch.float32)
    except Exception:  # what an argument of any type can raise
        raise InputError(f"{name} must be a tensor or array of numbers, got {type(value).__name__}") from None
    if points.ndim == 2:
        points = points[None]
    if points.ndim != 3 or points.shape[1] not in counts or points.shape[2] not in (2, 3) or len(points) == 0:
        raise InputError(
            f"{name} must have shape ([batch,] {' or '.join(map(str, counts))}, 2 or 3), got {tuple(points.shape)}"
        )
    if points.is_meta or not torch.isfinite(points).all():
        raise InputError(f"{name} has values that are not finite")
    check_in_pixels(points, name)
    return points


def _with_shape_of(identity: FaceIdentity, coefficients: FaceCoefficients) -> FaceCoefficients:
    if identity.shape is None:
        return coefficients
    own_shape = coefficients.shape
    if len(identity.shape) != own_shape.size(1):
        raise InputError(
            f"identity has {len(identity.shape)} shape coefficients, this landmark predictor has"
            f" {own_shape.size(1)}; encode the face again with encode_face"
        )
    return replace(coefficients, shape=identity.shape[None].to(own_shape))


def _neutral_coefficients(predictor: LandmarkPredictor) -> FaceCoefficients:
    options = {"device": predictor.device}
    return FaceCoefficients(
        shape=torch.zeros(1, len(predictor.shape_basis), **options),
        expression=torch.zeros(1, len(predictor.expression_basis), **options),
        rotation=torch.zeros(1, 3, **options),
        scale=torch.ones(1, **options),
        translation=torch.zeros(1, 3, **options),
    )


def _on_device_of(predictor: LandmarkPredictor, landmarks: torch.Tensor) -> torch.Tensor:
    return landmarks.to(predictor.device, torch.float32)
