"""The package as a whole: light to import, complete, with a command."""

import subprocess
import sys

import pytest

import facesnap_diffusers


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
        _ = facesnap_diffusers.FaceSnap
