"""What one photo becomes: the same function on one machine and on many."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cached_property

import cv2
import numpy as np
import PIL.Image
import torch

from ..errors import NoFaceFoundError, PhotoError, one_line
from ..faces.alignment import align_face
from ..faces.analyzers import FaceAnalyzer, default_analyzer
from ..faces.detection import find_face
from ..faces.face import Face
from ..faces.photo import load_photo
from ..models.landmark_predictor import LandmarkPredictor, load_landmark_predictor
from .prepared_face import PreparedFace, make_face
from .shard_settings import PrepareConfig
from .shards import PhotoRecord
from .sources import Item


class PhotoPreparer:
    r"""
    Prepares photos one by one. Never raises because of a photo: its record says what was wrong with it.

    Args:
        config ([`PrepareConfig`]): How.
        analyzer (function, *optional*): Makes the face analyzer; that of `config.face_encoder_id` by default. Made when it
            is first needed, so that this object can be sent to other processes.
    """

    def __init__(self, config: PrepareConfig, analyzer: Callable[[], FaceAnalyzer] | None = None):
        self.config = config
        self.shard_settings = config.shard_settings()
        self._make_analyzer = analyzer

    @cached_property
    def analyzer(self) -> FaceAnalyzer:
        if self._make_analyzer is not None:
            return self._make_analyzer()
        return default_analyzer(self.config.face_encoder_id, bool(self.config.normalized_embeds))

    @cached_property
    def predictor(self) -> LandmarkPredictor:
        return load_landmark_predictor()

    def __call__(self, item: Item) -> tuple[PhotoRecord, PreparedFace | None]:
        """The record of a photo and, if it is kept, what goes into the shard."""
        try:
            return self._prepare(item)
        except PhotoError as error:
            return _rejected(item, "unreadable", error)
        except NoFaceFoundError as error:
            return _rejected(item, "no face", error)
        except Exception as error:  # no photo may end the run, whatever a library raises for it
            return _rejected(item, "failed", error)

    def _prepare(self, item: Item) -> tuple[PhotoRecord, PreparedFace | None]:
        config = self.config
        image = self._load(item)
        analyzer = _CachedAnalyzer(self.analyzer)
        face = find_face(image, analyzer, name="photo")
        image, landmarks = face.image, face.landmarks
        areas = sorted((one.area for one in analyzer.analyze(image)), reverse=True)
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
        focus = sharpness(image, landmarks)
        if focus < config.min_sharpness:
            return _rejected(item, "blurred", f"sharpness {focus:.2f}")

        sample = make_face(
            image,
            landmarks,
            face.embedding,
            self.predictor,
            self.shard_settings,
            coefficients=coefficients,
            info={
                "identity": item.identity,
                "caption": item.caption,
                "source": item.source,
                "image_format": config.image_format,
                "score": face.score,
                "sharpness": round(focus, 3),
            },
            max_side=config.max_side,
        )
        record = PhotoRecord(item.source, True, "kept", identity=item.identity, phash=perceptual_hash(image))
        return record, sample

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
        except Exception as error:  # Pillow's decoders raise many kinds for damaged bytes
            raise PhotoError(f"photo: {len(item.photo)} bytes cannot be decoded ({type(error).__name__})") from error
        return load_photo(image, "photo")


class _CachedAnalyzer:
    """An analyzer that analyzes each image once, however often it is called with it."""

    def __init__(self, analyzer: FaceAnalyzer):
        self._analyzer = analyzer
        self._results: list[tuple[np.ndarray, list[Face]]] = []
        self.encoder, self.embedding_dim = analyzer.encoder, analyzer.embedding_dim

    def analyze(self, image: np.ndarray) -> list[Face]:
        for analyzed, faces in self._results:
            if analyzed is image:
                return faces
        faces = self._analyzer.analyze(image)
        self._results.append((image, faces))
        return faces


def sharpness(image: np.ndarray, landmarks: np.ndarray) -> float:
    r"""
    How much fine structure a face has: the standard deviation of the Laplacian of the face's gray levels at 112 pixels,
    divided by that of the gray levels themselves, times 10. Photos in focus have 3 and more; faces of fewer than 112
    pixels have less.

    Args:
        image (`np.ndarray`): `(height, width, 3)`, `uint8`, RGB.
        landmarks (`np.ndarray`): `(68, 2 or 3)`, in pixels of `image`.
    """
    crop = cv2.cvtColor(align_face(image, landmarks, 112), cv2.COLOR_RGB2GRAY).astype(np.float32)[24:104, 16:96]
    return float(10 * cv2.Laplacian(crop, cv2.CV_32F).std() / max(crop.std(), 1e-3))


def perceptual_hash(image: np.ndarray) -> int:
    """64 bits that hardly change when a photo is scaled or compressed: whether each cell of 8 × 9 is brighter than the next."""
    cells = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA).astype(int)
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "big")


def _rejected(item: Item, reason: str, detail: str | Exception) -> tuple[PhotoRecord, None]:
    text = one_line(detail) if isinstance(detail, Exception) else detail
    if isinstance(detail, Exception) and reason == "failed":
        text = f"{type(detail).__name__}: {text}"
    return PhotoRecord(item.source, False, reason, text, identity=item.identity), None
