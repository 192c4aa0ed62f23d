"""From a picture of a face, and what is known about it, to what training shards hold."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import PIL.Image
import torch

from ..errors import InputError
from ..faces.alignment import align_for_clip
from ..models.landmark_predictor import FaceCoefficients, LandmarkPredictor
from ..training.alignment import CROP_TEMPLATES, align_faces
from ..training.shards import PreparedFace


@torch.no_grad()
def make_face(
    image: np.ndarray,
    landmarks: np.ndarray,
    embedding: np.ndarray,
    predictor: LandmarkPredictor,
    *,
    coefficients: FaceCoefficients | None = None,
    info: dict[str, Any] | None = None,
    head_size: int = 336,
    crop: str = "arcface",
    crop_size: int | None = None,
    max_side: int | None = None,
) -> PreparedFace:
    r"""
    Prepares a picture whose landmarks are known: found by an analyzer, or exact, as those of a rendered face are.

    Args:
        image (`np.ndarray`): `(height, width, 3)`, `uint8`, RGB.
        landmarks (`np.ndarray`): `(68 or 72, 2 or 3)`, in pixels of `image`, the centre of the top left one at (0, 0); depth, if
            there is one, in pixels towards the camera. The eyelid points that 68 landmarks lack are the morphable model's.
        embedding (`np.ndarray`): `(dim,)`, of the face encoder.
        predictor ([`LandmarkPredictor`]): Gives the coefficients; see [`load_landmark_predictor`].
        coefficients ([`FaceCoefficients`], *optional*): A batch of one, of this predictor, in pixels of `image`; what the
            predictor makes of `landmarks` by default, which is what the pipelines will make of a photo.
        info (`dict`, *optional*): As in [`PreparedFace`]. `image_format` decides whether `image` becomes a `"jpg"` or `"png"`.
        head_size (`int`): Side of the crop for the image encoder, in pixels.
        crop (`str`), crop_size (`int`, *optional*): Crop for the recogniser of the identity loss; see [`align_faces`].
        max_side (`int`, *optional*): A larger picture is scaled down to it.

    Raises:
        InputError: A wrong shape, template or format.
    """
    info = {"identity": None, "caption": None, "image_format": "jpg", **(info or {})}
    if info["image_format"] not in ("jpg", "png"):
        raise InputError(f"image_format={info['image_format']!r} must be jpg or png")
    points = torch.from_numpy(np.asarray(landmarks, np.float32))[None]
    if coefficients is None:
        coefficients = predictor.encode(points)
    points = points[..., :2]
    head = align_for_clip(image, landmarks[:68], head_size)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    face = align_faces(pixels, points, crop, crop_size or CROP_TEMPLATES[crop].size)[0]
    if points.shape[1] == 68:
        points = torch.cat([points, predictor.decode(coefficients)[:, 68:]], dim=1)

    height, width = image.shape[:2]
    scale = min(1.0, max_side / max(height, width)) if max_side else 1.0
    photo = PIL.Image.fromarray(image)
    if scale < 1:
        photo = photo.resize((round(width * scale), round(height * scale)), PIL.Image.Resampling.LANCZOS)
    half_pixel = np.array([0.5, 0.5, 0.0])  # Scaling is about the image's corner, not the first pixel's centre.
    shape, expression, rotation, size, translation = (value[0].numpy() for value in vars(coefficients).values())
    return PreparedFace(
        image=_encode(photo, info["image_format"]),
        head=_encode(PIL.Image.fromarray(head), "jpg"),
        face=_encode(PIL.Image.fromarray((face.permute(1, 2, 0) * 255).round().byte().numpy()), "png"),
        embedding=embedding,
        landmarks=(points[0].numpy() + 0.5) * scale - 0.5,
        shape=shape,
        expression=expression,
        rotation=rotation,
        scale=size * scale,
        translation=(translation + half_pixel) * scale - half_pixel,
        info={**info, "size": [photo.width, photo.height]},
    )


def _encode(image: PIL.Image.Image, image_format: str) -> bytes:
    buffer = io.BytesIO()
    if image_format == "png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
