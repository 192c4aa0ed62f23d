"""Third-party checkpoints on disk and on the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from ..adapter.config import CONFIG_NAME, FaceSnapConfig, check_parts
from ..adapter.hub import why_not_from_hub
from ..adapter.public import CONTROLNET_FOLDER, files_of, find_public_adapter
from ..base_models import family_of, is_sdxl
from ..errors import AdapterError, InputError, one_line
from .checkpoint import Checkpoint, read_checkpoint, read_tensors
from .conversion import convert_checkpoint
from .mixers import ImagePromptMixer


#: InstantID's file, in the folder that has its ControlNet too.
INSTANTID_FILES = ("ip-adapter.bin", "ip-adapter.safetensors")

#: What a `controlnet=` may be.
ControlNetSource: TypeAlias = ControlNetModel | str | Path


@dataclass(frozen=True)
class FilePlace:
    """Where the files of an adapter are: a local folder or a Hub repo, and how to reach that."""

    name: str | Path
    hub_arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        return Path(self.name).is_dir()

    def fetch(self, *names: str) -> Path:
        """The first of these files that there is, as a local path; raises [`AdapterError`] if there is none."""
        if self.is_local:
            paths = [Path(self.name) / name for name in names]
            return next((path for path in paths if path.is_file()), paths[0])
        for name in names:
            try:
                return Path(hf_hub_download(str(self.name), name, **self.hub_arguments))
            except EntryNotFoundError as error:
                missing = error
            except Exception as error:
                raise AdapterError(
                    f"{name} of {str(self.name)!r} is not in a local folder and could not be loaded from the Hub"
                    f" ({why_not_from_hub(error)}); check names and connection"
                ) from error
        raise AdapterError(
            f"{names[0]} of {str(self.name)!r} is not in a local folder and could not be loaded from the Hub"
            f" ({one_line(missing)}); {_listed(self.weight_files())}"
        ) from missing

    def weight_files(self) -> list[str]:
        """The files that may be adapters; none where that cannot be found out."""
        if self.is_local:
            # not deeper, for the name may be that of a home folder or of a whole disk
            patterns = ("*", "*/*", "*/*/*")
            names = sorted(path for pattern in patterns for path in glob(pattern, root_dir=self.name))
        elif self.hub_arguments.get("local_files_only"):
            names = []
        else:
            try:
                api = HfApi(token=self.hub_arguments.get("token"))
                names = api.list_repo_files(str(self.name), revision=self.hub_arguments.get("revision"))
            except Exception:  # the list only improves a message
                names = []
        return [name for name in names if name.endswith((".safetensors", ".bin")) and CONTROLNET_FOLDER not in name]


def is_third_party(name: str | Path | Mapping[str, Any], weight_name: str | None) -> bool:
    """Whether a name means another kind of adapter than FaceSnap's own."""
    if isinstance(name, Mapping) or weight_name is not None or Path(name).is_file():
        return True
    folder = Path(name)
    if folder.is_dir():
        return not (folder / CONFIG_NAME).is_file() and any((folder / file).is_file() for file in INSTANTID_FILES)
    return bool(files_of(name))


def load_third_party(
    name: str | Path | Mapping[str, Any],
    weight_name: str | None,
    unet: UNet2DConditionModel,
    parts: Sequence[str] | None = None,
    subfolder: str | None = None,
    plus_v2: bool | None = None,
    hub_arguments: Mapping[str, Any] | None = None,
    variant: str | None = None,
    controlnet: ControlNetSource | None = None,
    structure_scale: float = 1.0,
) -> tuple[FaceSnapConfig, dict[str, Any]]:
    """The config and parts of another kind of adapter; raises [`AdapterError`] where they could not be loaded."""
    hub_arguments = dict(hub_arguments or {})
    public = find_public_adapter(name, weight_name, unet)
    checkpoint = find_checkpoint(name, weight_name, subfolder, hub_arguments, unet)
    wanted = _wanted_parts(checkpoint, parts)
    net = None
    if controlnet is not None and checkpoint.kind != "instantid":
        raise AdapterError(f"controlnet= is InstantID's, and {checkpoint.source} is of another kind; leave it out")
    if "ffrnet" in wanted:
        if controlnet is None and isinstance(name, Mapping):
            raise AdapterError(
                "InstantID needs its ControlNet, which a state dict does not contain; pass it as controlnet="
            )
        if controlnet is None:
            assert not isinstance(name, Mapping)
            place = public.repo if public is not None else Path(name).parent if Path(name).is_file() else name
            folder = "/".join(filter(None, [subfolder, CONTROLNET_FOLDER]))
            net = _controlnet_from_place(FilePlace(place, hub_arguments), folder, variant, checkpoint.source)
        else:
            net = _given_controlnet(controlnet, variant, unet, hub_arguments)
    config, modules = convert_checkpoint(
        checkpoint, unet, controlnet=net, plus_v2=plus_v2, structure_scale=structure_scale
    )
    modules = {part: module for part, module in modules.items() if part in wanted}
    config = config.replace(parts=list(modules))
    return (config if public is None else config.replace(license=public.license)), modules


