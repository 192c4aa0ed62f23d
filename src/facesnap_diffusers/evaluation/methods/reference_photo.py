"""The reference photo itself: the upper end of likeness, and all of it pasted."""

from pathlib import Path
from typing import ClassVar

from ...settings import strict_dataclass
from ..cases import Case
from .pictures import Pictures


@strict_dataclass()
class ReferencePhoto(Pictures):
    """The reference photo of each case."""

    kind: ClassVar[str] = "reference"

    def find(self, case: Case) -> Path:
        return case.reference[0]
