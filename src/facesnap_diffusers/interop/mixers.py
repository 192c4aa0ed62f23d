"""The image projections of third-party identity adapters as [`IdentityMixer`]s."""

import copy

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import (
    IPAdapterFaceIDImageProjection,
    IPAdapterFaceIDPlusImageProjection,
    IPAdapterFullImageProjection,
    IPAdapterPlusImageProjection,
)
from torch import nn
from transformers import CLIPVisionModelWithProjection

from ..errors import AdapterError, InputError
from ..models.image_encoder import image_hidden_states
from ..models.mixer import IdentityMixer, check_face_embeds, check_image_hidden_states


class FaceIDMixer(IdentityMixer):
    r"""
    IP-Adapter FaceID and FaceID-Portrait: tokens from the face embedding alone, brought to unit length. The
    unconditional tokens are those of an embedding of zeros.

    Args:
        cross_attention_dim (`int`): Width of the base model's cross-attention context.
        face_embed_dim (`int`): Width of the face-recognition embedding.
        num_tokens (`int`): 4, for Portrait 16.
        mult (`int`): Inner width, as a multiple of `face_embed_dim`.
        per_photo (`bool`): Portrait: several photos of a person give `num_tokens` each, instead of their mean.
    """

    @register_to_config
    def __init__(
        self,
        cross_attention_dim: int = 768,
        face_embed_dim: int = 512,
        num_tokens: int = 4,
        mult: int = 2,
        per_photo: bool = False,
    ):
        super().__init__()
        self.projection = IPAdapterFaceIDImageProjection(face_embed_dim, cross_attention_dim, mult, num_tokens)

    @property
    def per_photo(self) -> bool:
        return self.config.per_photo

    @property
    def output_norm(self) -> nn.LayerNorm:
        return self.projection.norm

    def forward(
        self,
        face_embeds: torch.Tensor | None,
        image_hidden_states: torch.Tensor | None = None,
        unconditional: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As [`IdentityMixer.forward`]."""
        photos = F.normalize(_photo_embeds(face_embeds, self.config.face_embed_dim), dim=-1)
        if unconditional is not None:
            photos = photos.masked_fill(unconditional[:, None, None], 0)
        return self.projection(photos.flatten(0, 1)).unflatten(0, photos.shape[:2]).flatten(1, 2)


class ImagePromptMixer(IdentityMixer):
    """
    A mixer of image features whose unconditional tokens are those of an empty image, which [`set_image_encoder`] computes
    once. A subclass has `image_sequence_length`, the number of hidden states of one image, and `image_embed_dim` in its
    config.
    """

    empty_image: torch.Tensor

    @property
    def image_embed_dim(self) -> int:
        return self.config.image_embed_dim

    @torch.no_grad()
    def set_image_encoder(self, image_encoder: CLIPVisionModelWithProjection) -> None:
        """Keeps what the image encoder says of an image whose (normalized) pixels are all zero."""
        size = image_encoder.config.image_size
        pixel_values = torch.zeros(1, 3, size, size, device=image_encoder.device, dtype=image_encoder.dtype)
        states = image_hidden_states(image_encoder, pixel_values)[0]  # (sequence, width)
        if states.shape[-1] != self.config.image_embed_dim:
            raise InputError(
                f"image_encoder gives hidden states of width {states.shape[-1]}, the adapter takes"
                f" {self.config.image_embed_dim}; pass the image encoder that it was trained with"
            )
        self.empty_image = states.to(self.empty_image)
        self.register_to_config(image_sequence_length=len(states))

    def _photos(self, image_hidden_states: torch.Tensor | None, unconditional: torch.Tensor | None) -> torch.Tensor:
        """The hidden states of each photo, `(batch, photos, image_sequence_length, image_embed_dim)`."""
        states = check_image_hidden_states(image_hidden_states, self.config.image_embed_dim)
        length = len(self.empty_image)
        if states.shape[1] % length:
            raise InputError(
                f"image_hidden_states has {states.shape[1]} states, the image encoder gives {length} for each"
                " photo; encode the face again with encode_face"
            )
        photos = states.unflatten(1, (-1, length))
        if unconditional is not None:
            photos = torch.where(unconditional[:, None, None, None], self.empty_image.to(photos), photos)
        return photos


class FaceIDPlusMixer(ImagePromptMixer):
    r"""
    IP-Adapter FaceID-Plus and its version 2: tokens of the face embedding look at CLIP's hidden states. The
    unconditional tokens are those of an embedding of zeros and the hidden states of an empty image.

    Args:
        cross_attention_dim (`int`): Width of the base model's cross-attention context.
        face_embed_dim (`int`): Width of the face-recognition embedding.
        image_embed_dim (`int`): Width of the CLIP hidden states.
        image_sequence_length (`int`): Number of CLIP hidden states of one image.
        hidden_size (`int`): Inner width; that of the context in the public checkpoints.
        num_heads (`int`): Attention heads, of 64 channels each.
        shortcut (`bool`): Version 2, where the face embedding's tokens are added to the result.
        num_tokens (`int`): Number of tokens.
        structure_scale (`float`): Version 2: weight of what it takes from CLIP, the structure of the face (`s_scale` in
            the authors' code).
    """

    @register_to_config
    def __init__(
        self,
        cross_attention_dim: int = 768,
        face_embed_dim: int = 512,
        image_embed_dim: int = 1280,
        image_sequence_length: int = 257,
        hidden_size: int = 768,
        num_heads: int = 12,
        shortcut: bool = False,
        num_tokens: int = 4,
        structure_scale: float = 1.0,
    ):
        super().__init__()
        self.projection = IPAdapterFaceIDPlusImageProjection(
            embed_dims=hidden_size,
            output_dims=cross_attention_dim,
            hidden_dims=image_embed_dim,
            id_embeddings_dim=face_embed_dim,
            heads=num_heads,
            num_tokens=num_tokens,
        )
        self.projection.shortcut = shortcut
        self.projection.shortcut_scale = structure_scale
        self.register_buffer("empty_image", torch.zeros(image_sequence_length, image_embed_dim))

    @property
    def output_norm(self) -> nn.LayerNorm:
        raise AdapterError("an IP-Adapter FaceID-Plus is not exported again: stock diffusers loads its own file")

    def forward(
        self,
        face_embeds: torch.Tensor | None,
        image_hidden_states: torch.Tensor | None = None,
        unconditional: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As [`IdentityMixer.forward`]."""
        face_embeds = check_face_embeds(face_embeds, self.config.face_embed_dim)
        states = check_image_hidden_states(image_hidden_states, self.config.image_embed_dim)
        tokens = self._project(F.normalize(face_embeds, dim=-1), states)
        if unconditional is not None:
            empty = self._project(torch.zeros_like(face_embeds[:1]), self.empty_image[None].to(states))
            tokens = torch.where(unconditional[:, None, None], empty, tokens)
        return tokens

    def _project(self, face_embeds: torch.Tensor, image_hidden_states: torch.Tensor) -> torch.Tensor:
        # diffusers' layer takes its CLIP states from an attribute: set on a copy, no other call sees them
        projection = copy.copy(self.projection)  # shallow, with the same weights
        projection.clip_embeds = image_hidden_states[:, None]
        return projection(face_embeds)


class PlusFaceMixer(ImagePromptMixer):
    r"""
    IP-Adapter Plus for faces (arXiv 2308.06721): a resampler over CLIP's hidden states of each photo. It takes no face
    embedding, and so needs no recognizer.

    Args:
        cross_attention_dim (`int`): Width of the base model's cross-attention context.
        image_embed_dim (`int`): Width of the CLIP hidden states.
        image_sequence_length (`int`): Number of CLIP hidden states of one image.
        num_tokens (`int`): Number of queries.
        hidden_size (`int`): Inner width.
        num_heads (`int`): Attention heads, of 64 channels each.
    """

    @register_to_config
    def __init__(
        self,
        cross_attention_dim: int = 768,
        image_embed_dim: int = 1280,
        image_sequence_length: int = 257,
        num_tokens: int = 16,
        hidden_size: int = 768,
        num_heads: int = 12,
    ):
        super().__init__()
        self.projection = IPAdapterPlusImageProjection(
            embed_dims=image_embed_dim,
            output_dims=cross_attention_dim,
            hidden_dims=hidden_size,
            heads=num_heads,
            num_queries=num_tokens,
        )
        self.register_buffer("empty_image", torch.zeros(image_sequence_length, image_embed_dim))

    @property
    def face_embed_dim(self) -> None:
        return None

    @property
    def per_photo(self) -> bool:
        return True

    @property
    def output_norm(self) -> nn.LayerNorm:
        return self.projection.norm_out

    def forward(
        self,
        face_embeds: torch.Tensor | None = None,
        image_hidden_states: torch.Tensor | None = None,
        unconditional: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As [`IdentityMixer.forward`]."""
        photos = self._photos(image_hidden_states, unconditional)
        return self.projection(photos.flatten(0, 1)).unflatten(0, photos.shape[:2]).flatten(1, 2)


class FullFaceMixer(ImagePromptMixer):
    r"""
    IP-Adapter "full" for faces: a token of each of CLIP's hidden states of each photo. It takes no face embedding, and so
    needs no recognizer.

    Args:
        cross_attention_dim (`int`): Width of the base model's cross-attention context.
        image_embed_dim (`int`): Width of the CLIP hidden states.
        image_sequence_length (`int`): Number of CLIP hidden states of one image, which is the number of tokens.
    """

    @register_to_config
    def __init__(self, cross_attention_dim: int = 768, image_embed_dim: int = 1280, image_sequence_length: int = 257):
        super().__init__()
        self.projection = IPAdapterFullImageProjection(image_embed_dim, cross_attention_dim)
        self.register_buffer("empty_image", torch.zeros(image_sequence_length, image_embed_dim))

    @property
    def num_tokens(self) -> int:
        return self.config.image_sequence_length

    @property
    def face_embed_dim(self) -> None:
        return None

    @property
    def per_photo(self) -> bool:
        return True

    @property
    def output_norm(self) -> nn.LayerNorm:
        return self.projection.norm

    def forward(
        self,
        face_embeds: torch.Tensor | None = None,
        image_hidden_states: torch.Tensor | None = None,
        unconditional: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As [`IdentityMixer.forward`]."""
        return self.projection(self._photos(image_hidden_states, unconditional)).flatten(1, 2)


class InstantIDMixer(IdentityMixer):
    r"""
    InstantID (arXiv 2401.07519) and IP-Adapter FaceID-Portrait "unnorm": a resampler over the face embedding as its
    only input token. Takes embeddings as long as the recognizer gives them. The unconditional tokens are those of an
    embedding of zeros.

    Args:
        cross_attention_dim (`int`): Width of the base model's cross-attention context.
        face_embed_dim (`int`): Width of the face-recognition embedding.
        num_tokens (`int`): Number of queries.
        hidden_size (`int`): Inner width.
        num_heads (`int`): Attention heads, of 64 channels each.
        per_photo (`bool`): Portrait: several photos of a person give `num_tokens` each, instead of their mean.
    """

    @register_to_config
    def __init__(
        self,
        cross_attention_dim: int = 2048,
        face_embed_dim: int = 512,
        num_tokens: int = 16,
        hidden_size: int = 1280,
        num_heads: int = 20,
        per_photo: bool = False,
    ):
        super().__init__()
        self.projection = IPAdapterPlusImageProjection(
            embed_dims=face_embed_dim,
            output_dims=cross_attention_dim,
            hidden_dims=hidden_size,
            heads=num_heads,
            num_queries=num_tokens,
        )

    @property
    def per_photo(self) -> bool:
        return self.config.per_photo

    @property
    def output_norm(self) -> nn.LayerNorm:
        return self.projection.norm_out

    def forward(
        self,
        face_embeds: torch.Tensor | None,
        image_hidden_states: torch.Tensor | None = None,
        unconditional: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As [`IdentityMixer.forward`]."""
        photos = _photo_embeds(face_embeds, self.config.face_embed_dim)
        if unconditional is not None:
            photos = photos.masked_fill(unconditional[:, None, None], 0)
        tokens = self.projection(photos.flatten(0, 1)[:, None])
        return tokens.unflatten(0, photos.shape[:2]).flatten(1, 2)


def _photo_embeds(face_embeds: torch.Tensor | None, width: int) -> torch.Tensor:
    """Embeddings `(batch, width)` or `(batch, photos, width)`, checked, as `(batch, photos, width)`."""
    if face_embeds is None or face_embeds.ndim != 3:
        return check_face_embeds(face_embeds, width)[:, None]
    check_face_embeds(face_embeds.flatten(0, 1), width)
    return face_embeds
