"""Files of third-party identity adapters: read safely, and recognized by what is in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import AdapterError, one_line


Kind = Literal["faceid", "faceid-plus", "faceid-unnorm", "instantid", "plus-face", "full-face"]

GROUPS = ("image_proj", "ip_adapter")

#: What the groups are called in the checkpoints of IP-Adapter's training scripts, which contain the whole UNet too.
TRAINING_NAMES = {"image_proj_model": "image_proj", "adapter_modules": "ip_adapter"}

#: Adapters of other kinds: what the names of their tensors begin with, what they are, why they are not supported.
UNSUPPORTED = (
    (
        {"id_encoder", "lora_weights"},
        "a PhotoMaker",
        "it works through a word of the prompt and a LoRA of the whole UNet",
    ),
    ({"id_adapter", "id_adapter_attn_layers"}, "a PuLID", "it has encoders and attention of its own"),
    ({"pulid_encoder", "pulid_ca"}, "a PuLID for FLUX", "that is not a Stable Diffusion model"),
    ({"FacialEncoder"}, "a ConsistentID", "it works through words of the prompt for each part of the face"),
    ({"faceid_proj", "faceid_adapter"}, "a UniPortrait", "it has a recognizer and a router of its own"),
    ({"conv_in", "down_blocks", "up_blocks"}, "a whole UNet, as Arc2Face is", "it replaces the base model"),
    ({"text_model"}, "a text encoder, as Arc2Face's is", "it replaces that of the base model"),
)

#: Width of the face-recognition embeddings that InstantID and the FaceID family take.
FACE_EMBED_DIM = 512


@dataclass(frozen=True)
class Checkpoint:
    r"""
    Attributes:
        kind (`str`): `"faceid"` (FaceID and Portrait), `"faceid-plus"` (both versions), `"faceid-unnorm"` (the
            Portrait whose projection is InstantID's), `"instantid"`, or of IP-Adapter's models for faces without
            recognizer `"plus-face"` and `"full-face"`.
        image_proj (`dict`): Tensors of the projection from the face to tokens.
        ip_adapter (`dict`): Tensors of the attention layers, named by number.
        source (`str`): Where it comes from, for messages.
    """

    kind: Kind
    image_proj: dict[str, torch.Tensor]
    ip_adapter: dict[str, torch.Tensor]
    source: str


def read_checkpoint(source: str | Path | Mapping) -> Checkpoint:
    """Reads a `.bin` or `.safetensors` file, or takes its content; raises [`AdapterError`] for anything else."""
    if isinstance(source, Mapping):
        tensors, name = source, "the state dict"
    else:
        tensors, name = read_tensors(Path(source)), str(source)
    groups = _grouped(tensors, name)
    for group in groups.values():
        for key, tensor in group.items():
            if not torch.isfinite(tensor).all():
                raise AdapterError(f"{name} has values that are not finite in {key}; download it again")
    kind = recognize(groups["image_proj"], name)
    if kind in ("instantid", "faceid-unnorm") and any("_lora." in key for key in groups["ip_adapter"]):
        raise AdapterError(
            f"{name} mixes InstantID's image_proj with the attention of an IP-Adapter FaceID; use a file as it was"
            " published"
        )
    return Checkpoint(kind, **groups, source=name)


def recognize(image_proj: Mapping[str, torch.Tensor], name: str) -> Kind:
    """
    Whose projection this is, by its keys; raises [`AdapterError`] if it is not an identity adapter's. Only the
    file's name tells FaceID-Portrait "unnorm" from InstantID.
    """
    file_name = plain_name(name)
    if "perceiver_resampler.proj_in.weight" in image_proj:
        _refuse_kolors(image_proj, "perceiver_resampler.", name)
        return "faceid-plus"
    if {"proj.0.weight", "proj.2.weight", "norm.weight"} <= set(image_proj):
        return "faceid"
    if {"latents", "proj_in.weight"} <= set(image_proj):
        if image_proj["proj_in.weight"].shape[-1] == FACE_EMBED_DIM:
            return "faceid-unnorm" if "unnorm" in file_name else "instantid"
        _refuse_kolors(image_proj, "", name)
        if "plus" not in file_name or "face" in file_name:
            return "plus-face"
    if {"proj.0.weight", "proj.3.weight"} <= set(image_proj):
        return "full-face"
    if image_proj.keys() & {"proj.weight", "latents"}:
        raise AdapterError(
            f"{name} is an IP-Adapter for whole pictures, not for faces; load it with load_ip_adapter(),"
            " it works beside a FaceSnap adapter"
        )
    raise AdapterError(
        f"{name} is neither an IP-Adapter for faces nor an InstantID file: its image_proj has {_some(image_proj)}"
    )


def plain_name(name: str) -> str:
    """A file's name in lower case without what its words are separated by, by which variants are told apart."""
    return Path(name).name.lower().replace("-", "").replace("_", "")


def read_tensors(path: Path) -> Mapping:
    """The content of a `.safetensors` or `.bin` file, without running code of it; raises [`AdapterError`]."""
    if not path.is_file():
        raise AdapterError(f"there is no file {path}; check weight_name")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # weights_only: a pickle may hold any code
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise AdapterError(
            f"{path} is damaged, or a pickle with more than tensors, which may run any code; download it again from"
            " a source that you trust, best as .safetensors"
        ) from None
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise AdapterError(f"{path} cannot be read ({one_line(error)}); download it again") from None


def _refuse_kolors(image_proj: Mapping[str, torch.Tensor], prefix: str, name: str) -> None:
    """Kolors has SDXL's width, and image features of another CLIP model (1024 wide) than SDXL's adapters."""
    proj_in, proj_out = (image_proj.get(f"{prefix}{part}.weight") for part in ("proj_in", "proj_out"))
    if proj_in is not None and proj_out is not None and (proj_in.shape[1], proj_out.shape[0]) == (1024, 2048):
        raise AdapterError(
            f"{name} is an adapter for Kolors, not supported, because that is not a Stable Diffusion model"
        )


def _refuse_unsupported(tensors: Mapping, name: str) -> None:
    """Raises [`AdapterError`] with the name of a known adapter of another kind."""
    beginnings = {str(key).partition(".")[0] for key in tensors}
    for keys, what, reason in UNSUPPORTED:
        if keys <= beginnings:
            raise AdapterError(
                f"{name} is {what} file, not supported, because {reason}; use one of facesnap info --public"
            )


def _grouped(tensors: Mapping, name: str) -> dict[str, dict[str, torch.Tensor]]:
    """
    The forms in which the files come: a dictionary a group, or names that begin with the group's; as published or as
    the training script writes them.
    """
    if not isinstance(tensors, Mapping):
        raise AdapterError(f"{name} holds a {type(tensors).__name__} instead of names and tensors")
    trained = any(str(key).partition(".")[0] in TRAINING_NAMES for key in tensors)
    if not trained or any(str(key).partition(".")[0] == "FacialEncoder" for key in tensors):
        _refuse_unsupported(tensors, name)
    groups: dict[str, dict[str, torch.Tensor]] = {group: {} for group in GROUPS}
    unexpected = []
    for key, value in tensors.items():
        beginning, _, rest = str(key).partition(".")
        group = TRAINING_NAMES.get(beginning, beginning)
        if group in groups and rest:
            groups[group][rest] = value
        elif group in groups and isinstance(value, Mapping):
            groups[group].update(value)
        elif not (trained and beginning == "unet"):
            unexpected.append(key)
    if not groups["image_proj"] or not groups["ip_adapter"] or unexpected:
        raise AdapterError(
            f"{name} is not an identity adapter: expected image_proj and ip_adapter alone, found {_some(tensors)}"
        )
    for content in groups.values():
        if not all(isinstance(value, torch.Tensor) for value in content.values()):
            raise AdapterError(f"{name} holds other things than tensors")
    return groups


def _some(keys: Mapping) -> str:
    names = [str(key) for key in keys]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
