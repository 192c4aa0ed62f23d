"""Checks of where a caller wants a face: boxes are in shares of the image, landmarks in pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError, shown


MAX_SIDE = 2.0  # Of a face box, in shares of the image.
MIN_INSIDE = 0.25  # The part of a face box that lies in the image; a face whose middle is in a corner has so much.


def check_face_box(box: Any, name: str = "face_box") -> tuple[float, float, float, float]:
    """
    Checks the box that a face is to fill: left, top, right, bottom as shares of the image. A face may stand half outside:
    at least a quarter of the box lies in the image, and it is at most twice as wide and high.

    Args:
        box (sequence, array or tensor of four numbers): The box.
        name (`str`): What errors call it.

    Raises:
        InputError: It is not such a box; pixels instead of shares are told apart.
    """
    try:
        box = box.detach().cpu() if hasattr(box, "detach") else box
        values = np.asarray(box, dtype=np.float64)
    except Exception as error:  # what an argument of any type can raise
        raise InputError(f"{name} must be four numbers (left, top, right, bottom), got {shown(box)}") from error
    if values.shape != (4,):
        raise InputError(f"{name} must be four numbers (left, top, right, bottom), got {shown(box)}")
    left, top, right, bottom = values.tolist()
    text = f"{name} ({left:g}, {top:g}, {right:g}, {bottom:g})"
    if not np.isfinite(values).all():
        raise InputError(f"{text} has NaN or infinite values; give shares of the image")
    if not (left < right and top < bottom):
        raise InputError(f"{text} must have left < right and top < bottom")
    if right - left > MAX_SIDE or bottom - top > MAX_SIDE:
        raise InputError(f"{text} must hold shares of the image from 0 to 1; divide pixels by its width and height")
    inside = max(min(right, 1) - max(left, 0), 0) * max(min(bottom, 1) - max(top, 0), 0)
    if inside < MIN_INSIDE * (right - left) * (bottom - top):
        raise InputError(f"{text} lies outside of the image, where shares of it go from 0 to 1; move it in")
    return left, top, right, bottom


def check_in_pixels(landmarks: Any, name: str = "landmarks") -> None:
    """
    Raises [`InputError`] where a face's landmarks `(..., points, 2 | 3)`, an array or tensor, are all within two pixels:
    shares of the image, taken for pixels.
    """
    points = landmarks[..., :2]
    if bool((abs(points - points[..., :1, :]) < 2).all()):
        raise InputError(
            f"{name} all lie within two pixels, as shares of the image would; multiply x by its width and y by its height"
        )
