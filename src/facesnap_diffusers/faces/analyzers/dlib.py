"""Faces by dlib: works offline from two wheels."""

from __future__ import annotations

import importlib.util
import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from ...errors import MissingDependencyError
from ..face import Face


if TYPE_CHECKING:
    import dlib


# The detectors see faces from 80 px, so the side that a photo is scaled to sets how small a part of it a face may be.
SMALLEST_FACE = 80
SMALLEST_PHOTO = 65  # Longer side; a face in fewer pixels says little about who it is.
FRONTAL_SIDE = 640  # HOG, at least: 1/8 of the photo's longer side, in 0.05 s.
LARGEST_FRONTAL_SIDE = 2048  # HOG, at most: 1/25, in 0.6 s.
ENLARGED_SIDE = 1280  # HOG, where nothing or only small faces are found: 1/16, in 0.25 s.
SMALL_FACE = 2 * SMALLEST_FACE  # Where no face is larger than this, others of their size are overlooked.
ANY_POSE_SIDE = 360  # MMOD, at most: 1/4.5, in 0.8 s.
SMALLER_TURNED_FACE = 0.8  # Turned faces are looked for down to this part of the largest frontal one's side.
FILLING_FACE = 0.55  # A frontal face of this part of the photo leaves no room for another.
SAME_FACE = 0.3  # Intersection over union of two boxes of one face.
CROP_SIDE = 256
RECOGNIZER_FILE = "dlib_face_recognition_resnet_model_v1.dat"


_MISSING = 'dlib and its models are not installed: pip install "facesnap-diffusers[dlib]"'


def dlib_models() -> Path:
    """The folder of dlib's models in the package `face-recognition-models`. Raises [`MissingDependencyError`]."""
    # The package imports pkg_resources, which newer setuptools lack: only its location is needed.
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or spec.origin is None:
        raise MissingDependencyError(_MISSING)
    return Path(spec.origin).parent / "models"


