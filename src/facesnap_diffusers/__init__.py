"""FaceSnap for 🧨 diffusers: identity-preserving portraits on any Stable Diffusion checkpoint."""

from importlib import import_module
from typing import TYPE_CHECKING


__version__ = "0.1.0"

if TYPE_CHECKING:
    from .adapter.config import FaceSnapConfig as FaceSnapConfig
    from .errors import AdapterError as AdapterError
    from .errors import FaceEncoderMismatchError as FaceEncoderMismatchError
    from .errors import FaceSnapError as FaceSnapError
    from .errors import InputError as InputError
    from .errors import MissingDependencyError as MissingDependencyError
    from .errors import NoFaceFoundError as NoFaceFoundError
    from .errors import PhotoError as PhotoError
    from .faces.analyzers import FaceAnalyzer as FaceAnalyzer
    from .faces.analyzers.dlib import DlibFaceAnalyzer as DlibFaceAnalyzer
    from .faces.analyzers.insightface import InsightFaceAnalyzer as InsightFaceAnalyzer
    from .faces.choice import FaceChoice as FaceChoice
    from .faces.drawing import draw_landmarks as draw_landmarks
    from .faces.expression import Expression as Expression
    from .faces.face import Face as Face
    from .faces.key_points import draw_key_points as draw_key_points
    from .faces.photo import PhotoPolicy as PhotoPolicy
    from .faces.photo import set_photo_policy as set_photo_policy
    from .faces.pose import HeadPose as HeadPose
    from .identity import FaceIdentity as FaceIdentity
    from .models.attention import IdentityAttention as IdentityAttention
    from .models.ffrnet import FFRNet as FFRNet
    from .models.landmark_predictor import LandmarkPredictor as LandmarkPredictor
    from .models.landmark_predictor import load_landmark_predictor as load_landmark_predictor
    from .models.mixer import FacialAttributeMixer as FacialAttributeMixer
    from .nano.model import load_nano_pipeline as load_nano_pipeline
    from .nano.model import nano_people as nano_people
    from .pipelines.auto import AutoFaceSnapPipeline as AutoFaceSnapPipeline
    from .pipelines.facesnap import FaceSnapPipeline as FaceSnapPipeline
    from .pipelines.facesnap_img2img import FaceSnapImg2ImgPipeline as FaceSnapImg2ImgPipeline
    from .pipelines.facesnap_inpaint import FaceSnapInpaintPipeline as FaceSnapInpaintPipeline
    from .pipelines.facesnap_xl import FaceSnapXLPipeline as FaceSnapXLPipeline
    from .pipelines.facesnap_xl_img2img import FaceSnapXLImg2ImgPipeline as FaceSnapXLImg2ImgPipeline
    from .pipelines.facesnap_xl_inpaint import FaceSnapXLInpaintPipeline as FaceSnapXLInpaintPipeline
    from .pipelines.people import Person as Person
    from .pipelines.refine import redraw_faces as redraw_faces
    from .pipelines.schedule import FaceSnapSchedule as FaceSnapSchedule

# Where each public name lives. Imported on first use: `import facesnap_diffusers` loads neither torch nor diffusers.
_HOME = {
    "AdapterError": "errors",
    "AutoFaceSnapPipeline": "pipelines.auto",
    "DlibFaceAnalyzer": "faces.analyzers.dlib",
    "Expression": "faces.expression",
    "FFRNet": "models.ffrnet",
    "Face": "faces.face",
    "FaceAnalyzer": "faces.analyzers",
    "FaceChoice": "faces.choice",
    "FaceEncoderMismatchError": "errors",
    "FaceIdentity": "identity",
    "FaceSnapConfig": "adapter.config",
    "FaceSnapError": "errors",
    "FaceSnapImg2ImgPipeline": "pipelines.facesnap_img2img",
    "FaceSnapInpaintPipeline": "pipelines.facesnap_inpaint",
    "FaceSnapPipeline": "pipelines.facesnap",
    "FaceSnapSchedule": "pipelines.schedule",
    "FaceSnapXLImg2ImgPipeline": "pipelines.facesnap_xl_img2img",
    "FaceSnapXLInpaintPipeline": "pipelines.facesnap_xl_inpaint",
    "FaceSnapXLPipeline": "pipelines.facesnap_xl",
    "FacialAttributeMixer": "models.mixer",
    "HeadPose": "faces.pose",
    "IdentityAttention": "models.attention",
    "InputError": "errors",
    "InsightFaceAnalyzer": "faces.analyzers.insightface",
    "LandmarkPredictor": "models.landmark_predictor",
    "MissingDependencyError": "errors",
    "NoFaceFoundError": "errors",
    "Person": "pipelines.people",
    "PhotoError": "errors",
    "PhotoPolicy": "faces.photo",
    "draw_key_points": "faces.key_points",
    "draw_landmarks": "faces.drawing",
    "load_landmark_predictor": "models.landmark_predictor",
    "load_nano_pipeline": "nano.model",
    "nano_people": "nano.model",
    "redraw_faces": "pipelines.refine",
    "set_photo_policy": "faces.photo",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