def find_checkpoint(
    name: str | Path | Mapping[str, Any],
    weight_name: str | None = None,
    subfolder: str | None = None,
    hub_arguments: Mapping[str, Any] | None = None,
    unet: UNet2DConditionModel | None = None,
) -> Checkpoint:
    """
    The checkpoint that a name means: a state dict, a file, or a file of a folder or Hub repo. With the base model's UNet, a
    file of a known public repository is refused before it is downloaded if it is made for another family.
    """
    if isinstance(name, Mapping) or Path(name).is_file():
        return read_checkpoint(name)
    public = find_public_adapter(name, weight_name, unet) if unet is not None else None
    if public is not None:
        file = PurePosixPath(public.file)
        suffix = PurePosixPath(weight_name).suffix if weight_name is not None else ""
        if suffix in (".bin", ".safetensors"):
            file = file.with_suffix(suffix)
        other = file.with_suffix(".bin" if file.suffix == ".safetensors" else ".safetensors")
        return read_checkpoint(FilePlace(public.repo, hub_arguments or {}).fetch(str(file), str(other)))
    names = INSTANTID_FILES if weight_name is None else (weight_name,)
    files = ["/".join(filter(None, [subfolder, name])) for name in names]
    return read_checkpoint(FilePlace(name, hub_arguments or {}).fetch(*files))


def candidates(name: str | Path, hub_arguments: Mapping[str, Any], unet: UNet2DConditionModel) -> str:
    """What a message says of a folder or repo that is not a FaceSnap adapter: its files, and which fit the base model."""
    files = FilePlace(name, hub_arguments).weight_files()
    fitting = [file for file in files if _may_fit(file, unet)]
    if not files:
        return "it contains no .safetensors or .bin file that could be another kind of adapter"
    if not fitting:
        return f"none of its files is for base models of family {family_of(unet)} by its name: {_shortened(files)}"
    of_other_bases = [file for file in files if file not in fitting]
    rest = f"; for other base models: {_shortened(of_other_bases)}" if of_other_bases else ""
    return f"of its files, name one with weight_name=: {_shortened(fitting)}{rest}"


def bind_image_encoder(config: FaceSnapConfig, modules: Mapping[str, Any]) -> FaceSnapConfig:
    """
    Lets a mixer that needs the image encoder's view of an empty image see it. Returns the config with the number of
    tokens that follows; raises [`AdapterError`] if the encoder does not fit.
    """
    mixer = modules["mixer"]
    if isinstance(mixer, ImagePromptMixer):
        try:
            mixer.set_image_encoder(modules["face_image_encoder"])
        except InputError as error:
            raise AdapterError(str(error)) from None
    return config.replace(num_tokens=mixer.num_tokens)


def _wanted_parts(checkpoint: Checkpoint, parts: Sequence[str] | None) -> list[str]:
    available = ["mixer", "identity_attention", *(["ffrnet"] if checkpoint.kind == "instantid" else [])]
    if parts is None:
        return available
    check_parts(parts)
    missing = sorted(set(parts) - set(available) - {"landmark_predictor"})
    if missing:
        raise AdapterError(f"{checkpoint.source} does not contain {missing}; it has {available}")
    return [part for part in available if part in parts]


def _weight_names(variant: str | None) -> list[str]:
    """The names under which a ControlNet's weights may be stored, the wanted ones first."""
    variants = [variant] if variant else [None, "fp16"]
    middles = [f".{variant}" if variant else "" for variant in variants]
    return [f"diffusion_pytorch_model{middle}{suffix}" for middle in middles for suffix in (".safetensors", ".bin")]


