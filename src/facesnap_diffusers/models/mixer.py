"""Mixers: from what encoders say about a face to identity tokens."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ..errors import AdapterError, InputError


class IdentityMixer(ModelMixin, ConfigMixin):
    r"""
    The contract of all mixers. A mixer turns a face-recognition embedding, image features or both into identity tokens of
    the width of the base model's cross-attention context. A forward pass depends on its arguments and the weights only:
    nothing is kept from one to the next, so that several threads can share a mixer.

    A subclass has `num_tokens` and `cross_attention_dim` in its config, and implements [`forward`]; where they differ from
    what stands here, also the properties below.
    """

    @property
    def num_tokens(self) -> int:
        """Number of identity tokens for one face embedding."""
        return self.config.num_tokens

    @property
    def cross_attention_dim(self) -> int:
        """Width of the identity tokens."""
        return self.config.cross_attention_dim

    @property
    def face_embed_dim(self) -> int | None:
        """Width of the face embeddings that it takes; `None`: it takes none."""
        return self.config.face_embed_dim

    @property
    def image_embed_dim(self) -> int | None:
        """Width of the image encoder's hidden states that it takes; `None`: it takes none."""
        return None

    @property
    def per_photo(self) -> bool:
        """Whether each photo of a person gives `num_tokens` tokens of its own, instead of all photos together."""
        return False

    @property
    def output_norm(self) -> nn.LayerNorm:
        """
        The LayerNorm that ends the forward pass, which is what stock IP-Adapters can express. Raises [`AdapterError`] for
        a mixer that ends otherwise.
        """
        raise AdapterError(f"a stock IP-Adapter cannot express the tokens of a {type(self).__name__}")

    def forward(
        self,
        face_embeds: torch.Tensor | None,
        image_hidden_states: torch.Tensor | None = None,
        unconditional: torch.Tensor | None = None,
    ) -> torch.Tensor:
        r"""
        Args:
            face_embeds (`torch.Tensor` of shape `(batch, face_embed_dim)`, *optional*): As the face recognizer gives them;
                for a mixer with `per_photo` also `(batch, photos, face_embed_dim)`.
            image_hidden_states (`torch.Tensor` of shape `(batch, sequence, image_embed_dim)`, *optional*): The image
                encoder's hidden states of the face crop; those of several photos of one person one after the other.
            unconditional (`torch.Tensor` of shape `(batch,)`, bool, *optional*): Samples that get the unconditional
                tokens: the negative half of classifier-free guidance, condition dropout in training.

        Returns:
            `torch.Tensor` of shape `(batch, num_tokens, cross_attention_dim)`: the identity tokens; with `per_photo`,
            `num_tokens` for each photo.

        Raises:
            InputError: A feature that this mixer was built for is missing, or has another shape.
        """
        raise NotImplementedError


