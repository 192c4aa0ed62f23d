"""The package as a whole: light to import, complete, with a command."""

import subprocess
import sys

import pytest
import tiny
from typer.testing import CliRunner

import facesnap_diffusers
from facesnap_diffusers import FaceSnapPipeline
from facesnap_diffusers.cli import app, main


def test_import_is_light():
    script = (
        "import sys, facesnap_diffusers; from facesnap_diffusers import HeadPose, Expression, InputError;"
        "heavy = {'torch', 'diffusers', 'transformers', 'insightface', 'onnxruntime', 'cv2', 'dlib'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_public_name_is_there():
    for name in facesnap_diffusers.__all__:
        assert getattr(facesnap_diffusers, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'FaceSnap'"):
        facesnap_diffusers.FaceSnap


@pytest.mark.parametrize(
    ("family", "numbers"),
    [("sd1", ["361,279,120", "19,169,280"]), ("sdxl", ["1,251,014,160", "340,787,200"])],
)
def test_info_on_a_fresh_adapter(family, numbers):
    """FFRNet as large as the public ControlNets, identity attention as in the public IP-Adapters."""
    result = CliRunner().invoke(app, ["info", "--family", family], env={"COLUMNS": "120"})
    assert result.exit_code == 0 and all(number in result.output for number in numbers)


def test_info_on_a_saved_adapter(tmp_path):
    pipe = FaceSnapPipeline.from_pipe(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    pipe.save_facesnap_adapter(tmp_path / "adapter")
    result = CliRunner().invoke(app, ["info", str(tmp_path / "adapter")], env={"COLUMNS": "120"})
    count = sum(parameter.numel() for parameter in pipe.ffrnet.parameters())
    assert result.exit_code == 0 and f"{count:,}" in result.output


def test_an_error_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["facesnap", "info", "--family", "sd7"])
    with pytest.raises(SystemExit) as raised:
        main()
    assert str(raised.value) == "facesnap: family 'sd7' is unknown; choose one of sd1, sd2, sdxl"
