"""The package as a whole: light to import, complete, with a command."""

import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import tiny
from skimage.data import astronaut
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


def test_main_example_of_the_readme(tmp_path, monkeypatch):
    """It is at most five lines after the imports, and runs as it stands."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    lines = readme.split("```py\n")[1].split("```")[0].splitlines()
    assert len([line for line in lines if line and not line.startswith(("from ", "import "))]) <= 5

    base = FaceSnapPipeline.from_pipe(tiny.sd_pipeline())
    base.save_pretrained(tmp_path / "any" / "sd-checkpoint")
    tiny.add_adapter(base)
    base.save_facesnap_adapter(tmp_path / "owner" / "facesnap-adapter")
    PIL.Image.fromarray(astronaut()).save(tmp_path / "me.jpg")
    monkeypatch.chdir(tmp_path)
    values = {}
    exec("\n".join(lines), values)
    assert values["image"].size == (64, 64)


def test_every_public_name_is_there():
    for name in facesnap_diffusers.__all__:
        assert getattr(facesnap_diffusers, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'FaceSnap'"):
        _ = facesnap_diffusers.FaceSnap


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
