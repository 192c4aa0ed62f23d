from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..adapter import FaceSnapAdapterMixin
from ..config import FaceSnapConfig
from ..errors import FaceEncoderMismatchError, InputError
from ..faces.alignment import align_face, align_for_clip
from ..faces.analyzers import FaceAnalyzer, default_analyzer
from ..faces.detection import find_face
from ..faces.photo import load_photo
from ..identity import FaceIdentity
from ..models.landmark_predictor import LandmarkPredictor, load_landmark_predictor
from .steering import as_landmarks


class FaceEncodingMixin(FaceSnapAdapterMixin):
    """From photos of a person to a [`FaceIdentity`]."""

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
            face_index (`int`, *optional*): Which face to take where a photo shows several; the largest by default.
            embedding (`torch.Tensor` of shape `(face_embed_dim,)`, *optional*): Your own embedding of the adapter's
                face encoder; no recogniser runs then.
            landmarks (`torch.Tensor` of shape `(68 | 72, 2 | 3)`, *optional*): Your own landmarks in pixels of the
                photo, beside `embedding`; no detector runs then.

        Returns:
            [`FaceIdentity`]

        Raises:
            NoFaceFoundError: A photo shows no face.
            FaceEncoderMismatchError: `face_analyzer` is another recogniser than the adapter was trained with.
            InputError: An argument has a wrong type, shape, range or length.
        """
        config = self._require_adapter("encode_face")
        photos = list(face_image) if isinstance(face_image, (list, tuple)) else [face_image]
        if not photos:
            raise InputError("face_image is an empty list; give at least one photo")
        if len(photos) > 1 and (embedding is not None or landmarks is not None):
            raise InputError("embedding= and landmarks= go with one photo; encode each and use FaceIdentity.fuse")
        if landmarks is not None and embedding is None:
            raise InputError("landmarks= without embedding=: pass both, no recogniser runs then")
        points = None
        if landmarks is not None:
            points, *more = as_landmarks(landmarks, "landmarks", counts=(68, 72))
            if more:
                raise InputError(f"landmarks must be those of one face, got {1 + len(more)}; encode one by one")
        embeds = None if embedding is None else self._as_embedding(embedding, config)
        return FaceIdentity.fuse(
            [
                self._encode_photo(
                    photo, "face_image" if len(photos) == 1 else f"face_image[{i}]", face_index, embeds, points, config
                )
                for i, photo in enumerate(photos)
            ]
        )

    def _encode_photo(
        self,
        photo: Any,
        name: str,
        face_index: int | None,
        embeds: torch.Tensor | None,
        landmarks: torch.Tensor | None,
        config: FaceSnapConfig,
    ) -> FaceIdentity:
        image = None
        if embeds is None:
            face = find_face(photo, self._analyzer(config), face_index, name)
            image, landmarks, embeds = face.image, torch.from_numpy(face.landmarks), torch.from_numpy(face.embedding)
        elif photo is not None and landmarks is not None:
            image = load_photo(photo, name)
        elif config.image_encoder is not None:
            raise InputError(f"this adapter looks at CLIP features too: pass {name}= and landmarks= beside embedding=")

        shape = None
        if landmarks is not None:
            predictor = self._landmark_predictor()
            shape = predictor.encode(landmarks[None].to(predictor.device, torch.float32)).shape[0].float().cpu()
        return FaceIdentity(
            face_embeds=embeds,
            face_encoder=config.face_encoder,
            landmarks=landmarks,
            shape=shape,
            photo_size=None if image is None else image.shape[:2],
            image_hidden_states=None if image is None else self._encode_image(image, landmarks, config),
            image_encoder=config.image_encoder,
        )

    def _encode_image(self, image: np.ndarray, landmarks: torch.Tensor, config: FaceSnapConfig) -> torch.Tensor | None:
        encoder = self.face_image_encoder
        if encoder is None:
            return None
        align = align_face if config.image_crop == "arcface" else align_for_clip
        crop = align(image, landmarks.numpy(), size=encoder.config.image_size)
        pixel_values = self.face_image_processor(crop, return_tensors="pt").pixel_values
        pixel_values = pixel_values.to(self._execution_device, encoder.dtype)
        # the last layer serves CLIP's own loss; the one before keeps more of the picture (IP-Adapter, section 3.2)
        return encoder(pixel_values, output_hidden_states=True).hidden_states[-2][0].float().cpu()

    def _analyzer(self, config: FaceSnapConfig) -> FaceAnalyzer:
        if self.face_analyzer is None:
            self._default_analyzer = default_analyzer(config.face_encoder, config.normalized_embeds)
            self.face_analyzer = self._default_analyzer
        if not isinstance(self.face_analyzer, FaceAnalyzer):
            raise InputError(f"face_analyzer must be a FaceAnalyzer, got {type(self.face_analyzer).__name__}")
        if self.face_analyzer.encoder != config.face_encoder:
            raise FaceEncoderMismatchError(
                f"face_analyzer makes embeddings of {self.face_analyzer.encoder}, the adapter was trained with"
                f" {config.face_encoder}; set face_analyzer to one of that encoder, or to None for the default"
            )
        return self.face_analyzer

    def _landmark_predictor(self) -> LandmarkPredictor:
        if self.landmark_predictor is None:
            self.landmark_predictor = load_landmark_predictor()
        return self.landmark_predictor

    @staticmethod
    def _as_embedding(embedding: Any, config: FaceSnapConfig) -> torch.Tensor:
        try:
            embeds = torch.as_tensor(embedding, dtype=torch.float32).detach().cpu()
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"embedding must be a tensor or array, got {type(embedding).__name__}") from None
        if embeds.ndim != 1 or config.face_embed_dim not in (None, len(embeds)):
            raise InputError(
                f"embedding must have shape ({config.face_embed_dim},), got {tuple(embeds.shape)};"
                f" give one of {config.face_encoder}"
            )
        return embeds
