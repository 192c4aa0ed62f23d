"""The one place where a face becomes what a diffusion model is conditioned on: identity tokens and a landmark picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from .adapter.config import FaceSnapConfig
from .errors import FaceEncoderMismatchError, InputError
from .faces.alignment import align_for_encoder
from .faces.analyzers import FaceAnalyzer, default_analyzer
from .faces.detection import find_face, same_face
from .faces.face import Face
from .faces.key_points import draw_for_style
from .faces.photo import load_scaled_photo
from .faces.pose import HeadPose
from .identity import FaceIdentity, same_image_features
from .models.image_encoder import image_hidden_states
from .models.landmark_predictor import LandmarkPredictor
from .models.mixer import IdentityMixer
from .steering import ImageSteering, Steering, as_boxes, as_expressions, as_landmarks, as_list, steer


@dataclass(frozen=True)
class FaceConditioner:
    r"""
    From a photo to a [`FaceIdentity`], from identities to tokens, from identities and steering to landmarks, from landmarks
    to the picture that FFRNet takes: each in the way that an adapter was trained for. Pipelines, modular blocks, the
    training objective and export all stand on it. It knows no pipeline and no UNet, and keeps nothing from call to call.

    Attributes:
        config ([`FaceSnapConfig`]): The adapter's.
        mixer ([`IdentityMixer`]): Makes the identity tokens.
        landmark_predictor ([`LandmarkPredictor`]): Takes a face apart into shape, expression and pose.
        image_encoder (`CLIPVisionModelWithProjection`, *optional*): For mixers that take image features.
        image_processor (`CLIPImageProcessor`, *optional*): What belongs to it.
        face_analyzer ([`FaceAnalyzer`], *optional*): Finds and describes faces in photos; by default the one that the
            config's face encoder belongs to.
        device (`torch.device`, *optional*): Where the mixer runs; its own device by default.
        of_ffrnet ([`FaceConditioner`], *optional*): That of the adapter that FFRNet comes from, where it is another one
            than the identity attention's: landmarks and their picture are then its.
    """

    config: FaceSnapConfig
    mixer: IdentityMixer
    landmark_predictor: LandmarkPredictor
    image_encoder: CLIPVisionModelWithProjection | None = None
    image_processor: CLIPImageProcessor | None = None
    face_analyzer: FaceAnalyzer | None = None
    device: torch.device | None = None
    of_ffrnet: FaceConditioner | None = None

    @property
    def landmark_style(self) -> str:
        """How landmarks are drawn for FFRNet."""
        return (self.of_ffrnet or self).config.landmark_style

    # from photos to identities

    @torch.no_grad()
    def encode_face(
        self,
        face_image: Any = None,
        *,
        face_index: int | None = None,
        embedding: torch.Tensor | np.ndarray | None = None,
        landmarks: torch.Tensor | np.ndarray | None = None,
    ) -> FaceIdentity:
        r"""
        Encodes a person once, to be saved and used again.

        Args:
            face_image (photo or list of photos, *optional*): One photo, or several of the same person, which are
                fused: PIL images, paths, URLs, arrays or tensors.
            face_index (`int` or [`FaceChoice`], *optional*): Which face to take where a photo shows several; the largest by default.
            embedding (`torch.Tensor` of shape `(face_embed_dim,)`, *optional*): Your own embedding of the adapter's
                face encoder; no recognizer runs then.
            landmarks (`torch.Tensor` of shape `(68 | 72, 2 | 3)`, *optional*): Your own landmarks in pixels of the
                photo, beside `embedding`; no detector runs then.

        Returns:
            [`FaceIdentity`]

        Raises:
            NoFaceFoundError: A photo shows no face.
            FaceEncoderMismatchError: The face analyzer is another recognizer than the adapter was trained with.
            InputError: An argument has a wrong type, shape, range or length.
        """
        photos = list(face_image) if isinstance(face_image, (list, tuple)) else [face_image]
        if not photos:
            raise InputError("face_image is an empty list; give at least one photo")
        if len(photos) > 1 and (embedding is not None or landmarks is not None):
            raise InputError("embedding= and landmarks= go with one photo; encode each and use FaceIdentity.fuse")
        if landmarks is not None and embedding is None:
            raise InputError("landmarks= without embedding=: pass both, no recognizer runs then")
        points = None
        if landmarks is not None:
            points, *more = as_landmarks(landmarks, "landmarks", counts=(68, 72))
            if more:
                raise InputError(f"landmarks must be those of one face, got {1 + len(more)}; encode one by one")
        embeds = None if embedding is None else self._as_embedding(embedding)
        names = ["face_image"] if len(photos) == 1 else [f"face_image[{i}]" for i in range(len(photos))]
        return FaceIdentity.fuse(
            [
                self._encode_photo(photo, name, face_index, embeds, points)
                for photo, name in zip(photos, names, strict=True)
            ]
        )

    def identities(
        self, face_image: Any = None, identity: Any = None, face_index: int | None = None, num_prompts: int = 1
    ) -> list[FaceIdentity]:
        """
        The people of a call, checked: from `identity`, or from `face_image`, where a list of photos is one person seen
        several times and a list of lists has a person for each image of the batch. `num_prompts` only serves to refuse a
        list of photos that could mean either.
        """
        if face_image is not None and identity is not None:
            raise InputError("face_image= and identity= are both given; pass one of the two")
        if identity is not None:
            identities = as_list(identity, "identity", FaceIdentity)
        elif isinstance(face_image, (list, tuple)) and any(isinstance(item, (list, tuple)) for item in face_image):
            people = [item if isinstance(item, (list, tuple)) else [item] for item in face_image]
            identities = [self.encode_face(list(photos), face_index=face_index) for photos in people]
        else:
            count = len(face_image) if isinstance(face_image, (list, tuple)) else 1
            if count == num_prompts > 1:
                raise InputError(
                    f"face_image has {count} photos for {count} prompts: one person or {count}? Pass [[photo, photo]]"
                    " for one person, [[photo], [photo]] for one person a prompt"
                )
            identities = [self.encode_face(face_image, face_index=face_index)]
        for item in identities:
            self.check(item)
        return identities

    def check(self, identity: FaceIdentity) -> None:
        """
        Raises [`FaceEncoderMismatchError`] unless the identity was made by the encoders that the adapter takes. Where it
        takes no face embedding, any recognizer will do.
        """
        if self.of_ffrnet is not None:
            self.of_ffrnet.check(*self.as_ffrnet_sees([identity]))
        config = self.config
        takes_embeds = config.face_embed_dim is not None
        if takes_embeds and identity.face_encoder_id != config.face_encoder_id:
            raise FaceEncoderMismatchError(
                f"identity was made by {identity.face_encoder_id}, the adapter was trained with"
                f" {config.face_encoder_id}; encode the face again with encode_face"
            )
        if takes_embeds and config.face_embed_dim != len(identity.face_embeds):
            raise FaceEncoderMismatchError(
                f"identity has an embedding of {len(identity.face_embeds)} numbers, the adapter takes"
                f" {config.face_embed_dim}; encode the face again with encode_face"
            )
        if takes_embeds and not config.normalized_embeds and abs(float(identity.face_embeds.norm()) - 1) < 1e-3:
            raise FaceEncoderMismatchError(
                "identity has an embedding of unit length, the adapter takes them as long as the recognizer gives them;"
                " encode the face again with InsightFaceAnalyzer(..., normalize=False) as face_analyzer"
            )
        wanted = config.image_features_id
        if wanted is not None and not same_image_features(wanted, identity.image_encoder_id):
            raise FaceEncoderMismatchError(
                f"identity has image features of {identity.image_encoder_id}, the adapter was trained with those of"
                f" {wanted}; encode the face again with encode_face"
            )

    def as_ffrnet_sees(self, identities: Sequence[FaceIdentity]) -> list[FaceIdentity]:
        """The people as the encoders of FFRNet's adapter see them; where they see no other, as they are."""
        return [identity.of_ffrnet or identity for identity in identities]

    # from identities to tokens

    @torch.no_grad()
    def tokens(self, identities: Sequence[FaceIdentity]) -> tuple[torch.Tensor, torch.Tensor]:
        """Identity tokens and unconditional tokens, each `(batch, tokens, cross_attention_dim)`."""
        device, dtype = self.device or self.mixer.device, self.mixer.dtype
        unconditional = torch.tensor([False, True], device=device)
        mixed = []
        for identity in identities:
            embeds = identity.face_embeds
            if self.mixer.per_photo and identity.photo_embeds is not None:
                embeds = identity.photo_embeds
            states = identity.image_hidden_states
            mixed.append(
                self.mix(
                    embeds.to(device, dtype).expand(2, *embeds.shape),
                    None if states is None else states.to(device, dtype).expand(2, *states.shape),
                    unconditional,
                )
            )  # (2, tokens, cross_attention_dim)
        if len({tokens.shape for tokens in mixed}) > 1:
            raise InputError(
                "identities come from different numbers of photos, of which each gives tokens; use as many"
            )
        tokens, unconditional_tokens = torch.stack(mixed).unbind(dim=1)
        return tokens, unconditional_tokens

    def mix(
        self, face_embeds: torch.Tensor | None, image_states: torch.Tensor | None, unconditional: torch.Tensor
    ) -> torch.Tensor:
        """The mixer on what it takes of the two, in its own dtype: `(batch, tokens, cross_attention_dim)`."""
        dtype = self.mixer.dtype
        takes_embeds, takes_states = self.mixer.face_embed_dim is not None, self.mixer.image_embed_dim is not None
        return self.mixer(
            face_embeds.to(dtype) if takes_embeds and face_embeds is not None else None,
            image_states.to(dtype) if takes_states and image_states is not None else None,
            unconditional,
        )

    def image_crop(self, image: np.ndarray, landmarks: np.ndarray, key_points: np.ndarray | None = None) -> np.ndarray:
        """
        What the image encoder sees of a photo `(height, width, 3)`, uint8, with landmarks `(68 | 72, 2 | 3)` and, where the
        detector has them, its own five key points `(5, 2)`.
        """
        assert self.image_encoder is not None
        size = self.image_encoder.config.image_size
        return align_for_encoder(image, landmarks, self.config.image_crop, size, key_points)

    @torch.no_grad()
    def image_states(self, pixel_values: torch.Tensor) -> torch.Tensor | None:
        """The image encoder's hidden states `(batch, sequence, width)` of processed crops `(batch, 3, size, size)`."""
        if self.image_encoder is None:
            return None
        return image_hidden_states(self.image_encoder, pixel_values, self.device)

    # from identities to landmarks and their picture

    @property
    def draws_key_points(self) -> bool:
        """Whether the picture is drawn from the five key points, as InstantID's is, and not from the landmarks."""
        return self.landmark_style == "instantid5"

    def drawn_points(
        self, identities: Sequence[FaceIdentity], steering: Steering, height: int, width: int
    ) -> torch.Tensor:
        """The points that the adapter's picture is drawn from, in pixels: landmarks, or InstantID's five key points."""
        return self.landmarks(identities, steering, height, width, self.draws_key_points)

    @torch.no_grad()
    def landmarks(
        self,
        identities: Sequence[FaceIdentity],
        steering: Steering,
        height: int,
        width: int,
        key_points: bool = False,
    ) -> torch.Tensor:
        """
        The landmarks `(batch, 72, 2)` of identities and steering, each for one image or a batch, in pixels; with
        `key_points` the five points `(batch, 5, 2)`, the detector's own where it has them.
        """
        if self.of_ffrnet is not None:
            identities = self.as_ffrnet_sees(identities)
            return self.of_ffrnet.landmarks(identities, steering, height, width, key_points)
        photos = as_list(steering.pose_image, "pose_image")
        names = ["pose_image"] if len(photos) == 1 else [f"pose_image[{i}]" for i in range(len(photos))]
        values: dict[str, list[Any]] = {
            "identity": list(identities),
            "pose_image": [
                photo if isinstance(photo, Face) else find_face(photo, self.analyzer, steering.face_index, name)
                for photo, name in zip(photos, names, strict=True)
            ],
            "pose": as_list(steering.pose, "pose", HeadPose),
            "expression": as_expressions(steering.expression),
            "face_box": as_boxes(steering.face_box),
        }
        batch = max(len(entries) for entries in values.values())
        for name, entries in values.items():
            if len(entries) not in (0, 1, batch):
                raise InputError(f"{name} has {len(entries)} entries, another argument {batch}; give 1 or {batch}")

        def of_image(name: str, i: int) -> Any:
            entries = values[name]
            return None if not entries else entries[0] if len(entries) == 1 else entries[i]

        points = []
        for i in range(batch):
            image_steering = ImageSteering(
                of_image("pose_image", i), of_image("pose", i), of_image("expression", i), of_image("face_box", i)
            )
            with torch.autocast(self.landmark_predictor.device.type, enabled=False):
                identity = of_image("identity", i)
                points.append(steer(self.landmark_predictor, identity, image_steering, height, width, key_points))
        return torch.cat(points)

    def landmark_picture(self, landmarks: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """
        The picture `(batch, 3, height, width)` in `[0, 1]` of landmarks `(batch, 72, 2)`, in the adapter's style; in that of
        InstantID also of key points `(batch, 5, 2)`.
        """
        return draw_for_style(self.landmark_style, landmarks.float(), height, width)

    @property
    def analyzer(self) -> FaceAnalyzer:
        """
        The face analyzer, checked. Raises [`FaceEncoderMismatchError`] where it makes other embeddings than the adapter
        takes.
        """
        config = self.config
        analyzer = self.face_analyzer
        if analyzer is None and config.face_embed_dim is None and self.of_ffrnet is not None:
            return self.of_ffrnet.analyzer  # one for both
        if analyzer is None:
            analyzer = default_analyzer(config.face_encoder_id, config.normalized_embeds)
        if not isinstance(analyzer, FaceAnalyzer):
            raise InputError(f"face_analyzer must be a FaceAnalyzer, got {type(analyzer).__name__}")
        if config.face_embed_dim is not None and analyzer.encoder != config.face_encoder_id:
            raise FaceEncoderMismatchError(
                f"face_analyzer makes embeddings of {analyzer.encoder}, the adapter was trained with"
                f" {config.face_encoder_id}; set face_analyzer to one of that encoder, or to None for the default"
            )
        return analyzer

    def _encode_photo(
        self,
        photo: Any,
        name: str,
        face_index: int | None,
        embeds: torch.Tensor | None,
        landmarks: torch.Tensor | None,
    ) -> FaceIdentity:
        config, image = self.config, None
        if embeds is None:
            return self.identity_of(find_face(photo, self.analyzer, face_index, name))
        if photo is not None and landmarks is not None:
            image, scale = load_scaled_photo(photo, name)
            landmarks = _in_loaded_photo(landmarks, image, scale, name)
        elif config.image_encoder_id is not None:
            raise InputError(f"this adapter looks at CLIP features too: pass {name}= and landmarks= beside embedding=")
        identity = self._identity(image, landmarks, embeds)
        if self.of_ffrnet is None:
            return identity
        if len(config.face_encoder_ids) > 1:
            raise InputError(
                f"embedding= is of one face recognizer, and the two adapters take those of"
                f" {' and '.join(config.face_encoder_ids)}; pass {name}= alone"
            )
        embeds = self.of_ffrnet._as_embedding(embeds)
        return replace(identity, of_ffrnet=self.of_ffrnet._encode_photo(photo, name, face_index, embeds, landmarks))

    def identity_of(self, face: Face) -> FaceIdentity:
        """The identity of a face that the adapter's analyzer found."""
        landmarks, embeds = torch.from_numpy(face.landmarks), torch.from_numpy(face.embedding)
        key_points = None if face.key_points is None else torch.from_numpy(face.key_points)
        identity = self._identity(face.image, landmarks, embeds, key_points, face.encoder)
        if self.of_ffrnet is None:
            return identity
        other = self.of_ffrnet
        if other.config.face_embed_dim is not None and other.analyzer is not self.analyzer:
            face = same_face(face, other.analyzer)
        return replace(identity, of_ffrnet=other.identity_of(face))

    @torch.no_grad()
    def _identity(
        self,
        image: np.ndarray | None,
        landmarks: torch.Tensor | None,
        embeds: torch.Tensor,
        key_points: torch.Tensor | None = None,
        face_encoder_id: str | None = None,
    ) -> FaceIdentity:
        config, shape, states = self.config, None, None
        if landmarks is not None:
            predictor = self.landmark_predictor
            with torch.autocast(predictor.device.type, enabled=False):  # it solves in float32
                shape = predictor.encode(landmarks[None].to(predictor.device, torch.float32)).shape[0].float().cpu()
        if image is not None and self.image_encoder is not None:
            assert self.image_processor is not None and landmarks is not None
            crop = self.image_crop(image, landmarks.numpy(), None if key_points is None else key_points.numpy())
            pixel_values = self.image_processor(crop, return_tensors="pt").pixel_values
            # a caller's autocast is for the diffusion model
            with torch.autocast((self.device or self.image_encoder.device).type, enabled=False):
                encoded = self.image_states(pixel_values)
            states = encoded[0].float().cpu() if encoded is not None else None
        return FaceIdentity(
            face_embeds=embeds,
            face_encoder_id=face_encoder_id or config.face_encoder_id,
            landmarks=landmarks,
            key_points=key_points,
            shape=shape,
            photo_size=None if image is None else image.shape[:2],
            image_hidden_states=states,
            image_encoder_id=config.image_features_id,
        )

    def _as_embedding(self, embedding: Any) -> torch.Tensor:
        config = self.config
        try:
            embeds = torch.as_tensor(embedding, dtype=torch.float32).detach().cpu()
        except Exception:  # what an argument of any type can raise
            raise InputError(f"embedding must be a tensor or array, got {type(embedding).__name__}") from None
        if embeds.ndim != 1 or config.face_embed_dim not in (None, len(embeds)):
            raise InputError(
                f"embedding must have shape ({config.face_embed_dim},), got {tuple(embeds.shape)};"
                f" give one of {config.face_encoder_id}"
            )
        return embeds


def _in_loaded_photo(landmarks: torch.Tensor, image: np.ndarray, scale: float, name: str) -> torch.Tensor:
    """Landmarks in pixels of a photo as it was given, in those of the image that it was loaded as."""
    landmarks = landmarks * scale
    landmarks[:, :2] += (scale - 1) / 2  # pixels' centers are at whole numbers
    height, width = image.shape[:2]
    inside = (landmarks[:, :2] >= 0) & (landmarks[:, :2] <= landmarks.new_tensor([width - 1, height - 1]))
    if inside.all(1).float().mean() < 0.5:
        raise InputError(
            f"landmarks lie outside of {name} ({round(width / scale)}×{round(height / scale)}); pass those of its face,"
            " in its pixels"
        )
    return landmarks
