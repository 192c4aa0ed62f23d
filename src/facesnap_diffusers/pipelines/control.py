"""What the stock ControlNet pipelines see as their ControlNets in calls with a face."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from torch import nn

from ..models.attention import CONTEXT_KEY, accept_contexts
from ..models.regions import RegionalContext


class RoutedControlNet(ControlNetModel):
    r"""
    Stands for a ControlNet in one call: hands it its part of `[text ; identity tokens]`, and does not run it when its scale
    is 0, because `set_facesnap_scale` says so, or outside of `control_guidance_start` ... `control_guidance_end`.

    Args:
        net (`ControlNetModel`, *optional*): Shared with other calls and not changed. `None` stands for no conditioning.
        num_tokens (`int`): Number of identity tokens at the end of the context.
        context (`str`): `"identity"` or `"text"`: which part of it.
        regions ([`RegionalContext`], *optional*): Where each of several people is.
        device (`torch.device`), dtype (`torch.dtype`): Of the conditioning image; those of `net` by default.
    """

    def __init__(
        self,
        net: Any,
        num_tokens: int,
        context: str,
        regions: RegionalContext | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        # a ControlNet by type, for the checks of the stock pipelines, without layers of its own
        nn.Module.__init__(self)
        self.register_to_config(
            global_pool_conditions=net is not None and getattr(net.config, "global_pool_conditions", False)
        )
        if regions is not None:
            accept_contexts(net)
        self.net = net
        self.regions = regions
        self.num_tokens = num_tokens
        self.context = context
        self._device = device or net.device
        self._dtype = dtype or net.dtype

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: torch.Tensor,
        conditioning_scale: float = 1.0,
        guess_mode: bool = False,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        if self.net is None:
            return None, None
        if conditioning_scale == 0:
            return zero_residuals(self.net, sample)
        text_length = encoder_hidden_states.shape[1] - self.num_tokens
        if self.context == "identity":
            encoder_hidden_states = encoder_hidden_states[:, text_length:]
        else:
            encoder_hidden_states = encoder_hidden_states[:, :text_length]
        if self.regions is not None:
            kwargs["cross_attention_kwargs"] = {CONTEXT_KEY: self.regions}
        return self.net(
            sample,
            timestep,
            encoder_hidden_states=encoder_hidden_states,
            controlnet_cond=controlnet_cond,
            conditioning_scale=conditioning_scale,
            guess_mode=guess_mode,
            return_dict=return_dict,
            **kwargs,
        )


def zero_residuals(net: ControlNetModel, sample: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What `net` would give for `sample` at scale 0, without running it."""
    channels, layers = net.config.block_out_channels, net.config.layers_per_block
    batch, _, height, width = sample.shape

    shapes = [(channels[0], height, width)]
    for block, block_channels in enumerate(channels):
        shapes += [(block_channels, height, width)] * (layers if isinstance(layers, int) else layers[block])
        if block < len(channels) - 1:
            height, width = (height + 1) // 2, (width + 1) // 2
            shapes.append((block_channels, height, width))
    *down, mid = [sample.new_zeros(batch, *shape) for shape in [*shapes, (channels[-1], height, width)]]
    return down, mid
