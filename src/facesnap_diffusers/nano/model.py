"""The nano model of this package: a base of synthetic people, an adapter on it, and people to try them with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch

from ..adapter.config import CONFIG_NAME
from ..errors import AdapterError
from ..identity import FaceIdentity
from ..pipelines.facesnap import FaceSnapPipeline

# diffusers loads a class of ours only from a module that is imported already
from . import autoencoder  # noqa: F401


SHIPPED_NANO = Path(__file__).parent.parent / "assets" / "nano"


@dataclass(frozen=True)
class NanoPerson:
    """
    A person who comes with the model.

    Attributes:
        name (`str`): The name of its files.
        picture (`PIL.Image.Image`): The reference picture, RGB.
        identity ([`FaceIdentity`]): The outputs of the adapter's encoders for it, so that no recognizer is needed.
    """

    name: str
    picture: PIL.Image.Image
    identity: FaceIdentity


def nano_folder(folder: str | Path | None = None) -> Path:
    """
    The folder of the nano model, with `base/`, `adapter/` and `people/` in it.

    Args:
        folder (`str` or `Path`, *optional*): Another one of the same layout, such as `examples/nano/bundle.py` writes.

    Raises:
        AdapterError: It does not contain a nano model.
    """
    nano = SHIPPED_NANO if folder is None else Path(folder)
    for name in ("base/model_index.json", f"adapter/{CONFIG_NAME}"):
        if not (nano / name).is_file():
            advice = "name a folder written by" if folder is not None else "install a release, or make one with"
            raise AdapterError(f"{nano} does not contain a nano model (no {name}); {advice} examples/nano/bundle.py")
    return nano


def load_nano_pipeline(folder: str | Path | None = None, dtype: torch.dtype = torch.float32) -> FaceSnapPipeline:
    r"""
    The nano model: Stable Diffusion for portraits of synthetic people, 128×128, with its FaceSnap adapter. Nothing is
    downloaded. It understands captions such as `"a photo of a person, smiling, red shirt, blue background"`. The adapter
    was taught to draw in four steps without guidance (see `examples/nano`). Sides of 96 to 144 pixels work; at 192 faces are
    stretched, at 256 they fall apart.

    Args:
        folder (`str` or `Path`, *optional*): See [`nano_folder`].
        dtype (`torch.dtype`): On most CPUs float32 is fastest.

    Returns:
        [`FaceSnapPipeline`]

    Raises:
        AdapterError: The folder does not contain a nano model, or its adapter is damaged.

    Example:

    ```py
    from facesnap_diffusers import load_nano_pipeline, nano_people

    pipe = load_nano_pipeline()
    person = nano_people()[0]
    prompt = "a photo of a person, laughing, facing forward, blue shirt, pink background"
    image = pipe(prompt, identity=person.identity, num_inference_steps=4, guidance_scale=1.0).images[0]
    ```
    """
    nano = nano_folder(folder)
    pipe = FaceSnapPipeline.from_pretrained(nano / "base", dtype=dtype, local_files_only=True)
    pipe.load_facesnap_adapter(nano / "adapter", local_files_only=True)
    return pipe


def nano_people(folder: str | Path | None = None) -> list[NanoPerson]:
    """
    The people who come with the nano model, by name. They are rendered, and the model was not trained on them.

    Args:
        folder (`str` or `Path`, *optional*): See [`nano_folder`].
    """
    people = []
    for path in sorted((nano_folder(folder) / "people").glob("*.safetensors")):
        with PIL.Image.open(path.with_suffix(".png")) as picture:
            people.append(NanoPerson(path.stem, picture.convert("RGB"), FaceIdentity.load(path)))
    return people
