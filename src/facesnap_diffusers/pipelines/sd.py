"""What the pipelines for Stable Diffusion 1.x and 2.x have in common."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionControlNetPipeline, UNet2DConditionModel
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from .._upstream import with_text_model
from ..adapter.folder import ADAPTER_COMPONENTS, OFFLOAD_SEQUENCE, config_of_mixer
from ..models.attention import IdentityAttention
from ..models.ffrnet import FFRNet
from ..models.landmark_predictor import LandmarkPredictor
from ..models.mixer import IdentityMixer
from .bases import check_adapter, check_components, ffrnet_for
from .mixin import FaceSnapMixin


if TYPE_CHECKING:
    from diffusers import StableDiffusionControlNetPipeline as _Pipeline
else:
    _Pipeline = object


class FaceSnapSDMixin(FaceSnapMixin, _Pipeline):
    """The components of the pipelines for Stable Diffusion 1.x and 2.x."""

    model_cpu_offload_seq = f"{OFFLOAD_SEQUENCE}->{StableDiffusionControlNetPipeline.model_cpu_offload_seq}"
    # by `_optional_components` and `_exclude_from_cpu_offload` diffusers has a pipeline class say these
    _optional_components = [
        *StableDiffusionControlNetPipeline._optional_components,
        "controlnet",
        *ADAPTER_COMPONENTS,
    ]
    # identity attention goes where the UNet goes, the landmark predictor is tiny and has no single forward
    _exclude_from_cpu_offload = ["safety_checker", "identity_attention", "landmark_predictor"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        controlnet: ControlNetModel
        | list[ControlNetModel]
        | tuple[ControlNetModel]
        | MultiControlNetModel
        | None = None,
        mixer: IdentityMixer | None = None,
        identity_attention: IdentityAttention | None = None,
        ffrnet: FFRNet | ControlNetModel | None = None,
        landmark_predictor: LandmarkPredictor | None = None,
        face_image_encoder: CLIPVisionModelWithProjection | None = None,
        face_image_processor: CLIPImageProcessor | None = None,
        ffrnet_mixer: IdentityMixer | None = None,
        ffrnet_image_encoder: CLIPVisionModelWithProjection | None = None,
        ffrnet_image_processor: CLIPImageProcessor | None = None,
        facesnap_config: dict | None = None,
        requires_safety_checker: bool = True,
    ):
        check_components(type(self), unet, controlnet)
        # its constructor corrects outdated configs of the scheduler and the UNet, in place; those with ControlNet do not
        self._plain_class(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=False,
        )
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            controlnet=controlnet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
        )
        self.register_modules(
            mixer=mixer,
            identity_attention=identity_attention,
            ffrnet=ffrnet_for(unet, ffrnet),
            landmark_predictor=landmark_predictor,
            face_image_encoder=face_image_encoder,
            face_image_processor=face_image_processor,
            ffrnet_mixer=ffrnet_mixer,
            ffrnet_image_encoder=ffrnet_image_encoder,
            ffrnet_image_processor=ffrnet_image_processor,
        )
        self.register_to_config(facesnap_config=facesnap_config or config_of_mixer(mixer))
        check_adapter(self)

    def encode_prompt(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor | None, ...]:
        """As in the stock pipeline; in a call with a face, the identity tokens follow the text."""
        if kwargs.get("clip_skip") is None or self.text_encoder is None:
            return super().encode_prompt(*args, **kwargs)
        call = copy.copy(self)
        call.text_encoder = with_text_model(self.text_encoder)
        return super(FaceSnapSDMixin, call).encode_prompt(*args, **kwargs)
