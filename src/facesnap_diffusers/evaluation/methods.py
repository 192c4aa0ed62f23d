"""What makes the images: FaceSnap, its rivals as diffusers has them, and what tells the metrics' own limits."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import PIL.Image
import torch
from diffusers import AutoPipelineForText2Image, ControlNetModel, DiffusionPipeline
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from ..errors import InputError, NoFaceFoundError
from ..faces.alignment import align_face
from ..faces.detection import find_face
from ..faces.drawing import draw_landmarks
from ..faces.photo import load_photo
from ..identity import FaceIdentity
from ..models.landmark_predictor import load_landmark_predictor

# diffusers loads a class of ours only from a module that is imported already: the nano base has one
from ..nano import autoencoder  # noqa: F401
from .cases import Case, file_digest
from .features import FoundFace, shared_analyzer
from .targets import driving_landmarks, retargeted_landmarks


@dataclass(frozen=True)
class Sampling:
    r"""
    How all methods of an evaluation sample.

    Attributes:
        base (`str`, *optional*): Folder or Hub repo of the base model, in diffusers' format.
        height, width (`int`, *optional*): Of the images; the base model's own by default.
        num_inference_steps (`int`): Denoising steps.
        guidance_scale (`float`): Weight of classifier-free guidance; 1 is without.
        negative_prompt (`str`): What the images should not show.
        dtype (`str`): `"float32"`, `"float16"` or `"bfloat16"`.
        variant (`str`, *optional*): Of the base's weights, e.g. `"fp16"`.
    """

    base: str | None = None
    height: int | None = None
    width: int | None = None
    num_inference_steps: int = 30
    guidance_scale: float = 5.0
    negative_prompt: str = ""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    variant: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise InputError(f"dtype must be float32, float16 or bfloat16, got {self.dtype!r}")


@dataclass
class Method:
    """
    Makes images of cases. Subclasses are dataclasses, whose fields are what a config can set.

    Attributes:
        name (`str`): Its row in the table; the kind by default.
    """

    kind: ClassVar[str]
    #: Settings that may name a local file or folder, on whose content the images depend.
    sources: ClassVar[tuple[str, ...]] = ()
    name: str = ""

    @property
    def trained_with(self) -> str | None:
        """The face encoder that tells it who a person is, once loaded."""
        return None

    def check(self, cases: Sequence[Case]) -> None:
        """Raises [`InputError`] for what can be seen to be wrong or missing before anything is loaded."""

    def load(self, sampling: Sampling, device: str) -> None:
        """Loads what [`generate`] needs."""

    def unload(self) -> None:
        """Frees what [`load`] has loaded."""

    def generate(self, cases: Sequence[Case]) -> list[PIL.Image.Image]:
        """
        One image a case.

        Raises:
            NoFaceFoundError: The method finds no face in a reference; the case then counts as one without a face.
        """
        raise NotImplementedError

    def settings(self, sampling: Sampling) -> dict[str, Any]:
        """Everything that the images depend on besides the case; of local files and folders, their content."""
        values = {"kind": self.kind, **dataclasses.asdict(self), **dataclasses.asdict(sampling)}
        local = {name: Path(values[name]) for name in self.sources if values[name] is not None}
        return values | {f"digest of {name}": _content(path) for name, path in local.items() if path.exists()}

    def fingerprint(self, case: Case) -> str:
        """A digest of what the image depends on in a case."""
        return case.fingerprint()


def _content(path: Path) -> str:
    """A digest of a file or of all files of a folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    names = [f"{file.relative_to(path)} {file_digest(file)}" for file in files]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


