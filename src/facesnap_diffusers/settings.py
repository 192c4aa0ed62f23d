"""Settings: strict dataclasses, and reading them from YAML files, JSON and the command line."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform, get_args

import pydantic.dataclasses
import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from .errors import FaceSnapError, InputError, one_line


T = TypeVar("T")

#: Values are not converted to another type (`True` and `"1"` are not numbers), numbers are finite, names are known.
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass_transform(field_specifiers=(dataclasses.field, Field))
def strict_dataclass(*, frozen: bool = False, error: type[FaceSnapError] = InputError) -> Callable[[type[T]], type[T]]:
    r"""
    Makes a class a dataclass whose values are checked against its annotations, also where it is made in Python.

    An `InputError` or other `ValueError` of `__post_init__`, for what concerns several values, is reported like a wrong
    value; its message need not name the class.

    Args:
        frozen (`bool`): As in `dataclasses.dataclass`.
        error (`type`): What a wrong value raises, with the name of the class and of the value.

    Example:

    ```python
    @strict_dataclass(frozen=True)
    class Sampling:
        steps: Annotated[int, Field(ge=1)] = 20
        dtype: Literal["float32", "float16"] = "float32"
    ```
    """

    def decorate(cls: type[T]) -> type[T]:
        checked: Any = pydantic.dataclasses.dataclass(config=STRICT, frozen=frozen)(cls)
        names = [field.name for field in dataclasses.fields(checked)]
        validate = checked.__init__

        @functools.wraps(validate)
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            if len(args) > len(names) or set(names[: len(args)]) & set(kwargs):
                raise TypeError(f"{cls.__name__} takes each of {', '.join(names)} once")
            values = {**dict(zip(names, args, strict=False)), **kwargs}
            try:
                validate(self, **values)
            except ValidationError as failed:
                text, key = _describe(failed, checked, values, cls.__name__)
                raise error(text, key=key) from None

        checked.__init__ = init
        return checked

    return decorate


def parse_settings(cls: type[T], values: Any, source: str, error: type[FaceSnapError] = InputError) -> T:
    r"""
    Makes settings from plain values.

    Args:
        cls (`type`): A [`strict_dataclass`].
        values (`dict`): Names and values, nested for settings of settings, as YAML and JSON hold them: a list stands for
            a tuple as well, a string for a path.
        source (`str`): What the values come from, for messages: `"config train.yaml"`.
        error (`type`): What is raised.

    Raises:
        FaceSnapError: Of type `error`, in one line that names the first wrong key; `key` has it, too.
    """
    if not isinstance(values, Mapping):
        raise error(f"{source} holds {type(values).__name__} instead of names and values")
    try:
        text = json.dumps(values, default=_as_text)
    except (TypeError, ValueError, RecursionError) as failed:
        raise error(
            f"{source} holds what is not a plain value ({one_line(failed)}); use names, numbers and text"
        ) from None
    try:
        # from JSON, strict tuples and nested settings can be read, which from Python must have exactly their type
        return TypeAdapter(cls).validate_json(text)
    except ValidationError as failed:
        text, key = _describe(failed, cls, values, source)
        raise error(text, key=key) from None


def dump_settings(settings: Any) -> dict[str, Any]:
    """The plain names and values of settings, from which [`parse_settings`] makes them again."""
    return TypeAdapter(type(settings)).dump_python(settings, mode="json")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The names and values of a YAML file. Raises [`InputError`] where it cannot be read or holds something else."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(f"config {path} cannot be read ({error.strerror}); name a YAML file") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that does not exist
        raise InputError(f"config {path} is not YAML ({one_line(error)}); correct it") from None
    if not isinstance(values, dict):
        raise InputError(f"config {path} holds {type(values).__name__} instead of names and values")
    return values


def parse_value(text: str) -> Any:
    """A value as YAML reads it: `"1e-5"` is a number, `"true"` a bool, `"[1, 2]"` a list. Raises [`InputError`]."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError):
        raise InputError(f"{text!r} is not a YAML value; put text with special characters in quotes") from None


def override(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    r"""
    Plain values with some of them replaced.

    Args:
        values (`dict`): As [`read_yaml`] gives them; not changed.
        overrides (`list[str]`): `"key=value"` or, in nested settings, `"optimizer.learning_rate=1e-5"`.

    Raises:
        InputError: An override has no `=`, no YAML value, or goes into something that is not a section.
    """
    result: dict[str, Any] = copy.deepcopy(dict(values))
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"override {text!r} has no =; write key=value, e.g. optimizer.learning_rate=1e-5")
        *sections, name = key.strip().split(".")
        section: Any = result
        for step in sections:
            if section.get(step) is None:
                section[step] = {}
            section = section[step]
            if not isinstance(section, dict):
                raise InputError(f"override {text!r}: {step} is a single value, not a section of the config")
        section[name] = parse_value(value)
    return result


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which reads numbers without a dot such as 1e-5 too, as YAML 1.2 and JSON do."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _as_text(value: Any) -> str:
    # YAML has dates, and Python callers paths
    if isinstance(value, Path) or hasattr(value, "isoformat"):
        return str(value)
    raise TypeError(f"a {type(value).__name__}")


def _describe(failed: ValidationError, cls: type, values: Mapping[str, Any], source: str) -> tuple[str, str]:
    """The first wrong value of pydantic's list in one line, and its key."""
    # A union reports an error for each of its members: that which got furthest into the value says most.
    known = [(_path(details["loc"], values), details) for details in failed.errors(include_url=False)]
    path, details = max(known, key=lambda pair: len(pair[0]))
    if details["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        *sections, name = map(str, details["loc"])
        key, names = ".".join([*sections, name]), ", ".join(_names(cls, sections))
        return f"{source} has an unknown key {key}; known are {names}", key
    if details["type"] in ("missing", "missing_argument"):
        key = ".".join(map(str, details["loc"]))
        return f"{source} lacks {key}; add it", key
    if details["type"] == "json_invalid":  # half a character, or nested too deep
        return f"{source} holds what is not a plain value ({details['msg']}); use names, numbers and text", ""
    key = ".".join(path)
    if details["type"] == "value_error":
        cause = details["ctx"]["error"]
        reason = str(cause) if isinstance(cause, FaceSnapError) else one_line(cause)
        whole = ".".join(filter(None, (key, getattr(cause, "key", ""))))
        return f"{source}: {key}: {reason}" if key else f"{source}: {reason}", whole
    value = repr(details["input"])
    reason = details["msg"].removeprefix("Input ")
    return f"{source}: {key} is {value if len(value) <= 100 else value[:97] + '...'}; it {reason}", key


def _path(steps: Sequence[str | int], values: Any) -> list[str]:
    """The keys and places that lead to an error; names of a union's members among them are left out."""
    path = []
    for step in steps:
        if isinstance(values, Mapping):
            is_key = step in values
        else:  # of a list that is too short, a place that is missing
            is_key = isinstance(step, int) and isinstance(values, Sequence) and step < len(values)
        if is_key:
            values = values[step]  # type: ignore[index]
            path.append(str(step))
    return path


def _names(cls: Any, sections: Sequence[str]) -> list[str]:
    """The names of settings, or of some inside of them."""
    for section in sections:
        annotation = cls.__pydantic_fields__[section].annotation if cls is not None else None
        members = [annotation, *get_args(annotation)]
        cls = next((member for member in members if dataclasses.is_dataclass(member)), None)
    return [field.name for field in dataclasses.fields(cls)] if cls is not None else []
