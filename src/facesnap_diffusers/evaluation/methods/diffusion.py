"""What methods with a diffusers pipeline have in common."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import PIL.Image
import torch
from diffusers import DiffusionPipeline

from ...errors import NoFaceFoundError
from ...settings import strict_dataclass
from ..cases import Case
from ..sampling import Sampling, load_base
from ..targets import driving_landmarks
from .base import Method


#: Which landmarks a method follows: `"retargeted"`, the reference's proportions in the pose and expression of the case,
#: or `"driving"`, another face's landmarks as they are, which the data must contain (InstantID's way).
LandmarkSource = Literal["retargeted", "driving"]


@strict_dataclass()
class DiffusionMethod(Method):
    """A method with a diffusers pipeline on the base model."""

    sources: ClassVar[tuple[str, ...]] = ("base",)

    def load(self, sampling: Sampling, device: str) -> None:
        self.sampling = sampling
        self.device = device
        self._people: dict[tuple[Path, ...], Any] = {}
        self.pipe = self.build(load_base(sampling)).to(device)
        self.pipe.set_progress_bar_config(disable=True)

    def build(self, base: DiffusionPipeline) -> DiffusionPipeline:
        """The method's pipeline from the stock one of the base model."""
        return base

    def unload(self) -> None:
        del self.pipe
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def scheduler(self) -> str | None:
        return type(self.pipe.scheduler).__name__

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        sample_size = self.pipe.unet.config.sample_size
        default = [sample_size] * 2 if isinstance(sample_size, int) else sample_size
        height, width = (side * self.pipe.vae_scale_factor for side in default)
        return self.sampling.height or height, self.sampling.width or width

    def person(self, case: Case) -> Any:
        """What [`encode_person`] returns for a case's person, computed once; a missing face is found only once, too."""
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
        """What the method reads from the reference photos."""
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


def check_landmark_source(landmarks: LandmarkSource, cases: Sequence[Case]) -> None:
    """Raises [`InputError`] if driving landmarks are needed and a case does not contain them."""
    if landmarks == "driving":
        for case in cases:
            driving_landmarks(case)
