"""From third-party checkpoints to the parts of an adapter."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin

from .._upstream import convert_image_projection
from ..adapter.config import FaceSnapConfig
from ..adapter.public import GLINTR100, PUBLIC_ADAPTERS, W600K
from ..base_models import family_of
from ..errors import AdapterError, one_line
from ..faces.analyzers import DlibFaceAnalyzer
from ..models.attention import IdentityAttention
from ..models.mixer import IdentityMixer
from .checkpoint import Checkpoint, plain_name
from .mixers import FaceIDMixer, FaceIDPlusMixer, FullFaceMixer, InstantIDMixer, PlusFaceMixer


#: The CLIP model of both FaceID-Plus versions and of the models for faces without recognizer, for SD 1.5 and SDXL.
FACEID_PLUS_IMAGE_ENCODER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

#: How many tokens FaceID-Portrait makes of each photo.
PORTRAIT_TOKENS = 16


def convert_checkpoint(
    checkpoint: Checkpoint,
    unet: UNet2DConditionModel,
    *,
    controlnet: ControlNetModel | None = None,
    plus_v2: bool | None = None,
    structure_scale: float = 1.0,
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
        structure_scale (`float`): FaceID-Plus version 2: weight of the face's structure (`s_scale` of its authors).

    Raises:
        AdapterError: The checkpoint does not fit the base model or itself, or its variant cannot be told.
    """
    family = family_of(unet)
    identity_attention = _identity_attention(checkpoint, unet)
    projection = _projection(checkpoint)

    mixer: IdentityMixer
    if checkpoint.kind == "faceid":
        mixer = _faceid_mixer(projection)
    elif checkpoint.kind == "faceid-plus":
        shortcut = _is_plus_v2(checkpoint.source, family) if plus_v2 is None else plus_v2
        mixer = _faceid_plus_mixer(projection, shortcut, structure_scale)
    elif checkpoint.kind == "plus-face":
        mixer = _plus_face_mixer(projection)
    elif checkpoint.kind == "full-face":
        linear, norm = projection.ff.net[0].proj, projection.norm
        mixer = FullFaceMixer(norm.normalized_shape[0], linear.in_features)
    else:
        mixer = _instantid_mixer(projection, per_photo=checkpoint.kind == "faceid-unnorm")
    if plus_v2 is not None and checkpoint.kind != "faceid-plus":
        raise AdapterError(
            f"faceid_plus_v2 (--plus-v2) has no effect: {checkpoint.source} is not FaceID-Plus; leave it out"
        )
    if structure_scale != 1 and not (isinstance(mixer, FaceIDPlusMixer) and mixer.config.shortcut):
        raise AdapterError(
            f"faceid_structure_scale (--structure-scale) has no effect: {checkpoint.source} is not FaceID-Plus of version"
            " 2; leave it out"
        )
    width = unet.config.cross_attention_dim
    if mixer.cross_attention_dim != width:
        raise AdapterError(
            f"{checkpoint.source} gives tokens of width {mixer.cross_attention_dim}, the base model takes"
            f" {width}; use a file made for this base model"
        )
    mixer.projection.load_state_dict(projection.state_dict())

    modules = {"mixer": mixer, "identity_attention": identity_attention}
    if controlnet is not None:
        modules["ffrnet"] = controlnet
    kind = checkpoint.kind
    # a model without recognizer takes any analyzer; dlib's comes with its package and may be used for anything
    recognizers = {
        "instantid": GLINTR100,
        "plus-face": DlibFaceAnalyzer.encoder,
        "full-face": DlibFaceAnalyzer.encoder,
    }
    config = FaceSnapConfig(
        face_encoder_id=recognizers.get(kind, W600K),
        face_embed_dim=mixer.face_embed_dim,
        normalized_embeds=kind in ("faceid", "faceid-plus"),
        image_encoder_id=FACEID_PLUS_IMAGE_ENCODER if mixer.image_embed_dim is not None else None,
        image_crop="arcface" if kind == "faceid-plus" else "head",
        landmark_style="instantid5" if kind == "instantid" else "facesnap72",
        num_tokens=mixer.num_tokens,
        parts=list(modules),
        recommended_scales=_recommended_scales(kind),
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


def _is_plus_v2(source: str, family: str) -> bool:
    """Which version of FaceID-Plus a file is, by its name; raises [`AdapterError`] where that does not say it."""
    name = plain_name(source)
    if "plusv2" in name or "xl" in family:  # all public ones for SDXL are
        return True
    if "faceidplus" in name:
        return False
    raise AdapterError(
        f"{source} is an IP-Adapter FaceID-Plus, but of version 1 or 2? Its content does not tell; pass"
        " faceid_plus_v2=True or False (facesnap convert: --plus-v2 or --no-plus-v2), or give it its published name"
    )


def _recommended_scales(kind: str) -> dict[Any, float]:
    """What the authors' scripts use."""
    is_instantid = kind == "instantid"
    return next(
        dict(adapter.scales) for adapter in PUBLIC_ADAPTERS if (adapter.controlnet is not None) == is_instantid
    )


def _plus_face_mixer(projection: Any) -> PlusFaceMixer:
    return PlusFaceMixer(
        cross_attention_dim=projection.proj_out.out_features,
        image_embed_dim=projection.proj_in.in_features,
        num_tokens=projection.latents.shape[1],
        hidden_size=projection.latents.shape[2],
        num_heads=projection.layers[0].attn.heads,
    )


def _faceid_plus_mixer(projection: Any, shortcut: bool, structure_scale: float) -> FaceIDPlusMixer:
    width = projection.proj_in.in_features
    return FaceIDPlusMixer(
        cross_attention_dim=projection.proj_out.out_features,
        face_embed_dim=projection.proj.net[0].proj.in_features,
        image_embed_dim=width,
        hidden_size=projection.embed_dim,
        num_heads=projection.layers[0].attn.heads,
        shortcut=shortcut,
        num_tokens=projection.num_tokens,
        structure_scale=structure_scale,
    )


def _instantid_mixer(projection: Any, per_photo: bool) -> InstantIDMixer:
    return InstantIDMixer(
        cross_attention_dim=projection.proj_out.out_features,
        face_embed_dim=projection.proj_in.in_features,
        num_tokens=projection.latents.shape[1],
        hidden_size=projection.latents.shape[2],
        num_heads=projection.layers[0].attn.heads,
        per_photo=per_photo,
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
