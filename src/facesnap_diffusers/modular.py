"""
FaceSnap as Modular Diffusers blocks for Stable Diffusion XL.

```py
from facesnap_diffusers.modular import FaceSnapXLBlocks, load_facesnap_adapter

pipe = FaceSnapXLBlocks().init_pipeline("stabilityai/stable-diffusion-xl-base-1.0")
pipe.load_components()
load_facesnap_adapter(pipe, "owner/adapter")
image = pipe(prompt="portrait as an astronaut", face_image="photo.jpg", output="images")[0]
```

The stock blocks stay as they are: one block of ours goes between text encoding and denoising
([`FaceSnapXLIdentityStep`]), and one brings identity attention and FFRNet to the stock denoising
([`FaceSnapXLCoreDenoiseStep`]). `pipe.face_analyzer` may be set to another one than the adapter's default. What
`save_pretrained` writes, `ModularPipeline.from_pretrained` loads with these blocks once this module is imported.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from diffusers import StableDiffusionXLModularPipeline
from diffusers.modular_pipelines import ModularPipelineBlocks, PipelineState, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, ConfigSpec, InputParam, OutputParam
from diffusers.modular_pipelines.stable_diffusion_xl.modular_blocks_stable_diffusion_xl import (
    StableDiffusionXLAutoBlocks,
    StableDiffusionXLCoreDenoiseStep,
)
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from ._upstream import execution_device, register_in_diffusers, resolve_dtype
from .adapter.config import FaceSnapConfig
from .adapter.folder import ADAPTER_COMPONENTS, AdapterSource, bind_to_base, check_fit, read_adapter
from .adapter.lifecycle import check_layer_scales, check_scale, conditioner_of
from .errors import InputError
from .models.attention import IdentityAttention
from .models.ffrnet import FFRNet
from .models.landmark_predictor import LandmarkPredictor
from .models.mixer import FacialAttributeMixer
from .pipelines.call_copy import components_of_call, restored_after_call
from .pipelines.control import RoutedControlNet
from .pipelines.mixin import FaceTokens, append_tokens
from .steering import Steering, check_followed


def load_facesnap_adapter(components: StableDiffusionXLModularPipeline, *args: Any, **kwargs: Any) -> None:
    """As [`~FaceSnapAdapterMixin.load_facesnap_adapter`], onto any modular pipeline with FaceSnap's blocks."""
    if "torch_dtype" in kwargs:
        kwargs["dtype"] = resolve_dtype(kwargs.get("dtype"), kwargs.pop("torch_dtype"))
    config, modules = read_adapter(AdapterSource(*args, **kwargs), components.unet)
    check_fit(config, modules, components.unet)
    bind_to_base(modules, components.unet)
    for module in modules.values():
        if isinstance(module, torch.nn.Module):
            module.eval().requires_grad_(False).to(components.unet.device)
    components.update_components(
        **{name: modules.get(name) for name in ADAPTER_COMPONENTS}, facesnap_config=config.to_dict()
    )


