"""The stock pipelines' own arguments, checked before a call begins: what they leave to raw errors deep inside of a loop."""

from __future__ import annotations

import numbers
import operator
from typing import Any

import torch

from ..errors import InputError
from .picture import as_size


#: Whole numbers with their smallest value.
_COUNTS = {"num_inference_steps": 1, "num_images_per_prompt": 1, "clip_skip": 0, "callback_steps": 1}

#: Real numbers with their range.
_NUMBERS = {
    "guidance_scale": (-1e4, 1e4),
    "eta": (0.0, 1.0),
    "strength": (0.0, 1.0),
    "aesthetic_score": (-1e4, 1e4),
    "negative_aesthetic_score": (-1e4, 1e4),
}


def check_stock_arguments(kwargs: dict[str, Any], size_multiple: int) -> None:
    """Raises [`InputError`] for wrong values; sizes and counts become plain numbers."""
    for name in (*_COUNTS, *_NUMBERS):
        if kwargs.get(name, ...) is None:  # as if it were not given
            kwargs.pop(name)
    if isinstance(kwargs.get("generator"), list) and not kwargs["generator"]:
        raise InputError("generator is an empty list; give one, or one for each image")
    attention_kwargs = kwargs.get("cross_attention_kwargs")
    if attention_kwargs is not None and not isinstance(attention_kwargs, dict):
        raise InputError(f"cross_attention_kwargs must be a dict, got {type(attention_kwargs).__name__}")
    for name, least in _COUNTS.items():
        if name in kwargs:
            kwargs[name] = _count(name, kwargs[name], least)
    for name, (low, high) in _NUMBERS.items():
        if name in kwargs:
            value = kwargs[name]
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not is_number or not low <= value <= high:  # NaN is in no range
                raise InputError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")
    for name in ("height", "width"):
        if kwargs.get(name) is not None:
            kwargs[name] = as_size(name, kwargs[name], size_multiple)
    strength, steps = kwargs.get("strength"), kwargs.get("num_inference_steps")
    if strength is not None and steps is not None and int(steps * strength) < 1:
        raise InputError(
            f"strength {strength} of {steps} steps leaves none; raise one of them to a product of at least 1"
        )
    for name in ("negative_prompt", "prompt_2", "negative_prompt_2"):
        check_prompt(name, kwargs.get(name))
    generator = kwargs.get("generator")
    for item in generator if isinstance(generator, list) else [generator]:
        if item is not None and not isinstance(item, torch.Generator):
            raise InputError(f"generator must be a torch.Generator or a list of them, got {type(item).__name__}")
    embeds = [name for name in kwargs if name.endswith("prompt_embeds") and kwargs[name] is not None]
    for name in embeds:
        value, dims = kwargs[name], 2 if "pooled" in name else 3
        is_plain = isinstance(value, torch.Tensor) and value.is_floating_point() and value.layout == torch.strided
        if not is_plain or value.ndim != dims or value.numel() == 0 or value.device.type == "meta":
            shape = "(batch, width)" if dims == 2 else "(batch, tokens, width)"
            raise InputError(f"{name} must be a floating point torch.Tensor of shape {shape}")


def check_prompt(name: str, value: Any) -> None:
    """Raises [`InputError`] unless a prompt is text, a list of texts, or `None`."""
    if value is None or isinstance(value, str):
        return
    if not isinstance(value, list):
        raise InputError(f"{name} must be a string or a list of strings, got {type(value).__name__}")
    if not value:
        raise InputError(f"{name} is an empty list; give at least one")
    for item in value:
        if not isinstance(item, str):
            raise InputError(f"{name} must be a string or a list of strings, got a list with {type(item).__name__}")


def _count(name: str, value: Any, low: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be a whole number ≥ {low}, got {value!r}") from None
    if count < low:
        raise InputError(f"{name} must be a whole number ≥ {low}, got {value!r}")
    return count
