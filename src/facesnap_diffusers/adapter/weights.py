"""What the weights of a part must be before and after it is built from its folder."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..errors import AdapterError, one_line


# more than any part has, and far from what takes memory or time to count up to
_MAX_NUMBER = 1_000_000
_MAX_LAYERS = 512
_SIGNS = 256  # of each tensor
_LAYER_WORDS = ("layer", "depth", "block")


def read_json(path: Path) -> dict[str, Any]:
    """The names and values of a JSON file; raises [`AdapterError`] where it holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"there is no file {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path.name} could not be read ({one_line(error)})") from None
    if not isinstance(values, dict):
        raise AdapterError(f"{path.name} holds {type(values).__name__} instead of names and values")
    return values


def check_files(folder: Path, stem: str, variant: str | None) -> list[Path]:
    """
    The weight files of a part: one, or those that an index names. Raises [`AdapterError`] where one is missing or lies
    outside of the folder.
    """
    suffix = f".{variant}" if variant else ""
    index = folder / f"{stem}.safetensors.index{suffix}.json"
    names = [f"{stem}{suffix}.safetensors"]
    if not (folder / names[0]).is_file() and index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise AdapterError(f"{index.name} names no files")
        names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name or name in (".", ".."):
            raise AdapterError(
                f"{index.name} names {name[:80]!r}, which is not a file of its folder; do not trust this adapter"
            )
        if not (folder / name).is_file():
            raise AdapterError(f"there is no file {name}")
    return [folder / name for name in names]


def check_sizes(config: Mapping[str, Any], files: list[Path], build: Callable[[], torch.nn.Module]) -> None:
    """
    Raises [`AdapterError`] where a config asks for more numbers than its files have. Nothing of that size is built to find
    out: the files are asked for their headers, the module is made on the meta device.
    """
    _check_numbers(config)
    stored = 0
    for path in files:
        try:
            with safe_open(str(path), framework="pt") as file:
                stored += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  (not iterable by itself)
        except (SafetensorError, OSError) as error:
            raise AdapterError(f"{path.name} could not be read ({one_line(error)})") from None
    try:
        with torch.device("meta"):
            wanted = sum(parameter.numel() for parameter in build().parameters())
    except Exception as error:  # whatever the values of a damaged config lead to
        raise AdapterError(f"config.json has wrong values ({one_line(error)})") from None
    if wanted > stored:
        raise AdapterError(
            f"missing, unknown or misshapen tensors: config.json asks for {wanted:,} numbers, the files have {stored:,}"
        )


def check_loaded(part: str, folder: Path, module: torch.nn.Module, wrong: list[Any]) -> None:
    """Raises [`AdapterError`] unless a module was loaded with all of its tensors, all of them finite."""
    if wrong:
        raise AdapterError(
            f"{part} in {folder} has {len(wrong)} missing, unknown or misshapen tensors, e.g. {wrong[0]};"
            " download or save it again"
        )
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            raise AdapterError(f"{part} in {folder} has values that are not finite in {name}; download it again")


def fingerprint(files: list[Path]) -> str:
    """
    Of the weights in safetensors files: by the signs of some numbers of each tensor in half precision, so the same in every
    dtype. (Rounding to another dtype before changes the sign of one number in a million to none.)
    """
    tensors = {}
    for path in files:
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not iterable by itself)
                positive = file.get_tensor(name).flatten()[:_SIGNS].half() > 0
                tensors[name] = np.packbits(positive.numpy()).tobytes()
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name])
    return digest.hexdigest()[:12]


def _check_numbers(value: Any, name: str = "") -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_numbers(item, str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_numbers(item, name)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        # names of layers, as identity attention has them, have dots
        is_depth = any(word in name for word in _LAYER_WORDS) and "channels" not in name and "." not in name
        limit = _MAX_LAYERS if is_depth else _MAX_NUMBER
        if not math.isfinite(value) or (isinstance(value, int) and abs(value) > limit):
            raise AdapterError(f"config.json has {name}={value!r}, where at most {limit:,} makes sense")
