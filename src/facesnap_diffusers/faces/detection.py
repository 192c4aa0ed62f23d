"""Finds the face that a photo is about."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from facesnap_diffusers.errors import InputError, NoFaceFoundError
from facesnap_diffusers.faces.alignment import head_axes
from facesnap_diffusers.faces.face import Face
from facesnap_diffusers.faces.photo import Photo, load_photo


if TYPE_CHECKING:
    from facesnap_diffusers.faces.analyzers import FaceAnalyzer


PADDING = 0.5  # Of the longer side, on every side: a face that fills the photo gets the surroundings detectors expect.
MAX_ROLL = 60.0  # Degrees. A head tilted by less is an upright photo of a tilted head.


def find_face(photo: Photo, analyzer: "FaceAnalyzer", face_index: int | None = None, name: str = "face_image") -> Face:
    """
    Finds one face in a photo.

    Where the photo as it is shows no face, it is tried with a margin around (tightly cropped faces), then turned by
    90, 180 and 270°, with the margin too. A face that lies on its side or upside down is analysed again in the photo
    turned upright.

    Args:
        photo (`PIL.Image.Image`, `str`, `Path`, `np.ndarray` or `torch.Tensor`): A photo in any form that [`load_photo`] takes.
        analyzer ([`FaceAnalyzer`]): Finds and describes the faces.
        face_index (`int`, *optional*): Which face: 0 is the largest (the default), 1 the second largest, and so on.
        name (`str`, *optional*, defaults to `"face_image"`): What errors call the photo.

    Returns:
        [`Face`]: in coordinates of the upright photo without margin, which is its `image`. Where the face is cropped,
        its box and landmarks may reach outside of it.

    Raises:
        `PhotoError`: if the photo cannot be read.
        `NoFaceFoundError`: if no face is found.
        `InputError`: if `face_index` is no index of a face in the photo.
    """
    if face_index is not None and (isinstance(face_index, bool) or not isinstance(face_index, (int, np.integer))):
        raise InputError(f"face_index={face_index!r} must be an integer, 0 for the largest face.")
    image = load_photo(photo, name)
    faces = analyzer.analyze(image) or _analyze_padded(image, analyzer)
    for turns in (1, 3, 2):  # Lying on a side is far more common than upside down.
        if not faces:
            faces = _analyze_padded(np.ascontiguousarray(np.rot90(image, turns)), analyzer)
    if not faces:
        raise NoFaceFoundError(
            f"no face found in {name} ({image.shape[1]}×{image.shape[0]}); use a larger, sharper or less cropped photo, "
            "or pass your own landmarks and embedding."
        )
    faces = sorted(faces, key=lambda face: (face.area, face.score), reverse=True)
    index = 0 if face_index is None else int(face_index)
    if not 0 <= index < len(faces):
        raise InputError(
            f"face_index={index} is out of range: {name} shows {len(faces)} face{'s' if len(faces) > 1 else ''}, "
            "counted from 0, the largest first."
        )
    return _upright(faces[index], analyzer)


def _analyze_padded(image: np.ndarray, analyzer: "FaceAnalyzer") -> list[Face]:
    """The faces in an image with a margin around, in coordinates of the image without."""
    margin = round(PADDING * max(image.shape[:2]))
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    return [
        replace(
            face,
            image=image,
            box=face.box - margin,
            landmarks=face.landmarks - [margin, margin, 0][: face.landmarks.shape[1]],
        )
        for face in analyzer.analyze(padded)
    ]


def _upright(face: Face, analyzer: "FaceAnalyzer") -> Face:
    """The same face in its photo turned by the multiple of 90° that puts it upright, if it is found there again."""
    right = head_axes(face.landmarks)[1]
    roll = math.degrees(math.atan2(right[1], right[0]))
    if abs(roll) < MAX_ROLL:
        return face
    turns = round(roll / 90) % 4
    image = np.ascontiguousarray(np.rot90(face.image, turns))
    height, width = face.image.shape[:2]
    x, y = (face.box[:2] + face.box[2:]) / 2
    for _ in range(turns):  # np.rot90 turns counter-clockwise: the right edge becomes the top.
        x, y = y, width - 1 - x
        height, width = width, height
    faces = analyzer.analyze(image) or _analyze_padded(image, analyzer)
    same = [face for face in faces if face.box[0] <= x <= face.box[2] and face.box[1] <= y <= face.box[3]]
    return max(same, key=lambda face: face.score, default=face)
