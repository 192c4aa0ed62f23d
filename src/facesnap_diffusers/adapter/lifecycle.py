from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ControlNetModel
from diffusers.loaders.lora_base import _func_optionally_disable_offloading
from diffusers.models.modeling_utils import ModelMixin
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from .config import DEFAULT_ADAPTERS, PARTS, FaceSnapConfig, base_family, check_parts
from .errors import AdapterError, InputError, check_path, check_text, one_line
from .hub import IMAGE_ENCODER_FOLDER, resolve_adapter_folder, upload_adapter_folder
from .interop.loading import finish_foreign, is_foreign, load_foreign
from .interop.mixers import FaceIDMixer, FaceIDPlusMixer, InstantIDMixer
from .model_card import write_model_card
from .models.attention import IdentityAttention, scale_of_layer
from .models.ffrnet import FFRNet
from .models.landmark_predictor import LandmarkPredictor, load_landmark_predictor
from .models.mixer import FacialAttributeMixer


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as _Pipeline

    from .faces.analyzers import FaceAnalyzer
else:
    _Pipeline = object


#: The classes that a part may be of, its `config.json` says of which: FaceSnap's own first.
PART_CLASSES: dict[str, tuple[type[ModelMixin], ...]] = {
    "mixer": (FacialAttributeMixer, FaceIDMixer, FaceIDPlusMixer, InstantIDMixer),
    "identity_attention": (IdentityAttention,),
    "ffrnet": (FFRNet, ControlNetModel),
    "landmark_predictor": (LandmarkPredictor,),
}

#: What an adapter adds to a pipeline; all of it may be absent.
ADAPTER_COMPONENTS = [*PARTS, "face_image_encoder", "face_image_processor"]


