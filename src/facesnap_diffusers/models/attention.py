from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils.torch_utils import is_compiled_module
from torch import nn

from ..errors import InputError
from .regions import Regions


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


class IdentityAttnProcessor(IPAdapterAttnProcessor2_0):
    r"""
    Decoupled cross-attention over identity tokens that stand at the end of the prompt embeddings:

        out = Attn(q, text) + scale · Attn(q, identity tokens)

    The computation is that of diffusers' IP-Adapter processor. This one splits the identity tokens off, and carries
    the key and value projections of a stock IP-Adapter that is loaded into the same layer along with its own.

    Args:
        projection ([`IdentityProjection`]): The layer's projections; shared, not copied.
        num_tokens (`int`): How many tokens at the end of `encoder_hidden_states` are identity tokens.
        stock (`nn.Module`, *optional*): The IP-Adapter processor in whose place this one works.
        scale (`float`): Weight of the identity attention. At 0 it is not computed.
    """

    def __init__(
        self,
        projection: IdentityProjection,
        num_tokens: int,
        stock: nn.Module | None = None,
        scale: float = 1.0,
    ):
        nn.Module.__init__(self)
        self.hidden_size = projection.to_k.out_features
        self.cross_attention_dim = projection.to_k.in_features
        self.num_identity_tokens = num_tokens
        self.regions: Regions | None = None
        self.num_tokens = [num_tokens, *(stock.num_tokens if stock is not None else [])]
        self.to_k_ip = nn.ModuleList([projection.to_k, *(stock.to_k_ip if stock is not None else [])])
        self.to_v_ip = nn.ModuleList([projection.to_v, *(stock.to_v_ip if stock is not None else [])])
        self.scale = [scale, *(stock.scale if stock is not None else [])]

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | tuple[torch.Tensor, list[torch.Tensor]] | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        scale: float = 1.0,
        ip_adapter_masks: torch.Tensor | list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        if isinstance(encoder_hidden_states, tuple):
            prompt_embeds, stock_tokens = encoder_hidden_states
        else:
            prompt_embeds, stock_tokens = encoder_hidden_states, []
        text = prompt_embeds[:, : -self.num_identity_tokens]
        identity_tokens = prompt_embeds[:, -self.num_identity_tokens :].unsqueeze(1)
        masks = None
        if self.regions is not None:
            identity_tokens = identity_tokens[:, 0].unflatten(1, (self.regions.num_people, -1))
            # one row, as long as there are queries: the stock processor then has nothing to resize
            masks = self.regions.masks(hidden_states.shape[1], hidden_states.device)[None, :, None].to(hidden_states)
        if ip_adapter_masks is not None or masks is not None:
            ip_adapter_masks = [
                masks,
                *(ip_adapter_masks if ip_adapter_masks is not None else [None] * len(stock_tokens)),
            ]
        return super().__call__(
            attn,
            hidden_states,
            encoder_hidden_states=(text, [identity_tokens, *stock_tokens]),
            attention_mask=attention_mask,
            temb=temb,
            scale=scale,
            ip_adapter_masks=ip_adapter_masks,
        )


