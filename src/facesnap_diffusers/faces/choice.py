"""Which face of a photo that shows several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import FaceEncoderMismatchError, InputError, as_integer, as_number, shown
from .face import Face


MAX_INDEX = 10_000
_ORDERS = ("size", "left", "right", "point", "likeness")


@dataclass(frozen=True, eq=False)
class FaceChoice:
    r"""
    Which face of a photo is meant, where it shows several. Wherever one is taken, an integer will do too: 0 is the
    largest face, 1 the second largest, and so on.

        FaceChoice.by_size(1)               # the second largest
        FaceChoice.from_left(0)             # the leftmost
        FaceChoice.from_right(0)            # the rightmost
        FaceChoice.nearest_to(0.3, 0.5)     # to a point, in shares of the photo's width and height
        FaceChoice.most_like(identity)      # to a `FaceIdentity`, a `Face` or an embedding
    """

    order: Literal["size", "left", "right", "point", "likeness"]
    index: int = 0
    point: tuple[float, float] | None = None
    embedding: np.ndarray | None = None
    encoder: str | None = None

    def __post_init__(self) -> None:
        if self.order not in _ORDERS:
            raise InputError(f"order must be one of {', '.join(_ORDERS)}, got {shown(self.order)}")
        object.__setattr__(self, "index", as_integer("face_index", self.index, 0, MAX_INDEX))
        if self.order == "point":
            if not isinstance(self.point, (tuple, list)) or len(self.point) != 2:
                raise InputError(f"point must be x and y in shares of the photo, got {shown(self.point)}")
            x, y = self.point
            object.__setattr__(self, "point", (as_number("x", x, 0, 1), as_number("y", y, 0, 1)))
        if self.order == "likeness":
            object.__setattr__(self, "embedding", _as_embedding(self.embedding))

    @classmethod
    def of(cls, value: int | FaceChoice | None) -> FaceChoice:
        """A choice from an integer (by size), another choice, or `None` (the largest)."""
        if isinstance(value, FaceChoice):
            return value
        if value is None:
            return cls("size")
        try:
            return cls.by_size(value)
        except InputError:
            raise InputError(
                f"face_index must be an integer from 0, for the largest face, or a FaceChoice, got {shown(value)}"
            ) from None

    @classmethod
    def by_size(cls, index: int = 0) -> FaceChoice:
        """The largest face, or the one after `index` larger ones."""
        return cls("size", index)

    @classmethod
    def from_left(cls, index: int = 0) -> FaceChoice:
        """The leftmost face in the picture, or the one after `index` others."""
        return cls("left", index)

    @classmethod
    def from_right(cls, index: int = 0) -> FaceChoice:
        """The rightmost face in the picture, or the one after `index` others."""
        return cls("right", index)

    @classmethod
    def nearest_to(cls, x: float, y: float) -> FaceChoice:
        """The face whose middle is nearest to a point, in shares of the photo: `(0, 0)` top left, `(1, 1)` bottom right."""
        return cls("point", point=(x, y))

    @classmethod
    def most_like(cls, reference: Any) -> FaceChoice:
        """
        The face most like a reference, by the cosine of the embeddings.

        Args:
            reference ([`FaceIdentity`], [`Face`], `np.ndarray` or `torch.Tensor`): A person, or the embedding `(D,)` of
                one by the same face encoder.
        """
        # By name: a FaceIdentity is of a module that knows this package, and not the other way round.
        names = ("face_encoder_id", "face_encoder", "encoder")
        encoder = next((getattr(reference, name) for name in names if hasattr(reference, name)), None)
        values = getattr(reference, "face_embeds", getattr(reference, "embedding", reference))
        return cls("likeness", embedding=values, encoder=encoder)

    def check_encoder(self, encoder: str, dim: int) -> None:
        """Raises [`FaceEncoderMismatchError`] where the reference was made by another encoder than the photo's faces."""
        if self.embedding is None:
            return
        if self.encoder not in (None, encoder) or len(self.embedding) != dim:
            raise FaceEncoderMismatchError(
                f"face_index: the reference has an embedding of {len(self.embedding)} numbers by"
                f" {self.encoder or 'an unnamed encoder'}, the photo is analyzed by {encoder} ({dim}); encode it anew"
            )

    def pick(
        self, faces: Sequence[Face], centers: Sequence[tuple[float, float]], size: tuple[int, int], name: str
    ) -> Face:
        """
        Picks one of the faces in a photo.

        Args:
            faces (`Sequence[Face]`): All faces, at least one.
            centers (`Sequence[tuple[float, float]]`): The middle of each, in pixels of the photo.
            size (`tuple[int, int]`): Height and width of the photo, in pixels.
            name (`str`): What errors call the photo.

        Raises:
            InputError: There are fewer faces than the choice needs.
        """
        if self.index >= len(faces):
            count = f"{len(faces)} face{'s' if len(faces) > 1 else ''}"
            order = {"left": "leftmost", "right": "rightmost"}.get(self.order, "largest")
            raise InputError(
                f"face_index={self.index} is out of range: {name} shows {count}, counted from 0, the {order} first"
            )
        height, width = size

        def rank(i: int) -> tuple[float, ...]:
            face, (x, y) = faces[i], centers[i]
            if self.order == "left":
                return x, y
            if self.order == "right":
                return -x, y
            if self.order == "point":
                assert self.point is not None
                return (float(np.hypot(x - self.point[0] * (width - 1), y - self.point[1] * (height - 1))),)
            if self.order == "likeness":
                assert self.embedding is not None
                norms = np.linalg.norm(face.embedding) * np.linalg.norm(self.embedding)
                return (-float(face.embedding @ self.embedding / norms),)
            return -face.area, -face.score

        return faces[sorted(range(len(faces)), key=rank)[self.index]]


def _as_embedding(reference: Any) -> np.ndarray:
    try:
        values = reference.detach().cpu() if hasattr(reference, "detach") else reference
        embedding = np.asarray(values, dtype=np.float64)
    except Exception as error:  # what an argument of any type can raise
        raise InputError(f"reference must be a FaceIdentity or an embedding, got {shown(reference)}") from error
    if embedding.ndim != 1 or not np.isfinite(embedding).all() or not embedding.any():
        raise InputError(
            f"reference must be an embedding (D,) of finite numbers, not all zero; got shape {embedding.shape}"
        )
    return embedding
