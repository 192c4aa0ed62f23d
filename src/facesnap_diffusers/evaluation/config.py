"""What an evaluation is asked to do: the YAML file of `facesnap eval`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from .methods import Sampling, make_method


#: What values of an annotation may be.
_TYPES: dict[str, Any] = {
    "str": str, "Literal": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": Mapping
}  # fmt: skip


@dataclass(frozen=True)
class EvalConfig:
    r"""
    An evaluation. `docs/evaluation.md` has examples.

    Attributes:
        protocol (`str`): `"unsplash50"`, `"multi_id_bench"` or `"nano"`.
        data (`str`): The folder with its data.
        output (`str`): The folder that everything is written to. What is there already is not made again.
        methods (`list`): What makes the images: each a kind, or a dictionary of a `kind` and its settings.
        sampling (`dict`): See [`Sampling`].
        face_encoders (`list[str]`): Recognisers that judge; the first one's points count, and it fills the table.
        clip_model (`str`): Hub repo or folder of the CLIP model, `"none"` for no CLIP metrics; by default a ViT-L/14
            where the protocol's table has such metrics.
        diversity (`bool`): Whether to compute LPIPS between the images of a person and prompt.
        real (`str`, *optional*): A folder of real images, for FID and KID.
        real_features (`str`): `"inception"` or `"clip"`: what FID and KID compare.
        seed (`int`): Of the first image.
        limit (`int`, *optional*): At most so many cases, spread evenly.
        batch_size (`int`): Images generated at once. Changes none of them but by rounding.
        device (`str`): Where models run.
        sheet_rows (`int`): Rows of the contact sheet, 0 for none.
    """

    protocol: str
    data: str
    output: str
    methods: list[Any]
    sampling: dict[str, Any] = field(default_factory=dict)
    face_encoders: list[str] = field(default_factory=lambda: ["dlib/face_recognition_resnet_model_v1"])
    clip_model: str | None = None
    diversity: bool = False
    real: str | None = None
    real_features: str = "inception"
    seed: int = 0
    limit: int | None = None
    batch_size: int = 1
    device: str = "cpu"
    sheet_rows: int = 8

    def __post_init__(self) -> None:
        if not self.methods:
            raise InputError("methods is empty; name at least one, e.g. facesnap")
        if not self.face_encoders:
            raise InputError("face_encoders is empty; name at least one")
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.real_features not in ("inception", "clip"):
            raise InputError(f"real_features must be inception or clip, got {self.real_features!r}")
        make_sampling(self.sampling)
        names = [make_method(method).name for method in self.methods]
        double = [name for name in names if names.count(name) > 1]
        if double:
            raise InputError(f"two methods are called {double[0]!r}; give each a name of its own")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config") -> EvalConfig:
        """Makes a config from plain values. Raises [`InputError`] for unknown names, wrong types and what is missing."""
        fields = {item.name: item for item in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        if unknown:
            raise InputError(f"{source} has no setting {unknown[0]!r}; it has {', '.join(fields)}")
        missing = [name for name in ("protocol", "data", "output", "methods") if values.get(name) is None]
        if missing:
            raise InputError(f"{source} lacks {missing[0]}; give it in the file or as --{missing[0].rstrip('s')}")
        for name, value in values.items():
            _check_type(value, fields[name], source)
        return cls(**values)


def make_sampling(values: Mapping[str, Any]) -> Sampling:
    """[`Sampling`] from plain values. Raises [`InputError`] for unknown names and wrong types."""
    fields = {item.name: item for item in dataclasses.fields(Sampling)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise InputError(f"sampling has no setting {unknown[0]!r}; it has {', '.join(fields)}")
    for name, value in values.items():
        _check_type(value, fields[name], "sampling")
    return Sampling(**values)


def _check_type(value: Any, field: dataclasses.Field, source: str) -> None:
    annotation = str(field.type)
    if value is None and "None" in annotation:
        return
    expected = _TYPES[annotation.removesuffix(" | None").partition("[")[0]]
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise InputError(f"{source}: {field.name} is {value!r}, expected {annotation}")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The names and values of a YAML file."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise InputError(f"config {str(path)!r} cannot be read ({error.strerror}); name a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config {str(path)!r} is no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise InputError(f"config {str(path)!r} must hold names and values")
    return values
