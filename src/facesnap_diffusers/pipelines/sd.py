from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionControlNetPipeline, UNet2DConditionModel
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from ..adapter import ADAPTER_COMPONENTS
from ..models.attention import IdentityAttention
from ..models.ffrnet import FFRNet
from ..models.landmark_predictor import LandmarkPredictor
from .mixin import FaceSnapMixin


if TYPE_CHECKING:
    from diffusers import StableDiffusionControlNetPipeline as _Pipeline
else:
    _Pipeline = object


class FaceSnapSDMixin(FaceSnapMixin, _Pipeline):
    """The components of the pipelines for Stable Diffusion 1.x and 2.x."""

    model_cpu_offload_seq = f"face_image_encoder->mixer->{StableDiffusionControlNetPipeline.model_cpu_offload_seq}"
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
        mixer: ModelMixin | None = None,
        identity_attention: IdentityAttention | None = None,
        ffrnet: FFRNet | ControlNetModel | None = None,
        landmark_predictor: LandmarkPredictor | None = None,
        face_image_encoder: CLIPVisionModelWithProjection | None = None,
        face_image_processor: CLIPImageProcessor | None = None,
        facesnap_config: dict | None = None,
        requires_safety_checker: bool = True,
    ):
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
            ffrnet=ffrnet,
            landmark_predictor=landmark_predictor,
            face_image_encoder=face_image_encoder,
            face_image_processor=face_image_processor,
        )
        self.register_to_config(facesnap_config=facesnap_config)

    def encode_prompt(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor | None, ...]:
        """As in the stock pipeline; while a face is in play, the identity tokens follow the text."""
        with _text_model_of(self.text_encoder):
            return super().encode_prompt(*args, **kwargs)


@contextmanager
def _text_model_of(text_encoder: torch.nn.Module | None) -> Iterator[None]:
    """
    While this lasts, `text_encoder.text_model` is where the stock pipelines look for the final norm when they are asked
    to `clip_skip`. transformers 5.6 did away with that level of `CLIPTextModel`; diffusers 0.42 still counts on it.
    """
    if text_encoder is None or hasattr(text_encoder, "text_model"):
        yield
        return
    # past `nn.Module.__setattr__`, which would make the module a child of itself
    vars(text_encoder)["text_model"] = text_encoder
    try:
        yield
    finally:
        del vars(text_encoder)["text_model"]
