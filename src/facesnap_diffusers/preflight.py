"""What can be checked before work that takes long: the device, where models are, the folder of the output."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from .errors import AdapterError, FaceSnapError, InputError, check_path, expanded, one_line


def check_device(device: str) -> None:
    """Raises [`InputError`] unless torch can use a device, such as `"cpu"`, `"cuda:1"` or `"mps"`."""
    import torch

    try:
        torch.device(device)
    except RuntimeError:
        raise InputError(
            f"device {device!r} cannot be used here (there is no such kind); choose another, e.g. cpu, cuda or mps"
        ) from None
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device {device!r} cannot be used here ({one_line(error)}); choose another, e.g. cpu"
        ) from None


def check_host(host: str) -> None:
    """Raises [`InputError`] unless a server can listen on an address of this machine, such as `"127.0.0.1"`."""
    import socket

    try:
        if not host.strip():
            raise OSError("it is empty")
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.bind(address)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"--host {host!r} cannot be listened on ({one_line(error)}); name an address of this machine, e.g. 127.0.0.1"
        ) from None


def best_device() -> str:
    """The device that commands use where none is named: a GPU if there is one."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def best_dtype(device: str) -> Literal["float32", "float16"]:
    """The dtype that commands use on a device where none is named: half precision on a GPU."""
    return "float32" if device == "cpu" else "float16"


def quiet_libraries() -> None:
    """Leaves out advice on packages, and the bars of weights that are loaded from disk; those of downloads stay."""
    import warnings

    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    no_downloads_shown = are_progress_bars_disabled()
    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    if not no_downloads_shown:  # transformers switches them off with its own
        enable_progress_bars()
    warnings.filterwarnings("ignore", message="The `local_dir_use_symlinks` argument")  # which diffusers passes


def base_folder(base: str) -> Path:
    """
    Where the `model_index.json` of a base model is, or its single file. Asks the Hub once, where diffusers would try again
    for half a minute. Raises [`InputError`] where neither this disk nor the Hub has such a model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    from .adapter.hub import why_not_from_hub

    check_path("base", base)
    path = Path(expanded(base))
    if path.exists():
        return path
    absent = f"base {base!r}: there is no such folder or file"
    try:
        validate_repo_id(base)
        is_repo = "/" in base and not base.endswith((".safetensors", ".ckpt"))
    except HFValidationError:
        is_repo = False
    if not is_repo:
        raise InputError(f"{absent}; correct the path, or name a Hub repo as owner/name")
    try:
        return Path(snapshot_download(base, allow_patterns="model_index.json"))
    except Exception as error:
        raise InputError(
            f"{absent}, and the Hub gives no repo of this name ({why_not_from_hub(error)}); check the name, and the"
            " connection"
        ) from error


def check_adapter(setting: str, name: str | None) -> None:
    """Raises [`AdapterError`] where neither this disk nor the Hub has an adapter: before the base model is downloaded."""
    from .adapter.hub import resolve_adapter_folder
    from .adapter.public import files_of

    if name is None:
        return
    check_path(setting, name)
    if Path(expanded(name)).exists():
        return
    known = files_of(name)
    try:
        resolve_adapter_folder(known[0].repo if known else name, config_only=True)
    except AdapterError as error:
        raise AdapterError(f"{setting} {str(error).removeprefix('adapter ')}") from error


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


@contextmanager
def without_landmarks_of_ones_own() -> Iterator[None]:
    """Within this context, errors about photos do not advise landmarks of one's own, which commands and the app cannot take."""
    with instead_of(
        " use a sharper one with more pixels in the face, or pass your own landmarks and embedding",
        " or use a sharper one with more pixels in the face",
    ):
        yield


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or one_line(error)


def refuse(reason: str, **options: Any) -> None:
    """Raises [`InputError`] for the first option of a command that is given and has no effect, for this reason."""
    for name, value in options.items():
        if value is not None:
            raise InputError(f"--{name.replace('_', '-')} has no effect: {reason}; leave it out")