class _DiffusionMethod(Method):
    """A method with a diffusers pipeline."""

    sources: ClassVar[tuple[str, ...]] = ("base",)

    def load(self, sampling: Sampling, device: str) -> None:
        self.sampling = sampling
        self.device = device
        self._people: dict[tuple[Path, ...], Any] = {}
        self.pipe = self.build(load_base(sampling)).to(device)
        self.pipe.set_progress_bar_config(disable=True)

    def build(self, base: DiffusionPipeline) -> DiffusionPipeline:
        return base

    def unload(self) -> None:
        del self.pipe
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        sample_size = self.pipe.unet.config.sample_size
        default = [sample_size] * 2 if isinstance(sample_size, int) else sample_size
        height, width = (side * self.pipe.vae_scale_factor for side in default)
        return self.sampling.height or height, self.sampling.width or width

    def person(self, case: Case) -> Any:
        """What [`encode_person`] says of a case's person, encoded once; once only too if there is no face."""
        if case.reference not in self._people:
            try:
                self._people[case.reference] = self.encode_person(case)
            except NoFaceFoundError as error:
                self._people[case.reference] = error
        person = self._people[case.reference]
        if isinstance(person, NoFaceFoundError):
            raise person
        return person

    def encode_person(self, case: Case) -> Any:
        raise NotImplementedError

    def sample(self, cases: Sequence[Case], **arguments: Any) -> list[PIL.Image.Image]:
        """Calls the pipeline; each image has noise of its own, so that batches do not matter."""
        height, width = self.size
        return self.pipe(
            [case.prompt for case in cases],
            negative_prompt=[self.sampling.negative_prompt] * len(cases),
            generator=[torch.Generator("cpu").manual_seed(case.seed) for case in cases],
            num_inference_steps=self.sampling.num_inference_steps,
            guidance_scale=self.sampling.guidance_scale,
            height=height,
            width=width,
            **arguments,
        ).images


@dataclass
class TextToImage(_DiffusionMethod):
    """The base model alone, which knows nothing of the person: what prompts and diversity are compared with."""

    kind: ClassVar[str] = "text"

    def generate(self, cases: Sequence[Case]) -> list[PIL.Image.Image]:
        return self.sample(cases)


@dataclass
class FaceSnap(_DiffusionMethod):
    r"""
    A FaceSnap adapter on the base model.

    Attributes:
        adapter (`str`, *optional*): Folder or Hub repo; the default one of the base's family otherwise.
        adapter_variant (`str`, *optional*): Of its weights.
        identity_scale, landmark_scale (`float`): See [`set_facesnap_scale`]; 0 switches a part off.
        landmarks (`str`): `"retargeted"`: the reference's proportions in the asked pose and expression. `"driving"`: the
            landmarks of another face, as they are, which the data must bring (InstantID's way).
    """

    kind: ClassVar[str] = "facesnap"
    sources: ClassVar[tuple[str, ...]] = ("base", "adapter")
    adapter: str | None = None
    adapter_variant: str | None = None
    identity_scale: float = 1.0
    landmark_scale: float = 1.0
    landmarks: Literal["retargeted", "driving"] = "retargeted"

    def check(self, cases: Sequence[Case]) -> None:
        _check_landmarks(self.landmarks, cases)

    def build(self, base: DiffusionPipeline) -> DiffusionPipeline:
        from ..pipelines.facesnap import FaceSnapPipeline
        from ..pipelines.facesnap_xl import FaceSnapXLPipeline

        pipe = (FaceSnapXLPipeline if hasattr(base, "text_encoder_2") else FaceSnapPipeline).from_pipe(base)
        if self.adapter is not None or pipe.facesnap_config is None:
            pipe.load_facesnap_adapter(self.adapter, variant=self.adapter_variant)
        pipe.set_facesnap_scale(identity_scale=self.identity_scale, landmark_scale=self.landmark_scale)
        config = pipe.facesnap_config
        pipe.face_analyzer = shared_analyzer(config.face_encoder_id, config.normalized_embeds)
        return pipe

    @property
    def trained_with(self) -> str | None:
        config = self.pipe.facesnap_config
        return None if config.face_embed_dim is None else config.face_encoder_id

    def generate(self, cases: Sequence[Case]) -> list[PIL.Image.Image]:
        identities = [self.person(case) for case in cases]
        if self.landmarks == "driving":
            points = torch.from_numpy(np.stack([driving_landmarks(case) for case in cases]))
        else:
            points = torch.cat([self._predict(identity, case) for identity, case in zip(identities, cases)])
        return self.sample(cases, identity=identities, landmarks=points)

    def encode_person(self, case: Case) -> FaceIdentity:
        if case.reference_landmarks is None:
            return self.pipe.encode_face(list(case.reference))
        face = find_face(case.reference[0], self.pipe.face_analyzer, name=str(case.reference[0]))
        points = np.array(case.reference_landmarks, dtype=np.float32)
        return self.pipe.encode_face(face.image, embedding=face.embedding, landmarks=points)

    def _predict(self, identity: FaceIdentity, case: Case) -> torch.Tensor:
        height, width = self.size
        return self.pipe.predict_landmarks(
            identity, height=height, width=width, pose=case.pose, expression=case.expression, face_box=case.face_box
        )


