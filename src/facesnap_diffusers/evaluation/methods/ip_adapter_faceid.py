"""IP-Adapter FaceID through diffusers' own loader, with or without a ControlNet for the landmarks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import PIL.Image
import torch
from diffusers import AutoPipelineForText2Image, ControlNetModel, DiffusionPipeline

from ...errors import InputError, one_line
from ...faces.alignment import align_face
from ...faces.detection import find_face
from ...faces.drawing import draw_landmarks
from ...models.landmark_predictor import load_landmark_predictor
from ...settings import strict_dataclass
from ..cases import Case
from ..features import FoundFace, shared_analyzer
from ..targets import driving_landmarks, retargeted_landmarks
from .diffusion import DiffusionMethod, LandmarkSource, check_landmark_source


@strict_dataclass()
class IPAdapterFaceID(DiffusionMethod):
    r"""
    IP-Adapter FaceID (h94/IP-Adapter-FaceID) through diffusers' own loader, with or without a ControlNet that is given
    the same landmarks as FaceSnap.

    Attributes:
        adapter (`str`): Folder or Hub repo.
        weight_name (`str`): File of the weights in it.
        subfolder (`str`, *optional*): Where that file is.
        scale (`float`): Of the IP-Adapter.
        face_encoder_id (`str`): The recognizer whose unit embeddings the adapter was trained with.
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
    face_encoder_id: str = "insightface/w600k_r50"
    controlnet: str | None = None
    controlnet_scale: float = 1.0
    control_image: Literal["facesnap", "openpose"] = "openpose"
    landmarks: LandmarkSource = "retargeted"

    def check(self, cases: Sequence[Case]) -> None:
        check_landmark_source(self.landmarks, cases)

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
            raise InputError(
                f"adapter {self.adapter!r} ({self.weight_name}) could not be loaded ({one_line(error)}); name a folder"
                " or Hub repo with an IP-Adapter FaceID checkpoint, and its weight_name"
            ) from None
        pipe.set_ip_adapter_scale(self.scale)
        self._analyzer = shared_analyzer(self.face_encoder_id)
        self._predictor = load_landmark_predictor()
        return pipe

    @property
    def trained_with_face_encoder_ids(self) -> list[str]:
        return [self.face_encoder_id]

    def add_image_encoder(self, pipe: DiffusionPipeline) -> None:
        """FaceID uses the embedding only."""

    def generate(self, cases: Sequence[Case]) -> list[PIL.Image.Image]:
        # the pipeline gives the same embedding to all images of a call, so a call is for one person
        calls = itertools.groupby(cases, key=lambda case: case.reference)
        return [image for _, group in calls for image in self.generate_person(list(group))]

    def generate_person(self, cases: Sequence[Case]) -> list[PIL.Image.Image]:
        """One image a case, all of one person."""
        face, embed, crop = self.person(cases[0])
        embeds = embed[None, None]  # (1, 1, D)
        if self.sampling.guidance_scale > 1:
            embeds = torch.cat([torch.zeros_like(embeds), embeds])  # (2, 1, D), the unconditional one first
        self.set_crop(crop, len(cases))
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
        crop = align_face(first.image, first.landmarks, size=224)
        face = FoundFace(first.landmarks, first.embedding, first.image.shape[:2])
        return face, torch.from_numpy(embeds / np.linalg.norm(embeds)), crop

    def set_crop(self, crop: np.ndarray, batch: int) -> None:
        """FaceID uses the embedding only."""

    def draw(self, face: FoundFace, cases: Sequence[Case]) -> torch.Tensor:
        """The ControlNet's images: `(batch, 3, height, width)` in [0, 1]."""
        height, width = self.size
        if self.landmarks == "driving":
            points = [driving_landmarks(case) for case in cases]
        else:
            points = [retargeted_landmarks(self._predictor, case, face, height, width) for case in cases]
        image = draw_landmarks(torch.from_numpy(np.stack(points)), height, width)
        return image if self.control_image == "facesnap" else image.amax(dim=1, keepdim=True).expand(-1, 3, -1, -1)
