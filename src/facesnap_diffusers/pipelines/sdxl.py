"""What the pipelines for Stable Diffusion XL have in common."""

from inspect import signature
from typing import TYPE_CHECKING

from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionXLControlNetPipeline, UNet2DConditionModel
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from ..adapter.folder import ADAPTER_COMPONENTS, OFFLOAD_SEQUENCE, config_of_mixer
from ..models.attention import IdentityAttention
from ..models.ffrnet import FFRNet
from ..models.landmark_predictor import LandmarkPredictor
from ..models.mixer import IdentityMixer
from .bases import check_adapter, check_components, ffrnet_for
from .mixin import FaceSnapMixin


if TYPE_CHECKING:
    from diffusers import StableDiffusionXLControlNetPipeline as _Pipeline
else:
    _Pipeline = object


class FaceSnapSDXLMixin(FaceSnapMixin, _Pipeline):
    """The components of the pipelines for Stable Diffusion XL."""

    model_cpu_offload_seq = f"{OFFLOAD_SEQUENCE}->{StableDiffusionXLControlNetPipeline.model_cpu_offload_seq}"
    # by `_optional_components` and `_exclude_from_cpu_offload` diffusers has a pipeline class say these
    _optional_components = [
        *StableDiffusionXLControlNetPipeline._optional_components,
        "controlnet",
        *ADAPTER_COMPONENTS,
    ]
    # identity attention goes where the UNet goes, the landmark predictor is tiny and has no single forward
    _exclude_from_cpu_offload = ["identity_attention", "landmark_predictor"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
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
        requires_aesthetics_score: bool = False,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
    ):
        check_components(type(self), unet, controlnet)
        # text-to-image knows no aesthetics score
        knows_score = "requires_aesthetics_score" in signature(super().__init__).parameters
        options = {"requires_aesthetics_score": requires_aesthetics_score} if knows_score else {}
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=unet,
            controlnet=controlnet,
            scheduler=scheduler,
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
            add_watermarker=add_watermarker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            **options,
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
