"""Training in bfloat16 where hardware multiplies it: on processors with AMX or AVX-512 that is twice as fast."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTextModel


def mixed_precision(device_type: str = "cpu") -> torch.autocast:
    """Weights, normalisations and losses stay in float32."""
    if device_type != "cpu":
        return torch.autocast(device_type, torch.bfloat16)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot tell
    return torch.autocast("cpu", torch.bfloat16, enabled=any(map(capabilities.get, ("amx_bf16", "avx512_bf16"))))


def avoid_slow_kernels(unet: UNet2DConditionModel, text_encoder: CLIPTextModel):
    """
    Two kernels of the CPU are slower in bfloat16 than in float32: the backward pass of fused attention, group norm. With
    texts as short as captions, fused attention is slower than plain in any case.
    """
    text_encoder.set_attn_implementation("eager")
    unet.set_attn_processor(AttnProcessor())
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
