"""The life of an adapter on a pipeline: load or make it, scale it, save it, take it off."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from .._upstream import execution_device, resolve_dtype, without_offloading
from ..base_models import family_of
from ..conditioner import FaceConditioner
from ..errors import AdapterError, InputError, check_path, check_text, expanded, one_line, suggestion
from ..faces.analyzers import FaceAnalyzer
from ..models.attention import IdentityAttention, accept_contexts, scale_of_layer
from ..models.ffrnet import FFRNet
from ..models.image_encoder import default_image_processor
from ..models.landmark_predictor import load_landmark_predictor
from ..models.mixer import FacialAttributeMixer
from .config import DEFAULT_SCALES, IMAGE_ENCODER_FOLDER, PARTS, FaceSnapConfig
from .folder import (
    ADAPTER_COMPONENTS,
    AdapterSource,
    bind_to_base,
    check_fit,
    is_local,
    load_image_encoder,
    read_adapter,
    save_adapter_folder,
)
from .hub import upload_adapter_folder


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as _Pipeline
else:
    _Pipeline = object


class FaceSnapAdapterMixin(_Pipeline):
    """The life of a FaceSnap adapter on a pipeline: load or make it, scale it, save it, take it off."""

    #: Finds and describes the faces in photos. `None`: that which the adapter's face encoder belongs to.
    face_analyzer: FaceAnalyzer | None = None

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
        torch_dtype: torch.dtype | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        faceid_plus_v2: bool | None = None,
        faceid_structure_scale: float = 1.0,
        controlnet: ControlNetModel | str | Path | None = None,
        landmarks_from: str | Path | Mapping[str, Any] | None = None,
    ) -> None:
        r"""
        Loads an adapter onto this pipeline, in place of one that it already has. All or nothing: after an error the
        pipeline is as it was.

        Args:
            pretrained_model_name_or_path (`str`, `Path` or `dict`, *optional*): Hub repo, folder, or a file or state
                dict of an IP-Adapter FaceID or InstantID. Without it: on the nano model the adapter that ships with it, on
                Stable Diffusion 1.x IP-Adapter FaceID-Plus v2, on XL InstantID, which a line of the log says.
            weight_name (`str`, *optional*): File of another kind of adapter in that repo or folder, recognised by its
                content: IP-Adapter FaceID, FaceID-Plus (both versions), FaceID-Portrait, plus-face, full-face or
                InstantID, as `.safetensors` or `.bin` (read with `weights_only`). Public repositories need none: see
                `facesnap info --public`. InstantID's ControlNet is looked for beside its file, in `ControlNetModel`.
            parts (`list[str]`, *optional*): The parts to load, of `"mixer"`, `"identity_attention"`, `"ffrnet"` and
                `"landmark_predictor"`. All that the adapter has by default. Without `"landmark_predictor"` the one
                that comes with this package serves.
            subfolder (`str`, *optional*): Folder of the adapter inside of the repo.
            variant (`str`, *optional*): E.g. `"fp16"`.
            revision, token, cache_dir, force_download, local_files_only: As in `DiffusionPipeline.from_pretrained`.
            dtype (`torch.dtype`, *optional*): That of the UNet by default.
            torch_dtype (`torch.dtype`, *optional*): The deprecated name of `dtype`.
            image_encoder (`CLIPVisionModelWithProjection`, *optional*): The image encoder that the adapter was trained
                with, if you have it already; otherwise it is loaded too. It becomes a component of the pipeline: moved to
                its device, in evaluation mode and frozen. So does `controlnet`; the UNet stays as it is.
            faceid_plus_v2 (`bool`, *optional*): Whether a FaceID-Plus file is of version 2, which its content does not
                tell. By default by its name (`plusv2`); all public ones for SDXL are.
            faceid_structure_scale (`float`): Weight of the face's structure in a FaceID-Plus of version 2 (`s_scale` of its
                authors).
            controlnet (`ControlNetModel`, `str` or `Path`, *optional*): InstantID's ControlNet, where it is not beside
                InstantID's file: an object, a file, a folder or a Hub repo.
            landmarks_from (`str`, `Path` or `dict`, *optional*): Another adapter that has an FFRNet, FaceSnap's or
                InstantID: its FFRNet is combined with the identity attention of the first one, each with the identity
                tokens that it was trained with. `weight_name`, `subfolder`, `revision` and what is FaceID's are about the
                first adapter, `controlnet` about the second, all else about both.

        Raises:
            AdapterError: The adapter could not be found or read, or does not fit the base model.
            InputError: An argument has a wrong type.
        """
        source = AdapterSource(
            pretrained_model_name_or_path,
            weight_name=weight_name,
            parts=parts,
            subfolder=subfolder,
            variant=variant,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            dtype=resolve_dtype(dtype, torch_dtype),
            image_encoder=image_encoder,
            faceid_plus_v2=faceid_plus_v2,
            faceid_structure_scale=faceid_structure_scale,
            controlnet=controlnet,
            landmarks_from=landmarks_from,
        )
        self._install_adapter(*read_adapter(source, self.unet))

    def init_facesnap_adapter(
        self,
        config: FaceSnapConfig | None = None,
        *,
        mixer: Mapping[str, Any] | None = None,
        ffrnet_rank: int | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        image_processor: CLIPImageProcessor | None = None,
    ) -> None:
        r"""
        Puts a fresh, untrained adapter onto this pipeline: where training starts. FFRNet starts as a copy of the UNet's
        encoder with zero output, identity attention with copies of the text attention's projections.

        Args:
            config ([`FaceSnapConfig`], *optional*): Which encoders, how many tokens, which parts.
            mixer (`dict`, *optional*): Sizes of the [`FacialAttributeMixer`] that differ from its defaults.
            ffrnet_rank (`int`, *optional*): Makes a small FFRNet of this rank, which shares the UNet's layers; see
                [`FFRNet.from_unet`]. A full one by default.
            image_encoder (`CLIPVisionModelWithProjection`, *optional*): The image encoder, if you have it already;
                otherwise `config.image_encoder_id` is loaded. With `config.image_encoder_id="image_encoder"` it becomes
                a part of the adapter. It becomes a component of the pipeline: moved to its device, in evaluation mode
                and frozen; the UNet stays as it is.
            image_processor (`CLIPImageProcessor`, *optional*): The processor that belongs to it.

        Raises:
            AdapterError: The config does not fit the base model, or the image encoder could not be loaded.
            InputError: An argument has a wrong type or size.
        """
        config = FaceSnapConfig() if config is None else config
        if not isinstance(config, FaceSnapConfig):
            raise InputError(f"config must be a FaceSnapConfig, got {type(config).__name__}")
        if config.ffrnet_config is not None:
            raise AdapterError("config has an ffrnet_config, which is for two trained adapters; leave it out")
        family = family_of(self.unet)
        if config.base_family not in (None, family):
            raise AdapterError(f"config.base_family is {config.base_family}, this base model is of family {family}")
        _check_can_be_copied(self.unet)
        if isinstance(image_encoder, CLIPVisionModelWithProjection) and image_processor is None:
            image_processor = default_image_processor(image_encoder)
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
            modules["ffrnet"] = FFRNet.from_unet(
                self.unet, rank=ffrnet_rank, conditioning_embedding_out_channels=channels
            )
        modules["landmark_predictor"] = load_landmark_predictor()
        parts = [part for part in PARTS if part in modules]
        config = config.replace(parts=parts, base_family=family, image_encoder_fingerprint=None)
        if is_local(config.image_encoder_id):
            # saving makes it a part of the adapter; identities, too, name no path of this machine
            config = config.replace(image_encoder_id=IMAGE_ENCODER_FOLDER)
        self._install_adapter(config, modules)

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
            AdapterError: There is no adapter, or it could not be uploaded.
            InputError: An argument has a wrong type, or the folder cannot be made.
        """
        config = self._require_adapter("save_facesnap_adapter")
        check_path("save_directory", save_directory)
        check_text("variant", variant)
        check_text("repo_id", repo_id)
        folder = Path(expanded(save_directory))
        repo_id = repo_id or folder.name
        modules = {name: getattr(self, name) for name in ADAPTER_COMPONENTS}
        save_adapter_folder(folder, config, modules, repo_id, variant)
        if push_to_hub:
            upload_adapter_folder(folder, repo_id, token, private, commit_message, revision, create_pr)

    def unload_facesnap_adapter(self) -> None:
        """Takes the adapter off; the pipeline is plain Stable Diffusion again."""
        self._install_adapter(None, {})

    def set_facesnap_scale(
        self,
        identity_scale: float | Mapping[str, float] | None = None,
        landmark_scale: float | None = None,
    ) -> None:
        r"""
        Scales the parts of the adapter. What is not given stays as it is; at first, both are what the adapter's authors
        recommend (`facesnap_config.scales`), else 1.0.

        Args:
            identity_scale (`float` or `dict[str, float]`, *optional*): Scale of the identity attention, 0 switches it
                off. As a dictionary by layers or blocks of the UNet, e.g. `{"mid_block": 0.5, "up_blocks": 1.0}`: the
                longest name that fits counts, layers that none fits get 0.
            landmark_scale (`float`, *optional*): Scale of FFRNet, which brings pose, expression and proportions; 0
                switches it off.
        """
        self._facesnap_scale = self._scales(identity_scale, landmark_scale)

    def _scales(
        self, identity_scale: float | Mapping[str, float] | None = None, landmark_scale: float | None = None
    ) -> dict[str, Any]:
        """The scales in force with those that are given in their place, checked."""
        scales = self.facesnap_scale
        if isinstance(identity_scale, Mapping):
            self._require_adapter("set_facesnap_scale")
            check_layer_scales(identity_scale, self.identity_attention)
            scales["identity_scale"] = dict(identity_scale)
        elif identity_scale is not None:
            check_scale("identity_scale", identity_scale)
            scales["identity_scale"] = identity_scale
        if landmark_scale is not None:
            check_scale("landmark_scale", landmark_scale)
            scales["landmark_scale"] = float(landmark_scale)
        return scales

    @property
    def facesnap_scale(self) -> dict[str, Any]:
        """The scales in force, by the names that [`set_facesnap_scale`] takes."""
        if self._facesnap_scale is not None:
            return copy.deepcopy(self._facesnap_scale)
        config = self.facesnap_config
        return dict(DEFAULT_SCALES) if config is None else copy.deepcopy(config.scales)

    @property
    def facesnap_config(self) -> FaceSnapConfig | None:
        """The loaded adapter's config, `None` without one."""
        values = self.config.facesnap_config
        return FaceSnapConfig.from_dict(dict(values)) if values else None

    def face_conditioner(self, purpose: str = "face_conditioner") -> FaceConditioner:
        """
        What turns faces into conditions for the loaded adapter. Raises [`AdapterError`], which names the `purpose`, if
        there is none.
        """
        return conditioner_of(self, purpose, self.face_analyzer)

    def _require_adapter(self, purpose: str) -> FaceSnapConfig:
        return require_adapter(self.facesnap_config, purpose)

    def _install_adapter(self, config: FaceSnapConfig | None, modules: Mapping[str, Any]) -> None:
        """Checks that the parts fit the base model and one another, then exchanges all components at once."""
        if config is not None:
            check_fit(config, modules, self.unet)
            bind_to_base(modules, self.unet)
            accept_contexts(self.unet)
        with without_offloading(self) as offloaded:
            for module in modules.values():
                if isinstance(module, torch.nn.Module):
                    module.eval().requires_grad_(False)
                    if not offloaded:
                        module.to(execution_device(self))
            self.register_modules(**{name: modules.get(name) for name in ADAPTER_COMPONENTS})
            self.register_to_config(facesnap_config=config.to_dict() if config is not None else None)
            if config is not None:
                modules["mixer"]._facesnap_config = config.to_dict()
            self._facesnap_scale = None


