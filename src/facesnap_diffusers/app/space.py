"""The web app as a Hugging Face Space: nano on a CPU, or a checkpoint of full size on a GPU or ZeroGPU."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from ..files import atomic_file
from .server import checkpoint_studio, nano_studio, serve
from .studio import Studio


_README = """---
title: {quoted_title}
emoji: 📸
colorFrom: red
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
python_version: "3.12.12"
app_file: app.py
license: {license}
short_description: Portraits of a person from one photo and a prompt
suggested_hardware: {hardware}
{models}---

# {title}

The web app of [facesnap-diffusers](https://github.com/facesnap-diffusers/facesnap-diffusers).{about}

Variables of the Space:

| variable | |
|---|---|
| `FACESNAP_BASE` | base model on the Hub{base}; without one, nano, a miniature that draws rendered people |
| `FACESNAP_ADAPTER` | adapter on the Hub{adapter} |
| `FACESNAP_SECONDS` | seconds that ZeroGPU grants a picture; 60 by default |

Photos stay in memory: none is written to disk or logged. Only use photos of people who agreed to it.
"""

_ABOUT_NANO = """
It shows nano, a miniature, which draws rendered people at 128 px, also of a photo, and knows only words for hair, skin, eyes,
beard, glasses, expression, direction, shirt and background. For photos name a base model and an adapter."""

_APP = '''"""The web app as a Space."""

from facesnap_diffusers.app.space import serve_space


serve_space({arguments})
'''

_REQUIREMENTS = "accelerate\nfacesnap-diffusers[app]\n"


def make_studio(base: str | None = None, adapter: str | None = None) -> Studio:
    """The model that the Space's variables name, else the arguments; nano without either."""
    base = os.environ.get("FACESNAP_BASE") or base
    if not base:
        return nano_studio()
    # on ZeroGPU a model is moved to "cuda" at once, and a GPU is there while a decorated function runs
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    studio = checkpoint_studio(base, os.environ.get("FACESNAP_ADAPTER") or adapter, device, dtype)
    if device == "cuda" and os.environ.get("SPACES_ZERO_GPU"):
        use_zero_gpu(studio)
    return studio


def use_zero_gpu(studio: Studio) -> None:
    """Lets what needs the model ask ZeroGPU for a GPU. Previews need none."""
    import spaces

    seconds = int(os.environ.get("FACESNAP_SECONDS", "60"))
    studio.steps = spaces.GPU(duration=seconds)(studio.steps)  # type: ignore[method-assign]
    studio.encode = spaces.GPU(duration=15)(studio.encode)  # type: ignore[method-assign]


def serve_space(base: str | None = None, adapter: str | None = None) -> None:
    """Serves the app as Spaces expect it. `base` and `adapter` are replaced by the Space's variables."""
    if os.environ.get("SPACES_ZERO_GPU"):
        import spaces  # noqa: F401  (which has to come before the first use of CUDA)
    serve(make_studio(base, adapter), host="0.0.0.0", port=7860)


def write_space(
    folder: Path,
    title: str = "FaceSnap",
    base: str | None = None,
    adapter: str | None = None,
    license: str | None = None,
) -> None:
    r"""
    Writes a Space, ready to be uploaded: `app.py`, `requirements.txt`, and a `README.md` with the front matter that the Hub
    reads.

    Args:
        folder (`Path`): Where; made if need be.
        title (`str`): Of the Space.
        base (`str`, *optional*), adapter (`str`, *optional*): Names on the Hub; nano without a base.
        license (`str`, *optional*): Apache-2.0 by default, that of nano.
    """
    import gradio

    names = [name for name in (base, adapter) if name]
    arguments = ", ".join(map(_quoted, names))
    readme = _README.format(
        title=title,
        quoted_title=_quoted(title),
        gradio=gradio.__version__,
        license=_quoted(license or "apache-2.0"),
        hardware="zero-a10g" if base else "cpu-basic",
        models=f"models: [{arguments}]\n" if names else "",
        base=f", `{base}` by default" if base else "",
        adapter=f", `{adapter}` by default" if adapter else "",
        about="" if base else _ABOUT_NANO,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {
        "README.md": readme,
        "app.py": _APP.format(arguments=arguments),
        "requirements.txt": _REQUIREMENTS,
    }.items():
        with atomic_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _quoted(value: str) -> str:
    """A string as YAML and Python read it: JSON's are theirs, but for its pairs of escapes for one character."""
    return json.dumps(value, ensure_ascii=False)
