"""A case of an evaluation: one image to be made and judged."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import InputError
from ..faces.expression import Expression
from ..faces.pose import HeadPose


IMAGE_SUFFIXES = (".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Case:
    r"""
    One image to be made and judged.

    Attributes:
        id (`str`): The name of the image's file: letters, digits, `.`, `_`, `-`.
        person (`str`): Who it should show; cases of one person share the reference.
        reference (`tuple[Path, ...]`): Photos of that person.
        reference_landmarks (`tuple[tuple[float, float], ...]`, *optional*): The 68 or 72 landmarks in the only reference
            photo, in its pixels, where they are known; found by the face analyzer otherwise.
        prompt (`str`): What it should show.
        seed (`int`): Of the initial noise, the same for every method.
        group (`str`): The part of the benchmark that it belongs to.
        pose ([`HeadPose`], *optional*): Target head pose; that of the reference by default.
        expression ([`Expression`], *optional*): Target expression; that of the reference by default.
        face_box (`tuple[float, float, float, float]`, *optional*): Where the face should be, see [`FaceSnapPipeline`].
        ground_truth (`Path`, *optional*): A true picture of the person in that pose and expression.
        driving_landmarks (`tuple[tuple[float, float], ...]`, *optional*): 72 landmarks of *another* face in that
            pose and expression, in pixels of the generated image: the input of methods that copy landmarks.
        background (`str`, *optional*): Name of the colour that the prompt describes behind the person.
    """

    id: str
    person: str
    reference: tuple[Path, ...]
    prompt: str
    seed: int
    group: str = "all"
    pose: HeadPose | None = None
    expression: Expression | None = None
    face_box: tuple[float, float, float, float] | None = None
    ground_truth: Path | None = None
    driving_landmarks: tuple[tuple[float, float], ...] | None = None
    background: str | None = None
    reference_landmarks: tuple[tuple[float, float], ...] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,150}", self.id) or self.id.startswith("."):
            raise InputError(f"case id {self.id!r} must be 1 to 150 letters, digits, '.', '_' or '-'")
        if not self.reference:
            raise InputError(f"case {self.id} has no reference photo; give at least one")
        if self.reference_landmarks is not None and len(self.reference) > 1:
            raise InputError(f"case {self.id} has landmarks and several reference photos; remove one of them")

    @property
    def is_steered(self) -> bool:
        """Whether the case has a pose or an expression of its own, which an image can miss."""
        return self.pose is not None or self.expression is not None

    def fingerprint(self) -> str:
        """A digest of everything that the image depends on."""
        values = {
            "person": self.person,
            "reference": [file_digest(path) for path in self.reference],
            "prompt": self.prompt,
            "seed": self.seed,
            "pose": self.pose.as_tuple() if self.pose else None,
            "expression": self.expression.weights if self.expression else None,
            "face_box": self.face_box,
            "driving_landmarks": self.driving_landmarks,
            "reference_landmarks": self.reference_landmarks,
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def image_files(folder: Path) -> list[Path]:
    """The images of a folder and its subfolders, sorted by path."""
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def safe_id(*names: object) -> str:
    """A case id from names that may have any characters; names that differ stay apart."""
    text = "-".join(str(name) for name in names)
    clean = re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".")[:120]
    return clean if clean == text else f"{clean}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def file_digest(path: Path) -> str:
    """A digest of a file's content, computed once as long as the file is not written to."""
    stat = path.stat()
    return _digest(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _digest(path: Path, modified: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
