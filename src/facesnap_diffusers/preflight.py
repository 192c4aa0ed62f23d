"""What can be checked before work that takes long: the device, the folder of the output, the format of a picture."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import FaceSnapError, InputError, check_path, one_line


def check_device(device: str) -> None:
    """Raises [`InputError`] unless torch can use a device, such as `"cpu"`, `"cuda:1"` or `"mps"`."""
    import torch

    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device {device!r} cannot be used here ({one_line(error)}); choose another, e.g. cpu"
        ) from None


def make_output_folder(folder: str | Path) -> Path:
    """Makes a folder where there is none. Raises [`InputError`] if it cannot be made or written to."""
    check_path("output", folder)
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output {str(folder)!r} is a file; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise InputError(
            f"output {str(folder)!r} cannot be written to ({_reason(error)}); name another folder"
        ) from None
    return folder


def check_picture_path(path: str | Path) -> None:
    """Raises [`InputError`] unless a picture can be written to `path`: Pillow knows its format, its folder is writable."""
    import PIL.Image

    check_path("output", path)
    path = Path(path)
    formats = PIL.Image.registered_extensions()
    if formats.get(path.suffix.lower()) not in PIL.Image.SAVE:
        raise InputError(f"output {str(path)!r} has no known picture format; end its name with .png or .jpg")
    if path.is_dir():
        raise InputError(f"output {str(path)!r} is a folder; name a file")
    make_output_folder(path.parent)


@contextmanager
def instead_of(python: str, option: str) -> Iterator[None]:
    """Within this context, errors that advise something in Python advise what to do on the command line instead."""
    try:
        yield
    except FaceSnapError as error:
        if python not in str(error):
            raise
        raise type(error)(str(error).replace(python, option)) from error


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or one_line(error)
