"""The FaceSnap pipeline that fits a base model and a task."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..errors import InputError
from .bases import is_xl_components, is_xl_file, is_xl_folder


#: What each task is called in the names of classes and of modules.
TASKS = {"text-to-image": "", "image-to-image": "Img2Img", "inpainting": "Inpaint"}


class AutoFaceSnapPipeline:
    r"""
    Makes the FaceSnap pipeline that fits a base model: of Stable Diffusion 1.x and 2.x, or of XL.

    Example:

    ```py
    from facesnap_diffusers import AutoFaceSnapPipeline

    pipe = AutoFaceSnapPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0")
    inpaint = AutoFaceSnapPipeline.from_pipe(pipe, task="inpainting")
    ```
    """

    def __init__(self) -> None:
        raise TypeError("AutoFaceSnapPipeline is made with from_pretrained(), from_single_file() or from_pipe()")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, task: str = "text-to-image", **kwargs: Any
    ) -> DiffusionPipeline:
        r"""
        Loads a checkpoint in diffusers' format.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): Hub repo or folder.
            task (`str`): `"text-to-image"`, `"image-to-image"` or `"inpainting"`.
            kwargs: As in `DiffusionPipeline.from_pretrained`.

        Raises:
            InputError: The checkpoint is of another kind of model, or there is no such task.
        """
        is_xl = is_xl_folder(pretrained_model_name_or_path, str(pretrained_model_name_or_path), kwargs)
        return _class_of(task, bool(is_xl)).from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_single_file(
        cls, pretrained_model_link_or_path: str | Path, *, task: str = "text-to-image", **kwargs: Any
    ) -> DiffusionPipeline:
        """The same for a checkpoint in a single file, with the arguments of `from_single_file`."""
        is_xl = is_xl_file(pretrained_model_link_or_path)
        return _class_of(task, bool(is_xl)).from_single_file(pretrained_model_link_or_path, **kwargs)

    @classmethod
    def from_pipe(
        cls, pipeline: DiffusionPipeline, *, task: str = "text-to-image", **kwargs: Any
    ) -> DiffusionPipeline:
        """The same from the components of another pipeline, as `FaceSnapPipeline.from_pipe` does it."""
        if not isinstance(pipeline, DiffusionPipeline):
            raise InputError(f"pipeline must be a DiffusionPipeline, got {type(pipeline).__name__}")
        is_xl = is_xl_components(pipeline.components, type(pipeline).__name__, "pipeline")
        return _class_of(task, is_xl).from_pipe(pipeline, **kwargs)


def _class_of(task: str, is_xl: bool) -> Any:
    if not isinstance(task, str) or task not in TASKS:
        raise InputError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    name = f"FaceSnap{'XL' if is_xl else ''}{TASKS[task]}Pipeline"
    module = "_".join(filter(None, ["facesnap", "xl" if is_xl else "", TASKS[task].lower()]))
    return getattr(import_module(f".{module}", __package__), name)
