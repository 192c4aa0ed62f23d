"""The weights of a frozen net in 8 bits, through which gradients flow."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..errors import InputError


class _Cast(nn.Module):
    """Gives a stored weight in the dtype that is computed in."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, stored: torch.Tensor) -> torch.Tensor:
        return stored.to(self.dtype)


def stored_layers(net: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """The layers whose weights [`store_weights`] stores in fewer bits, with their names."""
    for name, layer in net.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and "norm" not in name and name != "conv_in":
            yield name, layer


@torch.no_grad()
def store_weights(net: nn.Module, storage_dtype: torch.dtype) -> None:
    r"""
    Stores the weights of the linear and convolution layers of a frozen net in `storage_dtype`; they are cast each time that
    they are used. Normalisations, biases and `conv_in`, whose dtype says in what the net computes, stay as they are.

    diffusers' `enable_layerwise_casting` does the same for inference. It exchanges the data of parameters that autograd has
    saved, so that there is no backward pass. Here autograd sees a cast, and saves its result: only with gradient
    checkpointing is that gone until the backward pass, which casts anew.

    Args:
        net (`nn.Module`): Frozen; layers of it that another net shares are cast for both.
        storage_dtype (`torch.dtype`): Such as `torch.float8_e4m3fn`.

    Raises:
        InputError: A weight is larger than any number of `storage_dtype`.
    """
    largest = torch.finfo(storage_dtype).max
    for name, layer in list(stored_layers(net)):
        if not layer.weight.abs().max() <= largest:
            raise InputError(
                f"base.storage_dtype: the weights of {name} go beyond {largest:g}, the largest number of {storage_dtype};"
                " leave it out"
            )
        cast = _Cast(layer.weight.dtype)
        layer.weight = nn.Parameter(layer.weight.to(storage_dtype), requires_grad=False)
        parametrize.register_parametrization(
            layer, "weight", cast, unsafe=True
        )  # of another dtype than what is stored
