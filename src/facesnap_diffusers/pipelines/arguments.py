"""The stock pipelines' own arguments, checked before a call begins: what they leave to raw errors deep inside of a loop."""

from __future__ import annotations

import copy
import inspect
import math
import numbers
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import torch

from ..base_models import is_sdxl
from ..errors import InputError, as_number, one_line, shown
from .picture import as_size


#: Whole numbers with their smallest value.
_COUNTS = {"num_inference_steps": 1, "num_images_per_prompt": 1, "clip_skip": 0, "callback_steps": 1}

#: Real numbers with their range.
_NUMBERS = {
    "guidance_scale": (-1e4, 1e4),
    "guidance_rescale": (0.0, 1.0),
    "eta": (0.0, 1.0),
    "strength": (0.0, 1.0),
    "aesthetic_score": (-1e4, 1e4),
    "negative_aesthetic_score": (-1e4, 1e4),
}

#: What SDXL is told of an image's size and place: two numbers of pixels each.
_PAIRS = tuple(
    prefix + name for name in ("original_size", "crops_coords_top_left", "target_size") for prefix in ("", "negative_")
)

#: What images are given back as.
_OUTPUT_TYPES = ("pil", "np", "pt", "latent")

_TEXTS = ("negative_prompt", "prompt_2", "negative_prompt_2")


def check_stock_arguments(pipe: Any, prompt: Any, kwargs: dict[str, Any]) -> None:
    """Raises [`InputError`] for wrong values; sizes and counts become plain numbers, latents take the pipeline's dtype."""
    for name in (*_COUNTS, *_NUMBERS):
        if kwargs.get(name, ...) is None:  # as if it were not given
            kwargs.pop(name)
    for name, least in _COUNTS.items():
        if name in kwargs:
            kwargs[name] = _count(name, kwargs[name], least)
    for name, (low, high) in _NUMBERS.items():
        if name in kwargs:
            value = kwargs[name]
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not is_number or not low <= value <= high:  # NaN is in no range
                raise InputError(f"{name} must be a number from {low:g} to {high:g}, got {shown(value)}")
    for name in ("height", "width"):
        if kwargs.get(name) is not None:
            kwargs[name] = as_size(name, kwargs[name], pipe.vae_scale_factor)
    for name in _PAIRS:
        if kwargs.get(name) is not None:
            kwargs[name] = _pair(name, kwargs[name])
    output_type = kwargs.get("output_type", "pil")
    if not isinstance(output_type, str) or output_type not in _OUTPUT_TYPES:
        raise InputError(f"output_type must be one of {', '.join(_OUTPUT_TYPES)}, got {shown(output_type)}")
    for name in ("callback", "callback_on_step_end"):
        if kwargs.get(name) is not None and not callable(kwargs[name]):
            raise InputError(f"{name} must be a function, got {shown(kwargs[name])}")
    _check_generator(kwargs.get("generator"))
    _check_attention_kwargs(kwargs.get("cross_attention_kwargs"))
    _check_texts(pipe, prompt, kwargs)
    _check_embeds(pipe, kwargs)
    _check_image_prompts(pipe, kwargs)
    _check_steps(pipe.scheduler, kwargs)
    if kwargs.get("latents") is not None:
        kwargs["latents"] = _as_latents("latents", kwargs["latents"], pipe)
    if isinstance(kwargs.get("masked_image_latents"), (str, bytes)):
        raise InputError(f"masked_image_latents must be a torch.Tensor, got {shown(kwargs['masked_image_latents'])}")


def check_batch(
    prompt: Any, kwargs: dict[str, Any], pictures: tuple[str, ...], control_image: str | None = None
) -> None:
    """
    Raises [`InputError`] unless there are as many of each argument as images are made, or a share that is repeated:
    `pictures` are the names of those that a call begins with. Control images, a batch for each ControlNet, must be one or
    as many as prompts.
    """
    prompts = len(prompt) if isinstance(prompt, list) else 1 if prompt is not None else len(kwargs["prompt_embeds"])
    batch = prompts * kwargs.get("num_images_per_prompt", 1)
    for name in _TEXTS:
        value = kwargs.get(name)
        if isinstance(value, list) and len(value) != prompts:
            raise InputError(f"{name} has {len(value)} entries for {prompts} prompts; give one text or {prompts}")
    generator, latents = kwargs.get("generator"), kwargs.get("latents")
    if isinstance(generator, list) and len(generator) != batch:
        raise InputError(f"generator has {len(generator)} entries for {batch} images; give one generator or {batch}")
    if latents is not None and len(latents) != batch:
        raise InputError(f"latents are those of {len(latents)} images, the call makes {batch}")
    for name in pictures:
        count = _number_of_pictures(kwargs.get(name))
        if count > batch or (count and batch % count):
            raise InputError(f"{name} has {count} pictures for {batch} images; give one or {batch}")
    if control_image is not None:
        batches = kwargs[control_image]
        for images in batches if isinstance(batches, list) else [batches]:
            if len(images) not in (1, prompts):
                raise InputError(
                    f"{control_image} has {len(images)} pictures for {prompts} prompts; give one or {prompts}"
                )


