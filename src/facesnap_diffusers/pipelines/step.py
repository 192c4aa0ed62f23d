"""What happens at each step of a call: the caller's callback, a request to stop, and the guidance."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from .._upstream import INTERRUPT
from ..errors import InputError, shown


class StepEnd:
    r"""
    The `callback_on_step_end` of a call: the caller's own, of which the result is checked, and a stop where the pipeline
    that was called, of which this call runs on a copy, was told to stop.

    Args:
        callback (`Callable`, *optional*): The caller's. What it raises is not changed.
        is_interrupted (`Callable`): Whether the call is to stop.
    """

    def __init__(self, callback: Callable[..., Any] | None, is_interrupted: Callable[[], bool]):
        self.callback = callback
        self.is_interrupted = is_interrupted

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        given = dict(tensors)
        outputs = tensors if self.callback is None else self.callback(pipeline, step, timestep, tensors)
        if not isinstance(outputs, dict):
            raise InputError(
                f"callback_on_step_end must return a dictionary of tensors, such as its last argument, got {shown(outputs)}"
            )
        for name, before in given.items():
            value = outputs.get(name)
            if isinstance(before, torch.Tensor) and name in outputs and not isinstance(value, torch.Tensor):
                raise InputError(f"callback_on_step_end must return {name} as a tensor, got {shown(value)}")
        if "latents" in given and "latents" in outputs:
            before, after = given["latents"], outputs["latents"]
            if (before.shape, before.dtype) != (after.shape, after.dtype):
                raise InputError(
                    f"callback_on_step_end must return latents of shape {tuple(before.shape)} and {before.dtype}, got"
                    f" {tuple(after.shape)} and {after.dtype}"
                )
        if self.is_interrupted():
            setattr(pipeline, INTERRUPT, True)
        return outputs

    @classmethod
    def add_to(cls, kwargs: dict[str, Any], known: Sequence[str], is_interrupted: Callable[[], bool]) -> None:
        """
        Puts it in the place of the caller's callback. Raises [`InputError`] where that one could not be called, or asks for
        tensors that are not `known`.
        """
        callback, names = kwargs.get("callback_on_step_end"), kwargs.get("callback_on_step_end_tensor_inputs")
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            names = callback.tensor_inputs
        elif callback is not None:
            try:
                inspect.signature(callback).bind(None, 0, 0, {})
            except TypeError:
                raise InputError(
                    "callback_on_step_end must take four arguments: the pipeline, the step, the timestep and a dictionary"
                    " of tensors"
                ) from None
            except ValueError:  # a built-in function without a signature
                pass
        if names is not None and not (isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names)):
            raise InputError(f"callback_on_step_end_tensor_inputs must be a list of names, got {shown(names)}")
        for name in names or ():
            if name not in known:
                raise InputError(
                    f"callback_on_step_end_tensor_inputs: {shown(name)} is not one of {', '.join(known)}, which this call has"
                )
        kwargs["callback_on_step_end"] = cls(callback, is_interrupted)
        kwargs["callback_on_step_end_tensor_inputs"] = ["latents"] if names is None else list(names)


class Guidance:
    r"""
    The UNet of one call, of which the scheduler takes the guided prediction as the stock pipelines without ControlNets
    compute it, where those with ControlNets do not:

    - with the guidance scale that a callback has set, which most of them do not look at;
    - rescaled, as section 3.4 of [Common Diffusion Noise Schedules and Sample Steps are
      Flawed](https://huggingface.co/papers/2305.08891) says.

    Args:
        call: The copy of a pipeline that the call runs on; it gets this in place of its UNet.
        guidance_rescale (`float`): From 0, as it is, to 1.
    """

    def __init__(self, call: Any, guidance_rescale: float):
        self._unet = call.unet
        self._prediction: torch.Tensor | None = None
        self._first_scale: float | None = None
        call.__dict__["unet"] = self
        step = call.scheduler.step

        @functools.wraps(step)
        def guided_step(model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            prediction, self._prediction = self._prediction, None
            if self._first_scale is None:
                self._first_scale = call.guidance_scale
            if call.do_classifier_free_guidance and prediction is not None:
                without_text, text = prediction.chunk(2)
                if call.guidance_scale != self._first_scale:
                    model_output = without_text + call.guidance_scale * (text - without_text)
                if guidance_rescale > 0:
                    model_output = rescale_noise_cfg(model_output, text, guidance_rescale)
            return step(model_output, *args, **kwargs)

        call.scheduler.step = guided_step

    def hidden_from(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """The callback, which sees the UNet itself in the pipeline, and may put another one in its place."""

        def with_unet(pipeline: Any, *args: Any) -> Any:
            pipeline.__dict__["unet"] = self._unet
            try:
                return callback(pipeline, *args)
            finally:
                self._unet = pipeline.unet
                pipeline.__dict__["unet"] = self

        return with_unet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._unet(*args, **kwargs)
        self._prediction = output[0]
        return output
