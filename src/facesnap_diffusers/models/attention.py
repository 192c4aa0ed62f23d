"""Identity attention: its weights, and how a call brings identity tokens to the attention layers of a UNet."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from .._upstream import tensor_version, uncompiled
from ..errors import InputError
from .regions import Regions


#: The keyword by which a call's context travels in `cross_attention_kwargs`. Stock attention ignores it without a warning.
CONTEXT_KEY = "ip_hidden_states"


class ContextAttention(Attention):
    """
    A stock attention layer that also takes the context of a call, such as [`IdentityContext`]. Without one it computes what
    the stock layer computes, with whatever processor it has.
    """

    #: Name of the layer in its UNet or ControlNet.
    layer_name: str

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        ip_hidden_states: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        if ip_hidden_states is None:
            return self.stock(hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        return ip_hidden_states.attend(self, hidden_states, encoder_hidden_states, attention_mask, **kwargs)

    def stock(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What the stock layer computes with its processor."""
        return super().forward(hidden_states, *args, **kwargs)


def accept_contexts(net: nn.Module) -> None:
    """
    Makes the attention layers of a UNet or ControlNet take contexts. Their weights, processors and results stay as they
    are, so this is done once, for all who share the net, and never undone.
    """
    net = uncompiled(net)
    if getattr(net, "_accepts_contexts", False):
        return
    for name, module in net.named_modules():
        if type(module) is Attention and name.endswith((".attn1", ".attn2")):
            module.layer_name = name
            module.__class__ = ContextAttention
    net._accepts_contexts = True  # type: ignore[assignment]


class IdentityProjection(nn.Module):
    """Key and value projections of the identity tokens for one cross-attention layer."""

    def __init__(self, cross_attention_dim: int, hidden_size: int):
        super().__init__()
        self.to_k = nn.Linear(cross_attention_dim, hidden_size, bias=False)
        self.to_v = nn.Linear(cross_attention_dim, hidden_size, bias=False)


class LowRankUpdate(nn.Module):
    """LoRA (arXiv 2106.09685) of one linear layer: what is added to its output. Its alpha equals its rank."""

    def __init__(self, in_features: int, rank: int, out_features: int):
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(hidden_states.to(self.down.weight.dtype))).to(hidden_states.dtype)


