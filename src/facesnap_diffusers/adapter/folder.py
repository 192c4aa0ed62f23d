"""Adapters on disk and on the Hub, FaceSnap's own and third-party ones: from a name to (config, modules), and back."""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import is_accelerate_available
from safetensors import SafetensorError
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection, ImageProcessingMixin

from .._upstream import drop_source, saved_class_name
from ..base_models import family_of
from ..errors import AdapterError, InputError, as_number, check_path, check_text, expanded, one_line
from ..files import atomic_folder
from ..interop.loading import ControlNetSource, bind_image_encoder, candidates, is_third_party, load_third_party
from ..interop.mixers import FaceIDMixer, FaceIDPlusMixer, FullFaceMixer, InstantIDMixer, PlusFaceMixer
from ..models.attention import IdentityAttention
from ..models.ffrnet import FFRNet
from ..models.image_encoder import default_image_processor
from ..models.landmark_predictor import LandmarkPredictor, load_landmark_predictor
from ..models.mixer import FacialAttributeMixer
from .config import (
    CONFIG_NAME,
    FFRNET_IMAGE_ENCODER_FOLDER,
    FFRNET_MIXER_FOLDER,
    IMAGE_ENCODER_FOLDER,
    PARTS,
    FaceSnapConfig,
    check_parts,
)
from .hub import resolve_adapter_folder
from .model_card import write_model_card
from .public import default_adapter, described, find_public_adapter
from .weights import check_files, check_loaded, check_sizes, fingerprint, read_json


logger = logging.getLogger(__name__)

#: The classes that a part may be of, its `config.json` says of which: FaceSnap's own first.
PART_CLASSES: dict[str, tuple[type[ModelMixin], ...]] = {
    "mixer": (
        FacialAttributeMixer,
        FaceIDMixer,
        FaceIDPlusMixer,
        FullFaceMixer,
        InstantIDMixer,
        PlusFaceMixer,
    ),
    "identity_attention": (IdentityAttention,),
    "ffrnet": (FFRNet, ControlNetModel),
    "landmark_predictor": (LandmarkPredictor,),
}
PART_CLASSES[FFRNET_MIXER_FOLDER] = PART_CLASSES["mixer"]

#: What an adapter adds to a pipeline. The landmark predictor is there with any adapter, all else may be absent.
ADAPTER_COMPONENTS = [
    *PARTS,
    "face_image_encoder",
    "face_image_processor",
    "ffrnet_mixer",
    "ffrnet_image_encoder",
    "ffrnet_image_processor",
]

#: The order in which the components that run before the base model go to the device, as diffusers notes it.
OFFLOAD_SEQUENCE = "face_image_encoder->mixer->ffrnet_image_encoder->ffrnet_mixer"

#: What takes the place of a component for an FFRNet that comes from another adapter than the identity attention.
_OF_FFRNET = {
    "mixer": "ffrnet_mixer",
    "face_image_encoder": "ffrnet_image_encoder",
    "face_image_processor": "ffrnet_image_processor",
}


def config_of_mixer(mixer: Any) -> dict[str, Any] | None:
    """The config of the adapter that a mixer was installed with: so `Pipeline(**pipe.components)` has it too."""
    return getattr(mixer, "_facesnap_config", None)


@dataclass(frozen=True)
class AdapterSource:
    """Where an adapter comes from and what of it is wanted: the arguments of `load_facesnap_adapter`, checked."""

    pretrained_model_name_or_path: str | Path | Mapping[str, Any] | None = None
    weight_name: str | None = None
    parts: Sequence[str] | None = None
    subfolder: str | None = None
    variant: str | None = None
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | None = None
    force_download: bool = False
    local_files_only: bool = False
    dtype: torch.dtype | None = None
    image_encoder: CLIPVisionModelWithProjection | None = None
    faceid_plus_v2: bool | None = None
    faceid_structure_scale: float = 1.0
    controlnet: ControlNetSource | None = None
    landmarks_from: str | Path | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for argument in ("pretrained_model_name_or_path", "landmarks_from"):
            name = getattr(self, argument)
            if name is not None and not isinstance(name, Mapping):
                check_path(argument, name)
                object.__setattr__(self, argument, expanded(name))
        if self.landmarks_from is not None and self.parts is not None:
            raise InputError(
                "parts= and landmarks_from= are both given; landmarks_from= already takes identity_attention from the one"
                " adapter and ffrnet from the other"
            )
        for argument in ("weight_name", "subfolder", "variant", "revision"):
            check_text(argument, getattr(self, argument))
        if self.parts is not None:
            check_parts(self.parts)
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise InputError(f"dtype must be a floating point torch.dtype, got {self.dtype!r}")
        as_number("faceid_structure_scale", self.faceid_structure_scale, 0)

    @property
    def hub_arguments(self) -> dict[str, Any]:
        """What says how to reach the adapter's own repo on the Hub."""
        names = ("revision", "token", "cache_dir", "force_download", "local_files_only")
        return {name: getattr(self, name) for name in names}