@dataclass
class IPAdapterFaceID(_DiffusionMethod):
    r"""
    IP-Adapter FaceID (h94/IP-Adapter-FaceID) through diffusers' own loader, with or without a ControlNet that is shown
    the same landmarks as FaceSnap.

    Attributes:
        adapter (`str`): Folder or Hub repo.
        weight_name (`str`): File of the weights in it.
        subfolder (`str`, *optional*): Where that file is.
        scale (`float`): Of the IP-Adapter.
        face_encoder (`str`): The recogniser whose unit embeddings the adapter was trained with.
        controlnet (`str`, *optional*): Folder or Hub repo of a ControlNet.
        controlnet_scale (`float`): Of the ControlNet.
        control_image (`str`): How the landmarks are drawn for it: `"facesnap"`, coloured by part, or `"openpose"`, white
            as OpenPose draws faces.
        landmarks (`str`): As for [`FaceSnap`].
    """

    kind: ClassVar[str] = "ip_adapter_faceid"
    sources: ClassVar[tuple[str, ...]] = ("base", "adapter", "controlnet")
    adapter: str = "h94/IP-Adapter-FaceID"
    weight_name: str = "ip-adapter-faceid_sd15.bin"
    subfolder: str | None = None
    scale: float = 1.0
    face_encoder: str = "insightface/w600k_r50"
    controlnet: str | None = None
    controlnet_scale: float = 1.0
    control_image: Literal["facesnap", "openpose"] = "openpose"
    landmarks: Literal["retargeted", "driving"] = "retargeted"

    def check(self, cases: Sequence[Case]) -> None:
        _check_landmarks(self.landmarks, cases)
        if self.control_image not in ("facesnap", "openpose"):
            raise InputError(f"control_image must be facesnap or openpose, got {self.control_image!r}")

    def build(self, base: DiffusionPipeline) -> DiffusionPipeline:
        pipe = base
        if self.controlnet is not None:
            controlnet = ControlNetModel.from_pretrained(self.controlnet, dtype=base.dtype)
            pipe = AutoPipelineForText2Image.from_pipe(base, controlnet=controlnet, dtype=base.dtype)
        self.add_image_encoder(pipe)
        try:
            pipe.load_ip_adapter(
                self.adapter, subfolder=self.subfolder, weight_name=self.weight_name, image_encoder_folder=None
            )
        except (OSError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"adapter {self.adapter!r} ({self.weight_name}) cannot be loaded ({reason}); name a folder or Hub repo"
                " with an IP-Adapter FaceID checkpoint and its weight_name"
            ) from None
        pipe.set_ip_adapter_scale(self.scale)
        self._analyzer = shared_analyzer(self.face_encoder)
        self._predictor = load_landmark_predictor()
        return pipe

    @property
    def trained_with(self) -> str | None:
        return self.face_encoder

    def add_image_encoder(self, pipe: DiffusionPipeline) -> None:
        """FaceID looks at the embedding only."""

    def generate(self, cases: Sequence[Case]) -> list[PIL.Image.Image]:
        # the pipeline gives the same embedding to all images of a call, so a call is for one person
        calls = itertools.groupby(cases, key=lambda case: case.reference)
        return [image for _, group in calls for image in self.generate_person(list(group))]

    def generate_person(self, cases: Sequence[Case]) -> list[PIL.Image.Image]:
        """One image a case, all of one person."""
        face, embed, crop = self.person(cases[0])
        embeds = embed[None, None]
        if self.sampling.guidance_scale > 1:
            embeds = torch.cat([torch.zeros_like(embeds), embeds])
        self.show_crop(crop, len(cases))
        arguments: dict[str, Any] = {"ip_adapter_image_embeds": [embeds.to(self.device, self.pipe.unet.dtype)]}
        if self.controlnet is not None:
            arguments["image"] = self.draw(face, cases)
            arguments["controlnet_conditioning_scale"] = self.controlnet_scale
        return self.sample(cases, **arguments)

    def encode_person(self, case: Case) -> tuple[FoundFace, torch.Tensor, np.ndarray]:
        """The first photo's face, the mean unit embedding of all photos `(D,)`, the first photo's aligned crop."""
        faces = [find_face(path, self._analyzer, name=str(path)) for path in case.reference]
        embeds = np.mean([face.embedding / np.linalg.norm(face.embedding) for face in faces], axis=0)
        first = faces[0]
        found = FoundFace(first.landmarks, first.embedding, first.image.shape[:2])
        crop = align_face(first.image, first.landmarks, size=224)
        return found, torch.from_numpy(embeds / np.linalg.norm(embeds)), crop

    def show_crop(self, crop: np.ndarray, batch: int) -> None:
        """FaceID looks at the embedding only."""

    def draw(self, face: FoundFace, cases: Sequence[Case]) -> torch.Tensor:
        """The ControlNet's images: `(batch, 3, height, width)` in [0, 1]."""
        height, width = self.size
        if self.landmarks == "driving":
            points = [driving_landmarks(case) for case in cases]
        else:
            points = [retargeted_landmarks(self._predictor, case, face, height, width) for case in cases]
        image = draw_landmarks(torch.from_numpy(np.stack(points)), height, width)
        return image if self.control_image == "facesnap" else image.amax(dim=1, keepdim=True).expand(-1, 3, -1, -1)


