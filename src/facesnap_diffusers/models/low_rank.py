"""Layers of another model, shared and not copied, each with a low-rank difference of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from .._upstream import cast_dtype
from ..errors import AdapterError, InputError


class Reference:
    """
    A module that another module uses without containing it: it is not in its state dict, and neither moved nor saved
    with it. Deep copies share it, unless it is copied along with them; pickled, the reference comes back empty.
    """

    def __init__(self, module: nn.Module | None = None):
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> Reference:
        return Reference(memo.get(id(self.module), self.module))

    def __reduce__(self) -> tuple[type[Reference], tuple[()]]:
        return Reference, ()


class SharedLayer(nn.Module):
    r"""
    A linear or convolution layer of another model with a low-rank difference of its own (LoRA, arXiv 2106.09685;
    Control-LoRA for convolutions):

        output = base(input) + up(down(input))

    which is what a layer with the weight `W + up · down` gives. The base layer is only referred to: [`bind`] says which
    it is. Its bias is added as it is, and `up.bias` is the difference of the bias.

    Args:
        like (`nn.Linear` or `nn.Conv2d`): A layer of the same sizes; may be on the meta device.
        rank (`int`): Of the difference, which starts as zero.
    """

    def __init__(self, like: nn.Linear | nn.Conv2d, rank: int):
        super().__init__()
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        bias = like.bias is not None
        if isinstance(like, nn.Linear):
            self.down = nn.Linear(like.in_features, rank, bias=False)
            self.up = nn.Linear(rank, like.out_features, bias=bias)
        else:
            geometry = {name: getattr(like, name) for name in ("kernel_size", "stride", "padding", "dilation")}
            self.down = nn.Conv2d(like.in_channels, rank, **geometry, bias=False)
            self.up = nn.Conv2d(rank, like.out_channels, kernel_size=1, bias=bias)
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)
        self._base = Reference()

    @property
    def base(self) -> nn.Module:
        """The layer that is shared. Raises [`AdapterError`] before [`bind`]."""
        if self._base.module is None:
            raise AdapterError(
                "FFRNet of low rank is not bound to the UNet whose layers it shares: call ffrnet.bind(unet)"
            )
        return self._base.module

    def bind(self, name: str, base: nn.Module) -> None:
        """Shares `base`, the layer called `name` in errors; raises [`InputError`] unless its sizes are right."""
        expected, given = _sizes(self), _sizes(base)
        if expected != given:
            raise InputError(
                f"unet has {given or type(base).__name__} at {name}, FFRNet was made for {expected};"
                " use the base model that it was made for, or another of its family"
            )
        self._base = Reference(base)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        difference = self.up(self.down(hidden_states))
        return difference + _base_output(self.base, hidden_states).to(difference.dtype)

    def weight_difference(self) -> torch.Tensor:
        """What is added to the weight of the base layer, in its shape and in float32."""
        down, up = self.down.weight.detach().float(), self.up.weight.detach().float()
        return (up.flatten(1) @ down.flatten(1)).unflatten(1, down.shape[1:])

    @torch.no_grad()
    def set_difference(self, weight: torch.Tensor, bias: torch.Tensor | None) -> float:
        """
        Sets the difference to the nearest of this rank (Eckart-Young, by singular values) to a difference of weights.

        Returns:
            The Frobenius norm of what is lost.
        """
        rank = self.down.weight.shape[0]
        difference = weight.float().flatten(1)
        if min(difference.shape) > 4 * rank:
            # randomised (Halko et al., arXiv 0909.4061, algorithm 4.4): the large layers of SDXL in a second each
            u, s, v = torch.svd_lowrank(difference, q=rank + 16, niter=4)
        else:
            u, s, vh = torch.linalg.svd(difference, full_matrices=False)
            v = vh.mT
        root = s[:rank].sqrt()
        up, down = u[:, :rank] * root, (v[:, :rank] * root).mT  # of like size, which half precision likes
        self.up.weight.copy_(up.reshape(self.up.weight.shape))
        self.down.weight.copy_(down.reshape(self.down.weight.shape))
        if bias is not None:
            self.up.bias.copy_(bias)
        return (self.weight_difference().flatten(1) - difference).norm().item()


def share_layers(model: nn.Module, parts: tuple[str, ...], rank: int) -> None:
    """Puts a [`SharedLayer`] in place of the linear and convolution layers of `parts` that it makes smaller."""
    for name, layer in list(model.named_modules()):
        if name.startswith(parts) and is_shareable(layer) and rank * sum(_matrix(layer)) < layer.weight.numel():
            model.set_submodule(name, SharedLayer(layer, rank))


def shared_layers(model: nn.Module) -> Iterator[tuple[str, SharedLayer]]:
    """The [`SharedLayer`]s of a model, with their names."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, SharedLayer))


def is_shareable(layer: nn.Module) -> bool:
    """Whether a layer is a linear or an ungrouped convolution layer."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def without_lora(layer: nn.Module) -> nn.Module:
    """The layer that peft has wrapped for a LoRA, or the layer itself."""
    while hasattr(layer, "base_layer"):
        layer = layer.base_layer
    return layer


def _base_output(base: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """
    What the base layer gives. Never by its `__call__`, whose hooks are not this model's: the LoRA of FaceID adapters is
    one. Nor with gradients for its weights.
    """
    if type_before_parametrizations(base) not in (nn.Linear, nn.Conv2d) or "forward" in vars(base):
        # quantised, or with a `forward` that fetches or casts the weights first: offloaded, or in float8
        dtype = cast_dtype(base) or base.weight.dtype
        return base.forward(hidden_states.to(dtype) if dtype.is_floating_point else hidden_states)
    # the base may be in another dtype (FFRNet is trained in float32), or elsewhere
    weight = base.weight.detach().to(hidden_states.device)
    bias = base.bias.detach().to(hidden_states.device) if base.bias is not None else None
    hidden_states = hidden_states.to(weight.dtype)
    if isinstance(base, nn.Linear):
        return F.linear(hidden_states, weight, bias)
    return F.conv2d(hidden_states, weight, bias, base.stride, base.padding, base.dilation)


def _matrix(layer: nn.Module) -> tuple[int, int]:
    """Rows and columns of the weight of a layer as a matrix."""
    return layer.weight.shape[0], layer.weight[0].numel()


def _sizes(layer: nn.Module) -> str | None:
    """In words what a layer takes and gives; quantised layers have weights of other shapes."""
    down, up = (layer.down, layer.up) if isinstance(layer, SharedLayer) else (layer, layer)
    if isinstance(down, nn.Conv2d):
        kernel, stride, padding = (getattr(down, name) for name in ("kernel_size", "stride", "padding"))
        return f"Conv2d({down.in_channels}, {up.out_channels}, {kernel}, stride={stride}, padding={padding})"
    if hasattr(down, "in_features"):
        return f"Linear({down.in_features}, {up.out_features})"
    return None
