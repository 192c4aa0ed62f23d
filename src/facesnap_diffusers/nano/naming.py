"""The name `nano`, where a setting names a base model or an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


NANO = "nano"

#: What it can name: folders of the nano model.
NanoPart = Literal["base", "adapter"]
NANO_PARTS: tuple[NanoPart, ...] = ("base", "adapter")


def resolve_nano(name: str, part: NanoPart) -> str:
    r"""
    What the name of a base model or an adapter stands for: `"nano"`, unless there is a file or folder of that name, for the
    nano model of this package, whose own classes diffusers can load from then on; any other name for itself.

    Args:
        name (`str`): A folder, a file, a Hub repo, or `"nano"`.
        part (`str`): `"base"` or `"adapter"`: which of the two it names.

    Raises:
        AdapterError: The package comes without the nano model.
    """
    if name != NANO or Path(name).exists():
        return name
    # here: it imports the pipelines, and the autoencoder's class
    from .model import nano_folder

    return str(nano_folder() / part)
