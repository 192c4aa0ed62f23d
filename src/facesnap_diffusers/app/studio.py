"""What the app does, without the web page: encodes people, draws landmarks, makes pictures. Shared by all visitors."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from ..adapter.config import DEFAULT_SCALES
from ..base_models import is_sdxl
from ..errors import InputError
from ..faces.detection import find_face
from ..faces.drawing import draw_landmarks
from ..faces.face import Face
from ..identity import FaceIdentity
from ..models.landmark_predictor import LandmarkPredictor
from ..nano.model import NanoPerson
from ..nano.photos import as_rendered
from ..pipelines.auto import AutoFaceSnapPipeline
from ..pipelines.people import Person
from ..preflight import without_landmarks_of_ones_own
from ..steering import ImageSteering, as_boxes, steer
from .code import picture_code
from .photos import SentPhotos, cover, names_of, read_picture
from .picture_settings import PersonSettings, PictureSettings


if TYPE_CHECKING:
    from ..pipelines.mixin import FaceSnapMixin


#: What [`AutoFaceSnapPipeline`] calls the modes of the settings.
TASKS = {"text": "text-to-image", "image": "image-to-image", "inpaint": "inpainting"}

PREVIEW_SIDE = 384  # pixels of the drawn landmarks
PREVIEW_LATENTS = 32  # latents a side of the picture shown between steps


class Canceled(Exception):
    """The visitor stopped the picture, or left."""


@dataclass(frozen=True)
class Defaults:
    """What the app's fields hold at first."""

    prompt: str
    negative_prompt: str
    steps: int
    guidance_scale: float
    face_box: tuple[float, float, float, float]


#: Called after each step with the number of steps done, that of all, and what the picture looks like by then.
OnStep = Callable[[int, int, PIL.Image.Image | None], None]


@dataclass(frozen=True)
class Encoded:
    """Who a visitor's photos show, with the photos, so that it is known what they are of. It lives in the session alone."""

    sent: SentPhotos
    identity: FaceIdentity


@dataclass(frozen=True)
class FoundPose:
    """The face in a visitor's pose photo, with the photo."""

    sent: SentPhotos
    face: Face


