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


Kind = Literal["faceid", "faceid-plus", "faceid-unnorm", "instantid"]

GROUPS = ("image_proj", "ip_adapter")

#: Width of the face-recognition embeddings that InstantID and the FaceID family take.
FACE_EMBED_DIM = 512


@dataclass(frozen=True)
class Checkpoint:
    r"""
    Attributes:
        kind (`str`): `"faceid"` (FaceID and Portrait), `"faceid-plus"` (both versions), `"faceid-unnorm"` (the
            Portrait whose projection is InstantID's) or `"instantid"`.
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
        tensors, name = _read(Path(source)), str(source)
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
    if "perceiver_resampler.proj_in.weight" in image_proj:
        return "faceid-plus"
    if {"proj.0.weight", "proj.2.weight", "norm.weight"} <= set(image_proj):
        return "faceid"
    if {"latents", "proj_in.weight"} <= set(image_proj) and image_proj["proj_in.weight"].shape[-1] == FACE_EMBED_DIM:
        return "faceid-unnorm" if "unnorm" in Path(name).name.lower() else "instantid"
    if image_proj.keys() & {"proj.weight", "proj.3.weight", "latents"}:
        raise AdapterError(
            f"{name} is an IP-Adapter for pictures, not for face embeddings; load it with load_ip_adapter(),"
            " it works beside a FaceSnap adapter"
        )
    raise AdapterError(
        f"{name} is neither an IP-Adapter FaceID nor an InstantID file: its image_proj has {_some(image_proj)}"
    )


def _read(path: Path) -> Mapping:
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


def _grouped(tensors: Mapping, name: str) -> dict[str, dict[str, torch.Tensor]]:
    """Both forms in which the files come: a dictionary a group, or names that begin with the group's."""
    if not isinstance(tensors, Mapping):
        raise AdapterError(f"{name} holds a {type(tensors).__name__} instead of names and tensors")
    if set(GROUPS) <= set(tensors):
        groups = {group: dict(tensors[group]) for group in GROUPS}
        others = [key for key in tensors if key not in GROUPS]
    else:
        groups = {
            group: {key.removeprefix(f"{group}."): value for key, value in tensors.items() if _starts(key, group)}
            for group in GROUPS
        }
        others = [key for key in tensors if not any(_starts(key, group) for group in GROUPS)]
    if not groups["image_proj"] or not groups["ip_adapter"] or others:
        raise AdapterError(
            f"{name} is not an identity adapter: expected image_proj and ip_adapter alone, found {_some(tensors)}"
        )
    for group in groups.values():
        if not all(isinstance(value, torch.Tensor) for value in group.values()):
            raise AdapterError(f"{name} holds other things than tensors")
    return groups


def _starts(key: object, group: str) -> bool:
    return isinstance(key, str) and key.startswith(f"{group}.")


def _some(keys: Mapping) -> str:
    names = [str(key) for key in keys]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
