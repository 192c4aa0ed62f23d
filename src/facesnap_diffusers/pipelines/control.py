"""What the stock ControlNet pipelines see as their ControlNets in calls with a face."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from torch import nn

from .._upstream import tensor_version, uncompiled
from ..models.attention import CONTEXT_KEY, accept_contexts
from ..models.ffrnet import FFRNet
from ..models.regions import RegionalContext
from .schedule import FEW_STEPS, CallProgress, FaceSnapSchedule


class RoutedControlNet(ControlNetModel):
    r"""
    Stands for a ControlNet in one call: hands it its part of `[text ; identity tokens]`, and does not run it when its scale
    is 0, because `set_facesnap_scale` says so, or outside of `control_guidance_start` ... `control_guidance_end`. FFRNet
    gets the landmark picture embedded, which is done once.

    Args:
        net (`ControlNetModel`, *optional*): Shared with other calls and not changed. `None` stands for no conditioning.
        num_tokens (`int`): Number of identity tokens at the end of the context.
        context (`str`): `"identity"` or `"text"`: which part of it.
        regions ([`RegionalContext`], *optional*): Where each of several people is.
        progress ([`CallProgress`], *optional*): Told of each round.
        device (`torch.device`), dtype (`torch.dtype`): Of the conditioning image; those of `net` by default.
    """

    def __init__(
        self,
        net: Any,
        num_tokens: int,
        context: str,
        regions: RegionalContext | None = None,
        progress: CallProgress | None = None,
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
        self.progress = progress
        self.num_tokens = num_tokens
        self.context = context
        self._device = device or net.device
        self._dtype = dtype or net.dtype
        self._embedded: tuple[torch.Tensor, Any, torch.Tensor] | None = None

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
        if self.progress is not None:
            self.progress.advance(timestep)
        return self.route(
            sample,
            timestep,
            encoder_hidden_states,
            controlnet_cond=controlnet_cond,
            conditioning_scale=conditioning_scale,
            guess_mode=guess_mode,
            return_dict=return_dict,
            **kwargs,
        )

    def route(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        conditioning_scale: float,
        **kwargs: Any,
    ) -> Any:
        """What the ControlNet says to its part of the context, for the last `len(sample)` of its pictures."""
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
        kwargs["controlnet_cond"] = self._embed(kwargs["controlnet_cond"], len(sample))
        output = self.net(
            sample.to(self._dtype),
            timestep,
            encoder_hidden_states=encoder_hidden_states.to(self._dtype),
            conditioning_scale=conditioning_scale,
            **kwargs,
        )
        if sample.dtype == self._dtype:
            return output
        down, mid = output  # of an adapter in another dtype than the base model
        return [item.to(sample.dtype) for item in down], mid.to(sample.dtype)

    def _embed(self, picture: torch.Tensor, batch: int) -> torch.Tensor:
        """What the ControlNet is to take as the last `batch` of its pictures, the same tensor at every step."""
        net = uncompiled(self.net)
        if not isinstance(net, FFRNet):
            return picture[-batch:].to(self._dtype)
        # a callback may change it in place, which its version tells
        state = tensor_version(picture), batch
        if self._embedded is None or self._embedded[0] is not picture or self._embedded[1] != state:
            self._embedded = picture, state, net.embed_landmarks(picture[-batch:].to(self._dtype))
        return self._embedded[2]


class ScheduledFFRNet(RoutedControlNet):
    r"""
    FFRNet in one call, computed when a schedule says so.

    Args:
        net ([`FFRNet`] or `ControlNetModel`): Shared with other calls and not changed.
        num_tokens (`int`): Number of identity tokens at the end of the context.
        schedule ([`FaceSnapSchedule`]): When it is computed.
        progress ([`CallProgress`]): How far the call is.
        is_guided (`Callable`): Whether the first half of a batch is now the unconditional one.
        regions ([`RegionalContext`], *optional*): Where each of several people is.
    """

    def __init__(
        self,
        net: Any,
        num_tokens: int,
        schedule: FaceSnapSchedule,
        progress: CallProgress,
        is_guided: Callable[[], bool],
        regions: RegionalContext | None = None,
    ):
        super().__init__(net, num_tokens, "identity", regions, progress)
        self.schedule = schedule
        self.is_guided = is_guided
        self._last: tuple[float, Any] | None = None

    def route(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        conditioning_scale: float,
        **kwargs: Any,
    ) -> Any:
        """FFRNet's residuals: computed now, or those of before."""
        assert self.progress is not None
        if conditioning_scale == 0:
            return super().route(sample, timestep, encoder_hidden_states, conditioning_scale, **kwargs)
        # in guess mode, the stock pipelines give the conditional half only
        is_halved = self.is_guided() and not kwargs["guess_mode"] and not self.schedule.landmarks_on_unconditional
        own_sample = second_half(sample) if is_halved else sample
        if self._last is not None and self._lasts(timestep, len(own_sample)):
            _, (down, mid) = self._last
        else:
            if is_halved:  # of the pictures, the last are taken: a callback may also have ended guidance
                picture = kwargs.pop("controlnet_cond")
                encoder_hidden_states, kwargs = second_half(encoder_hidden_states), second_half(kwargs)
                kwargs["controlnet_cond"] = picture
            down, mid = super().route(own_sample, timestep, encoder_hidden_states, conditioning_scale, **kwargs)
            self._last = self.progress.time(timestep), (down, mid)
        if is_halved:
            down = [torch.cat([torch.zeros_like(item), item]) for item in down]
            mid = torch.cat([torch.zeros_like(mid), mid])
        # with further ControlNets, diffusers adds theirs in place
        return list(down), mid.clone()

    def _lasts(self, timestep: torch.Tensor | float, batch: int) -> bool:
        """Whether the last residuals still serve."""
        assert self._last is not None and self.progress is not None
        interval, (computed_at, (_, mid)) = self.schedule.landmark_interval, self._last
        if interval == 0 or self.progress.num_steps <= FEW_STEPS or len(mid) != batch:
            return False
        now = self.progress.time(timestep)
        # a step that ends an interval to within rounding begins the next
        return now >= interval and now - computed_at < interval - 1e-3


def second_half(value: Any) -> Any:
    """The conditional half of a batch under guidance: of a tensor, or of each in a dictionary."""
    if isinstance(value, dict):
        return {name: second_half(item) for name, item in value.items()}
    return value.chunk(2)[1] if isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) > 1 else value


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
