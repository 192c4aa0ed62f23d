"""The FaceSnap pipeline that fits a base model and a task."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..adapter.config import CONFIG_NAME, FaceSnapConfig
from ..adapter.hub import resolve_adapter_folder
from ..errors import AdapterError, InputError, shown, suggestion
from .bases import HUB_ARGUMENTS, is_xl_components, is_xl_file, is_xl_folder


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
        Loads a checkpoint in diffusers' format; or a FaceSnap adapter together with the base model that its config names.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): Hub repo or folder of a base model or of an adapter.
            task (`str`): `"text-to-image"`, `"image-to-image"` or `"inpainting"`.
            kwargs: As in `DiffusionPipeline.from_pretrained`. With an adapter `revision` is that of the adapter; all else
                is for both.

        Raises:
            InputError: The checkpoint is of another kind of model, there is no such task, or the adapter does not name its
                base model.
            AdapterError: The adapter could not be loaded.
        """
        is_xl = is_xl_folder(pretrained_model_name_or_path, str(pretrained_model_name_or_path), kwargs)
        if is_xl is None:
            adapter = _adapter_config(pretrained_model_name_or_path, kwargs)
            if adapter is not None:
                return cls._with_adapter(pretrained_model_name_or_path, adapter, task, kwargs)
        return _class_of(task, bool(is_xl)).from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def _with_adapter(
        cls, name: str | Path, adapter: FaceSnapConfig, task: str, kwargs: dict[str, Any]
    ) -> DiffusionPipeline:
        if adapter.base_model is None:
            raise InputError(
                f"{name} is an adapter for base models of family {adapter.base_family} that does not say which one; load a"
                f" base model, and then pipe.load_facesnap_adapter({str(name)!r})"
            )
        rest = {key: value for key, value in kwargs.items() if key != "revision"}
        pipe: Any = cls.from_pretrained(adapter.base_model, task=task, **rest)
        pipe.load_facesnap_adapter(name, **_adapter_arguments(kwargs))
        return pipe

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


def _adapter_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Of the arguments of `from_pretrained`, those that say how an adapter's repo is reached."""
    return {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs and name != "proxies"}


def _adapter_config(name: str | Path, kwargs: dict[str, Any]) -> FaceSnapConfig | None:
    """The config of a FaceSnap adapter on disk or on the Hub; `None` for all else."""
    try:
        folder = resolve_adapter_folder(str(name), config_only=True, **_adapter_arguments(kwargs))
    except AdapterError:
        return None
    return FaceSnapConfig.load(folder) if (folder / CONFIG_NAME).is_file() else None


def _class_of(task: str, is_xl: bool) -> Any:
    if not isinstance(task, str) or task not in TASKS:
        raise InputError(f"task must be one of {', '.join(TASKS)}, got {shown(task)}{suggestion(task, TASKS)}")
    name = f"FaceSnap{'XL' if is_xl else ''}{TASKS[task]}Pipeline"
    module = "_".join(filter(None, ["facesnap", "xl" if is_xl else "", TASKS[task].lower()]))
    return getattr(import_module(f".{module}", __package__), name)
