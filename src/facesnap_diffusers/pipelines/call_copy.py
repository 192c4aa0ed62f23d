"""What a call gets of its own, because the stock pipelines change it while they run."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.utils import USE_PEFT_BACKEND
from diffusers.utils.peft_utils import scale_lora_layers
from diffusers.utils.torch_utils import is_compiled_module
from torch import nn

from .._upstream import MODULES, PARAMETERS, install_capturing_hooks, own_tokenizer
from ..base_models import is_sdxl


#: Whose LoRA layers the scale in `cross_attention_kwargs` is for.
NETS_WITH_LORA = ("text_encoder", "text_encoder_2", "unet")


def components_of_call(pipeline: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    r"""
    Stand-ins for those components of a pipeline that a stock call changes: the scheduler counts its steps, a modular
    pipeline's guider too, a tokenizer is set to pad and cut, the text encoders and the UNet get the call's LoRA scale, and
    SDXL's VAE changes its dtype. The weights of all are the shared ones.

    Args:
        pipeline (`DiffusionPipeline` or `ModularPipeline`): Not changed.
        kwargs (`dict[str, Any]`): The arguments of the call. A LoRA scale in `cross_attention_kwargs` that is applied here
            is taken out of them.
    """
    components = pipeline.components
    own: dict[str, Any] = {}
    for name in ("scheduler", "guider"):
        if components.get(name) is not None:
            own[name] = copy.deepcopy(components[name])
    for name in ("tokenizer", "tokenizer_2"):
        if components.get(name) is not None:
            own[name] = own_tokenizer(components[name])
    if converts_vae(components, kwargs) and can_be_copied(components["vae"]):
        own["vae"] = copy_modules(components["vae"])
    scale = lora_scale(kwargs)
    if scale != 1.0:
        nets = {name: components[name] for name in NETS_WITH_LORA if components.get(name) is not None}
        if all(can_be_copied(net) for net in nets.values()):
            for name, net in nets.items():
                own[name] = copy_modules(net)
                scale_lora_layers(own[name], scale)
            attention_kwargs = kwargs["cross_attention_kwargs"]
            kwargs["cross_attention_kwargs"] = {k: v for k, v in attention_kwargs.items() if k != "scale"}
    return own


@contextmanager
def restored_after_call(components: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Iterator[None]:
    """
    Undoes at its end, also at an error or Ctrl-C, what a stock call does to nets that [`components_of_call`] could not copy:
    it scales their LoRA layers and converts SDXL's VAE.
    """
    nets = [components.get(name) for name in NETS_WITH_LORA] if lora_scale(kwargs) != 1.0 else []
    layers = [module for net in nets if net is not None for module in net.modules()]
    scalings = [layer.scaling for layer in layers if isinstance(getattr(layer, "scaling", None), dict)]
    scales = [dict(scaling) for scaling in scalings]
    vae = components["vae"] if converts_vae(components, kwargs) else None
    # by name: offloading by sequence exchanges the parameters
    dtypes = {} if vae is None else {name: parameter.dtype for name, parameter in vae.named_parameters()}
    try:
        yield
    finally:
        for scaling, before in zip(scalings, scales, strict=True):
            scaling.update(before)
        for name, parameter in () if vae is None else vae.named_parameters():
            if parameter.dtype != dtypes[name]:
                parameter.data = parameter.data.to(dtypes[name])


def lora_scale(kwargs: Mapping[str, Any]) -> float:
    """The scale of LoRA layers that a call asks for; 1, which changes none, without any."""
    return (kwargs.get("cross_attention_kwargs") or {}).get("scale", 1.0) if USE_PEFT_BACKEND else 1.0


def converts_vae(components: Mapping[str, Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether SDXL's pipelines convert their VAE to float32 and back, or to the dtype of the prompt embeddings."""
    vae, unet = components.get("vae"), components.get("unet")
    if vae is None or unet is None or not is_sdxl(unet) or not vae.config.get("force_upcast"):
        return False
    return any(dtype != torch.float32 for dtype in dtypes_of_call(components, kwargs))


def dtypes_of_call(components: Mapping[str, Any], kwargs: Mapping[str, Any]) -> set[torch.dtype]:
    """The dtypes of the nets and prompt embeddings of a call."""
    nets = [components.get(name) for name in ("vae", "unet", "text_encoder", "text_encoder_2")]
    tensors: list[torch.Tensor] = [next(net.parameters()) for net in nets if isinstance(net, nn.Module)]
    tensors += [value for value in kwargs.values() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    return {tensor.dtype for tensor in tensors}


def can_be_copied(net: nn.Module) -> bool:
    """
    Whether [`copy_modules`] can copy it. Offloading and compiling bind a method, such as the forward pass or a VAE's
    `decode`, to that very module: the copy's would compute with the original. With these, calls with a LoRA scale, or on
    SDXL in float16, must not overlap.
    """
    return not is_compiled_module(net) and not any(
        callable(value) and hasattr(type(module), name)
        for module in net.modules()
        for name, value in vars(module).items()
    )


def copy_modules(net: nn.Module) -> Any:
    """A copy of a net with all its modules and with the same weights in memory; to convert or scale it changes no other."""
    install_capturing_hooks(net)
    copies: dict[int, nn.Module] = {}

    def copied(module: nn.Module) -> nn.Module:
        if id(module) not in copies:
            twin = copies[id(module)] = copy.copy(module)
            # past `nn.Module.__setattr__`, which takes no dictionaries
            for name, value in vars(module).items():
                if name == PARAMETERS:
                    value = {
                        key: None if p is None else nn.Parameter(p.detach(), p.requires_grad)
                        for key, p in value.items()
                    }
                elif name == MODULES:
                    value = {key: None if child is None else copied(child) for key, child in value.items()}
                elif isinstance(value, dict):  # such as the scales of LoRA layers, and hooks
                    value = copy.copy(value)
                vars(twin)[name] = value
        return copies[id(module)]

    return copied(net)
