"""IP-Adapter FaceID Plus and Plus v2: the embedding, and CLIP's features of the aligned crop."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline
from transformers import CLIPVisionModelWithProjection

from ...errors import InputError, one_line
from ...models.image_encoder import default_image_processor
from ...settings import strict_dataclass
from .ip_adapter_faceid import IPAdapterFaceID


@strict_dataclass()
class IPAdapterFaceIDPlus(IPAdapterFaceID):
    r"""
    IP-Adapter FaceID Plus: the embedding, and CLIP's features of the aligned crop.

    Attributes:
        image_encoder_id (`str`): Folder or Hub repo of the CLIP vision model that it was trained with.
        shortcut (`bool`): Whether the checkpoint is a Plus v2.
    """

    kind: ClassVar[str] = "ip_adapter_faceid_plus"
    sources: ClassVar[tuple[str, ...]] = ("base", "adapter", "controlnet", "image_encoder_id")
    weight_name: str = "ip-adapter-faceid-plusv2_sd15.bin"
    image_encoder_id: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    shortcut: bool = True

    def add_image_encoder(self, pipe: DiffusionPipeline) -> None:
        try:
            encoder = CLIPVisionModelWithProjection.from_pretrained(self.image_encoder_id, dtype=pipe.dtype)
        except (OSError, ValueError) as error:
            raise InputError(
                f"image_encoder_id {self.image_encoder_id!r} could not be loaded ({one_line(error)}); name a folder or"
                " Hub repo of a CLIPVisionModelWithProjection"
            ) from None
        processor = default_image_processor(encoder)
        pipe.register_modules(image_encoder=encoder, feature_extractor=processor)

    def set_crop(self, crop: np.ndarray, batch: int) -> None:
        # diffusers has no argument for it: the projection layer reads CLIP's features from an attribute
        states, unconditional = self.pipe.encode_image(
            PIL.Image.fromarray(crop), self.device, batch, output_hidden_states=True
        )
        layer = self.pipe.unet.encoder_hid_proj.image_projection_layers[0]
        if self.sampling.guidance_scale > 1:
            states = torch.cat([unconditional, states])
        layer.clip_embeds = states[:, None].to(self.pipe.unet.dtype)
        layer.shortcut = self.shortcut