def read_adapter(source: AdapterSource, unet: UNet2DConditionModel) -> tuple[FaceSnapConfig, dict[str, Any]]:
    """The config and modules of an adapter for a base model; raises [`AdapterError`] where they could not be loaded."""
    if source.landmarks_from is not None:
        return _read_combination(source, unet)
    name = source.pretrained_model_name_or_path
    if name is not None:
        return _read_named(name, source, unet)
    name = default_adapter(family_of(unet))
    public = find_public_adapter(name, None, unet)
    try:
        adapter = _read_named(name, source, unet)
    except AdapterError as error:
        raise AdapterError(
            f"the default adapter {str(name)!r} for base models of family {family_of(unet)} could not be loaded: {error}"
        ) from error
    if public is not None:
        logger.warning(described(public))
    return adapter


def _read_named(name: Any, source: AdapterSource, unet: UNet2DConditionModel) -> tuple[FaceSnapConfig, dict[str, Any]]:
    if is_third_party(name, source.weight_name):
        return _read_third_party(name, source, unet)
    return _read_own(name, source, unet)


def _read_combination(source: AdapterSource, unet: UNet2DConditionModel) -> tuple[FaceSnapConfig, dict[str, Any]]:
    """Identity attention of one adapter and FFRNet of another, each with a mixer of its own."""
    own = replace(source, landmarks_from=None, parts=["mixer", "identity_attention"], controlnet=None)
    other = replace(
        source,
        pretrained_model_name_or_path=source.landmarks_from,
        landmarks_from=None,
        parts=["mixer", "ffrnet"],
        weight_name=None,
        subfolder=None,
        revision=None,
        image_encoder=None,
        faceid_plus_v2=None,
        faceid_structure_scale=1.0,
    )
    of_ffrnet = _config_with_ffrnet(other, unet)  # before the weights of the first are loaded
    config, modules = read_adapter(own, unet)
    if of_ffrnet is not None:
        other = replace(other, parts=[part for part in of_ffrnet.parts if part != "identity_attention"])
        if config.image_encoder_id is None:
            other = replace(other, image_encoder=source.image_encoder)
        elif of_ffrnet.image_encoder_id == config.image_encoder_id != IMAGE_ENCODER_FOLDER:
            other = replace(other, image_encoder=modules["face_image_encoder"])
    other_config, other_modules = read_adapter(other, unet)
    scales: list[tuple[Any, FaceSnapConfig]] = [("identity_scale", config), ("landmark_scale", other_config)]
    scales = [(name, of) for name, of in scales if name in of.recommended_scales]

    ffrnet_config = other_config.ffrnet_config  # of one that is such a combination itself
    if ffrnet_config is None:
        ffrnet_config = other_config.replace(parts=["mixer", "ffrnet"])
        other_modules = {_OF_FFRNET.get(name, name): module for name, module in other_modules.items()}
    elif other_config.shares_image_encoder:
        for name in ("face_image_encoder", "face_image_processor"):
            other_modules[_OF_FFRNET[name]] = other_modules.get(name)
    if ffrnet_config.image_encoder_id == IMAGE_ENCODER_FOLDER:
        ffrnet_config = ffrnet_config.replace(
            image_encoder_id=FFRNET_IMAGE_ENCODER_FOLDER,
            image_encoder_fingerprint=other_config.image_encoder_fingerprint,
        )
    parts = [part for part in PARTS if part in (*config.parts, *other_config.parts)]
    config = config.replace(
        parts=parts,
        recommended_scales={name: of.recommended_scales[name] for name, of in scales},
        ffrnet_config=ffrnet_config,
    )
    for name in ("ffrnet", "landmark_predictor", "ffrnet_mixer"):
        modules[name] = other_modules[name]
    if not config.shares_image_encoder:
        for name in ("ffrnet_image_encoder", "ffrnet_image_processor"):
            modules[name] = other_modules.get(name)
    return config, modules


