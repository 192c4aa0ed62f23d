"""How an evaluation samples, and the base model that all of its methods share."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

import torch
from diffusers import DiffusionPipeline
from pydantic import Field

from ..base_models import import_modules
from ..errors import InputError, one_line
from ..nano.naming import resolve_nano
from ..settings import strict_dataclass


Pixels = Annotated[int, Field(ge=1)]


@strict_dataclass(frozen=True)
class Sampling:
    r"""
    How all methods of an evaluation sample.

    Attributes:
        base (`str`, *optional*): Folder or Hub repo of the base model, in diffusers' format; `"nano"`: the one in this
            package.
        height, width (`int`, *optional*): Of the images, in pixels; the base model's own by default.
        num_inference_steps (`int`): Denoising steps.
        guidance_scale (`float`): Weight of classifier-free guidance; 1 is without.
        negative_prompt (`str`): What the images should not show.
        dtype (`str`): `"float32"`, `"float16"` or `"bfloat16"`.
        variant (`str`, *optional*): Of the base's weights, e.g. `"fp16"`.
        imports (`list[str]`): Modules to import first, for bases with components of your own: diffusers loads a class
            that is not its own only from a module that is imported already.
    """

    base: str | None = None
    height: Pixels | None = None
    width: Pixels | None = None
    num_inference_steps: Annotated[int, Field(ge=1)] = 30
    guidance_scale: Annotated[float, Field(ge=0)] = 5.0
    negative_prompt: str = ""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    variant: str | None = None
    imports: list[str] = field(default_factory=list)


def load_base(sampling: Sampling) -> DiffusionPipeline:
    """
    The stock pipeline of a base model, without a safety checker, which would black out some images.

    Raises:
        InputError: No base is named, it cannot be loaded, or a module of `imports` cannot be imported.
    """
    if sampling.base is None:
        raise InputError("sampling.base is missing; name the folder or Hub repo of the base model")
    import_modules(sampling.imports, "sampling.imports")
    try:
        pipe = DiffusionPipeline.from_pretrained(
            resolve_nano(sampling.base, "base"), dtype=getattr(torch, sampling.dtype), variant=sampling.variant
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"sampling.base {sampling.base!r} could not be loaded ({one_line(error)}); name a folder or Hub repo, and"
            " in sampling.imports the modules of components that are not diffusers' own"
        ) from None
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.register_modules(safety_checker=None)
    return pipe
