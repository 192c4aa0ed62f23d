"""An adapter's UNet part as an IP-Adapter that stock diffusers loads."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import AdapterError, InputError, check_path, one_line
from ..files import atomic_file
from ..identity import FaceIdentity
from ..models.attention import IdentityAttention
from ..models.mixer import IdentityMixer


if TYPE_CHECKING:
    from ..pipelines.mixin import FaceSnapMixin


def export_ip_adapter(pipe: FaceSnapMixin, path: str | Path) -> None:
    r"""
    Writes the identity attention of a pipeline's adapter as an IP-Adapter file, for `load_ip_adapter(folder,
    subfolder=None, weight_name=..., image_encoder_folder=None)` of any stock pipeline of the same base model. FFRNet
    is not a part of it: the images are those of `set_facesnap_scale(landmark_scale=0)`.

    The mixer has no counterpart in diffusers, so it stays here: [`ip_adapter_image_embeds`] turns an identity into what
    the stock pipeline takes as `ip_adapter_image_embeds`. The file has the layout of IP-Adapter FaceID with one token an
    image: each identity token travels as an "image", its projection is the identity map and the mixer's last LayerNorm.

    Args:
        pipe: A FaceSnap pipeline with an adapter.
        path (`str` or `Path`): A `.safetensors` or `.bin` file; made or replaced, its folder made if need be.

    Raises:
        AdapterError: There is no identity attention.
        InputError: `path` has another suffix or cannot be written, or `pipe` is not a FaceSnap pipeline.
    """
    _check_pipeline(pipe)
    pipe._require_adapter("export_ip_adapter")
    if pipe.identity_attention is None:
        raise AdapterError("the adapter was loaded without identity_attention; load that part too")
    write_ip_adapter(path, pipe.mixer, pipe.identity_attention, pipe.unet)


@torch.no_grad()
def ip_adapter_image_embeds(pipe: FaceSnapMixin, identity: FaceIdentity) -> torch.Tensor:
    r"""
    An identity as what a stock pipeline takes as `ip_adapter_image_embeds=[...]` with a file of [`export_ip_adapter`].

    Returns:
        `torch.Tensor` of shape `(2, num_tokens, cross_attention_dim)`: the unconditional half, then the conditional.

    Raises:
        AdapterError: There is no adapter.
        InputError: `identity` is not a single [`FaceIdentity`], or `pipe` is not a FaceSnap pipeline.
    """
    _check_pipeline(pipe)
    if not isinstance(identity, FaceIdentity):
        raise InputError(
            f"identity must be one FaceIdentity, got {type(identity).__name__}; call it for each of several"
        )
    conditioner = pipe.face_conditioner("ip_adapter_image_embeds")
    # the tokens before the last norm, seen on a copy of the mixer so that calls that run meanwhile are not
    mixer = copy.deepcopy(conditioner.mixer)
    seen: list[torch.Tensor] = []
    mixer.output_norm.register_forward_pre_hook(lambda norm, inputs: seen.append(inputs[0]))
    replace(conditioner, mixer=mixer).tokens(conditioner.identities(identity=identity))
    (embeds,) = seen  # the conditional rows, one or one a photo, then the unconditional ones
    return embeds.unflatten(0, (2, -1)).flatten(1, 2).flip(0)


def write_ip_adapter(
    path: str | Path, mixer: IdentityMixer, identity_attention: IdentityAttention, unet: UNet2DConditionModel
) -> None:
    """As [`export_ip_adapter`], from the parts; of the UNet only the order of its layers counts."""
    check_path("path", path)
    path = Path(path)
    if path.suffix not in (".safetensors", ".bin"):
        raise InputError(f"path {path} must end in .safetensors or .bin")
    groups = {"image_proj": _image_proj(mixer), "ip_adapter": _ip_adapter(identity_attention, unet)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            if path.suffix == ".bin":
                torch.save(groups, temporary)
            else:
                tensors = {f"{name}.{key}": tensor for name, group in groups.items() for key, tensor in group.items()}
                save_file(tensors, temporary)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save raises the last one on a full disk
        raise InputError(f"path {path} could not be written ({one_line(error)}); give another") from None


def _check_pipeline(pipe: Any) -> None:
    if not hasattr(pipe, "face_conditioner"):
        raise InputError(f"pipe must be a FaceSnap pipeline, got {type(pipe).__name__}")


def _image_proj(mixer: IdentityMixer) -> dict[str, torch.Tensor]:
    norm = mixer.output_norm
    identity = torch.eye(mixer.cross_attention_dim, dtype=norm.weight.dtype)
    zeros = torch.zeros(len(identity), dtype=norm.weight.dtype)
    # a feed-forward network that changes nothing, as x = gelu(x) - gelu(-x)
    return {
        "proj.0.weight": torch.cat([identity, -identity]),
        "proj.0.bias": zeros.repeat(2),
        "proj.2.weight": torch.cat([identity, -identity], dim=1),
        "proj.2.bias": zeros,
        "norm.weight": norm.weight.detach().cpu().clone(),
        "norm.bias": norm.bias.detach().cpu().clone(),
    }


def _ip_adapter(identity_attention: IdentityAttention, unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    tensors = {}
    lora_layers = identity_attention.config.lora_layers or {}
    for number, processor in enumerate(unet.attn_processors):
        name = processor.removesuffix(".processor")
        if name in identity_attention.config.layers:
            projection: Any = identity_attention.projections[name.replace(".", "-")]
            tensors[f"{number}.to_k_ip.weight"] = projection.to_k.weight
            tensors[f"{number}.to_v_ip.weight"] = projection.to_v.weight
        for linear in ("to_q", "to_k", "to_v", "to_out.0"):
            if f"{name}.{linear}" in lora_layers:
                lora: Any = identity_attention.loras[f"{name}.{linear}".replace(".", "-")]
                key = f"{number}.{linear.removesuffix('.0')}_lora"
                tensors[f"{key}.down.weight"], tensors[f"{key}.up.weight"] = lora.down.weight, lora.up.weight
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
