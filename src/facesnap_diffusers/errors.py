"""The errors that this package raises on purpose. Each message is one line: what was wrong, then what to do."""

import difflib
import math
import operator
from collections.abc import Iterable
from pathlib import Path
from typing import Any


_MAX_LENGTH = 800


class FaceSnapError(Exception):
    """
    Base class of every error that this package raises on purpose. Whatever values a message quotes, it is one line. `key`
    names the setting that is wrong (`"optimizer.learning_rate"`), and is empty where there is none.
    """

    def __init__(self, message: object = "", *, key: str = ""):
        text = " ".join(str(message).split())
        super().__init__(text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 1]}…")
        self.key = key


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


class TrainingError(FaceSnapError, RuntimeError):
    """Training cannot go on: its weights diverge, or a checkpoint cannot be written."""


class MissingDependencyError(FaceSnapError, ImportError):
    """An optional dependency is needed and not installed."""


def check_path(name: str, value: Any) -> None:
    """Raises [`InputError`] unless `value` can name a file or folder."""
    if not isinstance(value, (str, Path)):
        raise InputError(f"{name} must be a str or Path, got {type(value).__name__}")
    if not str(value):
        raise InputError(f"{name} is empty; name a file or folder")
    try:
        Path(value).exists()
    except (OSError, ValueError) as error:  # too long, a null byte, a folder that must not be looked into
        raise InputError(f"{name} {str(value)[:100]!r} cannot be a path ({one_line(error)}); give another") from None


def expanded(value: str | Path) -> str | Path:
    """A path with a leading `~` as the home folder; any other, and the name of a Hub repo, as it is."""
    return Path(value).expanduser() if str(value).startswith(("~/", "~\\")) else value


def check_text(name: str, value: Any) -> None:
    """Raises [`InputError`] unless `value` is a string, or `None`."""
    if value is not None and not isinstance(value, str):
        raise InputError(f"{name} must be a str, got {type(value).__name__}")


def as_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, unit: str = "") -> float:
    """
    `value` as a finite float from `low` to `high`. Raises [`InputError`] for anything else: booleans and strings, what
    cannot be converted, NaN, infinity, integers too large for a float.
    """
    if not isinstance(value, (bool, str, bytes)):
        try:
            number = float(value)
        except Exception:  # `__float__` of another library's class may raise anything
            number = math.nan
        if math.isfinite(number) and low <= number <= high:
            return number
    limits = f" from {low:g} to {high:g}" if math.isfinite(low) and math.isfinite(high) else ""
    if not limits and math.isfinite(low):
        limits = f" of at least {low:g}"
    raise InputError(f"{name} must be a finite number{unit}{limits}, got {shown(value)}")


def as_integer(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an integer from `low` to `high`. Raises [`InputError`] for anything else, booleans too."""
    if not isinstance(value, bool):
        try:
            integer = operator.index(value)
        except Exception:  # as in as_number
            integer = low - 1
        if low <= integer <= high:
            return integer
    raise InputError(f"{name} must be an integer from {low} to {high}, got {shown(value)}")


def shown(value: Any) -> str:
    """What a message shows of a value: its `repr` in one line of at most 60 characters. Raises nothing."""
    try:
        text = repr(value[:61] if isinstance(value, (str, bytes)) else value)
    except Exception:  # integers of over 4,300 digits, classes with a faulty `__repr__`
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:59]}…"


def suggestion(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: what was probably meant, or nothing."""
    close = difflib.get_close_matches(name[:100], known, n=3) if isinstance(name, str) else []
    return f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""


def one_line(error: BaseException) -> str:
    """What an error of another library says, in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
