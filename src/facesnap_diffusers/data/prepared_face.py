"""One photo with all that training needs of it: how it is made from a picture, and how it is stored."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import safetensors.numpy
import torch

from ..errors import InputError, one_line
from ..faces.alignment import align_for_encoder
from ..models.landmark_predictor import FaceCoefficients, LandmarkPredictor
from .recognition_crop import align_faces
from .shard_settings import ShardSettings


TAR_BLOCK = 512
MOST_KEY_LENGTH = 79  # with the longest ending, .recognition_crop.png, it fits a tar header's 100 bytes
UNIT_LENGTH_TOLERANCE = 1e-3
# with their shapes, where these are the same for all face encoders and predictors
_ARRAYS = {
    "embedding": None, "landmarks": (72, 2), "shape": None, "expression": None, "rotation": (3,), "scale": (),
    "translation": (3,),
}  # fmt: skip
_LEAST_SCALE = 1e-3  # pixels per centimeter: a head of a fiftieth of a pixel
_MOST = 1e6  # of any value: pixels, degrees, coefficients, lengths


@dataclass
class PreparedFace:
    r"""
    A photo of one person with all that training needs of it. `key.ext` in a shard:

    - `image.<format>`: `image`, encoded;
    - `clip_crop.jpg`: `clip_crop`, what the image encoder sees;
    - `recognition_crop.png`: `recognition_crop`, what the recognizer of the identity loss sees, if there is one;
    - `safetensors`: the arrays, in float32; `json`: `info`.

    Points are in pixels, with the origin at the center of the top left pixel, as in [`Face`]. [`make_face`] makes one from
    a picture, its landmarks and its embedding.

    Attributes:
        image (`bytes`): The photo, an encoded RGB image.
        clip_crop (`bytes`): Encoded, `(size, size)`.
        recognition_crop (`bytes`, *optional*): Encoded, `(size, size)`; see [`align_faces`].
        embedding (`np.ndarray`): `(dim,)`, of the face encoder.
        landmarks (`np.ndarray`): `(72, 2)`, in pixels of `image`.
        key_points (`np.ndarray`, *optional*): `(5, 2)`, in pixels of `image`: those that the detector itself found; see
            [`Face`].
        shape, expression, rotation, scale, translation (`np.ndarray`): [`FaceCoefficients`] in pixels of `image`,
            without the batch dimension.
        info (`dict`): `identity` (`str` or `None`), `caption` (`str` or `None`), `image_format` (`"jpg"` by default),
            `file_size` (width and height of the photo before it was scaled down), `size` (its width and height here), and
            whatever else JSON can hold.
    """

    image: bytes
    clip_crop: bytes
    recognition_crop: bytes | None
    embedding: np.ndarray
    landmarks: np.ndarray
    shape: np.ndarray
    expression: np.ndarray
    rotation: np.ndarray
    scale: np.ndarray
    translation: np.ndarray
    info: dict[str, Any]
    key_points: np.ndarray | None = None

    @property
    def coefficients(self) -> FaceCoefficients:
        """The coefficients as a batch of one."""
        values = (self.shape, self.expression, self.rotation, self.scale, self.translation)
        return FaceCoefficients(*(torch.from_numpy(value)[None] for value in values))

    def to_tar(self, key: str) -> bytes:
        """The sample as a piece of a tar file, without its end. `key`: up to 79 ASCII characters without a dot."""
        from webdataset import TarWriter

        if not key or "." in key or not key.isascii() or len(key) > MOST_KEY_LENGTH:
            raise InputError(f"key {key!r} must be 1 to {MOST_KEY_LENGTH} ASCII characters without a dot; change it")
        names = _ARRAYS if self.key_points is None else (*_ARRAYS, "key_points")
        arrays = {name: np.array(getattr(self, name), np.float32, order="C") for name in names}
        files: dict[str, Any] = {
            f"image.{self.info.get('image_format', 'jpg')}": self.image,
            "clip_crop.jpg": self.clip_crop,
            "recognition_crop.png": self.recognition_crop,
            "safetensors": safetensors.numpy.save(arrays),
            "json": json.dumps(self.info).encode(),
        }
        buffer = io.BytesIO()
        writer = TarWriter(buffer, encoder=False, mtime=0)
        writer.write({"__key__": key, **{name: data for name, data in files.items() if data is not None}})
        end = writer.tarstream.offset
        writer.close()
        return buffer.getvalue()[:end]

    @classmethod
    def from_tar(cls, data: bytes) -> PreparedFace:
        """Reads what [`to_tar`] wrote. Raises [`InputError`] where a part is damaged, missing or not finite."""
        try:
            files = {name.split(".")[1]: content for name, content in _tar_files(data)}
            # copied: arrays on bytes cannot be written to, and torch warns of such
            arrays = {name: array.copy() for name, array in safetensors.numpy.load(files["safetensors"]).items()}
            face = cls(
                image=files["image"],
                clip_crop=files["clip_crop"],
                recognition_crop=files.get("recognition_crop"),
                info=json.loads(files["json"]),
                **arrays,
            )
        except Exception as error:  # many kinds for damaged bytes
            raise InputError(
                f"no prepared photo ({type(error).__name__}: {one_line(error)}); prepare it again"
            ) from error
        face._check()
        return face

    def _check(self) -> None:
        for name, shape in _ARRAYS.items():
            array = getattr(self, name)
            fits = array.ndim == 1 and array.size > 0 if shape is None else array.shape == shape
            if not fits or array.dtype != np.float32 or not np.abs(array).max() <= _MOST:  # also of NaN
                raise InputError(
                    f"{name} must be finite numbers of shape {'(length,)' if shape is None else shape}; prepare the photo again"
                )
        if self.scale < _LEAST_SCALE:
            raise InputError("scale must be positive pixels per centimeter; prepare the photo again")
        if not isinstance(self.info, dict):
            raise InputError("info must be a dictionary; prepare the photo again")
        caption, size = self.info.get("caption"), self.info.get("file_size")
        if not isinstance(caption, str | None):
            raise InputError("caption must be a text; prepare the photo again")
        if size is not None and not (
            isinstance(size, list) and len(size) == 2 and all(type(side) is int and 0 < side <= _MOST for side in size)
        ):
            raise InputError("file_size must be the width and height in pixels; prepare the photo again")


def _tar_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """
    Names and contents of the plain files in a piece of a tar file, as [`to_tar`] writes them: a header block with the
    name in its first 100 bytes and the size in octal at 124, then the content, filled up to whole blocks. `tarfile`, which
    copes with all that tar files may hold, takes forty times as long, at each step of a training run.
    """
    start = 0
    while start < len(data):
        name, size = data[start : start + 100].rstrip(b"\0").decode(), int(data[start + 124 : start + 135], 8)
        start += TAR_BLOCK
        yield name, data[start : start + size]
        start += -(-size // TAR_BLOCK) * TAR_BLOCK


@torch.no_grad()
def make_face(
    image: np.ndarray,
    landmarks: np.ndarray,
    embedding: np.ndarray,
    predictor: LandmarkPredictor,
    settings: ShardSettings,
    *,
    key_points: np.ndarray | None = None,
    coefficients: FaceCoefficients | None = None,
    info: dict[str, Any] | None = None,
    min_side: int | None = None,
) -> PreparedFace:
    r"""
    Prepares a picture whose landmarks are known: found by an analyzer, or exact, as those of a rendered face are.

    Args:
        image (`np.ndarray`): `(height, width, 3)`, `uint8`, RGB.
        landmarks (`np.ndarray`): `(68 or 72, 2 or 3)`, in pixels of `image`, the center of the top left one at (0, 0); depth, if
            there is one, in pixels toward the camera. The eyelid points that 68 landmarks lack are the morphable model's.
        embedding (`np.ndarray`): `(dim,)`, of the face encoder.
        predictor ([`LandmarkPredictor`]): Gives the coefficients; see [`load_landmark_predictor`].
        settings ([`ShardSettings`]): Of the shards that it is for: which crops it has, and how long its embedding is.
        key_points (`np.ndarray`, *optional*): `(5, 2)`, in pixels of `image`: the five points that the detector itself found
            ([`Face.key_points`]), by which the `"arcface"` crop for the image encoder is aligned, as in the pipelines.
        coefficients ([`FaceCoefficients`], *optional*): A batch of one, of this predictor, in pixels of `image`; by default
            the predictor's for `landmarks`, as in the pipelines.
        info (`dict`, *optional*): As in [`PreparedFace`]. `image_format` decides whether `image` becomes a `"jpg"` or `"png"`.
        min_side (`int`, *optional*): A picture whose shorter side is longer is scaled down to it, in pixels.

    Raises:
        InputError: A wrong shape or format, or an embedding that does not have unit length where `settings` say that it has.
    """
    info = {"identity": None, "caption": None, "image_format": "jpg", **(info or {})}
    if info["image_format"] not in ("jpg", "png"):
        raise InputError(f"image_format={info['image_format']!r} must be jpg or png")
    length = float(np.linalg.norm(embedding))
    if settings.normalized_embeds and abs(length - 1) > UNIT_LENGTH_TOLERANCE:
        raise InputError(
            f"the embedding has length {length:.4g}, the shards are for embeddings of unit length; normalize it, or set"
            " normalized_embeds to False"
        )
    points = torch.from_numpy(np.asarray(landmarks, np.float32))[None]  # (1, 68 or 72, 2 or 3)
    if coefficients is None:
        coefficients = predictor.encode(points)
    points = points[..., :2]
    if key_points is not None and np.shape(key_points) != (5, 2):
        raise InputError(f"key_points must have shape (5, 2), got {np.shape(key_points)}")
    clip_crop = align_for_encoder(image, landmarks, settings.image_crop, settings.clip_crop_size, key_points)
    recognition_crop = None
    if settings.recognition_crop is not None:
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255  # (1, 3, height, width)
        aligned = align_faces(pixels, points, settings.recognition_crop, settings.recognition_crop_size)[0]
        recognition_crop = PIL.Image.fromarray((aligned.permute(1, 2, 0) * 255).round().byte().numpy())
    if points.shape[1] == 68:
        points = predictor.repose(points, coefficients, coefficients)  # (1, 72, 2)

    height, width = image.shape[:2]
    scale = min(1.0, min_side / min(height, width)) if min_side else 1.0
    photo = PIL.Image.fromarray(image)
    if scale < 1:
        photo = photo.resize((round(width * scale), round(height * scale)), PIL.Image.Resampling.LANCZOS)
    shape, expression, rotation, size, translation = (value[0].numpy() for value in vars(coefficients).values())
    translation = np.concatenate([resize_points(translation[:2], scale), translation[2:] * scale])
    return PreparedFace(
        image=_encode(photo, info["image_format"]),
        clip_crop=_encode(PIL.Image.fromarray(clip_crop), "jpg"),
        recognition_crop=None if recognition_crop is None else _encode(recognition_crop, "png"),
        embedding=embedding,
        landmarks=resize_points(points[0].numpy(), scale),
        shape=shape,
        expression=expression,
        rotation=rotation,
        scale=size * scale,
        translation=translation,
        info={"file_size": [width, height], **info, "size": [photo.width, photo.height]},
        key_points=None if key_points is None else resize_points(np.asarray(key_points), scale),
    )


def resize_points(
    points: np.ndarray, scale: float | np.ndarray, corner: tuple[float, float] = (0.0, 0.0)
) -> np.ndarray:
    r"""
    Points of an image in the pixels of a part of it that is scaled.

    Args:
        points (`np.ndarray`): `(..., 2)`, x and y in pixels, the center of the top left one at (0, 0).
        scale (`float` or `np.ndarray`): Pixels of the result for each pixel of the image; one, or one along x and one along y.
        corner (`tuple[float, float]`): The part's top left corner, x and y, as boxes of Pillow have it: the top left corner
            of the image, half a pixel from that pixel's center, is at (0, 0).

    Returns:
        `np.ndarray`: `(..., 2)`, the center of the part's top left pixel at (0, 0).
    """
    return (points + 0.5 - corner) * scale - 0.5


def _encode(image: PIL.Image.Image, image_format: str) -> bytes:
    buffer = io.BytesIO()
    if image_format == "png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
