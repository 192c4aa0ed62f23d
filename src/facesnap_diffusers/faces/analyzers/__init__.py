"""Face analyzers: from a photo to its faces, each with a box, landmarks and an embedding."""

from typing import Protocol, runtime_checkable

import numpy as np

from facesnap_diffusers.errors import InputError
from facesnap_diffusers.faces.analyzers.dlib import DlibFaceAnalyzer
from facesnap_diffusers.faces.analyzers.insightface import MODEL_PACKS, InsightFaceAnalyzer
from facesnap_diffusers.faces.face import Face


__all__ = ["DlibFaceAnalyzer", "FaceAnalyzer", "InsightFaceAnalyzer", "default_analyzer"]


@runtime_checkable
class FaceAnalyzer(Protocol):
    """
    Finds the faces in a photo and describes each. Any class with these members will do.

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


def default_analyzer(encoder: str, normalize: bool = True) -> FaceAnalyzer:
    """
    Makes the analyzer that has a given face encoder.

    Args:
        encoder (`str`):
            `"insightface/w600k_r50"` (the pack buffalo_l), `"insightface/glintr100"` (antelopev2),
            `"insightface/w600k_mbf"` (buffalo_s) or `"dlib/face_recognition_resnet_model_v1"`.
        normalize (`bool`): Whether InsightFace's embeddings are brought to unit length; dlib's keep theirs.

    Raises:
        `InputError`: if no analyzer is known for it, or its models are neither there nor to be had.
        `MissingDependencyError`: if the library that runs it is not installed.
    """
    if encoder == DlibFaceAnalyzer.encoder:
        return DlibFaceAnalyzer()
    if encoder in MODEL_PACKS:
        analyzer = InsightFaceAnalyzer(MODEL_PACKS[encoder], normalize=normalize)
        if analyzer.encoder != encoder:
            raise InputError(
                f"encoder={encoder!r}: the pack {MODEL_PACKS[encoder]} here has {analyzer.encoder} instead."
            )
        return analyzer
    known = ", ".join([*MODEL_PACKS, DlibFaceAnalyzer.encoder])
    raise InputError(
        f"encoder={encoder!r} is not one of {known}; make its analyzer yourself, e.g. InsightFaceAnalyzer('folder')."
    )
