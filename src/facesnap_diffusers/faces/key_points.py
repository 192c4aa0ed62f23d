"""The five key points of a face: taken from its landmarks, and drawn as InstantID's ControlNet takes them."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch

from ..errors import InputError
from .drawing import check_points, check_size, draw_landmarks
from .layout import NUM_LANDMARKS


Points = TypeVar("Points", np.ndarray, torch.Tensor)

# Right eye (image left), left eye, nose, right and left corner of the mouth; RGB.
KEY_POINT_COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
NOSE = 2
#: Which of the five points each becomes in a mirrored picture: right and left change places.
MIRRORED = [1, 0, 2, 4, 3]
LIMB_HALF_WIDTH = 4
LIMB_BRIGHTNESS = 0.6
POINT_RADIUS = 10
# OpenCV counts in 32-bit integers with 16 bits for fractions. A point that far outside cannot be seen in any picture.
FARTHEST = 2**14


def five_points(landmarks: Points) -> Points:
    """
    The five points that recognizers align faces by: the centers of the right and left eye (means of landmarks 36–41 and
    42–47), the tip of the nose (30), the right and left corner of the mouth (48, 54). "Right" is the person's: image left.

    Args:
        landmarks (`np.ndarray` or `torch.Tensor` of shape `(..., 68 | 72, 2 | 3)`): Landmarks; of three coordinates the
            first two are used. Shape `(..., 5, 2)`: the five points themselves, which are returned as they are.

    Returns:
        `np.ndarray` or `torch.Tensor` of shape `(..., 5, 2)`: As `landmarks`.

    Raises:
        InputError: A wrong shape.
    """
    shape = tuple(getattr(landmarks, "shape", ()))
    if shape[-2:] == (5, 2):
        return landmarks
    if shape[-2:-1] not in ((68,), (NUM_LANDMARKS,)) or shape[-1] not in (2, 3):
        raise InputError(f"landmarks must have shape (..., 68 or 72, 2 or 3) or (..., 5, 2), got {shape}")
    points = landmarks[..., :2]
    right_eye, left_eye = points[..., 36:42, :].mean(-2), points[..., 42:48, :].mean(-2)
    stack = torch.stack if isinstance(points, torch.Tensor) else np.stack
    return stack([right_eye, left_eye, points[..., 30, :], points[..., 48, :], points[..., 54, :]], -2)


def draw_key_points(points: torch.Tensor, height: int, width: int) -> torch.Tensor:
    r"""
    Draws what InstantID's ControlNet (arXiv 2401.07519) is conditioned on, pixel for pixel as its authors' `draw_kps`:
    the five key points as colored discs of radius 10, over dimmed ellipses that join each to the nose, all at whole
    pixels. Sizes are in pixels, as they were in its training, at about 1024.

    Args:
        points (`torch.Tensor` of shape `(batch, 5, 2)` or `(batch, 72, 2)`): The key points, or landmarks from which
            [`five_points`] takes them; in pixels, x right and y down.
        height (`int`): Of the picture, in pixels.
        width (`int`): Of the picture, in pixels.

    Returns:
        `torch.Tensor` of shape `(batch, 3, height, width)`: RGB in `[0, 1]`, float32, on the device of `points`.

    Raises:
        InputError: Points of another shape, or not finite; a size that is not positive.
    """
    check_points(points, (5, NUM_LANDMARKS))
    check_size(height, width)
    if points.dtype != torch.float64:
        points = points.float()
    batch = five_points(points.detach()).clamp(-FARTHEST, FARTHEST).cpu().numpy()
    images = np.zeros((len(batch), height, width, 3), np.uint8)
    for image, five in zip(images, batch, strict=True):
        _draw_five(image, five)
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(points.device, torch.float32) / 255


def draw_for_style(style: str, landmarks: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The picture that an adapter's `landmark_style` asks for."""
    draw = draw_key_points if style == "instantid5" else draw_landmarks
    return draw(landmarks, height, width)


def _draw_five(image: np.ndarray, points: np.ndarray) -> None:
    """Draws five points `(5, 2)` into a black `image`, `(H, W, 3)`, `uint8`."""
    import cv2

    nose = points[NOSE]
    for i, (point, color) in enumerate(zip(points, KEY_POINT_COLORS, strict=True)):
        if i == NOSE:
            continue
        x, y = point - nose
        middle = np.mean([point, nose], axis=0)
        axes = (int((x**2 + y**2) ** 0.5 / 2), LIMB_HALF_WIDTH)
        angle = int(math.degrees(math.atan2(y, x)))
        outline = np.asarray(cv2.ellipse2Poly((int(middle[0]), int(middle[1])), axes, angle, 0, 360, 1))
        cv2.fillConvexPoly(image, outline, color)
    image[:] = (image * LIMB_BRIGHTNESS).astype(np.uint8)
    for point, color in zip(points, KEY_POINT_COLORS, strict=True):
        cv2.circle(image, (int(point[0]), int(point[1])), POINT_RADIUS, color, -1)
