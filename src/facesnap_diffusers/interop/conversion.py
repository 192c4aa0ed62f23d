"""From third-party checkpoints to the parts of an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin

from .._upstream import convert_image_projection
from ..adapter.config import FaceSnapConfig
from ..base_models import family_of
from ..errors import AdapterError, one_line
from ..models.attention import IdentityAttention
from ..models.mixer import IdentityMixer
from .checkpoint import Checkpoint
from .mixers import FaceIDMixer, FaceIDPlusMixer, InstantIDMixer


#: The CLIP model of both FaceID-Plus versions, for SD 1.5 and SDXL.
FACEID_PLUS_IMAGE_ENCODER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

#: How many tokens FaceID-Portrait makes of each photo.
PORTRAIT_TOKENS = 16


def convert_checkpoint(
    checkpoint: Checkpoint,
    unet: UNet2DConditionModel,
    *,
    controlnet: ControlNetModel | None = None,
    plus_v2: bool | None = None,
) -> tuple[FaceSnapConfig, dict[str, ModelMixin]]:
    r"""
    The config and parts of a checkpoint, in float32.

    Args:
        checkpoint ([`Checkpoint`]): What [`read_checkpoint`] gave.
        unet (`UNet2DConditionModel`): The base model's UNet; its layers' names and sizes are looked at, not its
            weights, so it may be on the meta device.
        controlnet (`ControlNetModel`, *optional*): InstantID's.
        plus_v2 (`bool`, *optional*): Whether a FaceID-Plus checkpoint is of version 2, which does not show in it. By
            default as the file name says; all public ones for SDXL are.

    Raises:
        AdapterError: The checkpoint does not fit the base model or itself.
    """
    family = family_of(unet)
    identity_attention = _identity_attention(checkpoint, unet)
    projection = _projection(checkpoint)

    mixer: IdentityMixer
    if checkpoint.kind == "faceid":
        mixer = _faceid_mixer(projection)
    elif checkpoint.kind == "faceid-plus":
        file_name = Path(checkpoint.source).name.lower().replace("-", "").replace("_", "")
        by_name = "plusv2" in file_name or "xl" in family
        mixer = _faceid_plus_mixer(projection, by_name if plus_v2 is None else plus_v2)
    else:
        mixer = _instantid_mixer(projection)
    width = unet.config.cross_attention_dim
    if mixer.cross_attention_dim != width:
        raise AdapterError(
            f"{checkpoint.source} gives tokens of width {mixer.cross_attention_dim}, the base model takes"
            f" {width}; use a file made for this base model"
        )
    mixer.projection.load_state_dict(projection.state_dict())

    instantid = checkpoint.kind == "instantid"
    modules = {"mixer": mixer, "identity_attention": identity_attention}
    if controlnet is not None:
        modules["ffrnet"] = controlnet
    config = FaceSnapConfig(
        face_encoder_id="insightface/glintr100" if instantid else "insightface/w600k_r50",
        face_embed_dim=mixer.face_embed_dim,
        normalized_embeds=checkpoint.kind in ("faceid", "faceid-plus"),
        image_encoder_id=FACEID_PLUS_IMAGE_ENCODER if checkpoint.kind == "faceid-plus" else None,
        image_crop="arcface" if checkpoint.kind == "faceid-plus" else "head",
        landmark_style="instantid5" if instantid else "facesnap72",
        num_tokens=mixer.num_tokens,
        parts=list(modules),
        base_family=family,
    )
    return config, modules


def _projection(checkpoint: Checkpoint) -> Any:
    """The projection as diffusers builds it."""
    try:
        return convert_image_projection(checkpoint.image_proj)
    except (KeyError, RuntimeError, IndexError) as error:
        raise AdapterError(f"{checkpoint.source}: image_proj is incomplete or damaged ({one_line(error)})") from None


def _faceid_mixer(projection: Any) -> FaceIDMixer:
    inner = projection.ff.net[0].proj
    return FaceIDMixer(
        cross_attention_dim=projection.cross_attention_dim,
        face_embed_dim=inner.in_features,
        num_tokens=projection.num_tokens,
        mult=inner.out_features // inner.in_features,
        per_photo=projection.num_tokens == PORTRAIT_TOKENS,
    )


def _faceid_plus_mixer(projection: Any, shortcut: bool) -> FaceIDPlusMixer:
    width = projection.proj_in.in_features
    return FaceIDPlusMixer(
        cross_attention_dim=projection.proj_out.out_features,
        face_embed_dim=projection.proj.net[0].proj.in_features,
        image_embed_dim=width,
        hidden_size=projection.embed_dim,
        num_heads=projection.layers[0].attn.heads,
        shortcut=shortcut,
        num_tokens=projection.num_tokens,
    )


def _instantid_mixer(projection: Any) -> InstantIDMixer:
    return InstantIDMixer(
        cross_attention_dim=projection.proj_out.out_features,
        face_embed_dim=projection.proj_in.in_features,
        num_tokens=projection.latents.shape[1],
        hidden_size=projection.latents.shape[2],
        num_heads=projection.layers[0].attn.heads,
    )


def _identity_attention(checkpoint: Checkpoint, unet: UNet2DConditionModel) -> IdentityAttention:
    """The attention layers go by their number among the UNet's attention processors; so do the LoRA's."""
    layers: dict[str, list[int]] = {}
    lora_layers: dict[str, list[int]] = {}
    tensors: dict[str, torch.Tensor] = {}
    left = dict(checkpoint.ip_adapter)
    has_lora = any("_lora." in key for key in left)
    for number, processor in enumerate(unet.attn_processors):
        name = processor.removesuffix(".processor")
        attn = unet.get_submodule(name)
        if name.endswith(".attn2"):
            layers[name] = [attn.to_k.in_features, attn.to_k.out_features]
            shape = (attn.to_k.out_features, attn.to_k.in_features)
            for key in ("to_k", "to_v"):
                tensor = _take(checkpoint, left, f"{number}.{key}_ip.weight", shape)
                tensors[f"projections.{name.replace('.', '-')}.{key}.weight"] = tensor
        if has_lora:
            for linear_name, linear in _linears(attn).items():
                key = f"{number}.{linear_name.removesuffix('.0')}_lora"
                rank = len(left.get(f"{key}.down.weight", ()))
                down = _take(checkpoint, left, f"{key}.down.weight", (rank, linear.in_features))
                up = _take(checkpoint, left, f"{key}.up.weight", (linear.out_features, rank))
                full_name = f"{name}.{linear_name}"
                lora_layers[full_name] = [linear.in_features, rank, linear.out_features]
                tensors[f"loras.{full_name.replace('.', '-')}.down.weight"] = down
                tensors[f"loras.{full_name.replace('.', '-')}.up.weight"] = up
    if left:
        raise AdapterError(
            f"{checkpoint.source} has {len(left)} tensors for layers that this base model does not contain, e.g."
            f" {next(iter(left))}; use a file made for its family"
        )
    identity_attention = IdentityAttention(layers, lora_layers or None)
    identity_attention.load_state_dict(tensors)
    return identity_attention


def _linears(attn: Attention) -> dict[str, Any]:
    return {"to_q": attn.to_q, "to_k": attn.to_k, "to_v": attn.to_v, "to_out.0": attn.to_out[0]}


def _take(checkpoint: Checkpoint, left: dict[str, torch.Tensor], key: str, shape: tuple[int, ...]) -> torch.Tensor:
    tensor = left.pop(key, None)
    if tensor is None:
        raise AdapterError(
            f"{checkpoint.source} has no {key}, which this base model needs; use a complete file of its family"
        )
    if tuple(tensor.shape) != shape:
        raise AdapterError(
            f"{checkpoint.source}: {key} has shape {tuple(tensor.shape)}, this base model takes {shape};"
            " use a file made for its family"
        )
    return tensor
