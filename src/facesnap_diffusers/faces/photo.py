"""Reads a photo in any form that callers have it in."""

import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union
from urllib.parse import urlsplit

import numpy as np
import PIL.Image
import PIL.ImageOps

from facesnap_diffusers.errors import PhotoError


if TYPE_CHECKING:
    import torch


MAX_SIDE = 2048  # Detectors look at 640 px and crops are 224 px: more resolution costs time and shows nothing.
MIN_SIDE = 16
URL_TIMEOUT = 20.0  # Seconds to connect and between two chunks; the whole download may take three times as long.
URL_MAX_BYTES = 64 * 1024 * 1024

Photo: TypeAlias = Union[PIL.Image.Image, str, Path, np.ndarray, "torch.Tensor"]


def load_photo(photo: Photo, name: str = "face_image") -> np.ndarray:
    """
    Loads a photo as upright 8-bit RGB.

    Args:
        photo (`PIL.Image.Image`, `str`, `Path`, `np.ndarray` or `torch.Tensor`):
            - an image, or the path or http(s) URL of one in any format that Pillow reads: rotated as its EXIF data say,
              transparency laid over white, the first frame of an animation (of an open image: the current frame),
              16-bit grey levels scaled to 8 bits;
            - an array of shape `(H, W)` or `(H, W, C)`, C = 1, 3 or 4 (RGBA), or with a leading 1: `uint8`, `uint16`
              (0 to 65535) or floating point (0 to 1);
            - a tensor of these types and of these shapes, or of `(C, H, W)`, or with a leading 1, on any device.
        name (`str`, *optional*, defaults to `"face_image"`):
            What errors call the photo.

    Returns:
        `np.ndarray`: `(H, W, 3)`, `uint8`, RGB, a copy. A photo with a side over 2048 px is scaled down to 2048 px.

    Raises:
        `PhotoError`: if it is none of these, cannot be read, or has a side below 16 px.
    """
    if isinstance(photo, (str, Path)):
        image = _from_pil(_open(photo, name), name)
    elif isinstance(photo, PIL.Image.Image):
        image = _from_pil(photo, name)
    elif isinstance(photo, np.ndarray):
        image = _from_array(photo, name)
    elif type(photo).__module__.partition(".")[0] == "torch" and hasattr(photo, "detach"):
        image = _from_array(_channels_last(photo, name), name)
    else:
        raise PhotoError(
            f"{name} is a {type(photo).__name__}; pass one PIL image, path, URL, numpy array or torch tensor."
        )

    if max(image.size) > MAX_SIDE:
        image.thumbnail((MAX_SIDE, MAX_SIDE), PIL.Image.Resampling.LANCZOS)
    if min(image.size) < MIN_SIDE:
        raise PhotoError(
            f"{name} is {image.width}×{image.height} pixels; pass a photo of at least {MIN_SIDE}×{MIN_SIDE}."
        )
    return np.array(image)


def _open(photo: str | Path, name: str) -> PIL.Image.Image:
    if isinstance(photo, str) and photo.lower().startswith(("http://", "https://")):
        file: io.BytesIO | Path = io.BytesIO(_download(photo, name))
        where = f"the address {_short_url(photo)}"
    else:
        file = _existing_file(photo, name)
        where = f"the file {str(photo)!r}"
    try:
        image = PIL.Image.open(file)
        image.draft(None, (MAX_SIDE, MAX_SIDE))  # Lets JPEG decode a huge photo at a fraction of its size.
        image.load()
    except PIL.UnidentifiedImageError as error:
        heic = str(photo).lower().endswith((".heic", ".heif"))
        advice = "install pillow-heif and register its opener" if heic else "pass a JPEG, PNG, WebP or TIFF file"
        raise PhotoError(f"{name}: {where} holds no image that Pillow reads; {advice}.") from error
    except PIL.Image.DecompressionBombError as error:
        raise PhotoError(f"{name}: {where} has too many pixels; scale it down to {MAX_SIDE} px.") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them stumble over.
        raise PhotoError(f"{name}: {where} cannot be decoded ({_one_line(error)}); pass an intact file.") from error
    return image


