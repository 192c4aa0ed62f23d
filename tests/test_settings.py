"""Settings from YAML files, JSON, the command line and Python."""

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from facesnap_diffusers.errors import AdapterError, InputError
from facesnap_diffusers.settings import (
    dump_settings,
    override,
    parse_settings,
    parse_value,
    read_yaml,
    strict_dataclass,
)


@strict_dataclass(frozen=True)
class Lens:
    size: int = 3
    range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        if self.range[0] > self.range[1]:
            raise InputError("range has its larger value first")


@strict_dataclass()
class Camera:
    name: str
    lens: Lens = field(default_factory=Lens)
    spare: Lens | None = None
    rate: Annotated[float, Field(gt=0)] | dict[Literal["a", "b"], Annotated[float, Field(gt=0)]] = 1.0
    tags: list[str] = field(default_factory=list)
    quiet: bool = False
    extras: dict[str, Any] = field(default_factory=dict)


class TestParse:
    def test_nested_values_lists_for_tuples_and_whole_numbers_for_floats(self):
        camera = parse_settings(
            Camera, {"name": "x", "lens": {"range": [1, 2]}, "spare": {"size": 4}, "rate": {"a": 2}}, "config"
        )
        assert camera == Camera("x", Lens(range=(1.0, 2.0)), Lens(size=4), {"a": 2.0})
        assert isinstance(camera.lens.range, tuple) and camera.tags == []

    def test_dumped_settings_are_read_again(self):
        camera = Camera("x", Lens(5, (0.5, 0.6)), rate={"b": 3.0}, tags=["p"], extras={"n": None})
        assert parse_settings(Camera, dump_settings(camera), "config") == camera

    def test_a_path_stands_for_text(self):
        assert parse_settings(Camera, {"name": Path("a/b")}, "config").name == str(Path("a/b"))

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"name": "x", "lens": {"size": True}}, "config: lens.size is True; it should be a valid integer"),
            ({"name": "x", "lens": {"size": "3"}}, "config: lens.size is '3'; it should be a valid integer"),
            ({"name": "x", "lens": {"size": 3.5}}, "config: lens.size is 3.5; it should be a valid integer"),
            ({"name": "x", "rate": True}, "config: rate is True; it should be a valid number"),
            ({"name": "x", "rate": float("nan")}, "config: rate is nan; it should be a finite number"),
            ({"name": "x", "rate": -1}, "config: rate is -1; it should be greater than 0"),
            ({"name": "x", "rate": {"a": -2.0}}, "config: rate.a is -2.0; it should be greater than 0"),
            ({"name": "x", "quiet": 1}, "config: quiet is 1; it should be a valid boolean"),
            ({"name": 3}, "config: name is 3; it should be a valid string"),
            ({"name": "x", "tags": ["a", 1]}, "config: tags.1 is 1; it should be a valid string"),
            ({"name": "x", "lens": None}, "config: lens is None; it should be an object"),
            ({}, "config lacks name; add it"),
            (
                {"name": "x", "nmae": 1},
                "config has an unknown key nmae; known are name, lens, spare, rate, tags, quiet",
            ),
            ({"name": "x", "spare": {"sise": 1}}, "config has an unknown key spare.sise; known are size, range"),
            ({"name": "x", "lens": {"range": [2, 1]}}, "config: lens: range has its larger value first"),
            ({"name": object()}, "config holds what is not a plain value"),
            (["name"], "config holds list instead of names and values"),
        ],
    )
    def test_a_wrong_value_is_named_in_one_line(self, values, message):
        with pytest.raises(InputError) as caught:
            parse_settings(Camera, values, "config")
        assert str(caught.value).startswith(message) and "\n" not in str(caught.value)

    def test_the_error_is_of_the_asked_type(self):
        with pytest.raises(AdapterError, match="^file.json lacks name"):
            parse_settings(Camera, {}, "file.json", error=AdapterError)


class TestInPython:
    def test_values_are_checked(self):
        with pytest.raises(InputError, match="^Lens: size is True; it should be a valid integer$"):
            Lens(True)
        with pytest.raises(InputError, match="^Lens: range has its larger value first$"):
            Lens(range=(2.0, 1.0))
        with pytest.raises(InputError, match="^Camera has an unknown key nmae"):
            Camera("x", nmae=1)
        with pytest.raises(InputError, match="^Camera lacks name; add it$"):
            Camera()
        with pytest.raises(TypeError, match="each of size, range once"):
            Lens(1, size=2)

    def test_replaced_values_too(self):
        assert dataclasses.replace(Lens(), size=4) == Lens(4)
        with pytest.raises(InputError, match="^Lens: size is 'a'"):
            dataclasses.replace(Lens(), size="a")

    def test_frozen_settings_cannot_be_changed(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            Lens().size = 4

    def test_the_error_is_of_the_classes_type(self):
        @strict_dataclass(error=AdapterError)
        class Part:
            size: int = 1

        with pytest.raises(AdapterError, match="^Part: size is 'x'"):
            Part(size="x")


class TestYaml:
    def test_numbers_without_a_dot_are_numbers(self, tmp_path):
        path = tmp_path / "a.yaml"
        path.write_text("a: 1e-5\nb: 2E+3\nc: 1.5e3\nd: .5e1\ne: 1\nf: e5\ng: 1e5x\nh: 0x10\ni: -1e-2\n")
        values = {"a": 1e-5, "b": 2000.0, "c": 1500.0, "d": 5.0, "e": 1, "f": "e5", "g": "1e5x", "h": 16, "i": -0.01}
        assert read_yaml(path) == values
        assert type(read_yaml(path)["e"]) is int

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"a: [1", "is not YAML"),
            (b"- 1", "holds list instead of names and values"),
            (b"", "holds NoneType instead of names and values"),
            (b"\xff\xfe\xff", "is not YAML"),
            (b"a: 2020-13-45", "is not YAML"),
        ],
    )
    def test_what_holds_no_names_and_values_is_refused(self, tmp_path, content, message):
        path = tmp_path / "a.yaml"
        path.write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            read_yaml(path)
        assert "\n" not in str(caught.value)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(InputError, match="none.yaml cannot be read"):
            read_yaml(tmp_path / "none.yaml")

    def test_single_values(self):
        texts = ["1e-5", "true", "[1, a]", "null", "text", "'1'", "a=b"]
        assert [parse_value(text) for text in texts] == [1e-5, True, [1, "a"], None, "text", "1", "a=b"]
        with pytest.raises(InputError, match="is not a YAML value"):
            parse_value("[1")


class TestOverride:
    def test_values_are_replaced_in_a_copy(self):
        values = {"a": 1, "b": {"c": 2, "d": 3}, "e": None}
        result = override(values, ["a=5", "b.c=1e-5", "new.one.two=[1]", "e.f=x=y"])
        assert result == {"a": 5, "b": {"c": 1e-5, "d": 3}, "new": {"one": {"two": [1]}}, "e": {"f": "x=y"}}
        assert values == {"a": 1, "b": {"c": 2, "d": 3}, "e": None}

    @pytest.mark.parametrize(
        ("text", "message"),
        [("a", "has no ="), ("a.b=1", "a is a single value, not a section"), ("a=[", "is not a YAML value")],
    )
    def test_what_cannot_be_replaced_is_named(self, text, message):
        with pytest.raises(InputError, match=message):
            override({"a": 1}, [text])
