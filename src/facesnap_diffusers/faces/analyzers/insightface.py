"""Faces by InsightFace's model packs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import InputError, MissingDependencyError, as_integer, as_number, one_line, shown
from ..face import Face


# The face encoders of the public model packs, and the pack to take each from.
MODEL_PACKS = {
    "insightface/w600k_r50": "buffalo_l",
    "insightface/glintr100": "antelopev2",
    "insightface/w600k_mbf": "buffalo_s",
}
TASKS = ("detection", "landmark_3d_68", "recognition")


class InsightFaceAnalyzer:
    """
    Faces by an InsightFace model pack: an SCRFD detector, 3-D 68-point landmarks and an ArcFace face encoder
    (Deng et al. 2019, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition").

    The library is MIT-licensed; the public packs (buffalo_l, antelopev2, ...) are for non-commercial research only. To
    use other models, put ONNX files of the same input and output shapes into a folder and pass that. The file name of
    the recognizer without `.onnx` names the face encoder (`"insightface/<name>"`), so give your own a name of its own.

    Args:
        model (`str` or `Path`, *optional*, defaults to `"buffalo_l"`):
            A folder with a model pack's ONNX files, or the name of a public pack: looked for in `root`/models and
            downloaded there on first use.
        root (`str` or `Path`, *optional*): InsightFace's folder; default: `~/.insightface`.
        providers (`Sequence[str]`, *optional*):
            ONNX Runtime execution providers; default: CoreML or CUDA where ONNX Runtime has it, then the CPU.
            `["CPUExecutionProvider"]` leaves the GPU to the diffusion model.
        detection_size (`int`, *optional*, defaults to 640):
            The side that the detector scales photos to, a multiple of 32. Larger finds smaller faces. Close-ups are
            looked for at 128 px as well.
        detection_threshold (`float`, *optional*, defaults to 0.5): The least confidence of a face, 0 to 1.
        normalize (`bool`, *optional*, defaults to `True`):
            Whether embeddings are brought to unit length. Some adapters (InstantID) need the length they come with.

    It can be used from several threads at once.

    Attributes:
        encoder (`str`): e.g. `"insightface/w600k_r50"`.
        embedding_dim (`int`): 512 for the public packs.

    Raises:
        InputError: An argument is out of range, or the pack is incomplete, damaged, or could not be loaded.
        MissingDependencyError: `insightface` or `onnxruntime` cannot be imported.
    """

    def __init__(
        self,
        model: str | Path = "buffalo_l",
        root: str | Path | None = None,
        providers: Sequence[str] | None = None,
        detection_size: int = 640,
        detection_threshold: float = 0.5,
        normalize: bool = True,
    ) -> None:
        if not isinstance(model, (str, Path)):
            raise InputError(f"model={shown(model)} must be a folder or the name of a model pack")
        if root is not None and not isinstance(root, (str, Path)):
            raise InputError(f"root={shown(root)} must be a folder")
        if as_integer("detection_size", detection_size, 32, 8192) % 32:
            raise InputError(f"detection_size={detection_size!r} must be a positive multiple of 32")
        if as_number("detection_threshold", detection_threshold, 0, 1) in (0, 1):
            raise InputError(f"detection_threshold={detection_threshold!r} must be between 0 and 1")
        try:
            import onnxruntime
            from insightface.app import FaceAnalysis
        except ImportError as error:
            raise MissingDependencyError(
                f"InsightFaceAnalyzer needs insightface and onnxruntime ({error}): pip install insightface onnxruntime"
            ) from error
        if providers is not None:
            _check_providers(providers, onnxruntime.get_available_providers())

        # Once and for all: changing filters around each call would not be safe between threads.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"insightface\.")
        folder = _model_folder(model, "~/.insightface" if root is None else root)
        try:
            self._app = FaceAnalysis(
                str(folder), allowed_modules=list(TASKS), providers=None if providers is None else list(providers)
            )
        except AssertionError as error:  # FaceAnalysis asserts that there is a detector.
            raise InputError(f"model={str(model)!r}: {folder} has no detection model; use a complete pack") from error
        except Exception as error:  # ONNX and ONNX Runtime raise many kinds for a damaged file.
            raise InputError(
                f"model={str(model)!r}: {folder} cannot be loaded ({one_line(error)}); download the pack again"
            ) from error
        missing = [task for task in TASKS if task not in self._app.models]
        if missing:
            raise InputError(
                f"model={str(model)!r}: {folder} has no model for {' and '.join(missing)}; "
                "use a complete pack such as buffalo_l"
            )
        if not self._app.det_model.use_kps:
            raise InputError(f"model={str(model)!r}: its detector gives no key points; use one that does (..._bnkps)")

        sizes = sorted({128, detection_size})
        self._app.prepare(ctx_id=0, det_thresh=detection_threshold, det_size=[(size, size) for size in sizes])
        recognizer = self._app.models["recognition"]
        side = recognizer.input_size[0]
        self.normalize = normalize
        self.encoder = f"insightface/{Path(recognizer.model_file).stem}"
        self.embedding_dim = recognizer.get_feat(np.zeros((side, side, 3), dtype=np.uint8)).shape[-1]

    def analyze(self, image: np.ndarray) -> list[Face]:
        """Returns all faces in an upright photo, `(H, W, 3)`, `uint8`, RGB; landmarks are `(68, 3)`."""
        bgr = np.ascontiguousarray(image[..., ::-1])
        faces = self._app.get(bgr)
        return [
            Face(
                image=image,
                box=face.bbox,
                landmarks=_depth_towards_camera(face.landmark_3d_68),
                embedding=_unit(face.embedding) if self.normalize else face.embedding,
                score=float(face.det_score),
                encoder=self.encoder,
                key_points=face.kps,
            )
            for face in faces
        ]


def _unit(embedding: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(embedding)
    return embedding / length if length > 0 else embedding


def _model_folder(model: str | Path, root: str | Path) -> Path:
    """The folder with a pack's ONNX files; downloads a public pack that is missing."""
    from insightface.utils.storage import ensure_available

    folder = Path(os.path.expanduser(model))
    if not folder.is_dir():
        if folder.name != str(model):
            raise InputError(f"model={str(model)!r} is not a folder; pass one with a model pack's ONNX files")
        folder = Path(os.path.expanduser(root)) / "models" / folder.name
        try:
            if not folder.is_dir():
                ensure_available("models", str(model), root=str(root))
        except Exception as error:  # No network, no such pack, a full disk, a broken archive.
            raise InputError(
                f"model={str(model)!r} is neither a folder nor downloadable ({type(error).__name__}); unpack the pack into "
                f"{folder} (InsightFace's are for non-commercial research only), or use DlibFaceAnalyzer"
            ) from error
    # antelopev2.zip has a folder of that name inside, so it unpacks one level too deep.
    for candidate in (folder, folder / folder.name):
        if any(candidate.glob("*.onnx")):
            return candidate
    raise InputError(f"model={str(model)!r}: {folder} has no .onnx files; unpack a model pack into it")


def _check_providers(providers: Sequence[str], available: list[str]) -> None:
    names = (
        [entry[0] if isinstance(entry, tuple) and entry else entry for entry in providers]
        if isinstance(providers, (list, tuple))
        else []
    )
    if not names or any(name not in available for name in names):
        gpu = "; onnxruntime-gpu in place of onnxruntime has NVIDIA's" if "CUDAExecutionProvider" in names else ""
        raise InputError(f"providers={shown(providers)} must be a list of some of {', '.join(available)}{gpu}")


def _depth_towards_camera(landmarks: np.ndarray) -> np.ndarray:
    """
    Gives z its sign, which InsightFace does not document (its mean shape has z towards the camera). A mirrored depth is
    a mirrored shape at any pose: the person's left, down and the nose's direction must make the same corner as image x,
    image y and z towards the camera.
    """
    left = landmarks[45] - landmarks[36]
    down = landmarks[8] - landmarks[27]
    nose = landmarks[30] - (landmarks[0] + landmarks[16]) / 2
    depth_sign = 1.0 if np.linalg.det(np.stack([left, down, nose])) >= 0 else -1.0
    return landmarks * np.array([1.0, 1.0, depth_sign], dtype=np.float32)