def check_layer_scales(scales: Mapping[str, float], identity_attention: IdentityAttention | None) -> None:
    """Raises [`InputError`] unless each name is that of a layer or block, and each value a scale."""
    if identity_attention is None:
        raise AdapterError("identity_scale: the adapter was loaded without identity_attention; load that part too")
    layers = list(identity_attention.config.layers)
    for key, value in scales.items():
        if not isinstance(key, str):
            raise InputError(f"identity_scale must name layers by strings, got {key!r}; layers are like {layers[0]}")
        check_scale(f"identity_scale[{key!r}]", value)
        if not any(scale_of_layer({key: 1.0}, layer) for layer in layers):
            parts = [layer.split(".") for layer in layers]
            beginnings = {".".join(names[:count]) for names in parts for count in range(1, len(names) + 1)}
            close = suggestion(key, sorted(beginnings)) or f"; layers are like {layers[0]}"
            raise InputError(f"identity_scale: no attention layer begins with {key!r}{close}")


def require_adapter(config: FaceSnapConfig | None, purpose: str) -> FaceSnapConfig:
    """The config of an adapter that is there; raises [`AdapterError`] if there is none."""
    if config is None:
        raise AdapterError(
            f"{purpose} needs a FaceSnap adapter; call load_facesnap_adapter() first,"
            " or init_facesnap_adapter() to train one"
        )
    return config


