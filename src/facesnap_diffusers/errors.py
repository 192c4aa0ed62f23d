"""The errors that this package raises on purpose. Each message is one line: what was wrong, then what to do."""

from pathlib import Path
from typing import Any


_MAX_LENGTH = 800


class FaceSnapError(Exception):
    """Base class of every error that this package raises on purpose. Whatever values a message quotes, it is one line."""

    def __init__(self, message: object = ""):
        text = " ".join(str(message).split())
        super().__init__(text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 1]}…")


class InputError(FaceSnapError, ValueError):
    """An argument has a wrong type, shape, range or length."""


class PhotoError(InputError):
    """A photo cannot be read, or is nothing that can be a photo."""


class NoFaceFoundError(InputError):
    """No face was found in a photo."""


class AdapterError(FaceSnapError, ValueError):
    """An adapter cannot be loaded, saved or used as asked; the pipeline is unchanged."""


class FaceEncoderMismatchError(AdapterError):
    """Face embeddings come from another face encoder than the adapter was trained with."""


class MissingDependencyError(FaceSnapError, ImportError):
    """An optional dependency is needed and not installed."""


def check_path(name: str, value: Any) -> None:
    """Raises [`InputError`] unless `value` can name a file or folder."""
    if not isinstance(value, (str, Path)):
        raise InputError(f"{name} must be a str or Path, got {type(value).__name__}")
    try:
        Path(value).exists()
    except (OSError, ValueError) as error:  # too long, a null byte, a folder that must not be looked into
        raise InputError(f"{name} {str(value)[:100]!r} cannot be a path ({one_line(error)}); give another") from None


def check_text(name: str, value: Any) -> None:
    """Raises [`InputError`] unless `value` is a string, or `None`."""
    if value is not None and not isinstance(value, str):
        raise InputError(f"{name} must be a str, got {type(value).__name__}")


def one_line(error: BaseException) -> str:
    """What an error of another library says, in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