def _config_with_ffrnet(source: AdapterSource, unet: UNet2DConditionModel) -> FaceSnapConfig | None:
    """
    The config of a FaceSnap adapter that has an FFRNet for the base model, `None` for another kind of adapter. Raises
    [`AdapterError`] where it shows without weights that there is no such FFRNet.
    """
    name: Any = source.pretrained_model_name_or_path
    if is_third_party(name, None):
        public = find_public_adapter(name, None, unet)
        if public is not None and public.controlnet is None:
            raise AdapterError(
                f"landmarks_from={str(name)!r} does not contain ffrnet; name InstantX/InstantID on Stable Diffusion XL,"
                " or a FaceSnap adapter"
            )
        return None
    config = _own_config(name, source, unet)
    if "ffrnet" not in config.parts:
        raise AdapterError(
            f"landmarks_from={str(name)!r} does not contain ffrnet, it has {config.parts}; name another adapter"
        )
    return config


def _own_config(name: Any, source: AdapterSource, unet: UNet2DConditionModel) -> FaceSnapConfig:
    """The config of a FaceSnap adapter, of which nothing else is downloaded; raises [`AdapterError`] if it does not fit."""
    where = (str(name), source.subfolder, source.variant)
    folder = resolve_adapter_folder(*where, config_only=True, **source.hub_arguments)
    if not (folder / CONFIG_NAME).is_file():
        raise AdapterError(
            f"{name} has no {CONFIG_NAME}, so it is not a FaceSnap adapter; {candidates(name, source.hub_arguments, unet)}"
        )
    config = FaceSnapConfig.load(folder)
    family = family_of(unet)
    if config.base_family != family:
        raise AdapterError(
            f"adapter {name} was made for base models of family {config.base_family}, this one is of {family};"
            " load an adapter of that family"
        )
    return config


def _read_own(name: Any, source: AdapterSource, unet: UNet2DConditionModel) -> tuple[FaceSnapConfig, dict[str, Any]]:
    if source.controlnet is not None:
        raise AdapterError(f"controlnet= is InstantID's, and {name} is a FaceSnap adapter; leave it out")
    if source.faceid_plus_v2 is not None or source.faceid_structure_scale != 1:
        option = "faceid_structure_scale" if source.faceid_plus_v2 is None else "faceid_plus_v2"
        raise AdapterError(f"{option}= is FaceID-Plus's, and {name} is a FaceSnap adapter; leave it out")
    config = _own_config(name, source, unet)  # what does not fit is not downloaded
    parts = list(config.parts if source.parts is None else source.parts)
    missing = sorted(set(parts) - set(config.parts))
    if missing:
        raise AdapterError(f"adapter {name} does not contain {missing}; it has {config.parts}")

    folder = resolve_adapter_folder(str(name), source.subfolder, source.variant, **source.hub_arguments)
    dtype = source.dtype or unet.dtype
    modules: dict[str, Any] = {part: load_part(part, folder / part, source.variant, dtype) for part in parts}
    modules |= load_image_encoder(config, folder, source.variant, dtype, source.image_encoder, source.hub_arguments)
    modules.setdefault("landmark_predictor", load_landmark_predictor())
    config = config.replace(parts=parts, ffrnet_config=config.ffrnet_config if "ffrnet" in parts else None)
    if source.image_encoder is not None and config.image_encoder_id is not None:
        config = config.replace(image_encoder_fingerprint=None)  # that of the folder's
    if config.ffrnet_config is not None:
        modules["ffrnet_mixer"] = load_part("ffrnet_mixer", folder / FFRNET_MIXER_FOLDER, source.variant, dtype)
        if not config.shares_image_encoder:
            given = source.image_encoder if config.image_encoder_id is None else None
            encoder = load_image_encoder(
                config.ffrnet_config, folder, source.variant, dtype, given, source.hub_arguments
            )
            modules |= {_OF_FFRNET[name]: module for name, module in encoder.items()}
            if given is not None:
                config = config.replace(ffrnet_config=config.ffrnet_config.replace(image_encoder_fingerprint=None))
    return config, modules