@dataclass
class Studio:
    r"""
    One model on one device for all visitors. It keeps nothing of what they send: photos and identities belong to the
    visitor's session. Calls share nothing, so several may run at once.

    Attributes:
        pipe: A FaceSnap text-to-image pipeline with an adapter.
        defaults ([`Defaults`]): What the fields hold at first.
        samples (`list[NanoPerson]`): People to try it with.
        base (`str`, *optional*), adapter (`str`, *optional*): What the model was loaded from, for the code that a picture
            comes with; the nano model without.
    """

    pipe: FaceSnapMixin
    defaults: Defaults
    samples: Sequence[NanoPerson] = ()
    base: str | None = None
    adapter: str | None = None

    @cached_property
    def size(self) -> int:
        """Side of the base model's own pictures, in pixels."""
        sample_size = self.pipe.unet.config.sample_size
        return (sample_size if isinstance(sample_size, int) else min(sample_size)) * self.pipe.vae_scale_factor

    @property
    def follows_landmarks(self) -> bool:
        """Whether pose, expression and place can be steered: the adapter has FFRNet."""
        return self.pipe.ffrnet is not None

    @cached_property
    def is_xl(self) -> bool:
        """Whether the base is of Stable Diffusion XL's kind."""
        return is_sdxl(self.pipe.unet)

    @property
    def scales(self) -> dict[str, float]:
        """The scales of the adapter as loaded, which its authors recommend."""
        config = self.pipe.facesnap_config
        return dict(DEFAULT_SCALES) if config is None else config.scales

    def code(self, settings: PictureSettings, sent: Sequence[SentPhotos]) -> str:
        """Python code of a picture; see [`picture_code`]."""
        return picture_code(
            settings,
            sent,
            base=self.base,
            adapter=self.adapter,
            is_xl=self.is_xl,
            dtype=str(self.pipe.unet.dtype).removeprefix("torch."),
            device=str(self.pipe.device),
            scales=self.scales,
        )

    @cached_property
    def predictor(self) -> LandmarkPredictor:
        """A landmark predictor on the CPU: previews do not wait for a GPU that is busy or lent by the second."""
        if self.pipe.landmark_predictor is None:
            raise InputError("this adapter was loaded without a landmark predictor; load all of its parts")
        return copy.deepcopy(self.pipe.landmark_predictor).to("cpu")

    def sample(self, name: str) -> NanoPerson:
        """A sample person. Raises [`InputError`] where there is none of that name."""
        for person in self.samples:
            if person.name == name:
                return person
        raise InputError(f"there is no sample person {name[:40]!r}; choose one of those shown")

    @without_landmarks_of_ones_own()
    def encode(self, sent: SentPhotos, name: str = "photo") -> FaceIdentity | None:
        """
        The identity of a person in photos, several of one person fused, or of a sample person; `None` without either.
        Raises `NoFaceFoundError` and other errors of the package, in one line.
        """
        if sent.sample is not None:
            return self.sample(sent.sample).identity
        if not sent.photos:
            return None
        names = names_of(len(sent.photos), name)
        pictures = [read_picture(photo, label) for photo, label in zip(sent.photos, names, strict=True)]
        conditioner = replace(self.pipe.face_conditioner("the app"), landmark_predictor=self.predictor)
        faces = [
            find_face(picture, conditioner.analyzer, name=label)
            for picture, label in zip(pictures, names, strict=True)
        ]
        identity = FaceIdentity.fuse([conditioner.identity_of(face) for face in faces])
        return as_rendered(identity) if self.base is None else identity

    @without_landmarks_of_ones_own()
    def find_pose(self, sent: SentPhotos) -> Face | None:
        """The face in a photo whose pose, expression and place are taken; `None` without a photo."""
        if not sent.photos:
            return None
        analyzer = self.pipe.face_conditioner("the app").analyzer
        return find_face(read_picture(sent.photos[0], "the pose photo"), analyzer, name="the pose photo")

    def encoded(self, sent: SentPhotos, known: Encoded | None = None, name: str = "photo") -> Encoded | None:
        """What [`encode`] gives, with the photos; `known` where it is of the same photos."""
        if known is not None and known.sent == sent:
            return known
        identity = self.encode(sent, name)
        return None if identity is None else Encoded(sent, identity)

    def found_pose(self, sent: SentPhotos, known: FoundPose | None = None) -> FoundPose | None:
        """What [`find_pose`] gives, with the photo; `known` where it is of the same photo."""
        if known is not None and known.sent == sent:
            return known
        face = self.find_pose(sent)
        return None if face is None else FoundPose(sent, face)

    @torch.no_grad()
    def draw_preview(
        self, people: Sequence[tuple[FaceIdentity, PersonSettings]], pose_face: Face | None, height: int, width: int
    ) -> PIL.Image.Image:
        """The landmarks by which [`make`] would steer, on black, with a longer side of 384 px."""
        scale = PREVIEW_SIDE / max(height, width)
        down, across = round(height * scale), round(width * scale)
        drawn = torch.zeros(1, 3, down, across)
        for identity, settings in people:
            steering = settings.steering()
            boxes = as_boxes(steering.get("face_box"))
            image_steering = ImageSteering(
                pose_face if settings.uses_pose_photo else None,
                steering.get("pose"),
                steering.get("expression"),
                boxes[0] if boxes else None,
            )
            points = steer(self.predictor, identity, image_steering, height, width) * scale
            drawn = torch.maximum(drawn, draw_landmarks(points.cpu(), down, across))
        return PIL.Image.fromarray((drawn[0].permute(1, 2, 0) * 255).round().byte().numpy())

    def steps(
        self,
        settings: PictureSettings,
        identities: Sequence[FaceIdentity],
        pose_face: Face | None = None,
        start: PIL.Image.Image | None = None,
        mask: PIL.Image.Image | None = None,
    ) -> Iterator[Any]:
        """[`make`], step by step: see [`in_steps`]."""
        yield from in_steps(lambda on_step: self.make(settings, identities, pose_face, start, mask, on_step))

    def make(
        self,
        settings: PictureSettings,
        identities: Sequence[FaceIdentity],
        pose_face: Face | None = None,
        start: PIL.Image.Image | None = None,
        mask: PIL.Image.Image | None = None,
        on_step: OnStep | None = None,
    ) -> PIL.Image.Image:
        r"""
        Makes a picture: the call that [`picture_code`] shows.

        Args:
            settings ([`PictureSettings`]): What to make.
            identities (`Sequence[FaceIdentity]`): One for each of `settings.people`.
            pose_face ([`Face`], *optional*): The face in the pose photo.
            start (`PIL.Image.Image`, *optional*): For image-to-image and inpainting; cropped to the picture's shape.
            mask (`PIL.Image.Image`, *optional*): For inpainting, of the start picture's size: white is drawn anew.
            on_step (`Callable`, *optional*): May raise [`Canceled`].

        Raises:
            FaceSnapError: Settings and pictures do not fit together.
        """
        if len(identities) != len(settings.people):
            raise InputError(f"there are {len(identities)} people with a photo, not {len(settings.people)}; add one")
        pipe = self._pipeline(settings)
        call: dict[str, Any] = {
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance_scale,
            "generator": torch.Generator().manual_seed(settings.seed),
            "height": settings.height,
            "width": settings.width,
            "identity_scale": settings.identity_scale,
        }
        if self.follows_landmarks:
            call |= {"landmark_scale": settings.landmark_scale, "facesnap_schedule": settings.schedule}
        if settings.negative_prompt:
            call["negative_prompt"] = settings.negative_prompt
        call |= self._start(settings, start, mask)
        call |= _faces(settings, identities, pose_face)
        if on_step is not None:
            call |= self._callback(on_step)
        return pipe(settings.prompt, **call).images[0]

    def _pipeline(self, settings: PictureSettings) -> Any:
        """The pipeline for the task of a picture, on the shared components."""
        pipe: Any = AutoFaceSnapPipeline.from_pipe(self.pipe, task=TASKS[settings.mode])
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _start(
        self, settings: PictureSettings, start: PIL.Image.Image | None, mask: PIL.Image.Image | None
    ) -> dict[str, Any]:
        if settings.mode == "text":
            return {}
        if start is None:
            raise InputError("there is no start picture; add one, or choose text to image", key="start")
        if int(settings.steps * settings.strength) < 1:
            raise InputError(
                f"{settings.steps} steps at strength {settings.strength:g} are less than one; raise one of them",
                key="strength",
            )
        size = settings.height, settings.width
        call: dict[str, Any] = {"image": cover(start, *size), "strength": settings.strength}
        if settings.mode == "inpaint":
            if mask is None or np.asarray(mask.convert("L")).max() < 128:
                raise InputError(
                    "nothing is painted on the start picture; paint over what is to be drawn anew", key="start"
                )
            call["mask_image"] = cover(mask.convert("L"), *size)
        return call

    def _callback(self, on_step: OnStep) -> dict[str, Any]:
        def after_step(pipe: Any, step: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
            on_step(step + 1, pipe.num_timesteps, self._decode_small(values["latents"]))
            return values

        return {"callback_on_step_end": after_step, "callback_on_step_end_tensor_inputs": ["latents"]}

    @torch.no_grad()
    def _decode_small(self, latents: torch.Tensor) -> PIL.Image.Image | None:
        """A small picture of latents `(1, 4, height, width)`: decoded at a fraction of their size, which costs little."""
        vae = self.pipe.vae
        scale = min(1.0, PREVIEW_LATENTS / max(latents.shape[-2:]))
        small = latents if scale == 1 else F.interpolate(latents, scale_factor=scale, mode="area")
        decoded = vae.decode(small.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        if not torch.isfinite(decoded).all():  # SDXL's autoencoder in float16
            return None
        levels = (decoded[0].float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0) * 255
        return PIL.Image.fromarray(levels.round().byte().cpu().numpy())


def _faces(settings: PictureSettings, identities: Sequence[FaceIdentity], pose_face: Face | None) -> dict[str, Any]:
    """The keyword arguments of a call that bring the people in."""
    if any(person.uses_pose_photo for person in settings.people) and pose_face is None:
        raise InputError("there is no pose photo; add one, or steer by the sliders", key="pose_photo")
    steering = []
    for person in settings.people:
        pose_image = {"pose_image": pose_face.image} if person.uses_pose_photo and pose_face is not None else {}
        steering.append(person.steering() | pose_image)
    if len(identities) == 1:
        return {"identity": identities[0], **steering[0]}
    return {"people": [Person(identity, **values) for identity, values in zip(identities, steering, strict=True)]}


def in_steps(work: Callable[[Callable[..., None]], Any]) -> Iterator[Any]:
    r"""
    Runs some work in a thread of its own and gives what it reports: a tuple for each step, in the end what it returns, or
    the error that it raises. When the reader leaves, the work ends at its next step.
    """
    reports: queue.Queue[Any] = queue.Queue()
    left = threading.Event()

    def on_step(*step: Any) -> None:
        if left.is_set():
            raise Canceled
        reports.put(step)

    def run() -> None:
        try:
            reports.put(work(on_step))
        except BaseException as error:
            reports.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        while True:
            report = reports.get()
            yield report
            if not isinstance(report, tuple):
                return
    finally:
        left.set()
