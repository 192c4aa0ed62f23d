"""Finds the face that a photo is about."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import NoFaceFoundError
from .alignment import head_axes
from .choice import FaceChoice
from .face import Face
from .photo import Photo, load_photo


if TYPE_CHECKING:
    from .analyzers import FaceAnalyzer


PADDING = 0.5  # Of the longer side, on every side: a face that fills the photo gets the surroundings detectors expect.
MAX_ROLL = 60.0  # Degrees. A head tilted by less is an upright photo of a tilted head.


def find_face(
    photo: Photo, analyzer: FaceAnalyzer, which: int | FaceChoice | None = None, name: str = "face_image"
) -> Face:
    """
    Finds one face in a photo.

    Where the photo as it is shows no face, it is tried with a margin around (tightly cropped faces), then turned by
    90, 180 and 270°, with the margin too. A face that lies on its side or upside down is analyzed again in the photo
    turned upright.

    Args:
        photo ([`Photo`]): A photo in any form that [`load_photo`] takes.
        analyzer ([`FaceAnalyzer`]): Finds and describes the faces.
        which (`int` or [`FaceChoice`], *optional*): Which face: 0 is the largest (the default), 1 the second largest, and
            so on; a [`FaceChoice`] counts from the left or right, or picks the nearest to a point or to a person. Places
            are those in the photo as it was given.
        name (`str`, *optional*, defaults to `"face_image"`): What errors call the photo.

    Returns:
        [`Face`]: in coordinates of the upright photo without margin, which is its `image`. Where the face is cropped,
        its box and landmarks may reach outside of it.

    Raises:
        PhotoError: The photo cannot be read.
        NoFaceFoundError: No face is found.
        FaceEncoderMismatchError: `which` compares with a person encoded by another face encoder.
        InputError: `which` is not a face in the photo.
    """
    choice = FaceChoice.of(which)
    choice.check_encoder(analyzer.encoder, analyzer.embedding_dim)
    image = load_photo(photo, name)
    faces = analyzer.analyze(image) or analyze_padded(image, analyzer)
    centers = [face.center for face in faces]
    for turns in (1, 3, 2):  # Lying on a side is far more common than upside down.
        if not faces:
            faces = analyze_padded(np.ascontiguousarray(np.rot90(image, turns)), analyzer)
            centers = [_turned(face.center, face.image.shape[:2], 4 - turns) for face in faces]
    if not faces:
        raise NoFaceFoundError(
            f"no face found in {name} ({image.shape[1]}×{image.shape[0]}); crop the photo to head and shoulders, use a"
            " sharper one with more pixels in the face, or pass your own landmarks and embedding"
        )
    return _upright(choice.pick(faces, centers, image.shape[:2], name), analyzer)


def analyze_padded(image: np.ndarray, analyzer: FaceAnalyzer) -> list[Face]:
    """The faces in an image with a margin around, in coordinates of the image without."""
    margin = round(PADDING * max(image.shape[:2]))
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    return [
        replace(
            face,
            image=image,
            box=face.box - margin,
            landmarks=face.landmarks - [margin, margin, 0][: face.landmarks.shape[1]],
            key_points=None if face.key_points is None else face.key_points - margin,
        )
        for face in analyzer.analyze(padded)
    ]


def same_face(face: Face, analyzer: FaceAnalyzer) -> Face:
    """
    A face as another analyzer sees it, in the same image. Raises [`NoFaceFoundError`] where it finds none that covers the
    middle of the face.
    """
    faces = analyzer.analyze(face.image) or analyze_padded(face.image, analyzer)
    x, y = face.center
    same = _covering(faces, x, y)
    if same is None:
        raise NoFaceFoundError(
            f"{analyzer.encoder} finds no face at ({x:.0f}, {y:.0f}), where {face.encoder} does; use a sharper photo with"
            " more pixels in the face"
        )
    return same


def _covering(faces: list[Face], x: float, y: float) -> Face | None:
    """The best face whose box covers a point."""
    covering = [face for face in faces if face.box[0] <= x <= face.box[2] and face.box[1] <= y <= face.box[3]]
    return max(covering, key=lambda face: face.score, default=None)


def _upright(face: Face, analyzer: FaceAnalyzer) -> Face:
    """The same face in its photo turned by the multiple of 90° that puts it upright, if it is found there again."""
    right = head_axes(face.landmarks)[1]
    roll = math.degrees(math.atan2(right[1], right[0]))
    if abs(roll) < MAX_ROLL:
        return face
    turns = round(roll / 90) % 4
    image = np.ascontiguousarray(np.rot90(face.image, turns))
    x, y = _turned(face.center, face.image.shape[:2], turns)
    faces = analyzer.analyze(image) or analyze_padded(image, analyzer)
    return _covering(faces, x, y) or face


def _turned(point: tuple[float, float], size: tuple[int, int], turns: int) -> tuple[float, float]:
    """Where a point of a photo of height and width `size` is after `np.rot90` by so many quarter turns."""
    x, y = point
    height, width = size
    for _ in range(turns):  # np.rot90 turns counter-clockwise: the right edge becomes the top.
        x, y = y, width - 1 - x
        height, width = width, height
    return x, y
