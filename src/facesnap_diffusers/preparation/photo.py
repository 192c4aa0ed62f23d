"""What becomes of one photo: the same function on one machine and on many."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import PIL.Image
import torch

from ..errors import InputError, NoFaceFoundError, PhotoError
from ..faces.analyzers import FaceAnalyzer, default_analyzer
from ..faces.detection import find_face
from ..faces.face import Face
from ..faces.photo import load_photo
from ..models.landmark_predictor import LandmarkPredictor, load_landmark_predictor
from ..training.alignment import CROP_TEMPLATES
from ..training.shards import Fate, PreparedFace
from .face import make_face
from .sources import Item


@dataclass(frozen=True)
class PrepareConfig:
    r"""
    How photos are prepared, and which are left out.

    Attributes:
        face_encoder (`str`): Face encoder of the embeddings, as [`default_analyzer`] knows it.
        crop (`str`), crop_size (`int`, *optional*): Aligned crop for the recogniser of the identity loss, `"arcface"` or
            `"dlib"`.
        head_size (`int`): Side of the crop for the image encoder.
        max_side (`int`): Photos are scaled down to it.
        image_format (`str`): Of the photos in the shards: `"jpg"` or `"png"`.
        min_face (`float`): Least width of a face's landmarks, in pixels of the photo.
        min_sharpness (`float`): Least [`sharpness`] of the face.
        max_yaw (`float`), max_pitch (`float`): Most that a head may be turned, in degrees.
        max_outside (`float`): Most of the landmarks that may lie outside of the photo, as a share.
        second_face (`float`): A photo in which the second largest face has more than this share of the largest one's
            area shows several people.
        duplicate_bits (`int`): Photos whose perceptual hashes differ in at most so many of 64 bits are duplicates; -1
            keeps all.
    """

    face_encoder: str = "insightface/w600k_r50"
    crop: str = "arcface"
    crop_size: int | None = None
    head_size: int = 336
    max_side: int = 1024
    image_format: str = "jpg"
    min_face: float = 64.0
    min_sharpness: float = 2.4
    max_yaw: float = 60.0
    max_pitch: float = 45.0
    max_outside: float = 0.1
    second_face: float = 0.3
    duplicate_bits: int = 3

    def __post_init__(self) -> None:
        if self.crop not in CROP_TEMPLATES:
            raise InputError(f"crop={self.crop!r} is unknown; choose one of {', '.join(CROP_TEMPLATES)}")
        if self.image_format not in ("jpg", "png"):
            raise InputError(f"image_format={self.image_format!r} must be jpg or png")
        if not -1 <= self.duplicate_bits <= 15:
            raise InputError(f"duplicate_bits={self.duplicate_bits} must be from -1 to 15")

    @property
    def face_crop(self) -> tuple[str, int]:
        return self.crop, self.crop_size or CROP_TEMPLATES[self.crop].size

    def settings(self) -> dict[str, Any]:
        """What a prepared folder says of how it was made."""
        return {**asdict(self), "face_crop": list(self.face_crop)}


class PhotoPreparer:
    r"""
    Prepares photos one by one. Never raises because of a photo: its fate says what was wrong with it.

    Args:
        config ([`PrepareConfig`]): How.
        analyzer (function, *optional*): Makes the face analyzer; that of `config.face_encoder` by default. Made when it is
            first needed, so that this object can be sent to other processes.
    """

    def __init__(self, config: PrepareConfig, analyzer: Callable[[], FaceAnalyzer] | None = None):
        self.config = config
        self._make_analyzer = analyzer

    @cached_property
    def analyzer(self) -> FaceAnalyzer:
        return self._make_analyzer() if self._make_analyzer else default_analyzer(self.config.face_encoder)

    @cached_property
    def predictor(self) -> LandmarkPredictor:
        return load_landmark_predictor()

    def __call__(self, item: Item) -> tuple[Fate, PreparedFace | None]:
        """The fate of a photo and, if it is kept, what goes into the shard."""
        try:
            return self._prepare(item)
        except PhotoError as error:
            return _rejected(item, "unreadable", error)
        except NoFaceFoundError as error:
            return _rejected(item, "no face", error)
        except Exception as error:  # Whatever a photo makes a library stumble over must not end the run.
            return _rejected(item, "failed", error)

    def _prepare(self, item: Item) -> tuple[Fate, PreparedFace | None]:
        config = self.config
        image = self._load(item)
        analyzer = _Remembering(self.analyzer)
        face = find_face(image, analyzer, name="photo")
        image, landmarks = face.image, face.landmarks
        areas = sorted((other.area for other in analyzer.analyze(image)), reverse=True)
        if len(areas) > 1 and areas[1] > config.second_face * areas[0]:
            return _rejected(
                item, "several faces", f"{len(areas)} faces, the second of {areas[1] / areas[0]:.2f} the size"
            )
        low, high = landmarks[:, :2].min(axis=0), landmarks[:, :2].max(axis=0)
        width = float((high - low).max())
        if width < config.min_face:
            return _rejected(item, "small face", f"{width:.0f} pixels")
        size = np.array([image.shape[1], image.shape[0]])
        outside = float(((landmarks[:, :2] < 0) | (landmarks[:, :2] >= size)).any(axis=1).mean())
        if outside > config.max_outside:
            return _rejected(item, "cut off", f"{outside:.0%} of the landmarks are outside of the photo")

        with torch.no_grad():
            coefficients = self.predictor.encode(torch.from_numpy(landmarks).float()[None])
        yaw, pitch, _ = coefficients.rotation[0].tolist()
        if abs(yaw) > config.max_yaw or abs(pitch) > config.max_pitch:
            return _rejected(item, "pose", f"yaw {yaw:.0f}°, pitch {pitch:.0f}°")
        sharp = sharpness(image, landmarks)
        if sharp < config.min_sharpness:
            return _rejected(item, "blurred", f"sharpness {sharp:.2f}")

        crop, crop_size = config.face_crop
        sample = make_face(
            image,
            landmarks,
            face.embedding,
            self.predictor,
            coefficients=coefficients,
            info={
                "identity": item.identity,
                "caption": item.caption,
                "source": item.source,
                "image_format": config.image_format,
                "score": face.score,
                "sharpness": round(sharp, 3),
            },
            head_size=config.head_size,
            crop=crop,
            crop_size=crop_size,
            max_side=config.max_side,
        )
        fate = Fate(item.source, True, "kept", identity=item.identity, phash=perceptual_hash(image))
        return fate, sample

    def _load(self, item: Item) -> np.ndarray:
        if item.photo is None:
            raise PhotoError("photo: the input has no image here")
        if isinstance(item.photo, str):
            return load_photo(item.photo, "photo")
        try:
            image = PIL.Image.open(io.BytesIO(item.photo))
            image.load()
        except PIL.Image.DecompressionBombError as error:
            raise PhotoError(f"photo has too many pixels ({error})") from error
        except Exception as error:  # Pillow's decoders raise whatever damaged bytes make them stumble over.
            raise PhotoError(f"photo: {len(item.photo)} bytes cannot be decoded ({type(error).__name__})") from error
        return load_photo(image, "photo")


class _Remembering:
    """An analyzer that looks at an image once, however often it is asked."""

    def __init__(self, analyzer: FaceAnalyzer):
        self._analyzer = analyzer
        self._known: list[tuple[np.ndarray, list[Face]]] = []
        self.encoder, self.embedding_dim = analyzer.encoder, analyzer.embedding_dim

    def analyze(self, image: np.ndarray) -> list[Face]:
        for known, faces in self._known:
            if known is image:
                return faces
        faces = self._analyzer.analyze(image)
        self._known.append((image, faces))
        return faces


def sharpness(image: np.ndarray, landmarks: np.ndarray) -> float:
    r"""
    How much fine structure a face has: the standard deviation of the Laplacian of the face's grey levels at 112 pixels,
    in grey levels, relative to that of the grey levels themselves, times 10. Photos in focus have 3 and
    more; faces of fewer than 112 pixels have less.
    """
    from ..faces.alignment import align_face

    crop = cv2.cvtColor(align_face(image, landmarks, 112), cv2.COLOR_RGB2GRAY).astype(np.float32)[24:104, 16:96]
    return float(10 * cv2.Laplacian(crop, cv2.CV_32F).std() / max(crop.std(), 1e-3))


def perceptual_hash(image: np.ndarray) -> int:
    """64 bits that hardly change when a photo is scaled or compressed: whether each cell of 8 × 9 is brighter than the next."""
    cells = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA).astype(int)
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "big")


def _rejected(item: Item, reason: str, detail: str | Exception) -> tuple[Fate, None]:
    text = " ".join(str(detail).split())[:300]
    if isinstance(detail, Exception) and reason == "failed":
        text = f"{type(detail).__name__}: {text}"
    return Fate(item.source, False, reason, text, identity=item.identity), None
