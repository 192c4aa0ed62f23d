"""Spaces: their front matter, and what they do on a CPU and on ZeroGPU."""

import inspect
import json
import sys
import types
from pathlib import Path

import pytest
import tiny
import yaml
from typer.testing import CliRunner

from facesnap_diffusers.app import space
from facesnap_diffusers.cli import app
from facesnap_diffusers.errors import InputError


pytest.importorskip("gradio")

EXAMPLE = Path(__file__).parents[2] / "examples" / "space"


def front_matter(folder):
    _, matter, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(matter)


def test_the_example_is_what_is_written(tmp_path):
    space.write_space(tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in EXAMPLE.iterdir()}
    version = front_matter(tmp_path)["sdk_version"]
    kept["README.md"] = kept["README.md"].replace(front_matter(EXAMPLE)["sdk_version"], version)
    assert written == kept


def test_front_matter(tmp_path):
    space.write_space(tmp_path, "Mine", "some/base", "some/adapter", "mit")
    values = front_matter(tmp_path)
    assert values["sdk"] == "gradio" and (tmp_path / values["app_file"]).is_file()
    assert (values["title"], values["license"], values["models"]) == ("Mine", "mit", ["some/base", "some/adapter"])
    assert len(values["short_description"]) <= 60  # what the Hub takes
    assert 'serve_space("some/base", "some/adapter")' in (tmp_path / "app.py").read_text()


def test_nano_without_variables(monkeypatch):
    monkeypatch.delenv("FACESNAP_BASE", raising=False)
    studio = space.make_studio()
    assert studio.base is None and len(studio.samples) == 6


def test_zero_gpu_is_asked_for_pictures_and_not_for_previews(studio, monkeypatch):
    asked = []

    def gpu(duration):
        def decorate(function):
            assert inspect.isgeneratorfunction(function) == (function.__name__ == "steps")
            asked.append((function.__name__, duration))
            return function

        return decorate

    monkeypatch.setitem(sys.modules, "spaces", types.SimpleNamespace(GPU=gpu))
    monkeypatch.setenv("FACESNAP_SECONDS", "30")
    space.use_zero_gpu(type(studio)(studio.pipe, studio.defaults))
    assert asked == [("steps", 30), ("encode", 15)]


def test_the_app_of_the_example_compiles():
    compile((EXAMPLE / "app.py").read_text(), "app.py", "exec")


def test_a_packaged_adapter_gets_a_space(tmp_path, hub, hub_cache):
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    pipe.save_facesnap_adapter(tmp_path / "adapter")
    arguments = ["package-hub-repo", str(tmp_path / "adapter"), "--repo-id", "someone/facesnap"]
    hub.add_commit("someone/base", {"unet/config.json": json.dumps(dict(pipe.unet.config)).encode()})
    runner = CliRunner()
    refused = runner.invoke(app, [*arguments, "--space", str(tmp_path / "space")])
    assert isinstance(refused.exception, InputError) and not (tmp_path / "space").exists()
    made = runner.invoke(app, [*arguments, "--space", str(tmp_path / "space"), "--base-model", "someone/base"])
    assert made.exit_code == 0, made.output
    assert 'serve_space("someone/base", "someone/facesnap")' in (tmp_path / "space" / "app.py").read_text()
