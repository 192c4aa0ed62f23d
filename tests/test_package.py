"""The package as a whole: light to import, complete, with a command."""

import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import tiny
from skimage.data import astronaut

import facesnap_diffusers
from facesnap_diffusers import FaceSnapPipeline


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
