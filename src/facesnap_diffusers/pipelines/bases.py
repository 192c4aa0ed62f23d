"""Which base models a pipeline takes, and which pipeline takes a base model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, DiffusionPipeline
from diffusers.loaders.single_file_utils import infer_diffusers_model_type, load_single_file_checkpoint
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel

from .._upstream import saved_class_name, uncompiled
from ..adapter.config import FaceSnapConfig
from ..adapter.folder import ADAPTER_COMPONENTS, bind_to_base, check_fit
from ..adapter.hub import why_not_from_hub
from ..base_models import is_sdxl
from ..errors import AdapterError, FaceSnapError, InputError, check_path, expanded, shown
from ..models.ffrnet import FFRNet
from .call_copy import copy_modules


#: Arguments of `from_pretrained` that say where a checkpoint is.
HUB_ARGUMENTS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision")

KINDS = {False: "Stable Diffusion 1.x or 2.x", True: "Stable Diffusion XL"}


def class_for(cls_name: str, is_xl: bool) -> str:
    """The name of the pipeline for the same task and the family that is asked for."""
    task = cls_name.removeprefix("FaceSnapXL").removeprefix("FaceSnap")
    return f"FaceSnap{'XL' if is_xl else ''}{task}"


def is_xl_folder(name: str | Path, source: str, kwargs: Mapping[str, Any]) -> bool | None:
    """
    Whether a checkpoint on disk or on the Hub is of Stable Diffusion XL, by its `model_index.json`; `None` where that could
    not be read. Raises [`InputError`] for other models.
    """
    check_checkpoint(name)
    try:
        index = DiffusionPipeline.load_config(expanded(name), **{k: kwargs[k] for k in HUB_ARGUMENTS if k in kwargs})
    except Exception:  # from_pretrained itself says best what is wrong
        return None
    if not isinstance(index, Mapping):
        raise InputError(f"model_index.json of {source} does not describe a pipeline; download the checkpoint again")
    return is_xl_components(index, saved_class_name(index), source)


def check_checkpoint(name: Any) -> None:
    """Raises [`InputError`] unless `name` can be that of a checkpoint: on the Hub, or a folder or file."""
    if not isinstance(name, (str, Path)) or not str(name):
        raise InputError(f"the checkpoint must be a Hub repo, a folder or a file, got {shown(name)}")
    check_path("the checkpoint", name)
    if isinstance(name, Path) and not name.expanduser().exists():
        raise InputError(f"the checkpoint {str(name)[-100:]!r} does not exist; a Hub repo is named by a string")


def missing_checkpoint(source: str, error: Exception) -> InputError | None:
    """What to raise for a checkpoint that is not there: of one that is, diffusers says what is wrong with it."""
    if Path(source).exists() or isinstance(error, FaceSnapError):
        return None
    return InputError(
        f"there is no checkpoint {source[-100:]!r} on disk, and the Hub gives none ({why_not_from_hub(error)}); check the name, and"
        " the connection"
    )


def is_xl_components(components: Mapping[str, Any], class_name: Any, source: str) -> bool:
    """The same for the components of a pipeline, or their names."""

    def has(name: str) -> bool:
        value = components.get(name)
        return value is not None and list(value if isinstance(value, list) else [0]) != [None, None]

    if not has("unet") or has("transformer") or has("prior") or has("movq"):
        raise InputError(
            f"{source} is of {class_name}, which is not supported; FaceSnap takes Stable Diffusion 1.x, 2.x and XL"
        )
    return has("text_encoder_2")


def is_xl_file(path: Any) -> bool | None:
    """The same for a checkpoint in a single file."""
    check_checkpoint(path)
    try:
        kind = infer_diffusers_model_type(load_single_file_checkpoint(str(expanded(path)), local_files_only=True))
    except Exception:
        return None
    if kind.startswith(("xl", "playground")):
        return True
    if kind in ("v1", "v2", "inpainting", "inpainting_v2"):
        return False
    raise InputError(
        f"{path} is of type {kind}, which is not supported; FaceSnap takes Stable Diffusion 1.x, 2.x and XL"
    )


def check_base(cls: type, is_xl: bool | None, source: str) -> None:
    """Raises [`InputError`], which names the right class, if a base model is not of the pipeline's family."""
    own = any(base.__name__.startswith("FaceSnapXL") for base in cls.__mro__)
    if is_xl is not None and is_xl != own:
        raise InputError(
            f"{source} is of {KINDS[is_xl]}, {cls.__name__} takes {KINDS[own]}; use"
            f" {class_for(cls.__name__, is_xl)}, or AutoFaceSnapPipeline"
        )


def check_components(cls: type, unet: Any, controlnet: Any) -> None:
    """Raises [`InputError`] unless UNet and ControlNets are of kinds that a pipeline works with."""
    if unet is not None and hasattr(unet, "config"):
        check_base(cls, is_sdxl(unet), "unet")
    if controlnet is None:
        return
    nets = controlnet.nets if isinstance(controlnet, MultiControlNetModel) else controlnet
    for net in nets if isinstance(nets, (list, tuple, torch.nn.ModuleList)) else [nets]:
        net = uncompiled(net)
        if not isinstance(net, ControlNetModel):
            raise InputError(
                f"controlnet must be a ControlNetModel or a list of them, got {type(net).__name__}; union ControlNets and"
                " other kinds have loops of their own and do not go with FaceSnap"
            )


def ffrnet_for(unet: Any, ffrnet: Any) -> Any:
    """
    An FFRNet that computes with a pipeline's UNet. One of low rank that shares the layers of another UNet stays as it is:
    a copy with the same weights shares those of this one. Raises [`AdapterError`] where the UNet has other layers.
    """
    if not isinstance(uncompiled(ffrnet), FFRNet) or uncompiled(ffrnet).is_bound_to(unet):
        return ffrnet
    if uncompiled(ffrnet) is not ffrnet:
        raise AdapterError(
            "ffrnet is compiled and shares the layers of another UNet; compile it after the pipelines are made"
        )
    if ffrnet.is_bound:
        ffrnet = copy_modules(ffrnet)
    bind_to_base({"ffrnet": ffrnet}, unet)
    return ffrnet


def check_adapter(pipe: Any) -> None:
    """Raises [`AdapterError`] unless the adapter that a pipeline is made with, if any, fits its UNet."""
    if pipe.config.facesnap_config and pipe.mixer is not None:
        modules = {name: getattr(pipe, name) for name in ADAPTER_COMPONENTS if getattr(pipe, name) is not None}
        check_fit(FaceSnapConfig.from_dict(dict(pipe.config.facesnap_config)), modules, pipe.unet)