def check_strength(method: Callable[..., Any], scheduler: Any, kwargs: dict[str, Any]) -> None:
    """
    Raises [`InputError`] where the strength of a stock pipeline's `__call__`, given or its default, or where
    `denoising_start` leaves no step.
    """
    parameters = inspect.signature(method).parameters
    steps = kwargs.get("num_inference_steps", parameters["num_inference_steps"].default)
    name, value = "num_inference_steps", steps
    for name_of_own in ("timesteps", "sigmas"):
        if kwargs.get(name_of_own) is not None:
            name, value = name_of_own, kwargs[name_of_own]
    start, end = (
        None if kwargs.get(key) is None else as_number(key, kwargs[key], 0, 1)
        for key in ("denoising_start", "denoising_end")
    )
    if start is not None:
        if end is not None and start >= end:
            raise InputError(f"denoising_start {start:g} is not before denoising_end {end:g}")
        scheduler = _with_steps(scheduler, name, value)
        first = round((1 - start) * scheduler.config.num_train_timesteps)
        if not (torch.as_tensor(scheduler.timesteps) < first).any():
            raise InputError(f"denoising_start {start:g} leaves none of the {steps} steps; begin earlier")
        return
    if "strength" not in parameters:
        return
    strength = kwargs.get("strength", parameters["strength"].default)
    if name != "num_inference_steps":
        steps = len(_with_steps(scheduler, name, value).timesteps)
    if int(steps * strength) < 1:
        raise InputError(
            f"strength {strength} of {steps} steps leaves none; raise one of them to a product of at least 1"
        )


def check_prompt(name: str, value: Any) -> None:
    """Raises [`InputError`] unless a prompt is text, a list of texts, or `None`."""
    if value is None:
        return
    if not isinstance(value, (str, list)):
        raise InputError(f"{name} must be a string or a list of strings, got {type(value).__name__}")
    if isinstance(value, list) and not value:
        raise InputError(f"{name} is an empty list; give at least one")
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, str):
            raise InputError(f"{name} must be a string or a list of strings, got a list with {type(item).__name__}")
        try:
            item.encode()
        except UnicodeEncodeError:
            raise InputError(f"{name} is not valid Unicode: {ascii(item)[:60]}") from None


def _check_generator(generator: Any) -> None:
    if isinstance(generator, list) and not generator:
        raise InputError("generator is an empty list; give one, or one for each image")
    for item in generator if isinstance(generator, list) else [] if generator is None else [generator]:
        if not isinstance(item, torch.Generator):
            raise InputError(f"generator must be a torch.Generator or a list of them, got {type(item).__name__}")