class FaceSnapAdapterMixin(_Pipeline):
    """The life of a FaceSnap adapter on a pipeline: load or make it, weigh it, save it, take it off."""

    controlnet: Any
    landmark_predictor: Any

    #: Finds and describes the faces in photos. Made from the adapter's config when it is first needed, and made anew for
    #: another adapter. One that you set yourself stays.
    face_analyzer: FaceAnalyzer | None = None

    #: The one that was made from the adapter's config.
    _default_analyzer: FaceAnalyzer | None = None

    _facesnap_scale: dict[str, Any] | None = None

    def load_facesnap_adapter(
        self,
        pretrained_model_name_or_path: str | Path | Mapping[str, Any] | None = None,
        *,
        weight_name: str | None = None,
        parts: Sequence[str] | None = None,
        subfolder: str | None = None,
        variant: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        dtype: torch.dtype | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        faceid_plus_v2: bool | None = None,
    ) -> None:
        r"""
        Loads an adapter onto this pipeline, in place of one that it already has. All or nothing: after an error the
        pipeline is as it was.

        Args:
            pretrained_model_name_or_path (`str`, `Path` or `dict`, *optional*): Hub repo, folder, or a file or state
                dict of an IP-Adapter FaceID or InstantID. Without it, the default adapter of the base model's family.
            weight_name (`str`, *optional*): File of another kind of adapter in that repo or folder, recognised by its
                content: IP-Adapter FaceID, FaceID-Plus (both versions), FaceID-Portrait or InstantID, as
                `.safetensors` or `.bin` (read with `weights_only`). InstantID's ControlNet is looked for beside it, in
                `ControlNetModel`, and its repo needs no `weight_name`.
            parts (`list[str]`, *optional*): The parts to load, of `"mixer"`, `"identity_attention"`, `"ffrnet"` and
                `"landmark_predictor"`. All that the adapter has by default. Without `"landmark_predictor"` the one
                that comes with this package serves.
            subfolder (`str`, *optional*): Folder of the adapter inside of the repo.
            variant (`str`, *optional*): E.g. `"fp16"`.
            revision, token, cache_dir, force_download, local_files_only: As in `DiffusionPipeline.from_pretrained`.
            dtype (`torch.dtype`, *optional*): That of the UNet by default.
            image_encoder (`CLIPVisionModelWithProjection`, *optional*): The image encoder that the adapter was trained
                with, if you have it already; otherwise it is loaded too.
            faceid_plus_v2 (`bool`, *optional*): Whether a FaceID-Plus file is of version 2, which its content does not
                tell. By default by its name (`plusv2`); all public ones for SDXL are.

        Raises:
            AdapterError: The adapter cannot be found or read, or does not fit the base model.
            InputError: An argument has a wrong type.
        """
        family = self._base_family()
        name = pretrained_model_name_or_path
        if name is None:
            name = _default_adapter(family)
        if not isinstance(name, Mapping):
            check_path("pretrained_model_name_or_path", name)
        texts = {"weight_name": weight_name, "subfolder": subfolder, "variant": variant, "revision": revision}
        for argument, value in texts.items():
            check_text(argument, value)
        if parts is not None:
            check_parts(parts)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise InputError(f"dtype must be a floating point torch.dtype, got {dtype!r}")
        hub_arguments: dict[str, Any] = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
        }
        if is_foreign(name, weight_name):
            config, modules = load_foreign(
                name, weight_name, self.unet, parts, subfolder, faceid_plus_v2, hub_arguments
            )
            dtype = dtype or self.unet.dtype
            modules.update(load_image_encoder(config, Path(), None, dtype, image_encoder, hub_arguments))
            self._install_adapter(config, finish_foreign(modules, dtype))
            return
        try:
            folder = resolve_adapter_folder(str(name), subfolder, variant, **hub_arguments)
        except AdapterError as error:
            if pretrained_model_name_or_path is not None:
                raise
            raise AdapterError(
                f"the default adapter {name!r} for base models of family {family} cannot be had; name another with"
                " load_facesnap_adapter(repo_or_folder), or train one: see examples/training in the repository"
            ) from error

        config = FaceSnapConfig.load(folder)
        if config.base_family != family:
            raise AdapterError(
                f"adapter {name} was made for base models of family {config.base_family}, this one is of {family};"
                " load an adapter of that family"
            )
        parts = list(config.parts if parts is None else parts)
        missing = sorted(set(parts) - set(config.parts))
        if missing:
            raise AdapterError(f"adapter {name} has no {missing}; it has {config.parts}")

        dtype = dtype or self.unet.dtype
        modules = {part: load_part(part, folder / part, variant, dtype) for part in parts}
        modules.update(load_image_encoder(config, folder, variant, dtype, image_encoder, hub_arguments))
        self._install_adapter(config.replace(parts=parts), modules)

    def init_facesnap_adapter(
        self,
        config: FaceSnapConfig | None = None,
        *,
        mixer: Mapping[str, Any] | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        image_processor: CLIPImageProcessor | None = None,
    ) -> None:
        r"""
        Puts a fresh, untrained adapter onto this pipeline: where training starts. FFRNet starts as a copy of the UNet's
        encoder with zero output, identity attention with copies of the text attention's projections.

        Args:
            config ([`FaceSnapConfig`], *optional*): Which encoders, how many tokens, which parts.
            mixer (`dict`, *optional*): Sizes of the [`FacialAttributeMixer`] that differ from its defaults.
            image_encoder (`CLIPVisionModelWithProjection`, *optional*): The image encoder, if you have it already;
                otherwise `config.image_encoder` is loaded. With `config.image_encoder="image_encoder"` it becomes a
                part of the adapter.
            image_processor (`CLIPImageProcessor`, *optional*): The processor that belongs to it.

        Raises:
            AdapterError: The config does not fit the base model, or the image encoder cannot be loaded.
            InputError: An argument has a wrong type or size.
        """
        config = FaceSnapConfig() if config is None else config
        if not isinstance(config, FaceSnapConfig):
            raise InputError(f"config must be a FaceSnapConfig, got {type(config).__name__}")
        config = FaceSnapConfig.from_dict(vars(config))
        if config.base_family not in (None, self._base_family()):
            raise AdapterError(
                f"config.base_family is {config.base_family}, this base model is of family {self._base_family()}"
            )
        if self.unet.device.type == "meta":
            raise AdapterError("unet has no weights to copy while it is offloaded: make the adapter before offloading")
        modules = load_image_encoder(
            config, Path(), None, self.unet.dtype, image_encoder, {}, image_processor=image_processor
        )
        encoder = modules.get("face_image_encoder")
        cross_attention_dim = self.unet.config.cross_attention_dim
        try:
            fresh_mixer = FacialAttributeMixer(
                **{
                    "cross_attention_dim": cross_attention_dim,
                    "face_embed_dim": config.face_embed_dim,
                    "image_embed_dim": encoder.config.hidden_size if encoder is not None else None,
                    "num_tokens": config.num_tokens,
                    **(mixer or {}),
                }
            )
        except TypeError as error:
            message = f"mixer: {one_line(error)}; see FacialAttributeMixer for the sizes that it has"
            raise InputError(message) from None
        modules["mixer"] = fresh_mixer if self.unet.dtype == torch.float32 else fresh_mixer.to(self.unet.dtype)
        if "identity_attention" in config.parts:
            modules["identity_attention"] = IdentityAttention.from_unet(self.unet)
        if "ffrnet" in config.parts:
            # each channel count beyond the first halves the landmark image: it must come down to the latents' size
            halvings = round(math.log2(self.vae_scale_factor))
            channels = [(16, 32, 96, 256)[min(i, 3)] for i in range(halvings + 1)]
            modules["ffrnet"] = FFRNet.from_unet(self.unet, conditioning_embedding_out_channels=channels)
        modules["landmark_predictor"] = load_landmark_predictor()
        parts = [part for part in PARTS if part in modules]
        self._install_adapter(config.replace(parts=parts, base_family=self._base_family()), modules)

    def save_facesnap_adapter(
        self,
        save_directory: str | Path,
        *,
        variant: str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        token: str | bool | None = None,
        private: bool | None = None,
        commit_message: str = "Upload FaceSnap adapter",
        revision: str | None = None,
        create_pr: bool = False,
    ) -> None:
        r"""
        Saves the adapter as a folder that [`load_facesnap_adapter`] reads: weights as safetensors in their present
        dtype, configs, a model card.

        Args:
            save_directory (`str` or `Path`): The folder; made if need be. An existing model card is kept.
            variant (`str`, *optional*): E.g. `"fp16"`; goes into the file names.
            push_to_hub (`bool`): Also upload the folder to the Hub, as `repo_id` or the folder's name.
            repo_id (`str`, *optional*): Name on the Hub.
            token, private, commit_message, revision, create_pr: As in `DiffusionPipeline.push_to_hub`.

        Raises:
            AdapterError: There is no adapter, or it cannot be uploaded.
            InputError: An argument has a wrong type, or the folder cannot be made.
        """
        config = self._require_adapter("save_facesnap_adapter")
        check_path("save_directory", save_directory)
        check_text("variant", variant)
        check_text("repo_id", repo_id)
        folder = Path(save_directory)
        repo_id = repo_id or folder.name
        modules = {name: getattr(self, name) for name in ADAPTER_COMPONENTS}
        save_adapter_folder(folder, config, modules, type(self).__name__, repo_id, variant)
        if push_to_hub:
            upload_adapter_folder(folder, repo_id, token, private, commit_message, revision, create_pr)

    def unload_facesnap_adapter(self) -> None:
        """Takes the adapter off; the pipeline is plain Stable Diffusion again."""
        self._install_adapter(None, {})

    def set_facesnap_scale(
        self,
        identity: float | Mapping[str, float] | None = None,
        landmarks: float | None = None,
    ) -> None:
        r"""
        Weighs the parts of the adapter. What is not given stays as it is; both are 1.0 at first.

        Args:
            identity (`float` or `dict[str, float]`, *optional*): Weight of the identity attention, 0 switches it off.
                As a dictionary by layers or blocks of the UNet, e.g. `{"mid_block": 0.5, "up_blocks": 1.0}`: the
                longest name that fits counts, layers that none fits get 0.
            landmarks (`float`, *optional*): Weight of FFRNet, which brings pose, expression and proportions; 0 switches
                it off.
        """
        if identity is not None:
            if isinstance(identity, Mapping):
                self._check_layer_scales(identity)
                identity = dict(identity)
            else:
                _check_scale("identity", identity)
        if landmarks is not None:
            _check_scale("landmarks", landmarks)
        scale = self.facesnap_scale
        self._facesnap_scale = {
            "identity": scale["identity"] if identity is None else identity,
            "landmarks": scale["landmarks"] if landmarks is None else float(landmarks),
        }

    @property
    def facesnap_scale(self) -> dict[str, Any]:
        """The weights that [`set_facesnap_scale`] has set."""
        return dict(self._facesnap_scale or {"identity": 1.0, "landmarks": 1.0})

    @property
    def facesnap_config(self) -> FaceSnapConfig | None:
        """The loaded adapter's config, `None` without one."""
        values = self.config.facesnap_config
        return FaceSnapConfig.from_dict(dict(values)) if values else None

    def _require_adapter(self, purpose: str) -> FaceSnapConfig:
        config = self.facesnap_config
        if config is None:
            raise AdapterError(
                f"{purpose} needs a FaceSnap adapter; call load_facesnap_adapter() first,"
                " or init_facesnap_adapter() to train one"
            )
        return config

    def _base_family(self) -> str:
        is_xl = self.unet.config.addition_embed_type == "text_time"
        return base_family(self.unet.config.cross_attention_dim, is_xl)

    def _install_adapter(self, config: FaceSnapConfig | None, modules: Mapping[str, Any]) -> None:
        """Checks that the parts fit the base model and one another, then exchanges all components at once."""
        if config is not None:
            _check_fit(config, modules, self.unet)
        model_offload, sequential_offload, _ = _func_optionally_disable_offloading(self)
        offloaded = model_offload or sequential_offload
        for module in modules.values():
            if isinstance(module, torch.nn.Module):
                module.eval().requires_grad_(False)
                if not offloaded:
                    module.to(self._execution_device)
        self.register_modules(**{name: modules.get(name) for name in ADAPTER_COMPONENTS})
        self.register_to_config(facesnap_config=vars(config) if config is not None else None)
        self._facesnap_scale = None
        if self.face_analyzer is self._default_analyzer:
            self.face_analyzer = self._default_analyzer = None
        if model_offload:
            self.enable_model_cpu_offload(device=self._offload_device)
        elif sequential_offload:
            self.enable_sequential_cpu_offload(device=self._offload_device)

    def _check_layer_scales(self, scales: Mapping[str, float]) -> None:
        self._require_adapter("set_facesnap_scale")
        if self.identity_attention is None:
            raise AdapterError("identity: the adapter was loaded without identity_attention; load that part too")
        layers = list(self.identity_attention.config.layers)
        for key, value in scales.items():
            if not isinstance(key, str):
                raise InputError(f"identity must name layers by strings, got {key!r}; layers are like {layers[0]}")
            _check_scale(f"identity[{key!r}]", value)
            if not any(scale_of_layer({key: 1.0}, layer) for layer in layers):
                raise InputError(f"identity: no attention layer begins with {key!r}; layers are like {layers[0]}")