class FaceSnapXLIdentityStep(ModularPipelineBlocks):
    """From a face to identity tokens, behind those of the text, and to the landmark image for FFRNet."""

    model_name = "stable-diffusion-xl"

    @property
    def description(self) -> str:
        return (
            "Identity step: appends the identity tokens of `face_image` or `identity` to the prompt embeddings and draws"
            " the landmarks; without either, the stock blocks run as they are. Place it after the text encoder."
        )

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [
            ComponentSpec("mixer", FacialAttributeMixer),
            ComponentSpec("ffrnet", FFRNet),
            ComponentSpec("landmark_predictor", LandmarkPredictor),
            ComponentSpec("face_image_encoder", CLIPVisionModelWithProjection),
            ComponentSpec("face_image_processor", CLIPImageProcessor),
            ComponentSpec("ffrnet_mixer", FacialAttributeMixer),
            ComponentSpec("ffrnet_image_encoder", CLIPVisionModelWithProjection),
            ComponentSpec("ffrnet_image_processor", CLIPImageProcessor),
        ]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        return [ConfigSpec("facesnap_config", None)]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("face_image", description="The reference photo, or several of the same person."),
            InputParam("identity", description="A FaceIdentity in place of `face_image`."),
            InputParam("pose_image", description="A photo whose pose, expression and framing the image takes."),
            InputParam("pose", description="A HeadPose: yaw, pitch and roll in degrees."),
            InputParam("expression", description="A preset such as 'smile', or ARKit weights."),
            InputParam(
                "face_box", description="Where the face goes: left, top, right, bottom as shares of the image."
            ),
            InputParam("face_index", description="Which face to take where a photo shows several."),
            *(InputParam(name, description="Not here: FaceSnapXLPipeline takes it.") for name in _OF_THE_PIPELINE),
            InputParam("landmark_scale", type_hint=float, description="Scale of FFRNet; the adapter's by default."),
            InputParam("controlnet_conditioning_scale", default=1.0, description="Scale of a further ControlNet."),
            InputParam("height", type_hint=int),
            InputParam("width", type_hint=int),
            InputParam("image"),
            InputParam("control_image"),
            InputParam("prompt_embeds", required=True, type_hint=torch.Tensor),
            InputParam("negative_prompt_embeds", type_hint=torch.Tensor),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("prompt_embeds", type_hint=torch.Tensor, kwargs_type="denoiser_input_fields"),
            OutputParam("negative_prompt_embeds", type_hint=torch.Tensor, kwargs_type="denoiser_input_fields"),
            OutputParam("num_identity_tokens", type_hint=int, description="0 without a face."),
            OutputParam("num_ffrnet_tokens", type_hint=int, description="How many of them, at the end, FFRNet takes."),
            OutputParam("num_left_out", type_hint=int, description="How many of those are FFRNet's alone."),
            OutputParam("control_image", type_hint=torch.Tensor, description="The landmark image."),
            OutputParam("controlnet_conditioning_scale", type_hint=float, description="The scale of FFRNet."),
        ]

    @torch.no_grad()
    def __call__(
        self, components: StableDiffusionXLModularPipeline, state: PipelineState
    ) -> tuple[StableDiffusionXLModularPipeline, PipelineState]:
        block_state = self.get_block_state(state)
        block_state.num_identity_tokens = block_state.num_ffrnet_tokens = block_state.num_left_out = 0
        for name in _OF_THE_PIPELINE:
            if getattr(block_state, name) is not None:
                raise InputError(f"{name}= goes with FaceSnapXLPipeline only; leave it out")
        if block_state.face_index is not None and block_state.face_image is None and block_state.pose_image is None:
            raise InputError("face_index= picks a face from face_image= or pose_image=; pass one of them")
        steering = Steering(**{field.name: getattr(block_state, field.name) for field in fields(Steering)})
        if block_state.face_image is not None or block_state.identity is not None:
            self._add_identity(components, block_state, steering)
        elif steering.given:
            raise InputError(f"{steering.given[0]}= steers a face; pass face_image= or identity= too")
        self.set_block_state(state, block_state)
        return components, state

    def _add_identity(
        self, components: StableDiffusionXLModularPipeline, block_state: Any, steering: Steering
    ) -> None:
        if block_state.control_image is not None:
            raise InputError("control_image= is for further ControlNets, which go with FaceSnapXLPipeline only")
        conditioner = conditioner_of(components, "identity=", getattr(components, "face_analyzer", None))
        check_followed(components.ffrnet, steering.given)
        identities = conditioner.identities(block_state.face_image, block_state.identity, block_state.face_index)
        prompts = len(block_state.prompt_embeds)
        if prompts % len(identities):
            raise InputError(f"there are {len(identities)} faces for {prompts} prompts; give as many prompts as faces")
        tokens = FaceTokens.of(conditioner, identities)
        block_state.num_identity_tokens = tokens.conditional.shape[1]
        block_state.num_ffrnet_tokens, block_state.num_left_out = tokens.num_ffrnet_tokens, tokens.num_left_out
        block_state.prompt_embeds = append_tokens(block_state.prompt_embeds, tokens.conditional)
        if block_state.negative_prompt_embeds is not None:
            block_state.negative_prompt_embeds = append_tokens(
                block_state.negative_prompt_embeds, tokens.unconditional
            )
        if components.ffrnet is not None:
            height, width = _image_size(components, block_state)
            points = conditioner.drawn_points(identities, steering, height, width)
            if prompts % len(points):
                raise InputError(
                    f"pose=, expression= and the like are for {len(points)} images, there are {prompts} prompts; give as"
                    " many prompts"
                )
            block_state.control_image = conditioner.landmark_picture(points, height, width)
            scale = block_state.landmark_scale
            if scale is None:
                scale = conditioner.config.scales["landmark_scale"]
            check_scale("landmark_scale", scale)
            block_state.controlnet_conditioning_scale = float(scale)


