"""The base models that adapters are made for: their families, and their UNets."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from .errors import InputError, one_line


UNET_CONFIGS: dict[str, dict[str, Any]] = {
    "sd1": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


def is_sdxl(unet: UNet2DConditionModel) -> bool:
    """Whether a UNet is of Stable Diffusion XL's kind: it also takes a pooled text embedding and sizes."""
    return unet.config.addition_embed_type == "text_time"


def family_of(unet: UNet2DConditionModel) -> str:
    """
    The family of a base model, whose members take each other's adapters: `"sd1"`, `"sd2"`, `"sdxl"`, or
    `"custom-<width>"` (of the cross-attention context), `"custom-xl-<width>"`.
    """
    width = unet.config.cross_attention_dim
    if is_sdxl(unet):
        return "sdxl" if width == 2048 else f"custom-xl-{width}"
    return {768: "sd1", 1024: "sd2"}.get(width, f"custom-{width}")


def empty_unet(family: str) -> UNet2DConditionModel:
    """The UNet of a family in full size on the meta device: its shapes, without memory for weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(**UNET_CONFIGS[family])


def unet_without_weights(name: str) -> UNet2DConditionModel:
    """The UNet of a base model on the Hub or on disk on the meta device: only its config is read."""
    config = UNet2DConditionModel.load_config(name, subfolder="unet")
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config)


def import_modules(names: Sequence[str], setting: str) -> None:
    """
    Imports modules by name, so that diffusers can load components of their classes.

    Args:
        names (`Sequence[str]`): The modules.
        setting (`str`): The name of the setting that they come from, for the message.

    Raises:
        InputError: A module cannot be imported.
    """
    for name in names:
        try:
            import_module(name)
        except ImportError as error:
            raise InputError(f"{setting}: {name!r} cannot be imported ({one_line(error)}); correct its name") from None
