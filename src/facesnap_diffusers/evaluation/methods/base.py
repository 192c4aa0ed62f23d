"""What a method of an evaluation is: settings, and images for cases."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import PIL.Image

from ...nano.naming import NANO_PARTS, resolve_nano
from ...settings import strict_dataclass
from ..cases import Case, file_digest
from ..sampling import Sampling


@strict_dataclass()
class Method(ABC):
    """
    Generates images of cases. The fields of a subclass are what a config can set.

    Attributes:
        name (`str`): Its row in the table; the kind by default.
    """

    #: Its name in a config.
    kind: ClassVar[str]
    #: Settings that may name a local file or folder, on whose content the images depend.
    sources: ClassVar[tuple[str, ...]] = ()
    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.name or self.kind

    @property
    def trained_with_face_encoder_ids(self) -> list[str]:
        """The face recognizers whose embeddings or identity loss the method was trained with, once it is loaded."""
        return []

    @property
    def scheduler(self) -> str | None:
        """The class of the scheduler that samples the images, once it is loaded."""
        return None

    def check(self, cases: Sequence[Case]) -> None:  # noqa: B027 (not every method needs it)
        """Raises [`InputError`] for what is missing, where that can be seen before anything is loaded."""

    def load(self, sampling: Sampling, device: str) -> None:  # noqa: B027
        """Loads what [`generate`] needs."""

    def unload(self) -> None:  # noqa: B027
        """Frees what [`load`] has loaded."""

    @abstractmethod
    def generate(self, cases: Sequence[Case]) -> list[PIL.Image.Image]:
        """
        One image a case.

        Raises:
            NoFaceFoundError: The method finds no face in a reference; the case then counts as one without a face.
        """

    def settings(self, sampling: Sampling) -> dict[str, Any]:
        """Everything that the images depend on besides the case; of local files and folders, their content."""
        values = {"kind": self.kind, **dataclasses.asdict(self), **dataclasses.asdict(sampling)}
        sources = {name: values[name] for name in self.sources if values[name] is not None}
        sources |= {part: resolve_nano(sources[part], part) for part in NANO_PARTS if part in sources}
        local = {name: Path(source) for name, source in sources.items()}
        return values | {f"digest of {name}": _content_digest(path) for name, path in local.items() if path.exists()}

    def fingerprint(self, case: Case) -> str:
        """A digest of what the image depends on in a case."""
        return case.fingerprint()


def _content_digest(path: Path) -> str:
    """A digest of a file, or of all files in a folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    names = [f"{file.relative_to(path)} {file_digest(file)}" for file in files]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