def conditioner_of(pipeline: Any, purpose: str, face_analyzer: FaceAnalyzer | None) -> FaceConditioner:
    """What turns faces into conditions for the adapter of a pipeline; raises [`AdapterError`] if it has none."""
    values = pipeline.config.facesnap_config
    config = require_adapter(FaceSnapConfig.from_dict(dict(values)) if values else None, purpose)
    of_ffrnet = None
    if config.ffrnet_config is not None:
        own = "face" if config.shares_image_encoder else "ffrnet"
        of_ffrnet = FaceConditioner(
            config=config.ffrnet_config,
            mixer=pipeline.ffrnet_mixer,
            landmark_predictor=pipeline.landmark_predictor,
            image_encoder=getattr(pipeline, f"{own}_image_encoder"),
            image_processor=getattr(pipeline, f"{own}_image_processor"),
            face_analyzer=face_analyzer if _serves(face_analyzer, config.ffrnet_config) else None,
            device=execution_device(pipeline),
        )
        # a caller's analyzer of the one recognizer leaves the other to its default
        if of_ffrnet.face_analyzer is not None and not _serves(face_analyzer, config):
            face_analyzer = None
    return FaceConditioner(
        config=config,
        mixer=pipeline.mixer,
        landmark_predictor=pipeline.landmark_predictor,
        image_encoder=pipeline.face_image_encoder,
        image_processor=pipeline.face_image_processor,
        face_analyzer=face_analyzer,
        device=execution_device(pipeline),
        of_ffrnet=of_ffrnet,
    )


