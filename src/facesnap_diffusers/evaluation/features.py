"""What the frozen networks find in an image, kept on disk by the image's content, so that it is computed once."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from ..clip import ClipEncoder
from ..errors import NoFaceFoundError
from ..faces.analyzers import FaceAnalyzer, default_analyzer
from ..faces.detection import find_face
from ..faces.face import Face
from ..faces.photo import load_photo
from ..files import atomic_file


@dataclass(frozen=True)
class FoundFace:
    """A face without its pixels: `landmarks` `(68, 2 or 3)`, `embedding` `(D,)`, `size`: height and width of its image."""

    landmarks: np.ndarray
    embedding: np.ndarray
    size: tuple[int, int]


@dataclass(frozen=True)
class Features:
    """
    Attributes:
        faces (`dict[str, FoundFace]`): The face, by the id of each face encoder that found one.
        clip (`np.ndarray` of shape `(D,)`, *optional*): CLIP's image embedding, of unit length.
    """

    faces: dict[str, FoundFace] = field(default_factory=dict)
    clip: np.ndarray | None = None


@cache
def shared_analyzer(face_encoder_id: str, normalize: bool = True) -> FaceAnalyzer:
    """[`default_analyzer`], loaded once for all methods and metrics that need it."""
    return default_analyzer(face_encoder_id, normalize)


class FeatureStore:
    r"""
    Computes [`Features`] of image files, or reads those of an earlier run.

    Args:
        folder (`Path`): Where they are kept: an `.npz` an image, named by the digest of its file.
        analyzers (`Sequence[FaceAnalyzer]`): Find and describe faces; the landmarks of the first one count.
        clip ([`ClipEncoder`], *optional*): For CLIP metrics.
    """

    def __init__(self, folder: Path, analyzers: Sequence[FaceAnalyzer], clip: ClipEncoder | None = None):
        self.folder = Path(folder)
        self.analyzers = list(analyzers)
        self.clip = clip
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, path: Path, is_photo: bool = False) -> Features:
        r"""
        The features of an image file.

        Args:
            path (`Path`): The image.
            is_photo (`bool`): A photo's face is searched for by [`find_face`], as the pipelines do. In a generated image
                only upright faces count.
        """
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:32]
        stored = self.folder / f"{digest}{'-photo' if is_photo else ''}.npz"
        arrays = _read(stored)
        missing = [analyzer for analyzer in self.analyzers if f"found/{analyzer.encoder}" not in arrays]
        missing_clip = self.clip is not None and f"clip/{self.clip.model_id}" not in arrays
        if missing or missing_clip:
            image = load_photo(path, str(path))
            for analyzer in missing:
                arrays |= _face_arrays(_find(image, analyzer, is_photo), analyzer.encoder)
            if self.clip is not None and missing_clip:
                arrays[f"clip/{self.clip.model_id}"] = self.clip.encode_images([image])[0]
            _write(stored, arrays)

        faces = {}
        for encoder_id in (analyzer.encoder for analyzer in self.analyzers):
            if arrays[f"found/{encoder_id}"]:
                height, width = arrays[f"size/{encoder_id}"].tolist()
                faces[encoder_id] = FoundFace(
                    arrays[f"landmarks/{encoder_id}"], arrays[f"embedding/{encoder_id}"], (height, width)
                )
        return Features(faces, arrays[f"clip/{self.clip.model_id}"] if self.clip is not None else None)


def _find(image: np.ndarray, analyzer: FaceAnalyzer, is_photo: bool) -> Face | None:
    if is_photo:
        try:
            return find_face(image, analyzer)
        except NoFaceFoundError:
            return None
    return max(analyzer.analyze(image), key=lambda face: (face.area, face.score), default=None)


def _face_arrays(face: Face | None, encoder_id: str) -> dict[str, np.ndarray]:
    arrays = {f"found/{encoder_id}": np.array(face is not None)}
    if face is not None:
        arrays[f"landmarks/{encoder_id}"] = face.landmarks
        arrays[f"embedding/{encoder_id}"] = face.embedding
        arrays[f"size/{encoder_id}"] = np.array(face.image.shape[:2])
    return arrays


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as arrays:
            return {name.replace("|", "/"): arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return {}  # missing or damaged: computed again


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with atomic_file(path) as temporary:
        np.savez(temporary, allow_pickle=False, **{name.replace("/", "|"): array for name, array in arrays.items()})
