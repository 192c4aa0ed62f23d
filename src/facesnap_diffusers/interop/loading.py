"""Third-party checkpoints on disk and on the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import ControlNetModel, UNet2DConditionModel
from huggingface_hub import hf_hub_download

from ..adapter.config import CONFIG_NAME, FaceSnapConfig, check_parts
from ..errors import AdapterError, InputError, one_line
from .checkpoint import Checkpoint, read_checkpoint
from .conversion import convert_checkpoint
from .mixers import FaceIDPlusMixer


INSTANTID_REPO = "InstantX/InstantID"
INSTANTID_FILE = "ip-adapter.bin"
CONTROLNET_FOLDER = "ControlNetModel"
_CONTROLNET_FILES = ("config.json", "diffusion_pytorch_model.safetensors")


def is_third_party(name: str | Path | Mapping[str, Any], weight_name: str | None) -> bool:
    """Whether a name means another kind of adapter than FaceSnap's own."""
    if isinstance(name, Mapping) or weight_name is not None or Path(name).is_file():
        return True
    folder = Path(name)
    if folder.is_dir():
        return not (folder / CONFIG_NAME).is_file() and (folder / INSTANTID_FILE).is_file()
    return str(name) == INSTANTID_REPO


def load_third_party(
    name: str | Path | Mapping[str, Any],
    weight_name: str | None,
    unet: UNet2DConditionModel,
    parts: Sequence[str] | None = None,
    subfolder: str | None = None,
    plus_v2: bool | None = None,
    hub_arguments: Mapping[str, Any] | None = None,
) -> tuple[FaceSnapConfig, dict[str, Any]]:
    """The config and parts of another kind of adapter; raises [`AdapterError`] where they could not be loaded."""
    hub_arguments = dict(hub_arguments or {})
    checkpoint = find_checkpoint(name, weight_name, subfolder, hub_arguments)
    wanted = _wanted_parts(checkpoint, parts)
    controlnet = None
    if "ffrnet" in wanted:
        if isinstance(name, Mapping):
            raise AdapterError(
                "InstantID needs its ControlNet, which a state dict does not contain; name its folder or repo"
            )
        folder = Path(name).parent if Path(name).is_file() else name
        controlnet = _load_controlnet(folder, subfolder, hub_arguments)
    config, modules = convert_checkpoint(checkpoint, unet, controlnet=controlnet, plus_v2=plus_v2)
    modules = {part: module for part, module in modules.items() if part in wanted}
    return config.replace(parts=list(modules)), modules


def find_checkpoint(
    name: str | Path | Mapping[str, Any],
    weight_name: str | None = None,
    subfolder: str | None = None,
    hub_arguments: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """The checkpoint that a name means: a state dict, a file, or a file of a folder or Hub repo."""
    if isinstance(name, Mapping) or Path(name).is_file():
        return read_checkpoint(name)
    return read_checkpoint(_fetch(name, subfolder, weight_name or INSTANTID_FILE, hub_arguments or {}))


def bind_image_encoder(modules: Mapping[str, Any]) -> None:
    """Lets a mixer that needs the image encoder's view of an empty image see it; raises [`AdapterError`] if it does not fit."""
    mixer = modules["mixer"]
    if isinstance(mixer, FaceIDPlusMixer):
        try:
            mixer.set_image_encoder(modules["face_image_encoder"])
        except InputError as error:
            raise AdapterError(str(error)) from None


def _wanted_parts(checkpoint: Checkpoint, parts: Sequence[str] | None) -> list[str]:
    available = ["mixer", "identity_attention", *(["ffrnet"] if checkpoint.kind == "instantid" else [])]
    if parts is None:
        return available
    check_parts(parts)
    missing = sorted(set(parts) - set(available) - {"landmark_predictor"})
    if missing:
        raise AdapterError(f"{checkpoint.source} does not contain {missing}; it has {available}")
    return [part for part in available if part in parts]


def _fetch(name: str | Path, subfolder: str | None, file_name: str, hub_arguments: Mapping[str, Any]) -> Path:
    if Path(name).is_dir():
        return Path(name) / (subfolder or "") / file_name
    try:
        return Path(hf_hub_download(str(name), file_name, subfolder=subfolder, **hub_arguments))
    except Exception as error:
        raise AdapterError(
            f"{file_name} of {str(name)!r} is not in a local folder and could not be loaded from the Hub ({one_line(error)});"
            " check names and connection"
        ) from error


def _load_controlnet(name: str | Path, subfolder: str | None, hub_arguments: Mapping[str, Any]) -> ControlNetModel:
    folder = "/".join(filter(None, [subfolder, CONTROLNET_FOLDER]))
    config, _ = [_fetch(name, folder, file_name, hub_arguments) for file_name in _CONTROLNET_FILES]
    if not config.is_file():
        raise AdapterError(
            f"InstantID's ControlNet is not in {config.parent}; put it there, or leave it out with"
            " parts=['mixer', 'identity_attention']"
        )
    try:
        return ControlNetModel.from_pretrained(config.parent, use_safetensors=True, local_files_only=True)
    except Exception as error:
        raise AdapterError(
            f"InstantID's ControlNet could not be loaded from {config.parent} ({one_line(error)}); download it again"
        ) from error