def _read_third_party(
    name: Any, source: AdapterSource, unet: UNet2DConditionModel
) -> tuple[FaceSnapConfig, dict[str, Any]]:
    config, modules = load_third_party(
        name,
        source.weight_name,
        unet,
        source.parts,
        source.subfolder,
        source.faceid_plus_v2,
        source.hub_arguments,
        source.variant,
        source.controlnet,
        source.faceid_structure_scale,
    )
    dtype = source.dtype or unet.dtype
    modules |= load_image_encoder(config, Path(), None, dtype, source.image_encoder, source.hub_arguments)
    config = bind_image_encoder(config, modules)
    for part in config.parts:
        if modules[part].dtype != dtype:
            modules[part].to(dtype)
    modules["landmark_predictor"] = load_landmark_predictor()
    return config, modules


def save_adapter_folder(
    folder: Path,
    config: FaceSnapConfig,
    modules: Mapping[str, Any],
    repo_id: str,
    variant: str | None = None,
) -> None:
    """
    Writes an adapter's parts as the folder that [`FaceSnapAdapterMixin.load_facesnap_adapter`] reads: whole or, after an
    error, not at all. Other variants, an existing model card and all other files of the folder are kept.
    """
    folder = folder.resolve()  # a link stays, and what it points to is replaced
    if Path.cwd().is_relative_to(folder):
        raise InputError(
            f"save_directory {folder} is the current folder or above it, and cannot be replaced; name one inside of it"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file")
    except OSError as error:
        raise InputError(f"save_directory {folder} cannot be made ({error.strerror}); name another folder") from None
    config = _without_local_paths(config, modules)
    try:
        with atomic_folder(folder) as new:
            if folder.is_dir():
                shutil.copytree(folder, new, dirs_exist_ok=True, symlinks=True, ignore=_weights_of(variant))
            for part in config.parts:
                modules[part].save_pretrained(new / part, variant=variant)
                _drop_local_paths(new / part / "config.json")
            if config.image_encoder_id == IMAGE_ENCODER_FOLDER:
                encoder, processor = modules["face_image_encoder"], modules["face_image_processor"]
                saved = _save_image_encoder(new / IMAGE_ENCODER_FOLDER, encoder, processor, variant)
                of_ffrnet = config.ffrnet_config
                if of_ffrnet is not None and config.shares_image_encoder:
                    of_ffrnet = of_ffrnet.replace(image_encoder_fingerprint=saved)
                config = config.replace(image_encoder_fingerprint=saved, ffrnet_config=of_ffrnet)
            if config.ffrnet_config is not None:
                modules["ffrnet_mixer"].save_pretrained(new / FFRNET_MIXER_FOLDER, variant=variant)
                _drop_local_paths(new / FFRNET_MIXER_FOLDER / "config.json")
                if config.ffrnet_config.image_encoder_id == FFRNET_IMAGE_ENCODER_FOLDER:
                    encoder, processor = modules["ffrnet_image_encoder"], modules["ffrnet_image_processor"]
                    saved = _save_image_encoder(new / FFRNET_IMAGE_ENCODER_FOLDER, encoder, processor, variant)
                    of_ffrnet = config.ffrnet_config.replace(image_encoder_fingerprint=saved)
                    config = config.replace(ffrnet_config=of_ffrnet)
            config.save(new)
            card = new / "README.md"
            if not card.exists():
                write_model_card(card, config, repo_id)
    except (OSError, SafetensorError, RuntimeError, shutil.Error) as error:
        raise AdapterError(
            f"the adapter could not be saved in {folder} ({one_line(error)}), which is as it was; make room, or name"
            " another folder"
        ) from None


def _save_image_encoder(folder: Path, encoder: Any, processor: Any, variant: str | None) -> str:
    """Returns the fingerprint of what was saved."""
    encoder.save_pretrained(folder, variant=variant)
    processor.save_pretrained(folder)
    _drop_local_paths(folder / "config.json")
    return fingerprint(check_files(folder, "model", variant))


def _weights_of(variant: str | None) -> Callable[[str, list[str]], set[str]]:
    """For `shutil.copytree`: the weights of a variant, which are not to be copied because they are written anew."""
    suffix = re.escape(f".{variant}") if variant else ""
    weights = re.compile(
        rf"(diffusion_pytorch_model|model){suffix}(-\d+-of-\d+)?\.safetensors|"
        rf"(diffusion_pytorch_model|model)\.safetensors\.index{suffix}\.json"
    )
    own = (*PARTS, IMAGE_ENCODER_FOLDER, FFRNET_MIXER_FOLDER, FFRNET_IMAGE_ENCODER_FOLDER)
    return lambda folder, names: {name for name in names if Path(folder).name in own and weights.fullmatch(name)}


def _without_local_paths(config: FaceSnapConfig, modules: Mapping[str, Any]) -> FaceSnapConfig:
    """The config as others can use it: an image encoder of a folder becomes a part of the adapter."""
    of_ffrnet, shares_image_encoder = config.ffrnet_config, config.shares_image_encoder
    if modules.get("face_image_encoder") is not None and is_local(config.image_encoder_id):
        config = config.replace(image_encoder_id=IMAGE_ENCODER_FOLDER)
    if is_local(config.base_model):
        config = config.replace(base_model=None)
    if of_ffrnet is not None:
        if shares_image_encoder:
            of_ffrnet = of_ffrnet.replace(image_encoder_id=config.image_encoder_id)
        elif is_local(of_ffrnet.image_encoder_id):
            of_ffrnet = of_ffrnet.replace(image_encoder_id=FFRNET_IMAGE_ENCODER_FOLDER)
        if is_local(of_ffrnet.base_model):
            of_ffrnet = of_ffrnet.replace(base_model=None)
        config = config.replace(ffrnet_config=of_ffrnet)
    return config


def _drop_local_paths(path: Path) -> None:
    values = read_json(path)
    if drop_source(values):
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def is_local(name: str | None) -> bool:
    if name is None or name in (IMAGE_ENCODER_FOLDER, FFRNET_IMAGE_ENCODER_FOLDER):
        return False
    return Path(name).expanduser().is_absolute() or Path(name).exists()


def load_part(part: str, folder: Path, variant: str | None, dtype: torch.dtype) -> ModelMixin:
    """One part of an adapter from its folder, complete and finite; raises [`AdapterError`] otherwise."""
    if not (folder / "config.json").is_file():
        raise AdapterError(f"{folder} has no config.json although the adapter lists {part}; download or save it again")
    try:
        values = read_json(folder / "config.json")
        class_name = saved_class_name(values)
        part_class = next((cls for cls in PART_CLASSES[part] if cls.__name__ == class_name), PART_CLASSES[part][0])
        files = check_files(folder, "diffusion_pytorch_model", variant)
        check_sizes(values, files, lambda: part_class.from_config(values))
        module, info = part_class.from_pretrained(
            folder,
            variant=variant,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            low_cpu_mem_usage=is_accelerate_available(),  # otherwise each part advises to install accelerate
        )
    except Exception as error:
        raise AdapterError(
            f"{part} could not be loaded from {folder} ({one_line(error)}); download or save it again"
        ) from error
    check_loaded(part, folder, module, [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]])
    # As they lie in the file, tensors may go through other kernels than those that were saved: on some processors, images
    # would differ in their last bits.
    return module._apply(torch.Tensor.clone)


