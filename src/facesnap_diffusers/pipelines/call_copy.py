"""What a call gets of its own, because the stock pipelines change it while they run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import USE_PEFT_BACKEND
from diffusers.utils.peft_utils import scale_lora_layers
from diffusers.utils.torch_utils import is_compiled_module
from torch import nn

from .._upstream import install_capturing_hooks, own_tokenizer
from ..base_models import is_sdxl


def components_of_call(pipeline: DiffusionPipeline, kwargs: dict[str, Any]) -> dict[str, Any]:
    r"""
    Stand-ins for those components of a pipeline that a stock call changes: the scheduler counts its steps, a tokenizer
    is set to pad and cut, the text encoders and the UNet get the call's LoRA scale, and SDXL's VAE changes its dtype. The
    weights of all are the shared ones.

    Args:
        pipeline (`DiffusionPipeline`): Not changed.
        kwargs (`dict[str, Any]`): The arguments of the call. A LoRA scale in `cross_attention_kwargs` that is applied here
            is taken out of them.
    """
    own: dict[str, Any] = {"scheduler": copy.deepcopy(pipeline.scheduler)}
    components = pipeline.components
    for name in ("tokenizer", "tokenizer_2"):
        if components.get(name) is not None:
            own[name] = own_tokenizer(components[name])
    vae, is_xl = pipeline.vae, is_sdxl(pipeline.unet)
    # SDXL's pipelines would convert it to float32 and back, or to the dtype of the prompt embeddings
    is_single = all(dtype == torch.float32 for dtype in dtypes_of_call(components, kwargs))
    if is_xl and vae.config.get("force_upcast") and not is_single and can_be_copied(vae):
        own["vae"] = copy_modules(vae)
    attention_kwargs = kwargs.get("cross_attention_kwargs") or {}
    scale = attention_kwargs.get("scale", 1.0)
    if USE_PEFT_BACKEND and scale != 1.0:
        nets = {name: components.get(name) for name in ("text_encoder", "text_encoder_2", "unet")}
        nets = {name: net for name, net in nets.items() if net is not None}
        if all(can_be_copied(net) for net in nets.values()):
            for name, net in nets.items():
                own[name] = copy_modules(net)
                scale_lora_layers(own[name], scale)
            kwargs["cross_attention_kwargs"] = {k: v for k, v in attention_kwargs.items() if k != "scale"}
    return own


def dtypes_of_call(components: Mapping[str, Any], kwargs: Mapping[str, Any]) -> set[torch.dtype]:
    """The dtypes of the nets and prompt embeddings of a call."""
    nets = [components.get(name) for name in ("vae", "unet", "text_encoder", "text_encoder_2")]
    tensors: list[torch.Tensor] = [next(net.parameters()) for net in nets if isinstance(net, nn.Module)]
    tensors += [value for value in kwargs.values() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    return {tensor.dtype for tensor in tensors}


def can_be_copied(net: nn.Module) -> bool:
    """
    Whether [`copy_modules`] can copy it. Offloading binds a module's forward pass to that very module, and a compiled net
    would be compiled again: with these, calls with a LoRA scale, or on SDXL in float16, must not overlap.
    """
    return not is_compiled_module(net) and not any("forward" in vars(module) for module in net.modules())


def copy_modules(net: nn.Module) -> Any:
    """A copy of a net with all its modules and with the same weights in memory; to convert or scale it changes no other."""
    install_capturing_hooks(net)
    copies: dict[int, nn.Module] = {}

    def copied(module: nn.Module) -> nn.Module:
        if id(module) not in copies:
            twin = copies[id(module)] = copy.copy(module)
            # past `nn.Module.__setattr__`, which takes no dictionaries
            for name, value in vars(module).items():
                if name == "_parameters":
                    value = {
                        key: None if p is None else nn.Parameter(p.detach(), p.requires_grad)
                        for key, p in value.items()
                    }
                elif name == "_modules":
                    value = {key: None if child is None else copied(child) for key, child in value.items()}
                elif isinstance(value, dict):  # such as the scales of LoRA layers, and hooks
                    value = copy.copy(value)
                vars(twin)[name] = value
        return copies[id(module)]

    return copied(net)
