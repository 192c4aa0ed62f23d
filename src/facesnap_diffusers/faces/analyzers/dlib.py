"""Faces by dlib: works offline from two wheels."""

import importlib.util
from pathlib import Path

import numpy as np
import PIL.Image

from facesnap_diffusers.errors import MissingDependencyError
from facesnap_diffusers.faces.face import Face


DETECTION_SIDE = 640  # Both detectors see faces from 80 px: at this size, an eighth of the photo's longer side.


class DlibFaceAnalyzer:
    """
    Faces by dlib's detectors, 68-point shape predictor and 128-d face recognition network (King 2009,
    "Dlib-ml: A Machine Learning Toolkit").

    The fast detector (HOG) sees frontal faces; where it sees none, dlib's convolutional one (MMOD, about 2 s on a CPU)
    looks for profiles and tilted heads. Embeddings of the same person are nearer than 0.6 (Euclidean).

    Needs the extra `dlib` (`dlib-bin` and the model files in `face-recognition-models`); no downloads. The shape
    predictor was trained on iBUG 300-W, whose licence excludes commercial use.

    Raises:
        `MissingDependencyError`: if one of the two packages is not installed.
    """

    encoder: str = "dlib/face_recognition_resnet_model_v1"
    embedding_dim: int = 128

    def __init__(self) -> None:
        # The models' own package imports pkg_resources, which newer setuptools lack: only its location is needed.
        spec = importlib.util.find_spec("face_recognition_models")
        if spec is None or importlib.util.find_spec("dlib") is None:
            raise MissingDependencyError(
                'DlibFaceAnalyzer needs dlib and its models: pip install "facesnap-diffusers[dlib]".'
            )
        import dlib

        models = Path(spec.origin).parent / "models"
        self._frontal_detector = dlib.get_frontal_face_detector()
        self._any_pose_detector = dlib.cnn_face_detection_model_v1(str(models / "mmod_human_face_detector.dat"))
        self._shape_predictor = dlib.shape_predictor(str(models / "shape_predictor_68_face_landmarks.dat"))
        self._recogniser = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))

    def analyze(self, image: np.ndarray) -> list[Face]:
        """Returns all faces in an upright photo, `(H, W, 3)`, `uint8`, RGB; landmarks are `(68, 2)`."""
        import dlib

        scale = DETECTION_SIDE / max(image.shape[:2])
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        small = np.array(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BICUBIC, reducing_gap=3.0))

        faces = []
        for box, score in self._detect(small):
            box = box / scale
            shape = self._shape_predictor(image, dlib.rectangle(*(int(round(x)) for x in box)))
            faces.append(
                Face(
                    image=image,
                    box=box.astype(np.float32),
                    landmarks=np.array([(point.x, point.y) for point in shape.parts()], dtype=np.float32),
                    embedding=np.array(self._recogniser.compute_face_descriptor(image, shape), dtype=np.float32),
                    score=score,
                    encoder=self.encoder,
                )
            )
        return faces

    def _detect(self, image: np.ndarray) -> list[tuple[np.ndarray, float]]:
        rectangles, scores, _ = self._frontal_detector.run(image, 0, 0.0)
        if not rectangles:
            detections = self._any_pose_detector(image, 0)
            rectangles = [detection.rect for detection in detections]
            scores = [detection.confidence for detection in detections]
        corners = [np.array([box.left(), box.top(), box.right(), box.bottom()], dtype=np.float64) for box in rectangles]
        return list(zip(corners, scores, strict=True))