class IdentityAttention(ModelMixin, ConfigMixin):
    r"""
    The identity attention of a UNet: one [`IdentityProjection`] for each of its cross-attention layers.

    The weights live here and not in the UNet, which stays as it is: shared with other pipelines, saved without
    strange keys. [`attached`] puts the processors in place for the duration of one call. What works on the stock
    processors (IP-Adapter, attention slicing, fused projections, LoRA) finds stock processors.

    Args:
        layers (`dict[str, list[int]]`): Name of each cross-attention module of the UNet, as in
            `unet.get_submodule(name)`, with its context width and its inner width. Without any, the identity tokens are
            kept from the UNet's attention and nothing else.
        lora_layers (`dict[str, list[int]]`, *optional*): Linear layers of the UNet that get a low-rank update while a
            face is in play, with their input width, the rank and their output width: adapters of the FaceID family
            were trained with one.
    """

    @register_to_config
    def __init__(self, layers: dict[str, list[int]], lora_layers: dict[str, list[int]] | None = None):
        super().__init__()
        # module names must not contain dots
        self.projections = nn.ModuleDict(
            {name.replace(".", "-"): IdentityProjection(context, inner) for name, (context, inner) in layers.items()}
        )
        self.loras = nn.ModuleDict(
            {name.replace(".", "-"): LowRankUpdate(*sizes) for name, sizes in (lora_layers or {}).items()}
        )
        self._processors: dict[str, tuple[nn.Module | object, IdentityAttnProcessor]] = {}

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel) -> "IdentityAttention":
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
        linears = {
            name: module for name, module in _uncompiled(unet).named_modules() if hasattr(module, "in_features")
        }
        for name, (in_features, _, out_features) in (self.config.lora_layers or {}).items():
            linear = linears.get(name)
            if linear is None or (linear.in_features, linear.out_features) != (in_features, out_features):
                raise InputError(
                    f"identity attention does not fit this UNet: it has no linear layer {name} from {in_features} to"
                    f" {out_features}; use an adapter of the base model's family"
                )

    @contextmanager
    def attached(
        self,
        unet: UNet2DConditionModel,
        num_tokens: int,
        scale: float | Mapping[str, float] = 1.0,
        regions: Regions | None = None,
    ) -> Iterator[None]:
        r"""
        While this context lasts, the UNet takes the last `num_tokens` tokens of its `encoder_hidden_states` as
        identity tokens.

        Args:
            unet (`UNet2DConditionModel`): May be compiled.
            num_tokens (`int`): Number of identity tokens.
            scale (`float` or `dict[str, float]`): Weight of the identity attention: everywhere, or by layer names or
                their beginnings (`{"mid_block": 0.5, "up_blocks.1": 1.0}`; the longest that fits counts, layers that
                none fits get 0). Low-rank updates are on unless it is 0.
            regions ([`Regions`], *optional*): Where each of several people is; `num_tokens` are those of all, one
                person's after the other's, and each place attends to its own person's.
        """
        modules = _cross_attention_modules(unet)
        stock_processors = {name: attn.processor for name, attn in modules.items()}
        active = any(scale.values()) if isinstance(scale, Mapping) else scale != 0
        with ExitStack() as stack:
            for key, lora in self.loras.items() if active else ():
                handle = _uncompiled(unet).get_submodule(key.replace("-", ".")).register_forward_hook(_adding(lora))
                stack.callback(handle.remove)
            for name, attn in modules.items():
                stack.callback(attn.set_processor, stock_processors[name])
                processor = self._processor(name, attn, num_tokens, scale_of_layer(scale, name))
                processor.regions = regions
                attn.set_processor(processor)
            yield

    def enable_group_offload(self, onload_device: torch.device, **kwargs: Any) -> None:
        """As in `ModelMixin`, but always leaf by leaf: the projections run without a `forward` of this module."""
        kwargs.update(offload_type="leaf_level", num_blocks_per_group=None, use_stream=False)
        super().enable_group_offload(onload_device, **kwargs)

    def _processor(self, name: str, attn: Attention, num_tokens: int, scale: float) -> IdentityAttnProcessor:
        # The same objects serve again while nothing changes, else a compiled UNet would be compiled at every call.
        stock_ip_adapter = attn.processor if hasattr(attn.processor, "to_k_ip") else None
        last_stock, processor = self._processors.get(name, (None, None))
        if processor is None or last_stock is not stock_ip_adapter or processor.num_identity_tokens != num_tokens:
            key = name.replace(".", "-")
            # without weights for this layer the tokens are only split off
            projection = self.projections[key] if key in self.projections else attn
            processor = IdentityAttnProcessor(projection, num_tokens, stock_ip_adapter)
            self._processors[name] = (stock_ip_adapter, processor)
        processor.scale = [
            scale if len(self.projections) else 0.0,
            *(stock_ip_adapter.scale if stock_ip_adapter is not None else []),
        ]
        return processor


def scale_of_layer(scale: float | Mapping[str, float], name: str) -> float:
    """The weight of layer `name` in a scale that is one number, or numbers by layer names or their beginnings."""
    if not isinstance(scale, Mapping):
        return scale
    fitting = [key for key in scale if name == key or name.startswith(key + ".")]
    return scale[max(fitting, key=len)] if fitting else 0.0


def _adding(lora: LowRankUpdate) -> Callable[..., torch.Tensor]:
    return lambda linear, inputs, output: output + lora(inputs[0])


def _uncompiled(unet: nn.Module) -> nn.Module:
    return unet._orig_mod if is_compiled_module(unet) else unet


def _sizes(attn: Attention) -> list[int]:
    return [attn.to_k.in_features, attn.to_k.out_features]


def _cross_attention_modules(unet: UNet2DConditionModel) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in _uncompiled(unet).named_modules()
        if name.endswith(".attn2") and isinstance(module, Attention)
    }
