"""The `facesnap` command as a whole: one line for every error that is not a fault of the package."""

import importlib.metadata
import re
import subprocess
import sys

import PIL.Image
import pytest
import torch
from skimage.data import astronaut

from facesnap_diffusers import __version__
from facesnap_diffusers.cli import EXTRAS, main


def message_of(monkeypatch, *arguments) -> str:
    """What the command says when it fails."""
    monkeypatch.setattr(sys, "argv", ["facesnap", *map(str, arguments)])
    with pytest.raises(SystemExit) as raised:
        main()
    message = str(raised.value)
    assert message.startswith("facesnap: ")
    assert "\n" not in message
    return message


def test_an_error_is_one_line(monkeypatch):
    message = message_of(monkeypatch, "info", "--family", "sd7")
    assert message == "facesnap: family 'sd7' is unknown; choose one of sd1, sd2, sdxl"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "gpu", "xpu"])
@pytest.mark.parametrize("command", ["demo", "eval"])
def test_a_device_that_is_not_there(monkeypatch, tmp_path, command, device):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"no picture")  # is not read
    options = {
        "demo": [],
        "eval": ["--benchmark", "unsplash50", "--data", tmp_path / "photos", "--method", "reference"],
    }[command]
    message = message_of(monkeypatch, command, *options, "--device", device, "--output", tmp_path / "out")
    assert re.search(f"device '{device}' cannot be used here .*; choose another, e.g. cpu", message)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("command", ["demo", "eval", "convert"])
def test_an_output_that_cannot_be_made(monkeypatch, tmp_path, command):
    (tmp_path / "file").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"no picture")
    output = tmp_path / "file" / "out" / "deeper"
    arguments = {
        "demo": ["--output", output],
        "eval": [
            *("--benchmark", "unsplash50", "--data", tmp_path / "photos", "--method", "reference"),
            *("--output", output),
        ],
        "convert": ["no-such-adapter", output],
    }[command]
    message = message_of(monkeypatch, command, *arguments)
    assert "cannot be written to (Not a directory); name another folder" in message


def test_an_output_without_permission(monkeypatch, tmp_path):
    """As a user without rights sees it; root may write anywhere, so that the system's refusal is simulated."""

    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert "cannot be written to (Permission denied)" in message_of(monkeypatch, "demo", "--output", tmp_path / "out")


@pytest.mark.slow
def test_a_disk_that_is_full(monkeypatch, tmp_path):
    """While the result is written: one line, and nothing is left behind."""

    def fail(source, target):
        raise OSError(28, "No space left on device", str(target))

    PIL.Image.fromarray(astronaut()).save(tmp_path / "photo.png")
    monkeypatch.setattr("facesnap_diffusers.files.os.replace", fail)
    arguments = [tmp_path / "photo.png", "--analyzer", "dlib", "--output", tmp_path / "out.png"]
    message = message_of(monkeypatch, "landmarks", *arguments)
    assert "No space left on device" in message
    assert "out.png" in message
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_a_missing_extra(monkeypatch, tmp_path):
    (tmp_path / "eval.yaml").write_text("benchmark: nano\ndata: x\noutput: y\nmethods: [reference]\n")
    monkeypatch.delitem(sys.modules, "facesnap_diffusers.evaluation.eval_config", raising=False)
    monkeypatch.delitem(sys.modules, "facesnap_diffusers.evaluation.evaluate", raising=False)
    monkeypatch.setitem(sys.modules, "PIL.PngImagePlugin", None)  # stands for any module that is not installed
    message = message_of(monkeypatch, "eval", tmp_path / "eval.yaml")
    assert message == ('facesnap: eval needs PIL, which is not installed: pip install "facesnap-diffusers[eval]"')
    assert set(EXTRAS.values()) <= set(importlib.metadata.metadata("facesnap-diffusers").get_all("Provides-Extra"))


def test_a_missing_module_of_our_own_is_a_fault(monkeypatch):
    monkeypatch.setitem(sys.modules, "facesnap_diffusers.base_models", None)
    monkeypatch.setattr(sys, "argv", ["facesnap", "info"])
    with pytest.raises(ModuleNotFoundError, match="facesnap_diffusers.base_models"):
        main()


@pytest.mark.parametrize("start", [["-m", "facesnap_diffusers"], ["-m", "facesnap_diffusers.cli"]])
def test_version(start):
    result = subprocess.run([sys.executable, *start, "--version"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"facesnap {__version__}\n"), result.stderr
