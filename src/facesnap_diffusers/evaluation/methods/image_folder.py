"""Images of another program, in a folder."""

from pathlib import Path
from typing import ClassVar

from ...errors import InputError
from ...settings import strict_dataclass
from ..cases import Case
from .pictures import Pictures


@strict_dataclass()
class ImageFolder(Pictures):
    r"""
    Images of another program.

    Attributes:
        folder (`str`): Contains an image of each case, named by its id.
    """

    kind: ClassVar[str] = "images"
    folder: str = ""

    def find(self, case: Case) -> Path:
        files = sorted(Path(self.folder).glob(f"{case.id}.*"))
        if not files:
            raise InputError(f"folder {self.folder!r} has no image {case.id}.*; add it, or remove this method")
        return files[0]