def save_adapter_folder(
    folder: Path,
    config: FaceSnapConfig,
    modules: Mapping[str, Any],
    pipeline: str,
    repo_id: str,
    variant: str | None = None,
) -> None:
    """Writes an adapter's parts as the folder that [`FaceSnapAdapterMixin.load_facesnap_adapter`] reads."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"save_directory {folder} cannot be made ({error.strerror}); name another folder") from None
    for part in config.parts:
        modules[part].save_pretrained(folder / part, variant=variant)
    if config.image_encoder == IMAGE_ENCODER_FOLDER:
        modules["face_image_encoder"].save_pretrained(folder / IMAGE_ENCODER_FOLDER, variant=variant)
        modules["face_image_processor"].save_pretrained(folder / IMAGE_ENCODER_FOLDER)
    config.save(folder)
    card = folder / "README.md"
    if not card.exists():
        write_model_card(card, config, pipeline, repo_id)


def _check_scale(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value) or value < 0:
        raise InputError(f"{name} must be a number ≥ 0, got {value!r}")


def _default_adapter(family: str) -> str:
    if family not in DEFAULT_ADAPTERS:
        raise AdapterError(
            f"there is no default adapter for base models of family {family};"
            " name one with load_facesnap_adapter(repo_or_folder)"
        )
    return DEFAULT_ADAPTERS[family]


def load_part(part: str, folder: Path, variant: str | None, dtype: torch.dtype) -> ModelMixin:
    if not (folder / "config.json").is_file():
        raise AdapterError(f"{folder} has no config.json although the adapter lists {part}; download or save it again")
    try:
        class_name = json.loads((folder / "config.json").read_text()).get("_class_name")
        part_class = next((cls for cls in PART_CLASSES[part] if cls.__name__ == class_name), PART_CLASSES[part][0])
        module, info = part_class.from_pretrained(
            folder,
            variant=variant,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise AdapterError(
            f"{part} cannot be loaded from {folder} ({one_line(error)}); download or save it again"
        ) from error
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise AdapterError(
            f"{part} in {folder} has {len(wrong)} missing, unknown or misshapen tensors, e.g. {wrong[0]};"
            " download or save it again"
        )
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            raise AdapterError(f"{part} in {folder} has values that are not finite in {name}; download it again")
    return module


def load_image_encoder(
    config: FaceSnapConfig,
    folder: Path,
    variant: str | None,
    dtype: torch.dtype,
    image_encoder: CLIPVisionModelWithProjection | None,
    hub_arguments: Mapping[str, Any],
    image_processor: CLIPImageProcessor | None = None,
) -> dict[str, Any]:
    if config.image_encoder is None:
        return {}
    if image_encoder is not None and not isinstance(image_encoder, CLIPVisionModelWithProjection):
        raise InputError(f"image_encoder must be a CLIPVisionModelWithProjection, got {type(image_encoder).__name__}")
    bundled = config.image_encoder == IMAGE_ENCODER_FOLDER
    source = str(folder / IMAGE_ENCODER_FOLDER) if bundled else config.image_encoder
    try:
        if image_encoder is None:
            image_encoder = CLIPVisionModelWithProjection.from_pretrained(
                source, dtype=dtype, variant=variant if bundled else None, **({} if bundled else hub_arguments)
            )
        if image_processor is None and bundled:
            image_processor = CLIPImageProcessor.from_pretrained(source)
        elif image_processor is None:
            image_size = image_encoder.config.image_size
            image_processor = CLIPImageProcessor(
                size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
            )
    except Exception as error:
        raise AdapterError(
            f"the adapter's image encoder {source!r} cannot be loaded ({one_line(error)});"
            " pass it as image_encoder=, or make it reachable"
        ) from error
    return {"face_image_encoder": image_encoder, "face_image_processor": image_processor}


def _check_fit(config: FaceSnapConfig, modules: Mapping[str, Any], unet: torch.nn.Module) -> None:
    mixer, ffrnet = modules["mixer"], modules.get("ffrnet")
    width = unet.config.cross_attention_dim
    if (mixer.config.cross_attention_dim, mixer.config.num_tokens) != (width, config.num_tokens):
        raise AdapterError(
            f"mixer gives {mixer.config.num_tokens} tokens of width {mixer.config.cross_attention_dim}, expected"
            f" {config.num_tokens} of width {width}; use an adapter made for this base model"
        )
    if mixer.config.face_embed_dim != config.face_embed_dim:
        raise AdapterError(
            f"mixer takes face embeddings of width {mixer.config.face_embed_dim}, the adapter's config says"
            f" {config.face_embed_dim}; save the adapter again"
        )
    image_encoder = modules.get("face_image_encoder")
    image_width = image_encoder.config.hidden_size if image_encoder is not None else None
    if mixer.config.image_embed_dim != image_width:
        raise AdapterError(
            f"mixer takes image features of width {mixer.config.image_embed_dim}, the image encoder gives {image_width};"
            " pass the encoder that the adapter was trained with"
        )
    if "identity_attention" in modules:
        try:
            modules["identity_attention"].check_fits(unet)
        except InputError as error:
            raise AdapterError(str(error)) from None
    if ffrnet is not None:
        for name in ("block_out_channels", "layers_per_block", "cross_attention_dim"):
            ours, theirs = ffrnet.config[name], unet.config[name]
            if (list(ours) if isinstance(ours, (list, tuple)) else ours) != (
                list(theirs) if isinstance(theirs, (list, tuple)) else theirs
            ):
                raise AdapterError(
                    f"ffrnet has {name}={ours}, this base model {theirs}; use an adapter made for this base model"
                )
