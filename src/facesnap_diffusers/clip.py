"""CLIP similarities, by transformers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPModel, CLIPProcessor

from .errors import InputError, one_line


class ClipEncoder:
    r"""
    Images and prompts as unit vectors of a CLIP model; CLIP-T and CLIP-I are the scalar products of these
    (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision").

    Args:
        model_id (`str`): Hub repo or folder of a `CLIPModel` with its processor.
        device (`str` or `torch.device`): Where it runs.
        setting (`str`): What messages call the setting that names it.

    Raises:
        InputError: The model cannot be loaded.
    """

    def __init__(
        self,
        model_id: str = "openai/clip-vit-large-patch14",
        device: str | torch.device = "cpu",
        setting: str = "clip_model_id",
    ):
        self.model_id = str(model_id)
        try:
            self.model = CLIPModel.from_pretrained(model_id).eval().requires_grad_(False).to(device)
            self.processor = CLIPProcessor.from_pretrained(model_id)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{setting} {self.model_id!r} could not be loaded ({one_line(error)}); name a folder or Hub repo of a"
                " CLIPModel, or leave CLIP out"
            ) from None

    @torch.no_grad()
    def encode_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Images `(H, W, 3)`, `uint8` to unit vectors `(len(images), D)`, `float32`."""
        inputs = self.processor(images=list(images), return_tensors="pt", input_data_format="channels_last")
        pixel_values = inputs.pixel_values.to(self.model.device, self.model.dtype)
        pooled = self.model.vision_model(pixel_values=pixel_values).pooler_output
        return _unit(self.model.visual_projection(pooled))

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> np.ndarray:
        """Prompts to unit vectors `(len(prompts), D)`, `float32`; text beyond the model's length is cut off."""
        length = self.model.config.text_config.max_position_embeddings
        inputs = self.processor(
            text=list(prompts), return_tensors="pt", padding=True, truncation=True, max_length=length
        ).to(self.model.device)
        pooled = self.model.text_model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).pooler_output
        return _unit(self.model.text_projection(pooled))


def _unit(features: torch.Tensor) -> np.ndarray:
    return F.normalize(features.float(), dim=-1).cpu().numpy()
