"""What pipelines with a picture add: its size, the face in it that steers by default, and inpainting by a mask."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from diffusers.image_processor import VaeImageProcessor

from ..base_models import is_sdxl
from ..conditioner import FaceConditioner
from ..errors import InputError, MissingDependencyError, one_line
from ..faces.detection import analyze_padded
from ..faces.face import Face
from ..faces.photo import load_photo
from ..steering import Steering


if TYPE_CHECKING:
    from .mixin import FaceSnapMixin as _Mixin
else:
    _Mixin = object


class PictureMixin(_Mixin):
    """For pipelines that begin with a picture: the face in it says where the new face goes."""

    _takes_picture = True

    #: The pictures without which a call cannot begin.
    _pictures: tuple[str, ...] = ("image",)

    def _open_pictures(self, kwargs: dict[str, Any]) -> None:
        for name in self._pictures:
            if kwargs.get(name) is None:
                raise InputError(
                    f"{type(self).__name__} needs {name}=; pass a PIL image, array, tensor, path, URL or bytes"
                )
            kwargs[name] = open_pictures(kwargs[name], name)

    def _default_steering(
        self, conditioner: FaceConditioner, steering: Steering, image: Any, mask_image: Any, height: int, width: int
    ) -> Steering:
        """Steering that follows the picture where the caller says nothing else: its face, else the box of the mask."""
        if steering.pose_image is not None or image is None:
            return steering
        mask = None if mask_image is None else mask_array(mask_image, height, width)
        faces = [face_in_picture(picture, mask, conditioner) for picture in picture_arrays(image, height, width)]
        if faces and None not in faces:
            return replace(steering, pose_image=faces)
        if steering.face_box is None and mask is not None and mask.any() and not mask.all():
            return replace(steering, face_box=mask_box(mask))
        return steering


class InpaintMixin(PictureMixin):
    r"""
    For inpainting: further control images and landmarks follow `padding_mask_crop`, and UNets whose latents do not have 4
    channels keep what the mask leaves out.
    """

    _pictures = ("image", "mask_image")

    #: Of a call on a UNet to which the stock loop does not apply the mask: what it applies it with.
    _blend: _Blend | None = None

    @property
    def _mask_is_ours(self) -> bool:
        """Whether the stock loop leaves the mask out: it does so unless the UNet has 4 or, for the mask, 9 channels."""
        channels = self.unet.config.in_channels
        if channels in (4, 9):
            return False
        if is_sdxl(self.unet) or channels != self.vae.config.latent_channels:
            raise InputError(
                f"inpainting takes UNets of 4 or 9 channels, this one has {channels}; use another base model"
            )
        return True

    def _crop_to_mask(self, kwargs: dict[str, Any], height: int, width: int) -> Crop | None:
        """
        Cuts picture, mask and control images to the surroundings of the mask, as the stock pipelines do with
        `padding_mask_crop`; they do so only where the control image is a single PIL image.
        """
        padding = kwargs.pop("padding_mask_crop", None)
        if padding is None:
            return None
        if isinstance(padding, bool) or not isinstance(padding, (int, np.integer)) or padding < 0:
            raise InputError(f"padding_mask_crop must be a number of pixels ≥ 0, got {padding!r}")
        image, mask = kwargs.get("image"), kwargs.get("mask_image")
        if not isinstance(image, PIL.Image.Image) or not isinstance(mask, PIL.Image.Image) or image.size != mask.size:
            raise InputError("padding_mask_crop needs image= and mask_image= as PIL images of one size")
        if kwargs.get("output_type", "pil") != "pil":
            raise InputError('padding_mask_crop gives PIL images: leave out output_type, or pass "pil"')
        if not np.asarray(mask.convert("L")).any():
            raise InputError("padding_mask_crop needs a mask_image with something white in it")
        box = self.mask_processor.get_crop_region(mask, width, height, pad=int(padding))
        crop = Crop(box, height, width, image, mask)
        kwargs["image"] = crop.cut(image.convert("RGB"), self.image_processor)
        kwargs["mask_image"] = crop.cut(mask.convert("L"), self.mask_processor)
        name = self._control_image_argument
        if kwargs.get(name) is not None:
            kwargs[name] = _map_pictures(kwargs[name], lambda item: crop.cut(item, self.control_image_processor), name)
        return crop

    def _check_latents_of_picture(self, kwargs: dict[str, Any], is_plain: bool) -> None:
        if kwargs.get("latents") is not None:
            self._image_size(dict(kwargs))
        if kwargs.get("masked_image_latents") is not None or (is_plain and is_sdxl(self.unet)):
            return
        if is_latent(kwargs["image"], self.vae.config.latent_channels):
            raise InputError("image= are latents, in which inpainting cannot mask anything; pass a picture")

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        """As in the stock pipeline."""
        if self._blend is None:
            return super().prepare_latents(*args, **kwargs)
        latents, noise, image_latents, *_ = super().prepare_latents(*args, **{**kwargs, "return_image_latents": True})
        self._blend.noise, self._blend.image_latents = noise, image_latents
        return latents, noise

    def prepare_mask_latents(self, *args: Any, **kwargs: Any) -> Any:
        """As in the stock pipeline."""
        mask, masked_image_latents = super().prepare_mask_latents(*args, **kwargs)
        if self._blend is not None:
            # under classifier-free guidance it is there twice
            self._blend.mask = mask[: len(self._blend.image_latents)]
        return mask, masked_image_latents

    def _blend_by_mask(self, kwargs: dict[str, Any]) -> None:
        """Has the mask applied after each step of this copy's call, before the caller's own callback."""
        self._blend = _Blend(self.scheduler, kwargs["callback_on_step_end"])
        names = kwargs["callback_on_step_end_tensor_inputs"]
        kwargs["callback_on_step_end"] = self._blend
        kwargs["callback_on_step_end_tensor_inputs"] = list(dict.fromkeys(["latents", *names]))


class _Blend:
    """Keeps the latents of a picture where the mask is black: what the stock loops do on UNets of 4 channels."""

    noise: torch.Tensor
    image_latents: torch.Tensor
    mask: torch.Tensor

    def __init__(self, scheduler: Any, callback: Callable[..., Any]):
        self.scheduler = scheduler
        self.callback = callback

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        kept = self.image_latents
        timesteps = self.scheduler.timesteps[-pipeline.num_timesteps :]
        if step < len(timesteps) - 1:
            kept = self.scheduler.add_noise(kept, self.noise, timesteps[step + 1].reshape(1))
        tensors["latents"] = (1 - self.mask) * kept + self.mask * tensors["latents"]
        return {"latents": tensors["latents"], **self.callback(pipeline, step, timestep, tensors)}


@dataclass(frozen=True)
class Crop:
    r"""
    The surroundings of a mask, enlarged to the size of the image that is made.

    Attributes:
        box (`tuple` of 4 `int`): Left, top, right, bottom in pixels of the picture.
        height (`int`), width (`int`): Size of the image that is made.
        image, mask (`PIL.Image.Image`): The whole picture and mask.
    """

    box: tuple[int, int, int, int]
    height: int
    width: int
    image: PIL.Image.Image
    mask: PIL.Image.Image

    def cut(self, picture: PIL.Image.Image, processor: VaeImageProcessor) -> PIL.Image.Image:
        """A PIL image of the whole picture's size, cut and enlarged; others cannot be."""
        if not isinstance(picture, PIL.Image.Image):
            raise InputError(f"padding_mask_crop needs PIL images, got {type(picture).__name__}")
        if picture.size != self.image.size:
            picture = picture.resize(self.image.size, PIL.Image.Resampling.LANCZOS)
        return processor.resize(picture.crop(self.box), self.height, self.width, resize_mode="fill")

    def move(self, landmarks: torch.Tensor) -> torch.Tensor:
        """Landmarks `(batch, points, 2)` in pixels of the whole picture, as they lie after [`cut`]."""
        left, top, right, bottom = self.box
        box_width, box_height = right - left, bottom - top
        scale = min(self.width / box_width, self.height / box_height)
        # the processor centers what does not fill the image, on whole pixels
        inner_width, inner_height = int(box_width * scale), int(box_height * scale)
        offset = [self.width // 2 - inner_width // 2, self.height // 2 - inner_height // 2]
        return (landmarks - landmarks.new_tensor([left, top])) * scale + landmarks.new_tensor(offset)

    def put_back(self, images: list[PIL.Image.Image], processor: VaeImageProcessor) -> list[PIL.Image.Image]:
        """The whole picture with what was made in the place of what the mask covers."""
        return [processor.apply_overlay(self.mask, self.image, image, self.box) for image in images]


def open_pictures(pictures: Any, name: str, any_channels: bool = False) -> Any:
    """
    Paths, URLs, bytes and file objects among pictures opened as PIL images, 8-bit arrays and tensors scaled to [0, 1] as the
    stock pipelines take them; all else as it is. A picture to begin with must have the channels of RGB.
    """
    if isinstance(pictures, (str, Path, bytes, bytearray, memoryview)) or hasattr(pictures, "read"):
        return PIL.Image.fromarray(load_photo(pictures, name))
    if isinstance(pictures, (list, tuple)):
        if not pictures:
            raise InputError(f"{name} is an empty list; give at least one picture")
        return [open_pictures(item, name, any_channels) for item in pictures]
    if not isinstance(pictures, (PIL.Image.Image, np.ndarray, torch.Tensor)):
        raise InputError(
            f"{name} must be a PIL image, array, tensor, path, URL or bytes, got {type(pictures).__name__}"
        )
    if not isinstance(pictures, PIL.Image.Image) and (pictures.ndim not in (2, 3, 4) or 0 in pictures.shape):
        raise InputError(
            f"{name} has shape {tuple(pictures.shape)}; pass tensors ([batch,] channels, height, width) or arrays"
            " ([batch,] height, width, channels)"
        )
    if isinstance(pictures, PIL.Image.Image):
        # a fourth channel would be taken for latents, and gray has too few
        return pictures if pictures.mode == "RGB" or name == "mask_image" else _as_rgb(pictures, name)
    channels = (
        pictures.shape[-1] if isinstance(pictures, np.ndarray) else pictures.shape[-3] if pictures.ndim > 2 else 1
    )
    if (
        name == "image"
        and not any_channels
        and (pictures.ndim == 2 or channels < 3 or (channels != 3 and isinstance(pictures, np.ndarray)))
    ):
        raise InputError(f"{name} has shape {tuple(pictures.shape)}; pass three channels, as RGB has")
    if isinstance(pictures, torch.Tensor) and (pictures.layout != torch.strided or pictures.device.type == "meta"):
        raise InputError(f"{name} is a tensor without readable values; pass a dense one")
    if str(pictures.dtype).removeprefix("torch.") not in _PICTURE_DTYPES:
        raise InputError(f"{name} has dtype {pictures.dtype}; pass floating point from 0 to 1")
    is_finite = np.isfinite(pictures) if isinstance(pictures, np.ndarray) else torch.isfinite(pictures)
    if not is_finite.all():
        raise InputError(f"{name} has values that are not finite; pass values from 0 to 1")
    if name == "mask_image" or str(pictures.dtype).removeprefix("torch.") != "uint8":
        return pictures
    return pictures.astype(np.float32) / 255 if isinstance(pictures, np.ndarray) else pictures.float() / 255


def _as_rgb(picture: PIL.Image.Image, name: str) -> PIL.Image.Image:
    try:
        return picture.convert("RGB")
    except (ValueError, OSError) as error:
        raise InputError(
            f"{name} is a picture of mode {picture.mode} ({one_line(error)}); convert it to RGB"
        ) from None


_PICTURE_DTYPES = ("float16", "bfloat16", "float32", "float64", "uint8")


def picture_size(picture: Any, latent_channels: int, vae_scale_factor: int) -> tuple[int, int]:
    """Height and width, in pixels, of a picture in any form that stock pipelines take; latents count as what they decode to."""
    while isinstance(picture, (list, tuple)):
        picture = picture[0]
    if isinstance(picture, PIL.Image.Image):
        return picture.height, picture.width
    if isinstance(picture, torch.Tensor):
        height, width = picture.shape[-2:]
        scale = vae_scale_factor if is_latent(picture, latent_channels) else 1
        return height * scale, width * scale
    return picture.shape[1:3] if picture.ndim == 4 else picture.shape[:2]


def is_latent(picture: Any, latent_channels: int) -> bool:
    """Whether a picture, or the first of several, is the latents of one."""
    while isinstance(picture, (list, tuple)):
        picture = picture[0]
    is_tensor = isinstance(picture, torch.Tensor) and picture.ndim >= 3
    return is_tensor and picture.shape[-3] == latent_channels and latent_channels not in (1, 3)


def as_size(name: str, value: Any, multiple: int) -> int:
    """A side in pixels; raises [`InputError`] unless it is a whole positive multiple."""
    wanted = f"{name} must be a positive {'number of pixels' if multiple == 1 else f'multiple of {multiple}'}"
    try:
        if isinstance(value, bool):
            raise TypeError
        size = operator.index(value)
    except TypeError:
        raise InputError(f"{wanted}, got {value!r}") from None
    if size <= 0 or size % multiple:
        raise InputError(f"{wanted}, got {value!r}")
    if size > _MAX_SIDE:
        raise InputError(f"{name} must be at most {_MAX_SIDE} pixels, got {value!r}")
    return size


_MAX_SIDE = 32_768


def picture_arrays(pictures: Any, height: int, width: int) -> list[np.ndarray]:
    """Pictures scaled as the stock pipelines do, each `(height, width, 3)`, uint8; none for latents."""
    pixels = _preprocess(VaeImageProcessor(vae_scale_factor=1), pictures, height, width, "image")  # in [-1, 1]
    if pixels.shape[1] not in (1, 3):
        return []
    pixels = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    return [np.ascontiguousarray(picture.expand(-1, -1, 3).cpu().numpy()) for picture in pixels]


def mask_array(mask: Any, height: int, width: int) -> np.ndarray:
    """Where a mask, the first of several, is white: `(height, width)`, bool."""
    processor = VaeImageProcessor(vae_scale_factor=1, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    white = _preprocess(processor, mask, height, width, "mask_image")
    return (white[0].amax(0) > 0.5).cpu().numpy()


def _preprocess(processor: VaeImageProcessor, pictures: Any, height: int, width: int, name: str) -> torch.Tensor:
    try:
        return processor.preprocess(pictures, height=height, width=width)
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        raise InputError(
            f"{name} could not be read ({one_line(error)}); pass PIL images, arrays or tensors of one size"
        ) from None


def mask_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The box around what is white of a mask: left, top, right, bottom as shares of the image."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height


def face_in_picture(picture: np.ndarray, mask: np.ndarray | None, conditioner: FaceConditioner) -> Face | None:
    """
    The face of a picture that is to be drawn anew: of those that the mask touches, the one whose center is nearest to the
    mask's; without a mask the largest. `None` where there is none, or nothing that finds faces is installed.
    """
    try:
        analyzer = (conditioner.of_ffrnet or conditioner).analyzer
        faces = analyzer.analyze(picture) or analyze_padded(picture, analyzer)
    except MissingDependencyError:
        return None
    if mask is None or mask.all() or not mask.any():
        return max(faces, key=lambda face: face.area, default=None)
    left, top, right, bottom = mask_box(mask) * np.tile(mask.shape[::-1], 2)
    center = np.array([left + right, top + bottom]) / 2
    touched = [face for face in faces if _touches(face, mask)]
    return min(touched, key=lambda face: np.linalg.norm((face.box[:2] + face.box[2:]) / 2 - center), default=None)


def _touches(face: Face, mask: np.ndarray) -> bool:
    left, top, right, bottom = np.round(face.box).astype(int).clip(0)
    return bool(mask[top:bottom, left:right].any())


def _map_pictures(pictures: Any, cut: Callable[[Any], Any], name: str) -> Any:
    if isinstance(pictures, (list, tuple)):
        return [_map_pictures(item, cut, name) for item in pictures]
    return cut(open_pictures(pictures, name))