class FacialAttributeMixer(IdentityMixer):
    r"""
    Turns a face-recognition embedding and CLIP image features into identity tokens (the Facial Attribute Mixer of
    FaceSnap, arXiv 2602.00627, section 3.2).

    The recognizer says who it is and nothing else; CLIP says how the person looks (hair, skin, age, glasses) and much
    that is not the person. The mixer lets the former ask the latter:

        id_tokens   = Linear(f_id)                                             as `num_face_tokens` tokens
        clip_tokens = Linear(f_clip)
        fused       = CrossAttention(q=id_tokens, kv=[id_tokens ; clip_tokens])
        f_mix       = TransformerDecoder(learned queries, context=fused)       `num_tokens` tokens

    One of the two features may be absent from the configuration (`None`), which gives the usual adapters of the field:
    with the face embedding only, or with CLIP only. `fused` then is the tokens of the other one.

    Args:
        cross_attention_dim (`int`): Width of the base model's cross-attention context: 768, 1024 or 2048.
        face_embed_dim (`int`, *optional*): Width of the face-recognition embedding, e.g. 512. `None` leaves it out.
        image_embed_dim (`int`, *optional*): Width of the CLIP hidden states, e.g. 1024. `None` leaves them out.
        num_tokens (`int`): Number of identity tokens that come out.
        num_face_tokens (`int`): Number of tokens that the face embedding is spread over. With a single one, the
            decoder's attention over `fused` would be trivial.
        hidden_size (`int`): Inner width.
        num_layers (`int`): Decoder layers.
        attention_head_dim (`int`): Channels of an attention head.
        face_shortcut (`bool`): Adds `Linear(id_tokens)`, of all of them together, to the identity tokens, so that what
            tells people apart need not pass through attention (as the shortcut of IP-Adapter's FaceID Plus v2). It
            starts at zero.
    """

    @register_to_config
    def __init__(
        self,
        cross_attention_dim: int = 768,
        face_embed_dim: int | None = 512,
        image_embed_dim: int | None = 1024,
        num_tokens: int = 16,
        num_face_tokens: int = 4,
        hidden_size: int = 768,
        num_layers: int = 4,
        attention_head_dim: int = 64,
        face_shortcut: bool = False,
    ):
        super().__init__()
        if face_embed_dim is None and image_embed_dim is None:
            raise InputError("face_embed_dim and image_embed_dim are both None; give at least one of them")
        if face_shortcut and face_embed_dim is None:
            raise InputError("face_shortcut needs a face embedding; set face_embed_dim, or leave the shortcut out")
        sizes = {"num_tokens": num_tokens, "num_face_tokens": num_face_tokens, "num_layers": num_layers}
        sizes |= {"hidden_size": hidden_size, "attention_head_dim": attention_head_dim}
        sizes |= {"cross_attention_dim": cross_attention_dim}
        widths = {"face_embed_dim": face_embed_dim, "image_embed_dim": image_embed_dim}
        sizes |= {name: width for name, width in widths.items() if width is not None}
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise InputError(f"{name} must be an integer ≥ 1, got {size!r}")
        if hidden_size % attention_head_dim != 0:
            raise InputError(
                f"hidden_size={hidden_size} is not a multiple of attention_head_dim={attention_head_dim}; change one of them"
            )
        heads = hidden_size // attention_head_dim

        if face_embed_dim is not None:
            self.face_proj = nn.Linear(face_embed_dim, num_face_tokens * hidden_size)
            self.face_norm = nn.LayerNorm(hidden_size)
        if face_shortcut:
            self.shortcut = nn.Linear(num_face_tokens * hidden_size, num_tokens * cross_attention_dim)
            nn.init.zeros_(self.shortcut.weight)
            nn.init.zeros_(self.shortcut.bias)
        if image_embed_dim is not None:
            self.image_proj = nn.Linear(image_embed_dim, hidden_size)
            self.image_norm = nn.LayerNorm(hidden_size)
        if face_embed_dim is not None and image_embed_dim is not None:
            self.fusion = Attention(hidden_size, heads=heads, dim_head=attention_head_dim, bias=True)

        self.queries = nn.Parameter(torch.randn(num_tokens, hidden_size) * hidden_size**-0.5)
        self.layers = nn.ModuleList(
            [
                BasicTransformerBlock(hidden_size, heads, attention_head_dim, cross_attention_dim=hidden_size)
                for _ in range(num_layers)
            ]
        )
        self.proj_out = nn.Linear(hidden_size, cross_attention_dim)
        self.norm_out = nn.LayerNorm(cross_attention_dim)
        self.unconditional_tokens = nn.Parameter(torch.randn(num_tokens, cross_attention_dim) * 0.02)

    @property
    def image_embed_dim(self) -> int | None:
        return self.config.image_embed_dim

    @property
    def output_norm(self) -> nn.LayerNorm:
        return self.norm_out

    def forward(
        self,
        face_embeds: torch.Tensor | None,
        image_hidden_states: torch.Tensor | None = None,
        unconditional: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As [`IdentityMixer.forward`]."""
        face_tokens, context = self._fuse(face_embeds, image_hidden_states)

        hidden_states = self.queries.expand(context.shape[0], -1, -1).to(context.dtype)  # (batch, num_tokens, hidden)
        for layer in self.layers:
            hidden_states = layer(hidden_states, encoder_hidden_states=context)
        tokens = self.proj_out(hidden_states)  # (batch, num_tokens, cross_attention_dim)
        if self.config.face_shortcut and face_tokens is not None:
            tokens = tokens + self.shortcut(face_tokens.flatten(1)).unflatten(-1, (self.config.num_tokens, -1))
        if unconditional is not None:
            tokens = torch.where(unconditional[:, None, None], self.unconditional_tokens.to(tokens.dtype), tokens)
        return self.norm_out(tokens)

    def _fuse(
        self, face_embeds: torch.Tensor | None, image_hidden_states: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The face embedding's tokens, and what the decoder attends to, each `(batch, tokens, hidden_size)`."""
        if self.config.image_embed_dim is None:
            face_tokens = self._face_tokens(face_embeds)
            return face_tokens, face_tokens
        states = check_image_hidden_states(image_hidden_states, self.config.image_embed_dim)
        image_tokens = self.image_norm(self.image_proj(states))  # (batch, sequence, hidden_size)
        if self.config.face_embed_dim is None:
            return None, image_tokens
        face_tokens = self._face_tokens(face_embeds)
        context = torch.cat([face_tokens, image_tokens], dim=1)  # (batch, num_face_tokens + sequence, hidden_size)
        return face_tokens, self.fusion(face_tokens, encoder_hidden_states=context)

    def _face_tokens(self, face_embeds: torch.Tensor | None) -> torch.Tensor:
        projected = self.face_proj(check_face_embeds(face_embeds, self.config.face_embed_dim))
        tokens = projected.unflatten(-1, (self.config.num_face_tokens, -1))  # (batch, num_face_tokens, hidden_size)
        return self.face_norm(tokens)


def check_face_embeds(face_embeds: torch.Tensor | None, width: int) -> torch.Tensor:
    """Gives back the face embeddings; raises [`InputError`] unless they are `(batch, width)`."""
    if face_embeds is None or face_embeds.ndim != 2 or face_embeds.shape[-1] != width:
        raise InputError(
            f"face_embeds must have shape (batch, {width}), got {_shape_of(face_embeds)};"
            " pass embeddings of the recognizer that this mixer was trained with"
        )
    return face_embeds


def check_image_hidden_states(states: torch.Tensor | None, width: int) -> torch.Tensor:
    """Gives back CLIP's hidden states; raises [`InputError`] unless they are `(batch, sequence, width)`."""
    if states is None or states.ndim != 3 or states.shape[-1] != width:
        raise InputError(
            f"image_hidden_states must have shape (batch, sequence, {width}), got {_shape_of(states)};"
            " pass hidden states of the image encoder that this mixer was trained with"
        )
    return states


def _shape_of(tensor: torch.Tensor | None) -> str:
    return "None" if tensor is None else str(tuple(tensor.shape))