def _check_attention_kwargs(attention_kwargs: Any) -> None:
    if attention_kwargs is None:
        return
    if not isinstance(attention_kwargs, dict) or not all(isinstance(key, str) for key in attention_kwargs):
        raise InputError(f"cross_attention_kwargs must be a dict with strings as keys, got {shown(attention_kwargs)}")
    scale = attention_kwargs.get("scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, numbers.Real) or not math.isfinite(scale):
        raise InputError(f"cross_attention_kwargs: scale must be a finite number, got {shown(scale)}")


def _check_texts(pipe: Any, prompt: Any, kwargs: dict[str, Any]) -> None:
    for name in _TEXTS:
        check_prompt(name, kwargs.get(name))
    negative = kwargs.get("negative_prompt")
    if isinstance(prompt, str) and isinstance(negative, list):
        if len(negative) > 1:
            raise InputError(f"negative_prompt has {len(negative)} entries for 1 prompt; give one text")
        kwargs["negative_prompt"] = negative[0]
    for text, embeds in (("negative_prompt", "negative_prompt_embeds"), ("prompt_2", "prompt_embeds")):
        if kwargs.get(text) is not None and kwargs.get(embeds) is not None:
            raise InputError(f"{text}= and {embeds}= are both given; pass one of the two")
    if kwargs.get("clip_skip"):
        # SDXL counts from the last layer but one
        encoders = [pipe.components.get(name) for name in ("text_encoder", "text_encoder_2")]
        layers = [encoder.config.num_hidden_layers for encoder in encoders if encoder is not None]
        most = min(layers, default=0) - is_sdxl(pipe.unet)
        if layers and kwargs["clip_skip"] > most:
            raise InputError(
                f"clip_skip must be at most {most} with this base model's text encoders, got {kwargs['clip_skip']}"
            )


def _check_embeds(pipe: Any, kwargs: dict[str, Any]) -> None:
    config = pipe.unet.config
    text_width = config.get("encoder_hid_dim") or config.cross_attention_dim
    pooled = pipe.components.get("text_encoder_2")
    widths = {3: text_width, 2: None if pooled is None else pooled.config.projection_dim}
    names = [name for name in kwargs if name.endswith("prompt_embeds") and kwargs[name] is not None]
    for name in names:
        value, dims = kwargs[name], 2 if "pooled" in name else 3
        is_plain = isinstance(value, torch.Tensor) and value.is_floating_point() and value.layout == torch.strided
        if not is_plain or value.ndim != dims or value.numel() == 0 or value.device.type == "meta":
            shape = "(batch, width)" if dims == 2 else "(batch, tokens, width)"
            raise InputError(f"{name} must be a floating point torch.Tensor of shape {shape}")
        if not torch.isfinite(value).all():
            raise InputError(f"{name} has values that are not finite")
        if isinstance(widths[dims], int) and value.shape[-1] != widths[dims]:
            raise InputError(
                f"{name} have width {value.shape[-1]}, this base model takes {widths[dims]};"
                " encode the prompt with this pipeline's text encoders"
            )
        pair = name.replace("pooled_", "")
        if dims == 2 and kwargs.get(pair) is not None and len(kwargs[pair]) != len(value):
            raise InputError(f"{name} has {len(value)} entries, {pair} {len(kwargs[pair])}; give as many")
    if is_sdxl(pipe.unet):
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            other = name.replace("prompt_embeds", "pooled_prompt_embeds")
            if (kwargs.get(name) is None) != (kwargs.get(other) is None):
                raise InputError(f"{name}= and {other}= go together; encode_prompt gives both")


def _check_image_prompts(pipe: Any, kwargs: dict[str, Any]) -> None:
    projection = getattr(pipe.unet, "encoder_hid_proj", None)
    names = [name for name in ("ip_adapter_image", "ip_adapter_image_embeds") if kwargs.get(name) is not None]
    for name in names:
        if projection is None:
            raise InputError(f"{name}= is for an IP-Adapter, and none is loaded; call load_ip_adapter() first")
    if len(names) == 2:
        raise InputError("ip_adapter_image= and ip_adapter_image_embeds= are both given; pass one of the two")
    layers = getattr(projection, "image_projection_layers", None)
    if layers is None:
        return
    if not names:
        raise InputError(
            "an IP-Adapter is loaded; pass ip_adapter_image= or ip_adapter_image_embeds=, or call unload_ip_adapter()"
        )
    images: list[int | None] = [None] * len(layers)
    if names == ["ip_adapter_image_embeds"]:
        images = _check_image_embeds(pipe, layers, kwargs)
    masks = (kwargs.get("cross_attention_kwargs") or {}).get("ip_adapter_masks")
    if masks is not None:
        _check_masks(masks, images)


def _check_image_embeds(pipe: Any, layers: Any, kwargs: dict[str, Any]) -> list[int | None]:
    """The number of images for each IP-Adapter."""
    embeds = kwargs["ip_adapter_image_embeds"]
    if not isinstance(embeds, list) or len(embeds) != len(layers):
        raise InputError(f"ip_adapter_image_embeds must be a list of {len(layers)} tensors: one for each IP-Adapter")
    default = inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default
    guided = kwargs.get("guidance_scale", default) > 1 and pipe.unet.config.time_cond_proj_dim is None
    for number, (value, layer) in enumerate(zip(embeds, layers, strict=True)):
        name = f"ip_adapter_image_embeds[{number}]"
        _check_dense(name, value)
        if value.ndim not in (3, 4):
            raise InputError(
                f"{name} must have shape (batch, images, width) or (batch, images, tokens, width), got"
                f" {tuple(value.shape)}"
            )
        if guided and len(value) % 2:
            raise InputError(
                f"{name} has {len(value)} entries; with guidance, give the negative ones before the others"
            )
        width = next((module.in_features for module in layer.modules() if hasattr(module, "in_features")), None)
        if width is not None and value.shape[-1] != width:
            raise InputError(f"{name} have width {value.shape[-1]}, the IP-Adapter that is loaded takes {width}")
    return [value.shape[1] for value in embeds]


def _check_masks(masks: Any, images: list[int | None]) -> None:
    """Masks of IP-Adapters: for each of them a tensor `(1, images, height, width)` or `None`, or all as one tensor."""
    if isinstance(masks, torch.Tensor) and masks.ndim == 4:
        masks = list(masks.unsqueeze(1))
    if not isinstance(masks, list) or len(masks) != len(images):
        raise InputError(f"ip_adapter_masks must be a list of {len(images)} tensors: one for each IP-Adapter")
    for number, (mask, count) in enumerate(zip(masks, images, strict=True)):
        if mask is None:
            continue
        name = f"ip_adapter_masks[{number}]"
        _check_dense(name, mask)
        if mask.ndim != 4 or len(mask) != 1 or count not in (None, mask.shape[1]):
            raise InputError(
                f"{name} must have shape (1, {'images' if count is None else count}, height, width), got"
                f" {tuple(mask.shape)}; IPAdapterMaskProcessor makes such"
            )


def _check_dense(name: str, value: Any) -> None:
    is_plain = isinstance(value, torch.Tensor) and value.is_floating_point() and value.layout == torch.strided
    if not is_plain or value.numel() == 0 or value.is_meta:
        raise InputError(f"{name} must be a dense floating point torch.Tensor, got {shown(value)}")
    if not torch.isfinite(value).all():
        raise InputError(f"{name} has values that are not finite")


def _check_steps(scheduler: Any, kwargs: dict[str, Any]) -> None:
    """Timesteps or sigmas of the caller's own: the scheduler must take them."""
    names = [name for name in ("timesteps", "sigmas") if kwargs.get(name) is not None]
    if len(names) == 2:
        raise InputError("timesteps= and sigmas= are both given; pass one of the two")
    for name in names:
        if name not in inspect.signature(scheduler.set_timesteps).parameters:
            raise InputError(f"{name}= is not for {type(scheduler).__name__}; leave it out, or take another scheduler")
        if not isinstance(kwargs[name], (list, tuple, np.ndarray, torch.Tensor)) or len(kwargs[name]) == 0:
            raise InputError(f"{name} must be a list of numbers, got {shown(kwargs[name])}")
        _with_steps(scheduler, name, kwargs[name])


def _with_steps(scheduler: Any, name: str, values: Any) -> Any:
    """A copy of the scheduler with a number of steps, or with timesteps or sigmas of the caller's own."""
    scheduler = copy.deepcopy(scheduler)
    try:
        scheduler.set_timesteps(**{name: values})
    except Exception as error:  # of any scheduler
        raise InputError(f"{type(scheduler).__name__} does not take these {name}: {one_line(error)}") from error
    return scheduler


def _as_latents(name: str, value: Any, pipe: Any) -> torch.Tensor:
    """Latents in the dtype of the pipeline's own."""
    channels = pipe.vae.config.latent_channels
    if not isinstance(value, torch.Tensor) or value.ndim != 4 or value.shape[1] != channels or value.numel() == 0:
        raise InputError(f"{name} must be a torch.Tensor of shape (batch, {channels}, height, width)")
    if not value.is_floating_point() or value.layout != torch.strided or value.device.type == "meta":
        raise InputError(f"{name} must be a dense tensor in floating point, got {value.dtype}")
    if not torch.isfinite(value).all():
        raise InputError(f"{name} has values that are not finite")
    encoder = pipe.components.get("text_encoder")
    dtype = (pipe.unet if encoder is None else encoder).dtype
    return value.to(dtype) if dtype in (torch.float16, torch.bfloat16, torch.float32) else value


def _number_of_pictures(pictures: Any) -> int:
    """How many pictures there are in one of the forms that the stock pipelines take; 0 for what is none of them."""
    if isinstance(pictures, (list, tuple)):
        return sum(_number_of_pictures(item) for item in pictures)
    if isinstance(pictures, (torch.Tensor, np.ndarray)):
        return len(pictures) if pictures.ndim == 4 else 1
    return int(isinstance(pictures, PIL.Image.Image))


def _pair(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise InputError(f"{name} must be two whole numbers of pixels, got {shown(value)}")
    first, second = (_count(name, item, -_LARGEST) for item in value)
    if max(abs(first), abs(second)) > _LARGEST:
        raise InputError(f"{name} must be two whole numbers of pixels, got {shown(value)}")
    return first, second


_LARGEST = 1_000_000


def _count(name: str, value: Any, low: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be a whole number ≥ {low}, got {shown(value)}") from None
    if count < low:
        raise InputError(f"{name} must be a whole number ≥ {low}, got {shown(value)}")
    return count
