"""The base model alone, which knows nothing of the person: what prompts and diversity are compared with."""

from collections.abc import Sequence
from typing import ClassVar

import PIL.Image

from ...settings import strict_dataclass
from ..cases import Case
from .diffusion import DiffusionMethod


@strict_dataclass()
class TextToImage(DiffusionMethod):
    """The base model alone."""

    kind: ClassVar[str] = "text"

    def generate(self, cases: Sequence[Case]) -> list[PIL.Image.Image]:
        return self.sample(cases)