class IdentityAttention(ModelMixin, ConfigMixin):
    r"""
    The identity attention of a UNet: one [`IdentityProjection`] for each of its cross-attention layers.

    The weights live here and not in the UNet, which stays as it is: shared with other pipelines, saved without strange
    keys, with the processors that it has. What a call needs of it travels with the call, as the [`IdentityContext`] that
    [`context`] makes.

    Args:
        layers (`dict[str, list[int]]`): Name of each cross-attention module of the UNet, as in
            `unet.get_submodule(name)`, with its context width and its inner width. Without any, the identity tokens are
            kept from the UNet's attention and nothing else.
        lora_layers (`dict[str, list[int]]`, *optional*): Linear layers of the UNet that get a low-rank update in calls
            with a face, with their input width, the rank and their output width: adapters of the FaceID family were
            trained with one.
    """

    @register_to_config
    def __init__(self, layers: dict[str, list[int]], lora_layers: dict[str, list[int]] | None = None):
        super().__init__()
        # module names must not contain dots
        self.projections: Any = nn.ModuleDict(
            {name.replace(".", "-"): IdentityProjection(context, inner) for name, (context, inner) in layers.items()}
        )
        self.loras: Any = nn.ModuleDict(
            {name.replace(".", "-"): LowRankUpdate(*sizes) for name, sizes in (lora_layers or {}).items()}
        )

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel) -> IdentityAttention:
        """Identity attention for `unet` whose keys and values start as copies of the text attention's."""
        modules = _cross_attention_modules(unet)
        layers = {name: _sizes(attn) for name, attn in modules.items()}
        identity_attention = cls(layers=layers).to(unet.device)
        for name, attn in modules.items():
            projection = identity_attention.projections[name.replace(".", "-")]
            projection.to_k.load_state_dict({"weight": attn.to_k.weight.detach()})
            projection.to_v.load_state_dict({"weight": attn.to_v.weight.detach()})
        return identity_attention if unet.dtype == torch.float32 else identity_attention.to(unet.dtype)

    def check_fits(self, unet: UNet2DConditionModel) -> None:
        """Raises [`InputError`] unless the layers are exactly the cross-attention layers of `unet`."""
        expected = {name: _sizes(attn) for name, attn in _cross_attention_modules(unet).items()}
        own = self.config.layers
        if own != expected:
            odd = next(name for name in [*own, *expected] if own.get(name) != expected.get(name))
            raise InputError(
                f"identity attention does not fit this UNet: layer {odd} is {own.get(odd)} in the adapter and"
                f" {expected.get(odd)} in the UNet; use an adapter of the base model's family"
            )
        linears = {name: module for name, module in uncompiled(unet).named_modules() if hasattr(module, "in_features")}
        for name, (in_features, _, out_features) in (self.config.lora_layers or {}).items():
            linear = linears.get(name)
            if linear is None or (linear.in_features, linear.out_features) != (in_features, out_features):
                raise InputError(
                    f"identity attention does not fit this UNet: it has no linear layer {name} from {in_features} to"
                    f" {out_features}; use an adapter of the base model's family"
                )

    def context(
        self,
        unet: UNet2DConditionModel,
        num_tokens: int,
        scale: float | Mapping[str, float] = 1.0,
        regions: Regions | None = None,
        num_left_out: int = 0,
        device: torch.device | None = None,
    ) -> IdentityContext:
        r"""
        What one call brings to the attention layers of `unet`, to be given as
        `cross_attention_kwargs=context.as_kwargs()`. The last `num_tokens` tokens of `encoder_hidden_states` are then
        identity tokens.

        Args:
            unet (`UNet2DConditionModel`): May be compiled.
            num_tokens (`int`): Number of identity tokens.
            scale (`float` or `dict[str, float]`): Scale of the identity attention: everywhere, or by layer names or
                their beginnings (`{"mid_block": 0.5, "up_blocks.1": 1.0}`; the longest that fits counts, layers that
                none fits get 0). Low-rank updates are on unless it is 0.
            regions ([`Regions`], *optional*): Where each of several people is; `num_tokens` are those of all, one
                person's after the other's, and each place attends to its own person's.
            num_left_out (`int`): How many more tokens follow, which are for others and not for the UNet.
            device (`torch.device`, *optional*): Where `unet` computes; by default where it is, which offloading changes.
        """
        accept_contexts(unet)
        active = any(scale.values()) if isinstance(scale, Mapping) else scale != 0
        values = {name: scale_of_layer(scale, name) for name in self.config.layers}
        # as tensors, a compiled UNet need not be compiled again for another value
        device = device or unet.device
        scales = {name: torch.tensor(float(value), device=device) for name, value in values.items() if value != 0}
        return IdentityContext(
            num_tokens=num_tokens,
            projections={name: self.projections[name.replace(".", "-")] for name in scales},
            scales=scales,
            updated_layers=self._updated_layers(unet) if active else {},
            masks=None if regions is None else regions.masks(num_tokens, device),
            num_left_out=num_left_out,
            dtype=self.dtype if scales else None,
        )

    def enable_group_offload(self, onload_device: torch.device, **kwargs: Any) -> None:
        """As in `ModelMixin`, but always leaf by leaf: the projections run without a `forward` of this module."""
        kwargs.update(offload_type="leaf_level", num_blocks_per_group=None, use_stream=False)
        super().enable_group_offload(onload_device, **kwargs)

    def _updated_layers(self, unet: UNet2DConditionModel) -> dict[str, Attention]:
        """The UNet's attention layers that have low-rank updates, as copies (of the layers, not the weights) with them."""
        updates: dict[str, dict[str, LowRankUpdate]] = {}
        for key, lora in self.loras.items():
            layer, linear = key.replace("-", ".").removesuffix(".0").rsplit(".", 1)
            updates.setdefault(layer, {})[linear] = lora
        return {name: _updated(uncompiled(unet).get_submodule(name), loras) for name, loras in updates.items()}