@dataclass
class IPAdapterFaceIDPlus(IPAdapterFaceID):
    r"""
    IP-Adapter FaceID Plus: the embedding, and CLIP's view of the aligned crop.

    Attributes:
        image_encoder (`str`): Folder or Hub repo of the CLIP vision model that it was trained with.
        shortcut (`bool`): Whether the checkpoint is a Plus v2.
    """

    kind: ClassVar[str] = "ip_adapter_faceid_plus"
    sources: ClassVar[tuple[str, ...]] = ("base", "adapter", "controlnet", "image_encoder")
    weight_name: str = "ip-adapter-faceid-plusv2_sd15.bin"
    image_encoder: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    shortcut: bool = True

    def add_image_encoder(self, pipe: DiffusionPipeline) -> None:
        encoder = CLIPVisionModelWithProjection.from_pretrained(self.image_encoder, dtype=pipe.dtype)
        side = encoder.config.image_size
        processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        pipe.register_modules(image_encoder=encoder, feature_extractor=processor)

    def show_crop(self, crop: np.ndarray, batch: int) -> None:
        # diffusers has no argument for it: the projection layer takes CLIP's view from an attribute
        shown, unconditional = self.pipe.encode_image(
            PIL.Image.fromarray(crop), self.device, batch, output_hidden_states=True
        )
        layer = self.pipe.unet.encoder_hid_proj.image_projection_layers[0]
        states = torch.cat([unconditional, shown]) if self.sampling.guidance_scale > 1 else shown
        layer.clip_embeds = states[:, None].to(self.pipe.unet.dtype)
        layer.shortcut = self.shortcut


