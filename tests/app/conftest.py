"""The app's model, portraits to give it, and a browser."""

import os
import shutil

import PIL.Image
import pytest


@pytest.fixture(scope="session")
def studio():
    """The nano model behind the app."""
    from facesnap_diffusers.app.server import nano_studio

    return nano_studio()


@pytest.fixture(scope="session")
def portraits():
    """Photos of two people who do not exist."""
    folder = os.path.dirname(pytest.importorskip("openpeople").__file__)
    return [
        PIL.Image.open(f"{folder}/data/curated/{name}/assets/studio_portrait.jpg").convert("RGB").resize((512, 512))
        for name in ("P001", "P002")
    ]


@pytest.fixture(scope="session")
def chromium():
    """The path of Debian's Chromium."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    pytest.importorskip("playwright", reason="playwright drives the browser: pip install playwright")
    return path
