"""What the tests of examples/nano share: its scripts can be imported, and the renderer runs where it can."""

import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples/nano"))


@pytest.fixture(scope="session")
def ict_model():
    """The morphable model's file."""
    path = ROOT.parent / "shared/data/ict_facekit/ict_face_model.npz"
    if not path.exists():
        pytest.skip("../shared/data/ict_facekit is not there")
    return path


@pytest.fixture(scope="session")
def renderer(ict_model):
    from people.renderer import Renderer

    try:
        return Renderer()
    except Exception as error:
        pytest.skip(f"no OpenGL context: {error}")
