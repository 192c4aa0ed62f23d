"""What an analyzer says about one face in a photo."""

from dataclasses import dataclass

import numpy as np

from facesnap_diffusers.errors import InputError


@dataclass(frozen=True, eq=False)
class Face:
    """
    One face in a photo.

    Pixel coordinates have the origin at the centre of the top left pixel, x to the right and y down; a box or a landmark
    may lie outside of a tightly cropped photo.

    Args:
        image (`np.ndarray`): `(H, W, 3)`, `uint8`, RGB: the upright photo that `box` and `landmarks` refer to.
        box (`np.ndarray`): `(4,)`, `float32`: x0, y0, x1, y1 in pixels.
        landmarks (`np.ndarray`):
            `(68, 2)` or `(68, 3)`, `float32`, in pixels, in the order of iBUG 68 (jaw 0–16, brows 17–26, nose 27–35,
            eyes 36–47, mouth 48–67; right before left, the person's right). z is towards the camera, in the same unit,
            and has no fixed origin.
        embedding (`np.ndarray`): `(D,)`, `float32`, as the face encoder gives it; ArcFace's have unit length.
        score (`float`): the detector's confidence; the scale is the detector's own.
        encoder (`str`): the face encoder that made the embedding, such as `"insightface/w600k_r50"`.

    Raises:
        `InputError`: if a shape is wrong, a value is not finite, or the embedding is zero.
    """

    image: np.ndarray
    box: np.ndarray
    landmarks: np.ndarray
    embedding: np.ndarray
    score: float
    encoder: str

    def __post_init__(self) -> None:
        if not isinstance(self.image, np.ndarray) or self.image.dtype != np.uint8 or self.image.shape[2:] != (3,):
            raise InputError("image must be an array (H, W, 3) of uint8 in RGB.")
        for field, shapes in (
            ("box", [(4,)]),
            ("landmarks", [(68, 2), (68, 3)]),
            ("embedding", [np.shape(self.embedding)[:1]]),
        ):
            try:
                array = np.asarray(getattr(self, field), dtype=np.float32)
            except (TypeError, ValueError) as error:
                raise InputError(f"{field} holds no numbers; it must be an array of floating point.") from error
            if array.shape not in shapes or array.size == 0:
                raise InputError(f"{field} has shape {array.shape}; it must be {' or '.join(map(str, shapes))}.")
            if not np.isfinite(array).all():
                raise InputError(f"{field} has NaN or infinite values; the face analyzer's models may be damaged.")
            object.__setattr__(self, field, array)
        if not self.embedding.any():
            raise InputError("embedding is all zero; the face analyzer's models may be damaged.")

    @property
    def area(self) -> float:
        """The area of the box, in square pixels."""
        x0, y0, x1, y1 = self.box.tolist()
        return max(x1 - x0, 0.0) * max(y1 - y0, 0.0)
