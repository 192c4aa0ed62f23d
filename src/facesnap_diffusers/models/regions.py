"""Several people in one image: which place belongs to whom, and attention that keeps to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from ..errors import InputError


class Regions:
    r"""
    Divides an image among people: every place belongs to the person whose face box is nearest, measured in sizes of
    that box (max(|x - centre| / width, |y - centre| / height)). So a box that overlaps no other belongs to its person
    as a whole, and hair, neck and shoulders go along with the face.

    Args:
        boxes (`torch.Tensor` of shape `(people, 4)`): Left, top, right, bottom as shares of the image.
        height (`int`), width (`int`): Of the latents.
    """

    def __init__(self, boxes: torch.Tensor, height: int, width: int):
        self.boxes = boxes
        self.num_people = len(boxes)
        self._sizes: dict[int, tuple[int, int]] = {}
        while height * width not in self._sizes:  # the levels of the UNet: each halves the size, rounding up
            self._sizes[height * width] = (height, width)
            height, width = (height + 1) // 2, (width + 1) // 2
        self._masks: dict[tuple[int, torch.device], torch.Tensor] = {}

    def masks(self, num_queries: int, device: torch.device) -> torch.Tensor:
        """Whose each place of a level is, `(people, num_queries)`, bool: true for one person a place."""
        key = (num_queries, device)
        if key not in self._masks:
            if num_queries not in self._sizes:
                raise InputError(
                    f"no level of the UNet has {num_queries} places; height and width do not fit the latents"
                )
            self._masks[key] = self._divide(*self._sizes[num_queries]).to(device)
        return self._masks[key]

    def _divide(self, height: int, width: int) -> torch.Tensor:
        boxes = self.boxes.double()
        left, top, right, bottom = boxes[:, :, None, None].unbind(1)
        y = ((torch.arange(height) + 0.5) / height)[:, None].to(boxes)
        x = ((torch.arange(width) + 0.5) / width)[None, :].to(boxes)
        across = (x - (left + right) / 2).abs() / (right - left)
        down = (y - (top + bottom) / 2).abs() / (bottom - top)
        nearest = torch.maximum(across, down).argmin(dim=0).flatten()
        return torch.nn.functional.one_hot(nearest, self.num_people).T.bool()


class RegionalAttnProcessor(AttnProcessor2_0):
    """Cross-attention over the tokens of several people, in which each place sees those of its own person only."""

    def __init__(self, regions: Regions):
        super().__init__()
        self.regions = regions

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        visible = self.regions.masks(hidden_states.shape[1], hidden_states.device).T
        visible = visible.repeat_interleave(encoder_hidden_states.shape[1] // self.regions.num_people, dim=1)
        bias = torch.zeros_like(visible, dtype=hidden_states.dtype).masked_fill_(~visible, float("-inf"))
        bias = bias.expand(len(hidden_states), -1, -1)
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask=bias, temb=temb)


@contextmanager
def regional_context(net: nn.Module | None, regions: Regions | None) -> Iterator[None]:
    """While this lasts, the cross-attention of a ControlNet keeps to the regions."""
    if net is None or regions is None:
        yield
        return
    layers = {module: module.processor for name, module in net.named_modules() if name.endswith(".attn2")}
    try:
        for attn in layers:
            attn.set_processor(RegionalAttnProcessor(regions))
        yield
    finally:
        for attn, processor in layers.items():
            attn.set_processor(processor)