def _serves(face_analyzer: Any, config: FaceSnapConfig) -> bool:
    """Whether an analyzer gives what an adapter takes."""
    encoder = getattr(face_analyzer, "encoder", None)
    return encoder is not None and (config.face_embed_dim is None or encoder == config.face_encoder_id)


def _check_can_be_copied(unet: UNet2DConditionModel) -> None:
    """Raises [`AdapterError`] unless a UNet has plain weights, from which FFRNet and identity attention can start."""
    if unet.device.type == "meta":
        raise AdapterError("unet has no weights to copy while it is offloaded: make the adapter before offloading")
    kinds = {parameter.dtype for parameter in unet.parameters()}
    if getattr(unet, "is_quantized", False) or not kinds <= {
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
    }:
        raise AdapterError(
            "unet is quantized, and a new adapter starts as a copy of its weights; load it in full precision"
        )
    if getattr(unet, "peft_config", None):
        raise AdapterError("unet has LoRA layers, which are not part of the base model; unload_lora_weights() first")
    if unet.config.get("time_cond_proj_dim") is not None:
        raise AdapterError(
            "unet is distilled to take the guidance scale as an input (LCM), which FFRNet does not; make the adapter on the"
            " base model that it was distilled from"
        )


_MAX_SCALE = 1000.0


def check_scale(name: str, value: Any) -> None:
    """Raises [`InputError`] unless `value` can scale a part of an adapter."""
    # far beyond what makes pictures; NaN is in no range
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= _MAX_SCALE:
        raise InputError(f"{name} must be a number ≥ 0, at most {_MAX_SCALE:g}, got {value!r}")
