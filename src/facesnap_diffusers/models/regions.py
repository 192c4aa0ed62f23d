"""Several people in one image: which place belongs to whom, and attention that keeps to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor2_0


if TYPE_CHECKING:
    from .attention import ContextAttention


class Regions:
    r"""
    Divides an image among people: every place belongs to the person whose face box is nearest, measured in sizes of
    that box (max(|x - center| / width, |y - center| / height)). So a box that overlaps no other belongs to its person
    as a whole, and hair, neck and shoulders go along with the face.

    Args:
        boxes (`torch.Tensor` of shape `(people, 4)`): Left, top, right, bottom as shares of the image.
        height (`int`), width (`int`): Of the latents.
    """

    def __init__(self, boxes: torch.Tensor, height: int, width: int):
        self.boxes = boxes
        self.height = height
        self.width = width

    def masks(self, num_tokens: int, device: torch.device | str = "cpu") -> dict[int, torch.Tensor]:
        """
        Which tokens each place may see, bool `(places, num_tokens)`, by the number of places: one for each level of a
        UNet. `num_tokens` are those of all people, one person's after the other's.
        """
        height, width = self.height, self.width
        masks: dict[int, torch.Tensor] = {}
        while height * width not in masks:  # each level halves the size, rounding up
            owners = self.owners(height, width).flatten()
            of_people = F.one_hot(owners, len(self.boxes)).bool()  # (places, people)
            masks[height * width] = of_people.repeat_interleave(num_tokens // len(self.boxes), dim=1).to(device)
            height, width = (height + 1) // 2, (width + 1) // 2
        return masks

    def owners(self, height: int, width: int) -> torch.Tensor:
        """Whose each place of a level is, `(height, width)`: indices of people."""
        boxes = self.boxes.double()
        left, top, right, bottom = boxes[:, :, None, None].unbind(1)
        y = ((torch.arange(height) + 0.5) / height)[:, None].to(boxes)
        x = ((torch.arange(width) + 0.5) / width)[None, :].to(boxes)
        across = (x - (left + right) / 2).abs() / (right - left)
        down = (y - (top + bottom) / 2).abs() / (bottom - top)
        return torch.maximum(across, down).argmin(dim=0)


@dataclass(frozen=True, eq=False)
class RegionalContext:
    r"""
    What a call with several people brings to a ControlNet whose context is their tokens: each place sees those of its own
    person only.

    Attributes:
        masks (`dict[int, torch.Tensor]`): As [`Regions.masks`] gives them.
    """

    masks: dict[int, torch.Tensor]

    def attend(
        self,
        layer: ContextAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The output of one attention layer of the ControlNet, `(batch, queries, channels)`."""
        if encoder_hidden_states is None:  # self-attention
            return layer.stock(hidden_states, None, attention_mask, **kwargs)
        visible = self.masks[hidden_states.shape[1]]
        bias = torch.zeros_like(visible, dtype=hidden_states.dtype).masked_fill_(~visible, float("-inf"))
        bias = bias.expand(len(hidden_states), -1, -1)  # (batch, queries, tokens)
        return AttnProcessor2_0()(layer, hidden_states, encoder_hidden_states, attention_mask=bias)