def load_image_encoder(
    config: FaceSnapConfig,
    folder: Path,
    variant: str | None,
    dtype: torch.dtype,
    image_encoder: CLIPVisionModelWithProjection | None,
    hub_arguments: Mapping[str, Any],
    image_processor: CLIPImageProcessor | None = None,
) -> dict[str, Any]:
    """The image encoder and its processor that an adapter's config names, as components; none where it names none."""
    if image_encoder is not None and not isinstance(image_encoder, CLIPVisionModelWithProjection):
        raise InputError(f"image_encoder must be a CLIPVisionModelWithProjection, got {type(image_encoder).__name__}")
    if image_processor is not None and not isinstance(image_processor, ImageProcessingMixin):
        raise InputError(f"image_processor must be a CLIPImageProcessor, got {type(image_processor).__name__}")
    if config.image_encoder_id is None:
        return {}
    bundled = config.image_encoder_id in (IMAGE_ENCODER_FOLDER, FFRNET_IMAGE_ENCODER_FOLDER)
    source = str(folder / config.image_encoder_id) if bundled else config.image_encoder_id
    if image_encoder is None:
        # revision and force_download are about the adapter's own repo
        reach = {
            name: hub_arguments[name] for name in ("token", "cache_dir", "local_files_only") if name in hub_arguments
        }
        image_encoder = _load_image_encoder(source, variant if bundled else None, dtype, bundled, reach)
    if image_processor is None and bundled:
        try:
            image_processor = CLIPImageProcessor.from_pretrained(source, local_files_only=True)
        except Exception as error:
            raise AdapterError(
                f"the image processor in {source} could not be loaded ({one_line(error)}); download the adapter again"
            ) from error
    elif image_processor is None:
        image_processor = default_image_processor(image_encoder)
    return {"face_image_encoder": image_encoder, "face_image_processor": image_processor}


