"""How the CLIP image encoder of an adapter is used, in training as in inference."""

from __future__ import annotations

import torch
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection


#: Of the hidden states, the one before the last layer. That serves CLIP's own loss; the one before keeps more of the picture
#: (IP-Adapter, arXiv 2308.06721, section 3.2).
HIDDEN_LAYER = -2


def image_hidden_states(
    image_encoder: CLIPVisionModelWithProjection, pixel_values: torch.Tensor, device: torch.device | None = None
) -> torch.Tensor:
    """
    What mixers take of images `(batch, 3, size, size)`: the hidden states before the last layer `(batch, sequence, width)`.
    """
    pixel_values = pixel_values.to(device or image_encoder.device, image_encoder.dtype)
    return image_encoder(pixel_values, output_hidden_states=True).hidden_states[HIDDEN_LAYER]


def default_image_processor(image_encoder: CLIPVisionModelWithProjection) -> CLIPImageProcessor:
    """CLIP's preprocessing at the encoder's image size, for encoders that come without a processor of their own."""
    size = image_encoder.config.image_size
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
