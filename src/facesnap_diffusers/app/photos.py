"""Photos between browser and server, as data URLs: never as files."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
import PIL.ImageOps

from ..errors import InputError, PhotoError
from ..faces.photo import PhotoPolicy, load_photo


#: What the app may open: no URLs, no files, and only what a browser scales photos down to before it sends them.
APP_POLICY = PhotoPolicy(
    allow_urls=False,
    allow_local_files=False,
    max_bytes=12 * 2**20,
    max_pixels=20_000_000,
    timeout=10.0,
    formats=("JPEG", "PNG", "WEBP", "GIF"),
)
MAX_PHOTOS = 4  # of one person


@dataclass(frozen=True)
class SentPhotos:
    """What a photo field holds: data URLs of photos, or the name of a sample person."""

    photos: tuple[str, ...] = ()
    sample: str | None = None

    @classmethod
    def of(cls, value: Any) -> SentPhotos:
        """From what the browser sent. Raises [`InputError`] for anything but photos within the limits."""
        if value is None:
            return cls()
        if not isinstance(value, dict) or not isinstance(value.get("photos", []), list):
            raise InputError("the photos did not arrive as expected; load the page again")
        photos, sample = value.get("photos", []), value.get("sample")
        if len(photos) > MAX_PHOTOS:
            raise InputError(f"{len(photos)} photos are too many; choose up to {MAX_PHOTOS} of one person")
        if not all(isinstance(photo, str) and photo.startswith("data:image/") for photo in photos):
            raise PhotoError("a photo did not arrive as an image; choose a JPEG, PNG or WebP file")
        return cls(tuple(photos), sample if isinstance(sample, str) else None)

    @property
    def is_empty(self) -> bool:
        return not self.photos and self.sample is None


def read_picture(value: Any, name: str) -> PIL.Image.Image:
    """A picture (RGB) from a data URL. Raises [`PhotoError`] for anything else."""
    if not isinstance(value, str) or not value.startswith("data:"):
        raise PhotoError(f"{name} did not arrive as an image; choose a JPEG, PNG or WebP file")
    return PIL.Image.fromarray(load_photo(value, name))


def as_data_url(image: PIL.Image.Image, format: str = "PNG", **options: Any) -> str:
    """A picture as a data URL, which a browser shows without a further request."""
    content = io.BytesIO()
    image.save(content, format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def cover(image: PIL.Image.Image, height: int, width: int) -> PIL.Image.Image:
    """A picture scaled and cropped about its middle, so that it fills a size."""
    return PIL.ImageOps.fit(image, (width, height), PIL.Image.Resampling.LANCZOS)


def names_of(count: int, name: str) -> Sequence[str]:
    """What messages call each of some photos."""
    return [name] if count == 1 else [f"{name} {number + 1}" for number in range(count)]