@dataclass
class Pictures(Method):
    r"""
    Images that exist already: of another program, or of the data itself.

    Attributes:
        folder (`str`): Has an image of each case, by its id.
    """

    kind: ClassVar[str] = "images"
    folder: str = ""

    def check(self, cases: Sequence[Case]) -> None:
        for case in cases:
            self.find(case)

    def fingerprint(self, case: Case) -> str:
        return f"{case.fingerprint()} {file_digest(self.find(case))}"

    def generate(self, cases: Sequence[Case]) -> list[PIL.Image.Image]:
        return [PIL.Image.fromarray(load_photo(self.find(case), str(self.find(case)))) for case in cases]

    def find(self, case: Case) -> Path:
        found = sorted(Path(self.folder).glob(f"{case.id}.*"))
        if not found:
            raise InputError(f"folder {self.folder!r} has no image {case.id}.*; make it, or take out this method")
        return found[0]


@dataclass
class ReferencePhoto(Pictures):
    """The reference photo itself: the most a likeness can get, and all of it pasted."""

    kind: ClassVar[str] = "reference"

    def find(self, case: Case) -> Path:
        return case.reference[0]


@dataclass
class Truth(Pictures):
    """The true picture: what a perfect method would get, and so how far the metrics can be trusted."""

    kind: ClassVar[str] = "truth"

    def find(self, case: Case) -> Path:
        if case.truth is None:
            raise InputError(f"case {case.id} has no true picture; take out the method truth")
        return case.truth


METHODS: dict[str, type[Method]] = {
    method.kind: method
    for method in (TextToImage, FaceSnap, IPAdapterFaceID, IPAdapterFaceIDPlus, Pictures, ReferencePhoto, Truth)
}


def make_method(values: Mapping[str, Any] | str) -> Method:
    r"""
    A method from what a config says of it.

    Args:
        values (`dict` or `str`): `kind`, one of `METHODS`, and its settings; or the kind alone.

    Raises:
        InputError: The kind or a setting is not known, or has a wrong type.
    """
    values = {"kind": values} if isinstance(values, str) else dict(values)
    kind = values.pop("kind", None)
    if kind not in METHODS:
        raise InputError(f"method kind {kind!r} is not known; choose one of {', '.join(METHODS)}")
    fields = {field.name: field for field in dataclasses.fields(METHODS[kind])}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise InputError(f"method {kind} has no setting {unknown[0]!r}; it has {', '.join(fields)}")
    for name, value in values.items():
        values[name] = _as_type(value, fields[name], kind)
    return METHODS[kind](**{"name": kind, **values})


def load_base(sampling: Sampling) -> DiffusionPipeline:
    """The stock pipeline of a base model, without a safety checker, which would black out some images."""
    if sampling.base is None:
        raise InputError("base is not given; name the folder or Hub repo of the base model")
    try:
        pipe = DiffusionPipeline.from_pretrained(
            sampling.base, dtype=getattr(torch, sampling.dtype), variant=sampling.variant
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"base {sampling.base!r} cannot be loaded ({reason}); name a folder or Hub repo") from None
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.register_modules(safety_checker=None)
    return pipe


def _check_landmarks(landmarks: str, cases: Sequence[Case]) -> None:
    if landmarks not in ("retargeted", "driving"):
        raise InputError(f"landmarks must be retargeted or driving, got {landmarks!r}")
    if landmarks == "driving":
        for case in cases:
            driving_landmarks(case)


def _as_type(value: Any, field: dataclasses.Field, kind: str) -> Any:
    """A setting as its field's type, which is a number where the default is one; strings come from a command line."""
    default = field.default
    try:
        if isinstance(default, bool) and isinstance(value, str):
            return {"true": True, "false": False}[value.lower()]
        if isinstance(default, float) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, (type(default), str) if default is not None else (str, type(None))):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"method {kind}: {field.name} is {json.dumps(value, default=str)}, expected {field.type}"
        ) from None
    return value
