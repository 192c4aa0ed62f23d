"""What the tests of examples/nano share: its scripts can be imported, and the renderer runs where it can."""

import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples/nano"))


@pytest.fixture(scope="session")
def ict_model():
    """The morphable model's file."""
    from people.face_model import find_face_model

    try:
        return find_face_model()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def renderer(ict_model):
    import moderngl
    from people.renderer import Renderer

    try:
        moderngl.create_context(standalone=True, backend="egl").release()
    except Exception as error:
        pytest.skip(f"no OpenGL context: {error}")
    return Renderer()
