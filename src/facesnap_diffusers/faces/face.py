"""What an analyzer says about one face in a photo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError, as_number
from .key_points import five_points


@dataclass(frozen=True, eq=False)
class Face:
    """
    One face in a photo.

    Pixel coordinates have the origin at the center of the top left pixel, x to the right and y down; a box or a landmark
    may lie outside of a tightly cropped photo.

    Args:
        image (`np.ndarray`): `(H, W, 3)`, `uint8`, RGB: the upright photo that `box` and `landmarks` refer to.
        box (`np.ndarray`): `(4,)`, `float32`: x0, y0, x1, y1 in pixels.
        landmarks (`np.ndarray`):
            `(68, 2)` or `(68, 3)`, `float32`, in pixels, in the order of iBUG 68 (jaw 0–16, brows 17–26, nose 27–35,
            eyes 36–47, mouth 48–67; right before left, the person's right). z is towards the camera, in the same unit,
            and has no fixed origin.
        embedding (`np.ndarray`): `(D,)`, `float32`, as the face encoder gives it; ArcFace's have unit length.
        score (`float`): The detector's confidence; the scale is the detector's own.
        encoder (`str`): The face encoder that made the embedding, such as `"insightface/w600k_r50"`.
        key_points (`np.ndarray`, *optional*):
            `(5, 2)`, `float32`, in pixels: right eye, left eye, nose, right and left corner of the mouth, where the
            detector finds them itself.

    Raises:
        InputError: A shape is wrong, a value is not finite, or the embedding is zero.
    """

    image: np.ndarray
    box: np.ndarray
    landmarks: np.ndarray
    embedding: np.ndarray
    score: float
    encoder: str
    key_points: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.image, np.ndarray) or self.image.dtype != np.uint8 or self.image.shape[2:] != (3,):
            raise InputError("image must be an array (H, W, 3) of uint8 in RGB")
        shapes = {"box": ["(4,)"], "landmarks": ["(68, 2)", "(68, 3)"], "embedding": [], "key_points": ["(5, 2)"]}
        for field, allowed in shapes.items():
            value = getattr(self, field)
            if field == "key_points" and value is None:
                continue
            try:
                array = np.asarray(value, dtype=np.float32)
            except Exception as error:  # what an argument of any type can raise
                raise InputError(f"{field} must be an array of numbers, got a {type(value).__name__}") from error
            if array.size == 0 or (str(array.shape) not in allowed if allowed else array.ndim != 1):
                raise InputError(f"{field} must have shape {' or '.join(allowed) or '(D,)'}, got {array.shape}")
            if not np.isfinite(array).all():
                raise InputError(f"{field} has NaN or infinite values; the face analyzer's models may be damaged")
            object.__setattr__(self, field, array)
        if not self.embedding.any():
            raise InputError("embedding is all zero; the face analyzer's models may be damaged")
        object.__setattr__(self, "score", as_number("score", self.score))
        if not isinstance(self.encoder, str):
            raise InputError(f"encoder must be a str, got {type(self.encoder).__name__}")

    @property
    def area(self) -> float:
        """The area of the box, in square pixels."""
        x0, y0, x1, y1 = self.box.tolist()
        return max(x1 - x0, 0.0) * max(y1 - y0, 0.0)

    @property
    def center(self) -> tuple[float, float]:
        """The middle of the box: x and y in pixels."""
        x0, y0, x1, y1 = self.box.tolist()
        return (x0 + x1) / 2, (y0 + y1) / 2

    @property
    def five_points(self) -> np.ndarray:
        """`(5, 2)`: the detector's own key points where it has them, otherwise those of the landmarks."""
        return five_points(self.landmarks) if self.key_points is None else self.key_points
