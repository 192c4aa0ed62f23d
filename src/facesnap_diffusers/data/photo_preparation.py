"""What one photo becomes: the same function on one machine and on many."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from ..errors import InputError, MissingDependencyError, NoFaceFoundError, PhotoError, one_line
from ..faces.alignment import align_face
from ..faces.analyzers import FaceAnalyzer, InsightFaceAnalyzer, default_analyzer
from ..faces.analyzers.insightface import MODEL_PACKS
from ..faces.detection import find_face
from ..faces.face import Face
from ..faces.photo import load_photo
from ..models.landmark_predictor import LandmarkPredictor, load_landmark_predictor
from .captioning import Captioner
from .face_words import without_face
from .prepared_face import PreparedFace, make_face
from .shard_settings import PrepareConfig
from .shards import PhotoRecord
from .sources import Item, is_address, read_photo


#: What each process makes for itself.
_OWN = ("analyzer", "predictor", "captioner")


class PhotoPreparer:
    r"""
    Prepares photos one by one. A photo never raises: its record says what was wrong with it. What concerns all photos does:
    a face encoder that is unknown, a model pack, a captioning model or a library that is missing.

    Args:
        config ([`PrepareConfig`]): How.
        analyzer (function, *optional*): Makes the face analyzer; that of `config.face_encoder_id` by default. Made when it
            is first needed, so that this object can be sent to other processes.
        providers (`list[str]`, *optional*): Execution providers of ONNX Runtime for InsightFace's models, e.g.
            `["CUDAExecutionProvider"]`; see [`InsightFaceAnalyzer`].
        device_id (`int`, *optional*): The GPU on which they and the captioning model run.
    """

    def __init__(
        self,
        config: PrepareConfig,
        analyzer: Callable[[], FaceAnalyzer] | None = None,
        providers: list[str] | None = None,
        device_id: int | None = None,
    ):
        self.config = config
        self.shard_settings = config.shard_settings()
        self.providers = providers
        self.device_id = device_id
        self._make_analyzer = analyzer

    def __getstate__(self) -> dict[str, Any]:
        """Without what each process makes for itself."""
        return {name: value for name, value in vars(self).items() if name not in _OWN}

    @cached_property
    def analyzer(self) -> FaceAnalyzer:
        encoder, normalize = self.config.face_encoder_id, bool(self.config.normalized_embeds)
        if self._make_analyzer is not None:
            return self._make_analyzer()
        if self.providers is None and self.device_id is None:
            return default_analyzer(encoder, normalize)
        if encoder not in MODEL_PACKS:
            raise InputError(
                f"face_encoder_id is {encoder!r}, which does not run on ONNX Runtime; leave out providers and devices"
            )
        providers: list[Any] = list(self.providers or ["CUDAExecutionProvider"])
        if self.device_id is not None:
            on_device = {"device_id": self.device_id}
            providers = [name if name == "CPUExecutionProvider" else (name, on_device) for name in providers]
        return InsightFaceAnalyzer(MODEL_PACKS[encoder], providers=providers, normalize=normalize)

    @cached_property
    def predictor(self) -> LandmarkPredictor:
        return load_landmark_predictor()

    @cached_property
    def captioner(self) -> Captioner | None:
        config = self.config
        if config.caption_model is None:
            return None
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device_id is not None:
            device = f"cuda:{self.device_id}"
        return Captioner(config.caption_model, config.caption_prompt, config.leave_out_face, device)

    def check(self) -> None:
        """
        Makes analyzer, predictor and captioning model, and gives them a gray picture. Raises what is wrong with the
        environment.
        """
        gray = np.full((128, 128, 3), 128, np.uint8)
        self.analyzer.analyze(gray)
        assert self.predictor is not None
        if self.captioner is not None:
            self.captioner.check(PIL.Image.fromarray(gray))

    def release(self) -> None:
        """Frees what `check` made, for other processes make their own."""
        for name in _OWN:
            vars(self).pop(name, None)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def __call__(self, item: Item) -> tuple[PhotoRecord, PreparedFace | None]:
        """The record of a photo and, if it is kept, what goes into the shard."""
        analyzer = self.analyzer  # not within what is said of the photo
        captioner = self.captioner
        try:
            return self._prepare(item, analyzer, captioner)
        except PhotoError as error:
            return _rejected(item, "unreadable", error)
        except NoFaceFoundError as error:
            return _rejected(item, "no face", error)
        except (ImportError, MissingDependencyError):
            raise
        except Exception as error:  # no photo may end the run, whatever a library raises for it
            return _rejected(item, "failed", error)

    def _prepare(
        self, item: Item, face_analyzer: FaceAnalyzer, captioner: Captioner | None
    ) -> tuple[PhotoRecord, PreparedFace | None]:
        config = self.config
        image, file_size = self._load(item)
        side = min(image.shape[:2])
        if side < config.min_side * config.resolution:
            return _rejected(item, "small photo", f"{side} pixels, for training pictures of {config.resolution}")
        analyzer = _CachedAnalyzer(face_analyzer)
        face = find_face(image, analyzer, name="photo")
        if face.image.shape != image.shape:  # it lay on its side
            file_size = file_size[::-1]
        image, landmarks = face.image, face.landmarks
        areas = sorted((one.area for one in analyzer.analyze(image)), reverse=True)
        if len(areas) > 1 and areas[1] > config.second_face * areas[0]:
            return _rejected(
                item, "several faces", f"{len(areas)} faces, the second of {areas[1] / areas[0]:.2f} the size"
            )
        low, high = landmarks[:, :2].min(axis=0), landmarks[:, :2].max(axis=0)
        width = float((high - low).max()) * config.resolution / side
        if width < config.min_face:
            return _rejected(item, "small face", f"{width:.0f} pixels of a training picture of {config.resolution}")
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
            key_points=face.key_points,
            coefficients=coefficients,
            info={
                "identity": item.identity,
                "caption": item.caption,
                "source": item.source,
                "image_format": config.image_format,
                "file_size": list(file_size),
                "score": face.score,
                "sharpness": round(focus, 3),
            },
            min_side=config.stored_side,
        )
        if captioner is not None and not item.caption:
            sample.info["caption"] = captioner(PIL.Image.open(io.BytesIO(sample.image)))
        if config.leave_out_face and sample.info["caption"]:
            sample.info["caption"] = without_face(sample.info["caption"]) or None
        record = PhotoRecord(
            item.source,
            True,
            "kept",
            identity=item.identity,
            phash=perceptual_hash(image),
            face_hash=perceptual_hash(align_face(image, landmarks, 112)),
        )
        return record, sample

    def _load(self, item: Item) -> tuple[np.ndarray, tuple[int, int]]:
        """The upright photo, and the width and height that its file has."""
        if item.photo is None:
            raise PhotoError("photo: the input has no image here")
        data = _read(item.photo) if isinstance(item.photo, str) else item.photo
        try:
            image = PIL.Image.open(io.BytesIO(data))
            image.load()
        except PIL.Image.DecompressionBombError as error:
            raise PhotoError(f"photo has too many pixels ({error})") from error
        except Exception as error:  # Pillow's decoders raise many kinds for damaged bytes
            raise PhotoError(f"photo cannot be decoded ({type(error).__name__}: {one_line(error)})") from error
        width, height = PIL.ImageOps.exif_transpose(image).size
        return load_photo(image, "photo"), (width, height)


def _read(photo: str) -> bytes:
    """What goes wrong here is not the photo's fault, but where it is missing from a folder that is there."""
    try:
        return read_photo(photo) if is_address(photo) else Path(photo).read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        if not is_address(photo) and not Path(photo).parent.is_dir():
            raise
        raise PhotoError(f"photo {photo!r} does not exist") from error


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


def mirrored_hash(phash: int) -> int:
    """The [`perceptual_hash`] of the mirrored photo: each row of comparisons in reverse, with the opposite results."""
    bits = np.unpackbits(np.frombuffer(phash.to_bytes(8, "big"), np.uint8)).reshape(8, 8)
    return int.from_bytes(np.packbits(1 - bits[:, ::-1]).tobytes(), "big")


def _rejected(item: Item, reason: str, detail: str | Exception) -> tuple[PhotoRecord, None]:
    text = one_line(detail) if isinstance(detail, Exception) else detail
    if isinstance(detail, Exception) and reason == "failed":
        text = f"{type(detail).__name__}: {text}"
    return PhotoRecord(item.source, False, reason, text, identity=item.identity), None