def _controlnet_from_place(place: FilePlace, folder: str, variant: str | None, source: str = "") -> ControlNetModel:
    """A ControlNet from a folder of a place; `source` is the file of InstantID that it belongs to."""
    prefix = f"{folder}/" if folder else ""
    config = place.fetch(f"{prefix}config.json")
    advice = "put it there, pass it as controlnet=, or leave it out with parts=['mixer', 'identity_attention']"
    if source:
        advice += f'. If {Path(source).name} is a FaceID-Portrait "unnorm" instead, its name must say unnorm'
    if not config.is_file():
        raise AdapterError(f"InstantID's ControlNet is not in {config.parent}; {advice}")
    weights = place.fetch(*(f"{prefix}{name}" for name in _weight_names(variant)))
    if not weights.is_file():
        raise AdapterError(f"InstantID's ControlNet has no {weights.name} in {config.parent}; {advice}")
    return _build_controlnet(_read_config(config), weights)


def _given_controlnet(
    controlnet: ControlNetSource, variant: str | None, unet: UNet2DConditionModel, hub_arguments: Mapping[str, Any]
) -> ControlNetModel:
    """InstantID's ControlNet as a user gives it: an object, a file, a folder or a Hub repo."""
    if isinstance(controlnet, ControlNetModel):
        return controlnet
    if not isinstance(controlnet, (str, Path)):
        raise InputError(f"controlnet must be a ControlNetModel, a file or a folder, got {type(controlnet).__name__}")
    path = Path(controlnet)
    if not path.is_file():
        place = FilePlace(controlnet, hub_arguments)
        inside = bool(files_of(controlnet)) or (path / CONTROLNET_FOLDER).is_dir()
        return _controlnet_from_place(place, CONTROLNET_FOLDER if inside else "", variant)
    if (path.parent / "config.json").is_file():
        return _build_controlnet(_read_config(path.parent / "config.json"), path)
    return _build_controlnet(_config_like(unet, read_tensors(path)), path)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read ({one_line(error)}); download it again") from None


def _config_like(unet: UNet2DConditionModel, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a ControlNet of the base model's sizes, for a file that stands alone."""
    first = tensors.get("controlnet_cond_embedding.conv_in.weight")
    blocks = [
        tensors[key] for i in range(1, 16, 2) if (key := f"controlnet_cond_embedding.blocks.{i}.weight") in tensors
    ]
    if first is None:
        raise AdapterError("controlnet is not a ControlNet in diffusers' layout; name the one of InstantID's repo")
    channels = tuple(len(tensor) for tensor in [first, *blocks])
    with torch.device("meta"):
        return dict(
            ControlNetModel.from_unet(
                unet, conditioning_embedding_out_channels=channels, load_weights_from_unet=False
            ).config
        )


def _build_controlnet(config: Mapping[str, Any], weights: Path) -> ControlNetModel:
    """A ControlNet from its config and a file of its weights, in float32."""
    tensors = read_tensors(weights)
    try:
        with torch.device("meta"):
            net = ControlNetModel.from_config(dict(config))
        net.load_state_dict(dict(tensors), assign=True)
    except Exception as error:
        raise AdapterError(
            f"InstantID's ControlNet could not be loaded from {weights} ({one_line(error)}); download it again"
        ) from error
    for name, parameter in net.named_parameters():
        if not torch.isfinite(parameter).all():
            raise AdapterError(f"{weights} has values that are not finite in {name}; download it again")
    return net.float()


def _may_fit(file: str, unet: UNet2DConditionModel) -> bool:
    """Whether a file may be for a base model, by its name."""
    name = file.lower()
    if "xl" in name:
        return is_sdxl(unet)
    families = {"sd1": ("sd15", "sd1.5", "sd_15", "sd14"), "sd2": ("sd21", "sd2.1", "sd_21", "sd20")}
    said = {family for family, marks in families.items() if any(mark in name for mark in marks)}
    return not is_sdxl(unet) and family_of(unet) in said if said else True


def _listed(files: Sequence[str]) -> str:
    return f"its files are {_shortened(files)}" if files else "check the names"


def _shortened(files: Sequence[str], most: int = 8) -> str:
    return ", ".join(files[:most]) + (f" and {len(files) - most} more" if len(files) > most else "")
