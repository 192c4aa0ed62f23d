"""FFRNet: a ControlNet whose context is the identity, and whose image the landmarks."""

from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel, ControlNetOutput

# `DiffusionPipeline.from_pretrained` looks in the component's module for the base class that says how to load it
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from ..errors import InputError


class FFRNet(ControlNetModel):
    r"""
    The Face Fidelity Reinforce Network of FaceSnap (arXiv 2602.00627, section 3.4): a ControlNet whose conditioning
    image is the drawn landmarks and whose cross-attention context is the identity tokens, never the text.

    Made from any Stable Diffusion UNet with `FFRNet.from_unet(unet)`. `encoder_hidden_states` of
    [`~ControlNetModel.forward`] are the identity tokens `(batch, num_tokens, cross_attention_dim)`. Base models of
    the SDXL family also take a pooled text embedding; FFRNet puts zeros in its place, so that nothing of the prompt
    reaches it.
    """

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel, **kwargs: Any) -> "FFRNet":
        """As [`~ControlNetModel.from_unet`]; raises [`InputError`] for UNets that cannot be copied."""
        if unet.config.in_channels != unet.config.out_channels:
            raise InputError(
                f"unet takes {unet.config.in_channels} channels and gives {unet.config.out_channels}: make FFRNet from"
                " the plain base model instead, it then works with the inpainting model of the same family too"
            )
        if unet.config.encoder_hid_dim_type == "ip_image_proj":
            raise InputError("unet carries an IP-Adapter: call unload_ip_adapter() before making FFRNet from it")
        ffrnet = super().from_unet(unet, **kwargs)
        return ffrnet if unet.dtype == torch.float32 else ffrnet.to(unet.dtype)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: torch.Tensor,
        conditioning_scale: float = 1.0,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> ControlNetOutput | tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        if added_cond_kwargs is not None and "text_embeds" in added_cond_kwargs:
            added_cond_kwargs = {
                **added_cond_kwargs,
                "text_embeds": torch.zeros_like(added_cond_kwargs["text_embeds"]),
            }
        return super().forward(
            sample,
            timestep,
            encoder_hidden_states,
            controlnet_cond,
            conditioning_scale,
            added_cond_kwargs=added_cond_kwargs,
            **kwargs,
        )