@dataclass(frozen=True, eq=False)
class IdentityContext:
    r"""
    What one call brings to the attention layers of its UNet: decoupled cross-attention over identity tokens that stand at
    the end of the prompt embeddings (IP-Adapter, arXiv 2308.06721, equation 5),

        out = Attn(q, text) + scale · Attn(q, identity tokens)

    Attributes:
        num_tokens (`int`): How many tokens behind those of the text in `encoder_hidden_states` are identity tokens.
        projections (`dict[str, IdentityProjection]`): Key and value projections, by layer.
        scales (`dict[str, torch.Tensor]`): Scales `()`, by layer. Layers without one see the text only.
        updated_layers (`dict[str, Attention]`): Layers that work with low-rank updates in this call.
        masks (`dict[int, torch.Tensor]`, *optional*): Which identity tokens each place of a layer may see, bool
            `(queries, num_tokens)`, by the number of queries.
        num_left_out (`int`): How many tokens at the end of `encoder_hidden_states` no layer sees.
        dtype (`torch.dtype`, *optional*): In which the projections compute; that of the tokens by default.

    Identity tokens are the same at every step, so their keys and values are kept for as long as the UNet is given the same
    `encoder_hidden_states`. Not where gradients flow, and not in compiled code, which would be compiled again.
    """

    num_tokens: int
    projections: dict[str, IdentityProjection]
    scales: dict[str, torch.Tensor]
    updated_layers: dict[str, Attention]
    masks: dict[int, torch.Tensor] | None = None
    num_left_out: int = 0
    dtype: torch.dtype | None = None
    # by layer: the `encoder_hidden_states` with their version, which a change in place raises, and keys and values
    _projected: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def as_kwargs(self) -> dict[str, Any]:
        """As `cross_attention_kwargs` of a UNet that accepts contexts."""
        return {CONTEXT_KEY: self}

    def without_identity(self) -> IdentityContext:
        """A context in which the identity tokens are only kept from the attention layers."""
        return IdentityContext(self.num_tokens, {}, {}, {}, self.masks, self.num_left_out)

    def attend(
        self,
        layer: ContextAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | tuple[torch.Tensor, list[torch.Tensor]] | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The output of one attention layer of the UNet, `(batch, queries, channels)`."""
        name = layer.layer_name
        layer = self.updated_layers.get(name, layer)
        if encoder_hidden_states is None:  # self-attention
            return layer.stock(hidden_states, None, attention_mask, **kwargs)

        stock_adapters: list[list[torch.Tensor]] = []
        if isinstance(encoder_hidden_states, tuple):  # a stock IP-Adapter is loaded too
            encoder_hidden_states, *stock_adapters = encoder_hidden_states
        text_length = encoder_hidden_states.shape[1] - self.num_tokens - self.num_left_out
        text = encoder_hidden_states[:, :text_length]  # (batch, text tokens, width)
        tokens = encoder_hidden_states[:, text_length : text_length + self.num_tokens]  # (batch, num_tokens, width)

        if name not in self.scales:
            text_and_images = (text, *stock_adapters) if stock_adapters else text
            return layer.stock(hidden_states, text_and_images, attention_mask, **kwargs)
        key, value = self._keys_and_values(name, encoder_hidden_states, tokens)
        if type(layer.processor) is AttnProcessor2_0 and attention_mask is None:
            # the stock computation, with the query and the output projection shared
            query = layer.to_q(hidden_states)  # (batch, queries, channels)
            attended = _attend(query, layer.to_k(text), layer.to_v(text), layer.heads)
            identity = self._identity(name, query, key, value, layer.heads)
            return layer.to_out[1](layer.to_out[0](attended + identity))
        text_and_images = (text, *stock_adapters) if stock_adapters else text
        attended = layer.stock(hidden_states, text_and_images, attention_mask, **kwargs)
        identity = self._identity(name, layer.to_q(hidden_states), key, value, layer.heads)
        # the output projection is linear but for its bias, which `attended` has already
        bias = layer.to_out[0](torch.zeros_like(identity[:1, :1]))  # (1, 1, channels)
        return attended + (layer.to_out[0](identity) - bias)

    def _identity(
        self, name: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int
    ) -> torch.Tensor:
        """The scaled identity attention of one layer before the output projection, `(batch, queries, channels)`."""
        mask = None if self.masks is None else self.masks[query.shape[1]]
        return self.scales[name] * _attend(query, key.to(query.dtype), value.to(query.dtype), heads, mask)

    def _keys_and_values(
        self, name: str, encoder_hidden_states: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The projections of the identity tokens in a layer, each `(batch, num_tokens, channels)`."""
        projection, tokens = self.projections[name], tokens.to(self.dtype or tokens.dtype)
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return projection.to_k(tokens), projection.to_v(tokens)
        version = tensor_version(encoder_hidden_states)
        source, known_version, *known = self._projected.get(name, (None, None))
        if source is encoder_hidden_states and known_version == version is not None:
            key, value = known
        else:
            key, value = projection.to_k(tokens), projection.to_v(tokens)
            self._projected[name] = encoder_hidden_states, version, key, value
        return key, value


class _UpdatedLinear(nn.Module):
    """A linear layer with low-rank updates: of its output, or of the parts that its output has side by side."""

    def __init__(self, linear: nn.Module, updates: list[LowRankUpdate | None]):
        super().__init__()
        self.linear = linear
        self.updates = updates

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        parts = self.linear(hidden_states).chunk(len(self.updates), dim=-1)
        updated = [
            part if update is None else part + update(hidden_states)
            for part, update in zip(parts, self.updates, strict=True)
        ]
        return updated[0] if len(updated) == 1 else torch.cat(updated, dim=-1)


def _updated(layer: Attention, loras: Mapping[str, LowRankUpdate]) -> Attention:
    """A shallow copy of an attention layer whose linear layers have low-rank updates; those of fused projections too."""
    layer = copy.copy(layer)
    layer._modules = dict(layer._modules)
    for name in ("to_q", "to_k", "to_v"):
        if name in loras:
            setattr(layer, name, _UpdatedLinear(getattr(layer, name), [loras[name]]))
    if "to_out" in loras:
        layer.to_out = nn.ModuleList([_UpdatedLinear(layer.to_out[0], [loras["to_out"]]), *layer.to_out[1:]])
    for name, parts in (("to_qkv", ("to_q", "to_k", "to_v")), ("to_kv", ("to_k", "to_v"))):
        if hasattr(layer, name):
            setattr(layer, name, _UpdatedLinear(getattr(layer, name), [loras.get(part) for part in parts]))
    return layer


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Multi-head attention `(batch, queries, channels)` of projected queries, keys and values."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    # now (batch, heads, tokens, channels of a head)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


def scale_of_layer(scale: float | Mapping[str, float], name: str) -> float:
    """The scale of layer `name`, where `scale` is one number, or numbers by layer names or their beginnings."""
    if not isinstance(scale, Mapping):
        return scale
    fitting = [key for key in scale if name == key or name.startswith(key + ".")]
    return scale[max(fitting, key=len)] if fitting else 0.0


def _sizes(attn: Attention) -> list[int]:
    return [attn.to_k.in_features, attn.to_k.out_features]


def _cross_attention_modules(unet: UNet2DConditionModel) -> dict[str, Attention]:
    return {
        name: module
        for name, module in uncompiled(unet).named_modules()
        if name.endswith(".attn2") and isinstance(module, Attention)
    }
