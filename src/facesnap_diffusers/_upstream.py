"""Every private name of diffusers, transformers and torch that this package uses, each with its reason."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import _func_optionally_disable_offloading
from diffusers.loaders.unet import UNet2DConditionLoadersMixin
from diffusers.utils.deprecation_utils import _resolve_dtype
from diffusers.utils.torch_utils import is_compiled_module
from tokenizers import Tokenizer
from transformers import PreTrainedModel
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from .errors import InputError


#: Set to true on a pipeline it ends the loop of a stock call, as diffusers' documentation says; there is no public way.
INTERRUPT = "_interrupt"

#: Where a stock call writes down what properties such as `pipe.guidance_scale` show of it.
SHOWN_AFTER_A_CALL = ("_guidance_scale", "_num_timesteps", "_clip_skip", INTERRUPT)

#: Where a torch module keeps its weights and its children; a copy that shares the weights needs tables of its own.
PARAMETERS, MODULES = "_parameters", "_modules"


@contextmanager
def without_offloading(pipeline: DiffusionPipeline) -> Iterator[bool]:
    """
    Within this context, components can be exchanged: offloading by model or sequence is taken off, and put on again for
    the new ones. Gives whether there was any. There is no public name for what diffusers' own LoRA loader does.
    """
    by_model, by_sequence, _ = _func_optionally_disable_offloading(pipeline)
    try:
        yield by_model or by_sequence
    finally:
        if by_model:
            pipeline.enable_model_cpu_offload(device=pipeline._offload_device)
        elif by_sequence:
            pipeline.enable_sequential_cpu_offload(device=pipeline._offload_device)


def execution_device(pipeline: DiffusionPipeline) -> torch.device:
    """Where a pipeline computes; with offloading that is not `pipeline.device`, the only public name."""
    return pipeline._execution_device


def is_model_offloaded(pipeline: DiffusionPipeline) -> bool:
    """Whether `enable_model_cpu_offload` is on, which diffusers only shows by the hooks that it keeps."""
    return bool(getattr(pipeline, "_all_hooks", None))


def convert_image_projection(tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    """An IP-Adapter's projection from a checkpoint's tensors, which diffusers recognizes and renames in private only."""
    return UNet2DConditionLoadersMixin()._convert_ip_adapter_image_proj_to_diffusers(tensors, low_cpu_mem_usage=False)


def saved_class_name(config: Mapping[str, Any]) -> str | None:
    """The class that `save_pretrained` wrote into a `config.json`, which `from_pretrained` of a class does not heed."""
    return config.get("_class_name")


def callback_tensor_inputs(pipe: Any) -> list[str]:
    """The tensors that a pipeline's `callback_on_step_end` may ask for."""
    return pipe._callback_tensor_inputs


def drop_source(config: dict[str, Any]) -> bool:
    """Takes out of a saved config where its model was loaded from, which may be a local path; whether there was one."""
    return config.pop("_name_or_path", None) is not None


def supports_gradient_checkpointing(module: torch.nn.Module) -> bool:
    """Whether `enable_gradient_checkpointing` works; without it diffusers raises, and has no public question."""
    return getattr(module, "_supports_gradient_checkpointing", False)


def uncompiled(module: torch.nn.Module) -> Any:
    """What `torch.compile` was given, whose submodules go by their own names; torch has no public name for it."""
    return module._orig_mod if is_compiled_module(module) else module


def onload_model(model: torch.nn.Module | None, device: torch.device) -> None:
    """What model offloading does before `model` runs, a moment earlier; accelerate does it in the hook alone."""
    hook = getattr(model, "_hf_hook", None)
    if hook is not None and model is not None:
        from accelerate.hooks import CpuOffload  # which has put the hook there

        if isinstance(hook, CpuOffload) and model.device != device:
            hook.pre_forward(model)


def hook_of(module: torch.nn.Module, name: str) -> Any:
    """The hook of this name that diffusers has put on a layer, or `None`."""
    registry = getattr(module, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(name)


def offloading_group(module: torch.nn.Module) -> Any:
    """The layers that diffusers' group offloading moves together with `module`; `None` without it."""
    hook = hook_of(module, "group_offloading")
    return None if hook is None else hook.group


def tensor_version(tensor: torch.Tensor) -> int | None:
    """A number that is another one after each change of a tensor in place; `None` where torch does not count them."""
    return None if tensor.is_inference() else tensor._version


def cast_dtype(module: torch.nn.Module) -> torch.dtype | None:
    """The dtype that the weights of a layer are cast to before it computes; `None` without layerwise casting."""
    hook = hook_of(module, "layerwise_casting")
    return None if hook is None else hook.compute_dtype


def register_in_diffusers(cls: type) -> type:
    """
    Makes `from_pretrained` of diffusers' generic classes find a class of ours by the name that `save_pretrained` wrote:
    they look for it in diffusers' own namespace only.
    """
    setattr(diffusers, cls.__name__, cls)
    return cls


def resolve_dtype(dtype: torch.dtype | None, torch_dtype: torch.dtype | None) -> torch.dtype | None:
    """`dtype`, or the deprecated `torch_dtype` with diffusers' own warning. Raises [`InputError`] where both are given."""
    try:
        return _resolve_dtype(dtype, torch_dtype)
    except ValueError:
        raise InputError("dtype= and torch_dtype= are both given; pass dtype=") from None


def progress_bar_config(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """What `set_progress_bar_config` was given, which has no getter."""
    return dict(getattr(pipeline, "_progress_bar_config", {}))


def install_capturing_hooks(net: torch.nn.Module) -> None:
    """
    Has transformers put its hooks for hidden states onto a model, which it does at the first call that asks for them: it
    marks the model, but hangs the hooks on the layers, so of a model and its copies that share layers each would add them.
    """
    if isinstance(net, PreTrainedModel):
        maybe_install_capturing_hooks(net)


def with_text_model(text_encoder: torch.nn.Module) -> torch.nn.Module:
    """
    A text encoder, with the same weights, that has the attribute `text_model`, where the stock pipelines look for the
    final norm when they are to `clip_skip`. transformers 5.6 did away with that level of `CLIPTextModel`; diffusers 0.42
    still counts on it.
    """
    if hasattr(text_encoder, "text_model"):
        return text_encoder
    install_capturing_hooks(text_encoder)
    view = copy.copy(text_encoder)
    # past `nn.Module.__setattr__`, which would make the module a child of its copy
    vars(view)["text_model"] = text_encoder
    return view


def own_tokenizer(tokenizer: Any) -> Any:
    """
    A tokenizer that gives the same and shares the vocabulary, but not the settings for padding and truncation. A fast
    tokenizer of transformers changes these in every call, so that two threads on one fail or get each other's lengths.
    """
    shared = getattr(tokenizer, "_tokenizer", None)
    if not isinstance(shared, Tokenizer):  # slow ones keep no settings
        return tokenizer
    backend = Tokenizer(shared.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if getattr(shared, part) is not None:
            setattr(backend, part, getattr(shared, part))
    backend.encode_special_tokens = shared.encode_special_tokens
    for _, token in sorted(shared.get_added_tokens_decoder().items()):  # in this order they get the same ids
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    own = object.__new__(type(tokenizer))
    vars(own).update(vars(tokenizer), _tokenizer=backend)
    return own