def _existing_file(photo: str | Path, name: str) -> Path:
    try:
        path = Path(photo).expanduser()
        if not path.is_file():
            what = "is a directory" if path.is_dir() else "does not exist"
            raise PhotoError(f"{name}: {str(photo)[:200]!r} {what}; pass an image file or an http(s) URL.")
        path.open("rb").close()
    except (OSError, ValueError, RuntimeError) as error:  # No permission, a null byte, an unknown home directory.
        if isinstance(error, PhotoError):
            raise
        raise PhotoError(
            f"{name}: {str(photo)[:200]!r} cannot be opened ({_one_line(error)}); pass an image file or an http(s) URL."
        ) from error
    return path


def _download(url: str, name: str) -> bytes:
    import requests

    deadline = time.monotonic() + 3 * URL_TIMEOUT
    content = bytearray()
    try:
        headers = {"User-Agent": "facesnap-diffusers"}
        with requests.get(url, stream=True, timeout=URL_TIMEOUT, headers=headers) as response:
            if response.status_code != 200:
                raise PhotoError(
                    f"{name}: {_short_url(url)} answers HTTP {response.status_code}; pass the address of an image."
                )
            for chunk in response.iter_content(2**16):
                content += chunk
                if len(content) > URL_MAX_BYTES:
                    raise PhotoError(
                        f"{name}: {_short_url(url)} is over {URL_MAX_BYTES // 2**20} MiB; download and scale it first."
                    )
                if time.monotonic() > deadline:
                    raise PhotoError(f"{name}: {_short_url(url)} takes too long; download it first.")
    except requests.RequestException as error:
        raise PhotoError(
            f"{name}: {_short_url(url)} cannot be downloaded ({type(error).__name__}); pass a reachable URL or a file."
        ) from error
    return bytes(content)


def _short_url(url: str) -> str:
    # Without user, password and query: they may hold secrets, and errors end up in logs.
    try:
        parts = urlsplit(url)
        return repr(f"{parts.scheme}://{parts.hostname or ''}{parts.path}"[:200])
    except ValueError:
        return repr(url[:40])


def _from_pil(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    if min(image.size) == 0:
        raise PhotoError(f"{name} is {image.width}×{image.height} pixels: it is empty; pass a photo.")
    try:
        image = PIL.ImageOps.exif_transpose(image)
        if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
            return _from_array(_grey_levels(image, name), name)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return image.convert("RGB")
    except PhotoError:
        raise
    except Exception as error:  # A lazily loaded image meets its damaged file only here.
        raise PhotoError(f"{name} cannot be decoded ({_one_line(error)}); pass an intact image.") from error


def _grey_levels(image: PIL.Image.Image, name: str) -> np.ndarray:
    levels = np.asarray(image)
    if image.mode == "F":
        return levels
    if levels.min() < 0 or levels.max() > 65535:
        raise PhotoError(
            f"{name} has grey levels from {levels.min()} to {levels.max()}; scale them to 0..65535 (16 bits)."
        )
    return levels.astype(np.uint16)


def _channels_last(tensor: "torch.Tensor", name: str) -> np.ndarray:
    try:
        tensor = tensor.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except Exception as error:  # Meta, sparse and quantised tensors, each with its own error.
        raise PhotoError(
            f"{name} is a tensor without readable pixels ({_one_line(error)}); pass a dense one."
        ) from error
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    return array


def _from_array(array: np.ndarray, name: str) -> PIL.Image.Image:
    shape = array.shape
    if array.ndim == 4 and shape[0] == 1:
        array = array[0]
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise PhotoError(
            f"{name} has shape {shape}; pass one image of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)."
        )
    if array.size == 0:
        raise PhotoError(f"{name} has shape {shape}: it is empty; pass a photo.")

    if array.dtype == np.uint16:
        array = (array / 257.0).round().astype(np.uint8)  # 65535 / 257 = 255
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise PhotoError(f"{name} has NaN or infinite values; pass values from 0 to 1.")
        if array.min() < -0.01 or array.max() > 1.01:  # Resampling overshoots a little.
            raise PhotoError(
                f"{name} has floating-point values from {array.min():.4g} to {array.max():.4g}; scale them to 0..1."
            )
        array = (array.clip(0, 1) * 255.0).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        raise PhotoError(f"{name} has dtype {array.dtype}; pass uint8, uint16, or floating point from 0 to 1.")

    if array.shape[-1] == 4:
        return _from_pil(PIL.Image.fromarray(np.ascontiguousarray(array)), name)
    return PIL.Image.fromarray(np.ascontiguousarray(np.broadcast_to(array, array.shape[:2] + (3,))))


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