class DlibFaceAnalyzer:
    """
    Faces by dlib's detectors, 68-point shape predictor and 128-d face recognition network (King 2009,
    "Dlib-ml: A Machine Learning Toolkit").

    The fast detector (HOG) sees frontal, upright faces from 80 px, or 1/8 of the longer side of a photo below 640 px.
    dlib's convolutional one (MMOD, up to 1 s on a CPU) looks for profiles and tilted heads where no frontal face fills the
    photo: all that are not much smaller than the largest frontal face, and at least 1/4.5 of the longer side. Where both
    see nothing, or only faces below 160 px, photos of a longer side below 1280 px are enlarged, down to faces of 1/16. Photos up to 64 px have none. Embeddings of the same person are nearer than 0.6 (Euclidean). Landmarks of profiles
    are rough: the shape predictor expects to see both eyes.

    Threads may share an analyzer; its networks hold state, so they take turns.

    Needs the extra `dlib` (`dlib-bin` and the model files in `face-recognition-models`); no downloads. The shape
    predictor was trained on iBUG 300-W, whose license excludes commercial use.

    Raises:
        MissingDependencyError: One of the two packages is not installed.
    """

    encoder: str = "dlib/face_recognition_resnet_model_v1"
    embedding_dim: int = 128

    def __init__(self) -> None:
        models = dlib_models()
        if importlib.util.find_spec("dlib") is None:
            raise MissingDependencyError(_MISSING)
        import dlib

        self._lock = threading.Lock()
        self._frontal_detector = dlib.get_frontal_face_detector()
        self._any_pose_detector = dlib.cnn_face_detection_model_v1(str(models / "mmod_human_face_detector.dat"))
        self._shape_predictor = dlib.shape_predictor(str(models / "shape_predictor_68_face_landmarks.dat"))
        self._recognizer = dlib.face_recognition_model_v1(str(models / RECOGNIZER_FILE))

    def analyze(self, image: np.ndarray) -> list[Face]:
        """Returns all faces in an upright photo, `(H, W, 3)`, `uint8`, RGB; landmarks are `(68, 2)`."""
        import dlib

        image = np.ascontiguousarray(image)  # dlib takes no views
        faces = []
        with self._lock:
            for box, score, rolls in self._detect(image):
                landmarks = self._landmarks_at_best_roll(image, box, rolls)
                points = [dlib.point(*map(round, point)) for point in landmarks.tolist()]
                shape = dlib.full_object_detection(_rectangle(box), points)
                embedding = self._recognizer.compute_face_descriptor(image, shape)
                faces.append(Face(image, box, landmarks, np.array(embedding), float(score), self.encoder))
        return faces

    def _detect(self, image: np.ndarray) -> list[tuple[np.ndarray, float, range]]:
        """Boxes, scores, and the rolls in degrees at which each face may be."""
        frontal_rolls, all_rolls = range(-60, 61, 30), range(-180, 180, 30)
        longer = max(image.shape[:2])
        if longer < SMALLEST_PHOTO:
            return []
        side = min(max(longer, FRONTAL_SIDE), LARGEST_FRONTAL_SIDE)
        frontal = self._frontal_faces(image, side)
        faces = [(box, score, frontal_rolls) for box, score in frontal]
        # A frontal bystander must not hide a turned head in front, so the second detector always looks for as large ones.
        largest = max((float(box[2] - box[0]) / longer for box, _ in frontal), default=0.0)
        if largest < FILLING_FACE:
            any_pose_side = min(ANY_POSE_SIDE, SMALLEST_FACE / (SMALLER_TURNED_FACE * largest or 1e-6))
            for box, score in self._faces_in_any_pose(image, round(any_pose_side)):
                if all(_overlap(box, other) < SAME_FACE for other, _ in frontal):
                    faces.append((box, score, all_rolls))
        largest = max((float(box[2] - box[0]) / longer for box, _, _ in faces), default=0.0)
        if longer < ENLARGED_SIDE and largest * side < SMALL_FACE:
            for box, score in self._frontal_faces(image, ENLARGED_SIDE):
                if all(_overlap(box, other) < SAME_FACE for other, _, _ in faces):
                    faces.append((box, score, frontal_rolls))
        return faces

    def _frontal_faces(self, image: np.ndarray, side: int) -> list[tuple[np.ndarray, float]]:
        scaled, scale = _scaled(image, side)
        rectangles, scores, _ = self._frontal_detector.run(scaled, 0, 0.0)
        return [(_corners(rectangle) / scale, score) for rectangle, score in zip(rectangles, scores, strict=True)]

    def _faces_in_any_pose(self, image: np.ndarray, side: int) -> list[tuple[np.ndarray, float]]:
        scaled, scale = _scaled(image, side)
        detections = self._any_pose_detector(scaled, 0)
        return [(_corners(detection.rect) / scale, detection.confidence) for detection in detections]

    def _landmarks(self, image: np.ndarray, box: np.ndarray) -> np.ndarray:
        shape = self._shape_predictor(image, _rectangle(box))
        return np.array([(point.x, point.y) for point in shape.parts()], dtype=np.float64)

    def _landmarks_at_best_roll(self, image: np.ndarray, box: np.ndarray, rolls: range) -> np.ndarray:
        """
        The shape predictor fails from about 30° of roll on, so it gets the turned crop in which the frontal detector is
        surest of the face; if that sees it in none (profiles), the photo as it is.
        """
        center = (box[:2] + box[2:]) / 2 + 0.5  # Pillow's coordinates: the center of the first pixel is at 0.5.
        zoom = 2 * (box[2] - box[0]) / CROP_SIDE
        photo = PIL.Image.fromarray(image)
        best_score, landmarks = 0.0, None
        for roll in rolls:
            cos, sin = zoom * math.cos(math.radians(roll)), zoom * math.sin(math.radians(roll))
            linear = np.array([[cos, -sin], [sin, cos]])
            offset = center - linear @ [CROP_SIDE / 2, CROP_SIDE / 2]
            matrix = np.column_stack([linear, offset]).ravel()
            turned = photo.transform(
                (CROP_SIDE, CROP_SIDE), PIL.Image.Transform.AFFINE, matrix.tolist(), PIL.Image.Resampling.BICUBIC
            )
            crop = np.array(turned)
            rectangles, scores, _ = self._frontal_detector.run(crop, 0, best_score)
            for rectangle, score in zip(rectangles, scores, strict=True):
                if score > best_score and rectangle.contains(CROP_SIDE // 2, CROP_SIDE // 2):
                    best_score = score
                    landmarks = (self._landmarks(crop, _corners(rectangle)) + 0.5) @ linear.T + offset - 0.5
        return self._landmarks(image, box) if landmarks is None else landmarks


def _scaled(image: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """The photo with its longer side scaled to `side`, and the scale."""
    scale = side / max(image.shape[:2])
    size = [max(1, round(length * scale)) for length in (image.shape[1], image.shape[0])]
    return np.array(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BICUBIC)), scale


def _overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    width, height = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    intersection = max(width, 0.0) * max(height, 0.0)
    areas = [float(np.prod(corners[2:] - corners[:2])) for corners in (box, other)]
    return intersection / max(sum(areas) - intersection, 1e-9)


def _corners(rectangle: dlib.rectangle) -> np.ndarray:
    return np.array([rectangle.left(), rectangle.top(), rectangle.right(), rectangle.bottom()], dtype=np.float64)


def _rectangle(box: np.ndarray) -> dlib.rectangle:
    import dlib

    return dlib.rectangle(*map(round, box.tolist()))
