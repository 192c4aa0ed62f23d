"""What photos say about a person, to be saved and used again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import FaceEncoderMismatchError, InputError, check_path, check_text


FORMAT_VERSION = "1"


@dataclass(frozen=True)
class FaceIdentity:
    r"""
    What one or several photos say about a person: made once with `pipe.encode_face(...)`, saved, and used again.

    Attributes:
        face_embeds (`torch.Tensor` of shape `(face_embed_dim,)`): The recognizer's embedding; the mean over the photos.
        face_encoder_id (`str`): The recognizer that made it, e.g. `"insightface/w600k_r50"`.
        landmarks (`torch.Tensor` of shape `(68 | 72, 2 | 3)`, *optional*): The face in the first photo, in pixels of
            it: x to the right, y down, z towards the camera.
        key_points (`torch.Tensor` of shape `(5, 2)`, *optional*): The five points that the detector itself found in the
            first photo, in pixels of it: right eye, left eye, nose, right and left corner of the mouth.
        shape (`torch.Tensor` of shape `(n,)`, *optional*): Shape coefficients of the landmark predictor; the mean over
            the photos.
        photo_size (`tuple[int, int]`, *optional*): Height and width of the first photo, in pixels.
        image_hidden_states (`torch.Tensor` of shape `(sequence, width)`, *optional*): CLIP's hidden states of the face
            crops of all photos, one after the other.
        image_encoder_id (`str`, *optional*): The image encoder that made them.
        photo_embeds (`torch.Tensor` of shape `(photos, face_embed_dim)`, *optional*): The embedding of each photo, where
            there are several.
    """

    face_embeds: torch.Tensor
    face_encoder_id: str
    landmarks: torch.Tensor | None = None
    shape: torch.Tensor | None = None
    photo_size: tuple[int, int] | None = None
    image_hidden_states: torch.Tensor | None = None
    image_encoder_id: str | None = None
    photo_embeds: torch.Tensor | None = None
    key_points: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for name in _TENSORS:
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
                raise InputError(f"{name} must be a floating point torch.Tensor, got {type(tensor).__name__}")
            if not torch.isfinite(tensor).all():
                raise InputError(f"{name} has values that are not finite; encode the face again")
        if self.face_embeds.ndim != 1 or not self.face_embeds.any():
            raise InputError(
                f"face_embeds must have shape (dim,) and not be all zero, got shape {tuple(self.face_embeds.shape)}"
            )
        if self.photo_embeds is not None and self.photo_embeds.shape[1:] != self.face_embeds.shape:
            raise InputError(
                f"photo_embeds must have shape (photos, {len(self.face_embeds)}), got {tuple(self.photo_embeds.shape)}"
            )
        if self.landmarks is not None and (
            self.landmarks.ndim != 2
            or self.landmarks.shape[0] not in (68, 72)
            or self.landmarks.shape[1] not in (2, 3)
        ):
            raise InputError(
                f"landmarks must have shape (68 or 72, 2 or 3), got {tuple(self.landmarks.shape)};"
                " pass the iBUG-68 points in pixels"
            )
        if self.landmarks is not None and not (self.landmarks[:, :2].amax(0) > self.landmarks[:, :2].amin(0)).all():
            raise InputError("landmarks lie all on one line; pass the points of a face")
        if self.key_points is not None and self.key_points.shape != (5, 2):
            raise InputError(f"key_points must have shape (5, 2), got {tuple(self.key_points.shape)}")
        if self.shape is not None and self.shape.ndim != 1:
            raise InputError(f"shape must have shape (n,), got {tuple(self.shape.shape)}; encode the face again")
        if self.image_hidden_states is not None and self.image_hidden_states.ndim != 2:
            raise InputError(
                f"image_hidden_states must have shape (sequence, width), got {tuple(self.image_hidden_states.shape)}"
            )
        if self.photo_size is not None and not _is_size(self.photo_size):
            raise InputError(f"photo_size must be height and width in pixels, got {self.photo_size!r}")
        if not isinstance(self.face_encoder_id, str):
            raise InputError(f"face_encoder_id must be a str, got {type(self.face_encoder_id).__name__}")
        check_text("image_encoder_id", self.image_encoder_id)

    @classmethod
    def fuse(cls, identities: Sequence[FaceIdentity]) -> FaceIdentity:
        """One identity from several of the same person: embeddings and shape averaged, image features side by side."""
        if len(identities) == 0:
            raise InputError("identities is empty; give at least one")
        for identity in identities:
            if not isinstance(identity, FaceIdentity):
                raise InputError(f"identities must be FaceIdentity, got {type(identity).__name__}")
        first = identities[0]
        if len(identities) == 1:
            return first
        for other in identities[1:]:
            if (other.face_encoder_id, other.image_encoder_id) != (first.face_encoder_id, first.image_encoder_id):
                raise FaceEncoderMismatchError(
                    f"identities come from different encoders ({first.face_encoder_id} and {other.face_encoder_id});"
                    " encode all photos with one"
                )
            if other.face_embeds.shape != first.face_embeds.shape:
                raise InputError(
                    f"identities have embeddings of {len(first.face_embeds)} and {len(other.face_embeds)} numbers;"
                    " encode all photos with one recognizer"
                )
        embeds = torch.stack([identity.face_embeds for identity in identities])
        length = embeds.norm(dim=-1).mean()
        shapes = [identity.shape for identity in identities if identity.shape is not None]
        states = [identity.image_hidden_states for identity in identities if identity.image_hidden_states is not None]
        return replace(
            first,
            face_embeds=F.normalize(embeds.mean(0), dim=0) * length,
            shape=torch.stack(shapes).mean(0) if shapes else None,
            image_hidden_states=torch.cat(states) if states else None,
            photo_embeds=torch.cat([identity._photo_embeds() for identity in identities]),
        )

    def _photo_embeds(self) -> torch.Tensor:
        return self.face_embeds[None] if self.photo_embeds is None else self.photo_embeds

    def save(self, path: str | Path) -> None:
        """Writes the identity to `path` as safetensors. Raises [`InputError`] where that cannot be written."""
        check_path("path", path)
        tensors = {name: getattr(self, name) for name in _TENSORS if getattr(self, name) is not None}
        metadata = {
            "format": "facesnap_identity",
            "version": FORMAT_VERSION,
            "face_encoder": self.face_encoder_id,
            "image_encoder": json.dumps(self.image_encoder_id),
            "photo_size": json.dumps(self.photo_size),
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(tensors, str(path), metadata)
        except (OSError, SafetensorError) as error:
            raise InputError(f"path {path} cannot be written ({error}); name a file in a folder that exists") from None

    @classmethod
    def load(cls, path: str | Path) -> FaceIdentity:
        """Reads an identity that [`save`] wrote. Raises [`InputError`] for any other file."""
        check_path("path", path)
        if not Path(path).is_file():
            raise InputError(f"path {path} is not a file; save an identity with identity.save(path) first")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise InputError(
                f"path {path} is not a readable safetensors file ({error}); save the identity again"
            ) from None
        if metadata.get("format") != "facesnap_identity" or metadata.get("version") != FORMAT_VERSION:
            raise InputError(
                f"path {path} does not hold a FaceSnap identity of version {FORMAT_VERSION}; save it again"
            )
        if "face_embeds" not in tensors or not set(tensors) <= set(_TENSORS):
            raise InputError(f"path {path} holds other tensors than an identity has; save it again")
        photo_size = json.loads(metadata["photo_size"])
        return cls(
            face_encoder_id=metadata["face_encoder"],
            image_encoder_id=json.loads(metadata["image_encoder"]),
            photo_size=tuple(photo_size) if photo_size else None,
            **tensors,
        )


def _is_size(value: Any) -> bool:
    is_pair = isinstance(value, (tuple, list)) and len(value) == 2
    return is_pair and all(isinstance(side, int) and side > 0 for side in value)


_TENSORS = ("face_embeds", "landmarks", "shape", "image_hidden_states", "photo_embeds", "key_points")
