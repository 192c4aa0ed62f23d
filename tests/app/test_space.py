"""The Space: its front matter, and what it does on a CPU and on ZeroGPU."""

import importlib.util
import inspect
import sys
import types
from pathlib import Path

import pytest
import yaml


SPACE = Path(__file__).parents[2] / "examples" / "space"


@pytest.fixture
def space():
    spec = importlib.util.spec_from_file_location("space_app", SPACE / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_front_matter():
    _, matter, _ = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    values = yaml.safe_load(matter)
    assert values["sdk"] == "gradio" and (SPACE / values["app_file"]).is_file()
    assert len(values["short_description"]) <= 60  # what the Hub takes
    assert "facesnap-diffusers[app]" in (SPACE / "requirements.txt").read_text()


def test_nano_without_variables(space, monkeypatch):
    monkeypatch.delenv("FACESNAP_BASE", raising=False)
    studio = space.on_zero_gpu(space.make_studio())
    assert studio.base is None and len(studio.samples) == 6


def test_zero_gpu_is_asked_for_pictures_and_not_for_previews(space, studio, monkeypatch):
    asked = []

    def gpu(duration):
        def decorate(function):
            assert inspect.isgeneratorfunction(function) == (function.__name__ == "steps")
            asked.append((function.__name__, duration))
            return function

        return decorate

    monkeypatch.setitem(sys.modules, "spaces", types.SimpleNamespace(GPU=gpu))
    for name, value in {"SPACES_ZERO_GPU": "1", "FACESNAP_BASE": "some/base", "FACESNAP_SECONDS": "30"}.items():
        monkeypatch.setenv(name, value)
    space.on_zero_gpu(type(studio)(studio.pipe, studio.defaults))
    assert asked == [("steps", 30), ("encode", 15)]
