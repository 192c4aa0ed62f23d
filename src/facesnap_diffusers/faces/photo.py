"""Reads a photo in any form that callers have it in."""

from __future__ import annotations

import base64
import io
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, Union, cast
from urllib.parse import unquote_to_bytes

import numpy as np
import PIL.Image

from ..errors import InputError, PhotoError, as_integer, as_number, one_line, shown
from .download import download, short_url


if TYPE_CHECKING:
    import torch


MAX_SIDE = 2048  # Detectors look at 640 px and crops are 224 px: more resolution costs time and shows nothing.
MIN_SIDE = 16

_reading = threading.Lock()

Photo: TypeAlias = Union[PIL.Image.Image, str, os.PathLike, bytes, IO[bytes], np.ndarray, "torch.Tensor"]

# How an image is turned upright, by its EXIF orientation (EXIF 2.32, 4.6.4 A).
UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
EXIF_ORIENTATION = 0x0112
BASE64 = re.compile(r"[A-Za-z0-9+/_=\-\r\n]{64,}")


@dataclass(frozen=True)
class PhotoPolicy:
    r"""
    What [`load_photo`] may open, and how much. A server that passes on what strangers send sets its own once, when it
    starts: `set_photo_policy(PhotoPolicy(allow_urls=False, allow_local_files=False))`.

    Args:
        allow_urls (`bool`): Whether a string may be an http(s) URL.
        allow_local_files (`bool`): Whether a string or path may name a file.
        allow_private_addresses (`bool`): Whether a URL may lead to loopback, private and otherwise not public addresses,
            directly, by name or by a redirect.
        timeout (`float`): Seconds that a download may take as a whole.
        max_bytes (`int`): Of a download, file object, `bytes` or base64.
        max_pixels (`int`): Height times width of an image (as it is decoded: JPEG files can be read at a fraction of
            their size), an array or a tensor.
        formats (`tuple[str, ...]`, *optional*): Names of Pillow's formats that an image file may have, such as `"PNG"`;
            by default all, of which some hold pictures in other formats, or are read with other programs.

    Raises:
        InputError: A value has a wrong type or is not positive.
    """

    allow_urls: bool = True
    allow_local_files: bool = True
    allow_private_addresses: bool = False
    timeout: float = 60.0
    max_bytes: int = 64 * 2**20
    max_pixels: int = 100_000_000
    formats: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("allow_urls", "allow_local_files", "allow_private_addresses"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be True or False, got {shown(getattr(self, name))}")
        object.__setattr__(self, "timeout", as_number("timeout", self.timeout, 0.01, 86_400, unit=" of seconds"))
        if self.formats is not None:
            known = {*PIL.Image.registered_extensions().values()}  # which loads all of Pillow's formats
            formats = self.formats if isinstance(self.formats, (tuple, list)) else (self.formats,)
            for format in formats:
                if format not in known:
                    raise InputError(
                        f"formats has {shown(format)}, which Pillow does not have; name e.g. JPEG, PNG, WEBP"
                    )
            object.__setattr__(self, "formats", tuple(formats))
        for name in ("max_bytes", "max_pixels"):
            object.__setattr__(self, name, as_integer(name, getattr(self, name), 1, 2**62))


_policy = PhotoPolicy()


def photo_policy() -> PhotoPolicy:
    """The [`PhotoPolicy`] that holds in this process."""
    return _policy


def set_photo_policy(policy: PhotoPolicy) -> PhotoPolicy:
    """Sets the [`PhotoPolicy`] of this process, for all threads. Returns the one that held before."""
    global _policy
    if not isinstance(policy, PhotoPolicy):
        raise InputError(f"policy must be a PhotoPolicy, got {shown(policy)}")
    before, _policy = _policy, policy
    return before


def load_photo(photo: Photo, name: str = "face_image") -> np.ndarray:
    """
    Loads a photo as upright 8-bit RGB, within the limits of [`photo_policy`].

    Args:
        photo ([`Photo`]):
            - an image in any format that Pillow reads, as a `PIL.Image.Image`, a path (`~` is the home directory), an
              http(s) URL, a data URL, base64, `bytes` or a binary file object (from its start, where it can seek):
              rotated as its EXIF data say, transparency laid over white, the first frame of an animation (of a PIL image:
              the current frame), 16-bit gray levels scaled to 8 bits;
            - an array of shape `(H, W)` or `(H, W, C)`, C = 1, 3 or 4 (RGBA), or with a leading 1: `uint8`, `uint16`
              (0 to 65535) or floating point (0 to 1);
            - a tensor of these types and of these shapes, or of `(C, H, W)`, or with a leading 1, on any device.
        name (`str`, *optional*, defaults to `"face_image"`):
            What errors call the photo.

    Returns:
        `np.ndarray`: `(H, W, 3)`, `uint8`, RGB, a copy. A photo with a side over 2048 px is scaled down to 2048 px.

    Raises:
        PhotoError: It is none of these, cannot be read, is not allowed, or has a side below 16 px.
    """
    return load_scaled_photo(photo, name)[0]


def load_scaled_photo(photo: Photo, name: str = "face_image") -> tuple[np.ndarray, float]:
    """As [`load_photo`], and by how much the photo was scaled down: a number up to 1, for both sides."""
    policy = photo_policy()
    if isinstance(photo, PIL.Image.Image):
        side, image = max(photo.size), _from_pil(photo, policy, name)
    elif isinstance(photo, np.ndarray):
        side, image = _longer_side(photo), _from_array(photo, policy, name)
    elif type(photo).__module__.partition(".")[0] == "torch" and hasattr(photo, "detach"):
        array = _channels_last(cast("torch.Tensor", photo), policy, name)
        side, image = _longer_side(array), _from_array(array, policy, name)
    else:
        opened, side = _open(photo, policy, name)
        image = _from_pil(opened, policy, name)
    if min(image.size) < MIN_SIDE:
        raise PhotoError(
            f"{name} is {image.width}×{image.height} pixels; pass a photo of at least {MIN_SIDE}×{MIN_SIDE}"
        )
    return np.array(image), max(image.size) / side


def _longer_side(array: np.ndarray) -> int:
    return max(array.shape if array.ndim == 2 else array.shape[-3:-1], default=1)


def _open(photo: Any, policy: PhotoPolicy, name: str) -> tuple[PIL.Image.Image, int]:
    """The image, which may be decoded smaller than it is, and its longer side as it is."""
    file, where = _encoded(photo, policy, name)
    try:
        image = PIL.Image.open(file, formats=policy.formats)
        side = max(image.size)
        image.draft(None, (MAX_SIDE, MAX_SIDE))  # Lets JPEG decode a huge photo at a fraction of its size.
        _check_pixels(*image.size, policy, f"{name}: {where}")
        image.load()
    except PhotoError:
        raise
    except PIL.UnidentifiedImageError as error:
        heic = isinstance(photo, (str, os.PathLike)) and str(photo).lower().endswith((".heic", ".heif"))
        advice = "install pillow-heif and register its opener" if heic else "pass a JPEG, PNG, WebP or TIFF file"
        raise PhotoError(f"{name}: {where} holds no image that Pillow reads; {advice}") from error
    except PIL.Image.DecompressionBombError as error:
        raise PhotoError(f"{name}: {where} has too many pixels; scale it down to {MAX_SIDE} px") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them stumble over.
        raise PhotoError(f"{name}: {where} cannot be decoded ({one_line(error)}); pass an intact image") from error
    return image, side


def _encoded(photo: Any, policy: PhotoPolicy, name: str) -> tuple[IO[bytes] | Path, str]:
    """The file that holds the image, and what errors call it."""
    if isinstance(photo, (bytes, bytearray, memoryview)):
        content = bytes(photo)
        return _in_memory(content, policy, name), f"an object of {len(content)} bytes"
    if isinstance(photo, os.PathLike):
        return _existing_file(photo, policy, name), f"the file {_end(photo)}"
    if hasattr(photo, "read"):
        return _in_memory(_read(photo, policy, name), policy, name), f"the {type(photo).__name__}"
    if not isinstance(photo, str):
        raise PhotoError(
            f"{name} is a {type(photo).__name__}; pass one PIL image, path, URL, bytes, file object, numpy array or"
            " torch tensor"
        )
    scheme = photo[:8].lower()
    if scheme.startswith(("http://", "https://")):
        if not policy.allow_urls:
            raise PhotoError(f"{name} is a URL, which this process does not allow; pass the image itself")
        content = download(photo, name, policy.timeout, policy.max_bytes, policy.allow_private_addresses)
        return io.BytesIO(content), f"the address {short_url(photo)}"
    if scheme.startswith("data:"):
        return _in_memory(_from_data_url(photo, name), policy, name), "the data URL"
    if BASE64.fullmatch(photo) and not _is_file(photo, policy):
        return _in_memory(_from_base64(photo, name), policy, name), f"the base64 text of {len(photo)} characters"
    return _existing_file(photo, policy, name), f"the file {_end(photo)}"


def _existing_file(photo: str | os.PathLike, policy: PhotoPolicy, name: str) -> Path:
    if not policy.allow_local_files:
        raise PhotoError(f"{name} is a path, which this process does not allow; pass the image itself")
    if not str(photo):
        raise PhotoError(f"{name} is empty; pass an image file or an http(s) URL")
    text = _end(photo)
    try:
        path = Path(photo).expanduser()
        text = _end(path)
        if not path.is_file():
            what = "is a directory" if path.is_dir() else "does not exist"
            raise PhotoError(f"{name}: {text} {what}; pass an image file or an http(s) URL")
        path.open("rb").close()
    except PhotoError:
        raise
    except Exception as error:  # No permission, a null byte, an overlong name, an unknown home directory.
        raise PhotoError(
            f"{name}: {text} cannot be opened ({type(error).__name__}); pass an image file or an http(s) URL"
        ) from error
    return path


def _end(photo: str | os.PathLike) -> str:
    """A path for messages: its last 100 characters."""
    text = str(photo)
    return repr(text if len(text) <= 100 else f"…{text[-99:]}")


def _is_file(photo: str, policy: PhotoPolicy) -> bool:
    try:
        return policy.allow_local_files and Path(photo).is_file()
    except (OSError, ValueError):  # too long for a name
        return False


def _read(file: Any, policy: PhotoPolicy, name: str) -> bytes:
    try:
        if getattr(file, "seekable", lambda: False)():
            file.seek(0)
        content = file.read(policy.max_bytes + 1)
    except Exception as error:  # a closed file, or any class with a `read`
        raise PhotoError(
            f"{name}: the {type(file).__name__} cannot be read ({one_line(error)}); pass an open binary file"
        ) from error
    if not isinstance(content, bytes):
        if hasattr(content, "close"):
            content.close()  # a coroutine, which would warn that nobody awaits it
        raise PhotoError(
            f"{name}: the {type(file).__name__} gives {type(content).__name__} and not bytes; open the file in binary mode"
        )
    return content


def _from_data_url(url: str, name: str) -> bytes:
    header, comma, data = url.partition(",")
    if not comma:
        raise PhotoError(f"{name}: the data URL has no comma before its data; pass data:image/png;base64,…")
    if header.lower().rstrip().endswith(";base64"):
        return _from_base64(unquote_to_bytes(data).decode("ascii", "replace"), name)
    return unquote_to_bytes(data)


def _from_base64(text: str, name: str) -> bytes:
    compact = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except ValueError as error:  # binascii.Error is one
        raise PhotoError(
            f"{name}: the base64 text of {len(text)} characters is damaged; encode the file again"
        ) from error


def _in_memory(content: bytes, policy: PhotoPolicy, name: str) -> io.BytesIO:
    if len(content) > policy.max_bytes:
        raise PhotoError(f"{name} is over {policy.max_bytes / 2**20:g} MiB; scale the photo down to {MAX_SIDE} px")
    return io.BytesIO(content)


def _check_pixels(width: int, height: int, policy: PhotoPolicy, what: str) -> None:
    if width * height > policy.max_pixels:
        raise PhotoError(
            f"{what} has too many pixels: {width}×{height}, over {policy.max_pixels}; scale it down to {MAX_SIDE} px"
        )


def read_pixels(image: PIL.Image.Image) -> PIL.Image.Image:
    """
    The same image, whose pixels and EXIF data are in memory from then on. Pillow reads them from an opened file when they
    are first needed, which fails where several threads need them at once.
    """
    with _reading:
        image.load()
        image.getexif()
    return image


def _from_pil(image: PIL.Image.Image, policy: PhotoPolicy, name: str) -> PIL.Image.Image:
    if min(image.size) == 0:
        raise PhotoError(f"{name} is {image.width}×{image.height} pixels: it is empty; pass a photo")
    _check_pixels(*image.size, policy, name)
    try:
        orientation = read_pixels(image).getexif().get(EXIF_ORIENTATION)
        turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
        if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
            image = _from_array(_gray_levels(image, name), policy, name)
        else:
            mode = "RGBA" if image.has_transparency_data else "RGB"
            if image.mode in ("1", "P", "PA"):  # These are scaled by leaving out pixels.
                image = image.convert(mode)
            image = _scaled_down(image)
            if mode == "RGBA":
                white = PIL.Image.new("RGBA", image.size, "white")
                image = PIL.Image.alpha_composite(white, image.convert("RGBA"))
            image = image.convert("RGB")
        return image if turn is None else image.transpose(turn)
    except PhotoError:
        raise
    except Exception as error:  # A lazily loaded image meets its damaged file only here.
        raise PhotoError(f"{name} cannot be decoded ({one_line(error)}); pass an intact image") from error


def _scaled_down(image: PIL.Image.Image) -> PIL.Image.Image:
    scale = MAX_SIDE / max(image.size)
    if scale >= 1:
        return image
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, PIL.Image.Resampling.LANCZOS, reducing_gap=2.0)


