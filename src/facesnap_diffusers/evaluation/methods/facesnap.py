"""A FaceSnap adapter on the base model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline

from ...base_models import is_sdxl
from ...faces.detection import find_face
from ...identity import FaceIdentity
from ...nano.naming import resolve_nano
from ...pipelines.facesnap import FaceSnapPipeline
from ...pipelines.facesnap_xl import FaceSnapXLPipeline
from ...settings import strict_dataclass
from ..cases import Case
from ..features import shared_analyzer
from ..targets import driving_landmarks
from .diffusion import DiffusionMethod, LandmarkSource, check_landmark_source


@strict_dataclass()
class FaceSnap(DiffusionMethod):
    r"""
    A FaceSnap adapter on the base model.

    Attributes:
        adapter (`str`, *optional*): Folder or Hub repo, or `"nano"` for the one in this package; the default one of the
            base's family otherwise.
        adapter_variant (`str`, *optional*): Of its weights.
        identity_scale, landmark_scale (`float`): See [`set_facesnap_scale`]; 0 switches a part off.
        schedule (`str`): `"exact"` or `"fast"`; see [`set_facesnap_schedule`].
        landmarks (`str`): `"retargeted"`: the reference's proportions in the pose and expression of the case.
            `"driving"`: the landmarks of another face, as they are, which the data must contain (InstantID's way).
    """

    kind: ClassVar[str] = "facesnap"
    sources: ClassVar[tuple[str, ...]] = ("base", "adapter")
    adapter: str | None = None
    adapter_variant: str | None = None
    identity_scale: float = 1.0
    landmark_scale: float = 1.0
    schedule: Literal["exact", "fast"] = "exact"
    landmarks: LandmarkSource = "retargeted"

    def check(self, cases: Sequence[Case]) -> None:
        check_landmark_source(self.landmarks, cases)

    def build(self, base: DiffusionPipeline) -> DiffusionPipeline:
        pipe = (FaceSnapXLPipeline if is_sdxl(base.unet) else FaceSnapPipeline).from_pipe(base)
        if self.adapter is not None or pipe.facesnap_config is None:
            adapter = None if self.adapter is None else resolve_nano(self.adapter, "adapter")
            pipe.load_facesnap_adapter(adapter, variant=self.adapter_variant)
        pipe.set_facesnap_scale(identity_scale=self.identity_scale, landmark_scale=self.landmark_scale)
        pipe.set_facesnap_schedule(self.schedule)
        config = pipe.facesnap_config
        pipe.face_analyzer = shared_analyzer(config.face_encoder_id, config.normalized_embeds)
        return pipe

    @property
    def trained_with_face_encoder_ids(self) -> list[str]:
        return self.pipe.facesnap_config.trained_with_face_encoder_ids

    def generate(self, cases: Sequence[Case]) -> list[PIL.Image.Image]:
        identities = [self.person(case) for case in cases]
        if self.pipe.ffrnet is None:  # nothing follows landmarks
            return self.sample(cases, identity=identities)
        if self.landmarks == "driving":
            points = torch.from_numpy(np.stack([driving_landmarks(case) for case in cases]))  # (batch, 72, 2)
        else:
            pairs = zip(identities, cases, strict=True)
            points = torch.cat([self._predict(identity, case) for identity, case in pairs])
        return self.sample(cases, identity=identities, landmarks=points)

    def encode_person(self, case: Case) -> FaceIdentity:
        if case.reference_landmarks is None:
            return self.pipe.encode_face(list(case.reference))
        face = find_face(case.reference[0], self.pipe.face_analyzer, name=str(case.reference[0]))
        points = np.array(case.reference_landmarks, dtype=np.float32)
        return self.pipe.encode_face(face.image, embedding=face.embedding, landmarks=points)

    def _predict(self, identity: FaceIdentity, case: Case) -> torch.Tensor:
        """The re-targeted landmarks `(1, 72, 2)`, in pixels of the image."""
        height, width = self.size
        return self.pipe.predict_landmarks(
            identity, height=height, width=width, pose=case.pose, expression=case.expression, face_box=case.face_box
        )
