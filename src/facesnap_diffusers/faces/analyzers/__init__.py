"""Face analyzers: from a photo to its faces, each with a box, landmarks and an embedding."""

from __future__ import annotations

import copy
import threading
from typing import Protocol, runtime_checkable

import numpy as np

from ...errors import InputError, shown
from ..face import Face
from .dlib import DlibFaceAnalyzer
from .insightface import MODEL_PACKS, InsightFaceAnalyzer


__all__ = ["DlibFaceAnalyzer", "FaceAnalyzer", "InsightFaceAnalyzer", "default_analyzer"]


@runtime_checkable
class FaceAnalyzer(Protocol):
    """
    Finds the faces in a photo and describes each. Any class with these members will do; where pipelines are called from
    several threads, `analyze` is too.

    Attributes:
        encoder (`str`):
            The name of the face encoder that makes the embeddings. An adapter only takes embeddings of the encoder that
            it was trained with, so the same name must mean the same weights.
        embedding_dim (`int`): The length D of an embedding.
    """

    encoder: str
    embedding_dim: int

    def analyze(self, image: np.ndarray) -> list[Face]:
        """Returns all faces in an upright photo, `(H, W, 3)`, `uint8`, RGB, in any order; none: an empty list."""
        ...


_shared: dict[tuple[str, bool], FaceAnalyzer] = {}
_shared_lock = threading.Lock()


def default_analyzer(encoder: str, normalize: bool = True) -> FaceAnalyzer:
    """
    The analyzer that has a given face encoder. It is made once in a process and shared by all that ask for it.

    Args:
        encoder (`str`):
            `"insightface/w600k_r50"` (the pack buffalo_l), `"insightface/glintr100"` (antelopev2),
            `"insightface/w600k_mbf"` (buffalo_s) or `"dlib/face_recognition_resnet_model_v1"`.
        normalize (`bool`): Whether InsightFace's embeddings are brought to unit length; dlib's keep theirs.

    Raises:
        InputError: No analyzer is known for it, or its models could not be loaded.
        MissingDependencyError: The library that runs it is not installed.
    """
    if encoder != DlibFaceAnalyzer.encoder and encoder not in list(MODEL_PACKS):
        known = ", ".join([*MODEL_PACKS, DlibFaceAnalyzer.encoder])
        raise InputError(
            f"encoder={shown(encoder)} is not one of {known}; make its analyzer yourself, e.g. InsightFaceAnalyzer('folder')"
        )
    key = (encoder, bool(normalize))
    with _shared_lock:
        if key not in _shared:
            _shared[key] = _make_analyzer(encoder, bool(normalize))
        return _shared[key]


def gives_key_points(encoder: str) -> bool:
    """Whether the package's analyzer of a face encoder finds key points besides landmarks: InsightFace's does, dlib's not."""
    return encoder.startswith("insightface/")


def _make_analyzer(encoder: str, normalize: bool) -> FaceAnalyzer:
    twin = _shared.get((encoder, not normalize))  # has the same models
    if encoder == DlibFaceAnalyzer.encoder:
        return twin or DlibFaceAnalyzer()
    if isinstance(twin, InsightFaceAnalyzer):
        analyzer = copy.copy(twin)
        analyzer.normalize = normalize
        return analyzer
    analyzer = InsightFaceAnalyzer(MODEL_PACKS[encoder], normalize=normalize)
    if analyzer.encoder != encoder:
        raise InputError(f"encoder={encoder!r}: the pack {MODEL_PACKS[encoder]} here has {analyzer.encoder} instead")
    return analyzer