def _gray_levels(image: PIL.Image.Image, name: str) -> np.ndarray:
    levels = np.asarray(image)
    if image.mode == "F":
        return levels
    if levels.min() < 0 or levels.max() > 65535:
        raise PhotoError(
            f"{name} has gray levels from {levels.min()} to {levels.max()}; scale them to 0..65535 (16 bits)"
        )
    return levels.astype(np.uint16)


def _channels_last(tensor: torch.Tensor, policy: PhotoPolicy, name: str) -> np.ndarray:
    try:
        if tensor.numel() > 4 * policy.max_pixels:  # of up to 4 channels
            raise PhotoError(f"{name} has too many pixels: {tuple(tensor.shape)}; scale it down to {MAX_SIDE} px")
        tensor = tensor.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except PhotoError:
        raise
    except Exception as error:  # Meta, sparse and quantized tensors, each with its own error.
        raise PhotoError(
            f"{name} is a tensor without readable pixels ({one_line(error)}); pass a dense one"
        ) from error
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    return array


def _from_array(array: np.ndarray, policy: PhotoPolicy, name: str) -> PIL.Image.Image:
    shape = array.shape
    if array.ndim == 4 and shape[0] == 1:
        array = array[0]
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise PhotoError(
            f"{name} has shape {shape}; pass one image of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        )
    if array.size == 0:
        raise PhotoError(f"{name} has shape {shape}: it is empty; pass a photo")
    _check_pixels(array.shape[1], array.shape[0], policy, name)

    if array.dtype == np.uint16:
        array = (array / np.float32(257)).round().astype(np.uint8)  # 65535 / 257 = 255
    elif np.issubdtype(array.dtype, np.floating):
        low, high = array.min(), array.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise PhotoError(f"{name} has NaN or infinite values; pass values from 0 to 1")
        if low < -0.01 or high > 1.01:  # Resampling overshoots a little.
            raise PhotoError(f"{name} has floating-point values from {low:.4g} to {high:.4g}; scale them to 0..1")
        levels = array.astype(np.float32)
        levels = np.multiply(levels.clip(0, 1, out=levels), 255, out=levels)
        array = np.rint(levels, out=levels).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise PhotoError(f"{name} has dtype {array.dtype}; pass uint8, uint16, or floating point from 0 to 1")

    if array.shape[-1] == 1:
        array = array[..., 0]
    return _from_pil(PIL.Image.fromarray(np.ascontiguousarray(array)), policy, name)