def _load_image_encoder(
    source: str, variant: str | None, dtype: torch.dtype, bundled: bool, hub_arguments: Mapping[str, Any]
) -> CLIPVisionModelWithProjection:
    """An image encoder, complete and finite; of the adapter's own folder (`bundled`) without any other tensor either."""
    try:
        if bundled:
            folder = Path(source)
            values = read_json(folder / "config.json")
            # an attention kernel that a config names would be downloaded and run
            config = CLIPVisionConfig.from_dict({k: v for k, v in values.items() if "attn_implementation" not in k})
            config._attn_implementation = "sdpa"
            check_sizes(values, check_files(folder, "model", variant), lambda: CLIPVisionModelWithProjection(config))
            hub_arguments = {"local_files_only": True, "config": config}
        image_encoder, info = CLIPVisionModelWithProjection.from_pretrained(
            source,
            dtype=dtype,
            variant=variant,
            use_safetensors=True,
            attn_implementation="sdpa",
            output_loading_info=True,
            **hub_arguments,
        )
    except Exception as error:
        raise AdapterError(
            f"the adapter's image encoder {source!r} could not be loaded ({one_line(error)});"
            " pass it as image_encoder=, or make it reachable"
        ) from error
    # checkpoints of the whole CLIP model have a text encoder too
    unknown = info["unexpected_keys"] if bundled else []
    wrong = [*info["missing_keys"], *info["mismatched_keys"], *unknown]
    check_loaded("image encoder", Path(source), image_encoder, sorted(map(str, wrong)))
    return image_encoder


def check_fit(config: FaceSnapConfig, modules: Mapping[str, Any], unet: UNet2DConditionModel) -> None:
    """Raises [`AdapterError`] unless the parts of an adapter fit the base model, the config and one another."""
    _check_mixer_fits("mixer", config, modules, unet)
    if config.ffrnet_config is not None:
        if "ffrnet_mixer" not in modules:
            raise AdapterError(
                "ffrnet_mixer is missing, which makes the tokens of this ffrnet; load the adapter again"
            )
        encoders = (
            {"face_image_encoder": modules.get("ffrnet_image_encoder")} if not config.shares_image_encoder else {}
        )
        _check_mixer_fits("ffrnet_mixer", config.ffrnet_config, {**modules, **encoders}, unet)
    if "identity_attention" in modules:
        try:
            modules["identity_attention"].check_fits(unet)
        except InputError as error:
            raise AdapterError(str(error)) from None
    ffrnet = modules.get("ffrnet")
    if ffrnet is not None:
        for name in ("block_out_channels", "layers_per_block", "cross_attention_dim"):
            own, expected = _as_lists(ffrnet.config[name]), _as_lists(unet.config[name])
            if own != expected:
                raise AdapterError(
                    f"ffrnet has {name}={own}, this base model {expected}; use an adapter made for this base model"
                )


def _check_mixer_fits(
    name: str, config: FaceSnapConfig, modules: Mapping[str, Any], unet: UNet2DConditionModel
) -> None:
    mixer = modules[name]
    width = unet.config.cross_attention_dim
    if (mixer.cross_attention_dim, mixer.num_tokens) != (width, config.num_tokens):
        raise AdapterError(
            f"{name} gives {mixer.num_tokens} tokens of width {mixer.cross_attention_dim}, expected"
            f" {config.num_tokens} of width {width}; use an adapter made for this base model"
        )
    if mixer.face_embed_dim != config.face_embed_dim:
        raise AdapterError(
            f"{name} takes face embeddings of width {mixer.face_embed_dim}, the adapter's config says"
            f" {config.face_embed_dim}; save the adapter again"
        )
    image_encoder = modules.get("face_image_encoder")
    image_width = image_encoder.config.hidden_size if image_encoder is not None else None
    if mixer.image_embed_dim != image_width:
        raise AdapterError(
            f"{name} takes image features of width {mixer.image_embed_dim}, the image encoder gives {image_width};"
            " pass the encoder that the adapter was trained with"
        )


def bind_to_base(modules: Mapping[str, Any], unet: UNet2DConditionModel) -> None:
    """Lets an FFRNet of low rank share the layers of the base model; raises [`AdapterError`] if it cannot."""
    ffrnet = modules.get("ffrnet")
    if isinstance(ffrnet, FFRNet):
        try:
            ffrnet.bind(unet)
        except InputError as error:
            raise AdapterError(str(error)) from None


def _as_lists(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