class FaceSnapXLCoreDenoiseStep(StableDiffusionXLCoreDenoiseStep):
    """The stock denoising; in a call with a face, with identity attention in the UNet and FFRNet as its ControlNet."""

    @property
    def description(self) -> str:
        return super().description + "With identity tokens, identity attention and FFRNet take part."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [
            *super().expected_components,
            ComponentSpec("identity_attention", IdentityAttention),
            ComponentSpec("ffrnet", FFRNet),
        ]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            *super().inputs,
            InputParam(
                "identity_scale", description="Scale of the identity attention, or by layer; the adapter's by default."
            ),
        ]

    @torch.no_grad()
    def __call__(
        self, components: StableDiffusionXLModularPipeline, state: PipelineState
    ) -> tuple[StableDiffusionXLModularPipeline, PipelineState]:
        with _for_one_call(components, state) as call:
            if state.get("num_identity_tokens", 0):
                self._add_identity(call, state)
            _, state = super().__call__(call, state)
        return components, state

    def _add_identity(self, call: StableDiffusionXLModularPipeline, state: PipelineState) -> None:
        """Puts identity attention and FFRNet into the copy of a pipeline that a call runs on."""
        num_tokens, num_left_out = state.get("num_identity_tokens"), state.get("num_left_out", 0)
        attention, scale = call.identity_attention, state.get("identity_scale")
        if scale is None:
            scale = FaceSnapConfig.from_dict(dict(call.config.facesnap_config)).scales["identity_scale"]
        if isinstance(scale, Mapping):
            check_layer_scales(scale, attention)
        else:
            check_scale("identity_scale", scale)
        if attention is None:
            attention = IdentityAttention(layers={})
        num_attended, device = num_tokens - num_left_out, execution_device(call)
        context = attention.context(call.unet, num_attended, scale, num_left_out=num_left_out, device=device)
        state.set("cross_attention_kwargs", {**(state.get("cross_attention_kwargs") or {}), **context.as_kwargs()})
        if call.ffrnet is not None:
            call.controlnet = RoutedControlNet(call.ffrnet, state.get("num_ffrnet_tokens"), "identity")


class FaceSnapXLBlocks(SequentialPipelineBlocks):
    """The stock SDXL blocks (text-to-image, image-to-image, inpainting) with FaceSnap's two among them."""

    model_name = "stable-diffusion-xl"
    _stock = dict(zip(StableDiffusionXLAutoBlocks.block_names, StableDiffusionXLAutoBlocks.block_classes, strict=True))
    block_classes = [
        _stock["text_encoder"],
        FaceSnapXLIdentityStep,
        _stock["ip_adapter"],
        _stock["vae_encoder"],
        FaceSnapXLCoreDenoiseStep,
        _stock["decode"],
    ]
    block_names = ["text_encoder", "identity", "ip_adapter", "vae_encoder", "denoise", "decode"]

    @property
    def description(self) -> str:
        return "Stable Diffusion XL with the identity of a person from one photo (FaceSnap, arXiv 2602.00627)."

    def __call__(
        self, pipeline: StableDiffusionXLModularPipeline, state: PipelineState
    ) -> tuple[StableDiffusionXLModularPipeline, PipelineState]:
        with _for_one_call(pipeline, state) as call:
            _, state = super().__call__(call, state)
        return pipeline, state


register_in_diffusers(FaceSnapXLBlocks)

#: What calls of the pipeline take, and the blocks do not.
_OF_THE_PIPELINE = ("people", "landmarks", "facesnap_schedule")


@contextmanager
def _for_one_call(
    components: StableDiffusionXLModularPipeline, state: PipelineState
) -> Iterator[StableDiffusionXLModularPipeline]:
    """A shallow copy of a pipeline for one call, whose blocks may change what it holds without others seeing it."""
    if getattr(components, "_is_of_call", False):  # blocks within blocks
        yield components
        return
    ffrnet = components.components.get("ffrnet")
    if isinstance(ffrnet, FFRNet) and not ffrnet.is_bound:  # one of low rank that was loaded by itself
        ffrnet.bind(components.unet)
    kwargs = dict(state.values)
    call = copy.copy(components)
    call.__dict__.update(components_of_call(components, kwargs), _is_of_call=True)
    if kwargs.get("cross_attention_kwargs") is not state.get("cross_attention_kwargs"):
        state.set("cross_attention_kwargs", kwargs["cross_attention_kwargs"])
    with restored_after_call(call.components, kwargs):
        yield call


def _image_size(components: StableDiffusionXLModularPipeline, block_state: Any) -> tuple[int, int]:
    """As the stock blocks: what is asked for, else that of the initial image, else the base model's."""
    height, width = block_state.height, block_state.width
    if block_state.image is not None:
        image = block_state.image[0] if isinstance(block_state.image, list) else block_state.image
        height, width = components.image_processor.get_default_height_width(image, height, width)
    return height or components.default_height, width or components.default_width
