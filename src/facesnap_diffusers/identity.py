"""What photos say about a person, to be saved and used again."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import FaceEncoderMismatchError, InputError, check_path, check_text, expanded, one_line
from .faces.drawing import draw_landmarks
from .files import atomic_file
from .models.landmark_predictor import load_landmark_predictor


FORMAT_VERSION = "1"


# tensors have no single answer to ==
@dataclass(frozen=True, eq=False, repr=False)
class FaceIdentity:
    r"""
    What one or several photos say about a person: made once with `pipe.encode_face(...)`, saved, and used again. It
    copies the tensors that it is made from.

    Attributes:
        face_embeds (`torch.Tensor` of shape `(face_embed_dim,)`): The recognizer's embedding; the mean over the photos.
        face_encoder_id (`str`): The recognizer that made it, e.g. `"insightface/w600k_r50"`.
        landmarks (`torch.Tensor` of shape `(68 | 72, 2 | 3)`, *optional*): The face in the first photo, in pixels of
            it: x to the right, y down, z toward the camera.
        key_points (`torch.Tensor` of shape `(5, 2)`, *optional*): The five points that the detector itself found in the
            first photo, in pixels of it: right eye, left eye, nose, right and left corner of the mouth.
        shape (`torch.Tensor` of shape `(n,)`, *optional*): Shape coefficients of the landmark predictor; the mean over
            the photos.
        photo_size (`tuple[int, int]`, *optional*): Height and width of the first photo, in pixels.
        image_hidden_states (`torch.Tensor` of shape `(sequence, width)`, *optional*): CLIP's hidden states of the face
            crops of all photos, one after the other.
        image_encoder_id (`str`, *optional*): The image encoder that made them; of one in an adapter's folder with its
            fingerprint.
        photo_embeds (`torch.Tensor` of shape `(photos, face_embed_dim)`, *optional*): The embedding of each photo, where
            there are several.
        of_ffrnet ([`FaceIdentity`], *optional*): The same person as the encoders of another adapter see them, where FFRNet
            comes from another adapter than the identity attention.
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
    of_ffrnet: FaceIdentity | None = None

    def __post_init__(self) -> None:
        for name in _TENSORS:
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if not isinstance(tensor, torch.Tensor) or tensor.dtype not in _DTYPES or tensor.layout != torch.strided:
                kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
                raise InputError(f"{name} must be a floating point torch.Tensor, got {kind}")
            tensor = tensor.detach().clone()  # the caller may fill its array with the next person
            object.__setattr__(self, name, tensor)
            if tensor.device.type == "meta" or not torch.isfinite(tensor).all():
                raise InputError(f"{name} has values that are not finite; encode the face again")
            if tensor.numel() == 0 or tensor.abs().max() > _MAX_VALUES[name]:
                raise InputError(
                    f"{name} must have values from {-_MAX_VALUES[name]:g} to {_MAX_VALUES[name]:g}; encode the face again"
                )
        if self.face_embeds is None:
            raise InputError("face_embeds must be a floating point torch.Tensor, got NoneType")
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
        if self.photo_embeds is not None and not self.photo_embeds.any(dim=1).all():
            raise InputError("photo_embeds has a photo whose embedding is all zero; encode the face again")
        states = self.image_hidden_states
        if states is not None and (states.ndim != 2 or not states.any()):
            raise InputError(
                f"image_hidden_states must have shape (sequence, width) and not be all zero, got {tuple(states.shape)}"
            )
        if self.photo_size is not None and not _is_size(self.photo_size):
            raise InputError(f"photo_size must be height and width in pixels, got {self.photo_size!r}")
        if not isinstance(self.face_encoder_id, str):
            raise InputError(f"face_encoder_id must be a str, got {type(self.face_encoder_id).__name__}")
        check_text("image_encoder_id", self.image_encoder_id)
        if self.of_ffrnet is not None and (
            not isinstance(self.of_ffrnet, FaceIdentity) or self.of_ffrnet.of_ffrnet is not None
        ):
            raise InputError("of_ffrnet must be a FaceIdentity without another one in it; encode the face again")

    def __repr__(self) -> str:
        # without the numbers: they identify a person
        photos = 1 if self.photo_embeds is None else len(self.photo_embeds)
        parts = [f"{len(self.face_embeds)} numbers of {self.face_encoder_id}"]
        if self.image_hidden_states is not None:
            parts.append(f"{'×'.join(map(str, self.image_hidden_states.shape))} of {self.image_encoder_id}")
        if self.landmarks is not None:
            parts.append(f"{len(self.landmarks)} landmarks")
        if self.photo_size is not None:
            parts.append(f"photo of {self.photo_size[1]}×{self.photo_size[0]} px")
        if self.of_ffrnet is not None:
            parts.append(f"for FFRNet {self.of_ffrnet!r}")
        return f"FaceIdentity({', '.join(parts)}{f', {photos} photos' if photos > 1 else ''})"

    def _repr_png_(self) -> bytes | None:
        """In notebooks: the landmarks, looking as in the photo."""
        if self.landmarks is None:
            return None
        predictor = load_landmark_predictor()
        points = predictor.decode(predictor.encode(self.landmarks[None].float().cpu()))  # (1, 72, 2)
        low, high = points.amin(dim=1, keepdim=True), points.amax(dim=1, keepdim=True)
        points = (points - (low + high) / 2) * (0.7 * _PICTURE_SIDE / (high - low).max()) + _PICTURE_SIDE / 2
        picture = draw_landmarks(points, _PICTURE_SIDE, _PICTURE_SIDE)[0].permute(1, 2, 0)
        file = io.BytesIO()
        PIL.Image.fromarray((picture * 255).round().byte().numpy()).save(file, "PNG")
        return file.getvalue()

    @classmethod
    def fuse(cls, identities: Sequence[FaceIdentity]) -> FaceIdentity:
        """One identity from several of the same person: embeddings and shape averaged, image features side by side."""
        if not isinstance(identities, Sequence):
            raise InputError(f"identities must be a list of FaceIdentity, got {type(identities).__name__}")
        if len(identities) == 0:
            raise InputError("identities is empty; give at least one")
        for identity in identities:
            if not isinstance(identity, FaceIdentity):
                raise InputError(f"identities must be FaceIdentity, got {type(identity).__name__}")
        first = identities[0]
        if len(identities) == 1:
            return first
        for other in identities[1:]:
            if other.face_encoder_id != first.face_encoder_id:
                raise FaceEncoderMismatchError(
                    f"identities come from different encoders ({first.face_encoder_id} and {other.face_encoder_id});"
                    " encode all photos with one"
                )
            if not same_image_features(first.image_encoder_id, other.image_encoder_id):
                raise FaceEncoderMismatchError(
                    f"identities have image features of {first.image_encoder_id} and {other.image_encoder_id};"
                    " encode all photos with one"
                )
            if other.face_embeds.shape != first.face_embeds.shape:
                raise InputError(
                    f"identities have embeddings of {len(first.face_embeds)} and {len(other.face_embeds)} numbers;"
                    " encode all photos with one recognizer"
                )
            if (other.image_hidden_states is None) != (first.image_hidden_states is None):
                raise InputError(
                    "image_hidden_states are there for some of the identities only; encode all photos alike"
                )
            for name in ("shape", "image_hidden_states"):
                one, two = (getattr(identity, name) for identity in (first, other))
                if one is not None and two is not None and one.shape[-1] != two.shape[-1]:
                    raise InputError(
                        f"identities have {name} of {one.shape[-1]} and {two.shape[-1]} numbers; encode all photos alike"
                    )
        embeds = torch.stack([identity.face_embeds for identity in identities])
        length = embeds.norm(dim=-1).mean()
        shapes = [identity.shape for identity in identities if identity.shape is not None]
        states = [identity.image_hidden_states for identity in identities if identity.image_hidden_states is not None]
        of_ffrnet = [identity.of_ffrnet for identity in identities if identity.of_ffrnet is not None]
        if of_ffrnet and len(of_ffrnet) < len(identities):
            raise FaceEncoderMismatchError(
                "identities come from one adapter and from a combination of two; encode all photos with one"
            )
        return replace(
            first,
            face_embeds=F.normalize(embeds.mean(0), dim=0) * length,
            # with its fingerprint, where one of them has it
            image_encoder_id=max((one.image_encoder_id for one in identities), key=lambda name: len(name or "")),
            shape=torch.stack(shapes).mean(0) if shapes else None,
            image_hidden_states=torch.cat(states) if states else None,
            photo_embeds=torch.cat([identity._photo_embeds() for identity in identities]),
            of_ffrnet=cls.fuse(of_ffrnet) if of_ffrnet else None,
        )

    def _photo_embeds(self) -> torch.Tensor:
        return self.face_embeds[None] if self.photo_embeds is None else self.photo_embeds

    def save(self, path: str | Path) -> None:
        """Writes the identity to `path` as safetensors. Raises [`InputError`] where that cannot be written."""
        check_path("path", path)
        path = expanded(path)
        tensors, values = self._as_file()
        metadata = {"format": "facesnap_identity", "version": FORMAT_VERSION, **values}
        if self.of_ffrnet is not None:
            others, values = self.of_ffrnet._as_file()
            tensors |= {f"{_OF_FFRNET}{name}": tensor for name, tensor in others.items()}
            metadata |= {f"{_OF_FFRNET}{name}": value for name, value in values.items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            with atomic_file(path) as temporary:
                save_file(tensors, str(temporary), metadata)
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(
                f"path {path} cannot be written ({one_line(error)}); name a file in a folder that exists"
            ) from None

    def _as_file(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Tensors and metadata of a file, without those of `of_ffrnet`."""
        tensors = {name: getattr(self, name) for name in _TENSORS if getattr(self, name) is not None}
        return tensors, {
            "face_encoder": self.face_encoder_id,
            "image_encoder": json.dumps(self.image_encoder_id),
            "photo_size": json.dumps(self.photo_size),
        }

    @classmethod
    def _from_file(cls, tensors: dict[str, Any], metadata: dict[str, str], **more: Any) -> FaceIdentity:
        photo_size = json.loads(metadata["photo_size"])
        return cls(
            face_encoder_id=metadata["face_encoder"],
            image_encoder_id=json.loads(metadata["image_encoder"]),
            photo_size=tuple(photo_size) if isinstance(photo_size, list) else photo_size,
            **tensors,
            **more,
        )

    @classmethod
    def load(cls, path: str | Path) -> FaceIdentity:
        """Reads an identity that [`save`] wrote. Raises [`InputError`] for any other file."""
        check_path("path", path)
        path = expanded(path)
        if not Path(path).is_file():
            raise InputError(f"path {path} is not a file; save an identity with identity.save(path) first")
        again = "save the identity again"
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != "facesnap_identity" or metadata.get("version") != FORMAT_VERSION:
                    raise InputError(
                        f"path {path} does not hold a FaceSnap identity of version {FORMAT_VERSION}; {again}"
                    )
                names = set(file.keys())
                plain = {name.removeprefix(_OF_FFRNET) for name in names}
                if "face_embeds" not in names or not plain <= set(_TENSORS):
                    raise InputError(f"path {path} holds other tensors than an identity has; {again}")
                tensors = {name: file.get_tensor(name) for name in names}
            others = {name: tensors.pop(name) for name in names if name.startswith(_OF_FFRNET)}
            of_ffrnet = None
            if others:
                of_ffrnet = cls._from_file(_without_prefix(others), _without_prefix(metadata))
            return cls._from_file(tensors, metadata, of_ffrnet=of_ffrnet)
        except InputError as error:
            raise InputError(str(error) if str(path) in str(error) else f"path {path}: {error}") from None
        # safetensors, JSON and torch each have errors of their own for a damaged file
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
            raise InputError(f"path {path} is not a readable safetensors file ({one_line(error)}); {again}") from None


def _without_prefix(values: dict[str, Any]) -> dict[str, Any]:
    """What a file says for FFRNet, by plain names."""
    return {name.removeprefix(_OF_FFRNET): value for name, value in values.items() if name.startswith(_OF_FFRNET)}


def _is_size(value: Any) -> bool:
    is_pair = isinstance(value, (tuple, list)) and len(value) == 2
    return is_pair and all(
        isinstance(side, int) and not isinstance(side, bool) and 0 < side <= _MAX_SIDE for side in value
    )


# Far beyond what encoders give, and far below what overflows in half precision (landmarks are never in that).
_MAX_VALUES = {
    "face_embeds": 1e3,
    "photo_embeds": 1e3,
    "shape": 1e6,
    "image_hidden_states": 1e4,
    "landmarks": 1e6,
    "key_points": 1e6,
}
_MAX_SIDE = 10**6
_PICTURE_SIDE = 192
_TENSORS = tuple(_MAX_VALUES)
_OF_FFRNET = "of_ffrnet."
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def same_image_features(one: str | None, other: str | None) -> bool:
    """
    Whether two `image_encoder_id` may mean the same: image encoder, fingerprint and crop, as
    [`FaceSnapConfig.image_features_id`] writes them, where an encoder in an adapter's folder may do without fingerprint.
    """
    if one is None or other is None:
        return one is other
    (one, _, crop), (other, _, other_crop) = one.partition("#"), other.partition("#")
    (one, _, which), (other, _, other_which) = one.partition("@"), other.partition("@")
    return (one, crop) == (other, other_crop) and (not which or not other_which or which == other_which)
