"""What methods have in common whose images exist already."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import PIL.Image

from ...faces.photo import load_photo
from ...settings import strict_dataclass
from ..cases import Case, file_digest
from .base import Method


@strict_dataclass()
class Pictures(Method):
    """Image files instead of a model."""

    @abstractmethod
    def find(self, case: Case) -> Path:
        """The image file of a case. Raises [`InputError`] where there is none."""

    def check(self, cases: Sequence[Case]) -> None:
        for case in cases:
            self.find(case)

    def fingerprint(self, case: Case) -> str:
        return f"{case.fingerprint()} {file_digest(self.find(case))}"

    def generate(self, cases: Sequence[Case]) -> list[PIL.Image.Image]:
        return [PIL.Image.fromarray(load_photo(self.find(case), str(self.find(case)))) for case in cases]
