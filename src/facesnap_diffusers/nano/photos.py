"""What makes features of photos such as the nano model knows, which has seen rendered people only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import AdapterError, FaceEncoderMismatchError, one_line
from ..identity import FaceIdentity
from .model import nano_folder


SHIFT_FILE = "photo_shift.safetensors"


def as_rendered(identity: FaceIdentity, folder: str | Path | None = None) -> FaceIdentity:
    r"""
    Moves what was read from a photo by the difference of the means of rendered people and photos, face embedding and image
    features alike: without it what tells photos from renderings is taken for glasses and short hair.

    Args:
        identity ([`FaceIdentity`]): What the nano pipeline's `encode_face` made of one or several photos.
        folder (`str` or `Path`, *optional*): Of the nano model, see [`nano_folder`]. One without statistics of photos
            leaves the identity as it is.

    Raises:
        AdapterError: The statistics could not be loaded.
        FaceEncoderMismatchError: They are of other encoders than the identity.

    Example:

    ```py
    identity = as_rendered(pipe.encode_face(photo))
    ```
    """
    path = nano_folder(folder) / SHIFT_FILE
    if not path.is_file():
        return identity
    try:
        shift = load_file(path)
        face, image = shift["face_embeds"], shift["image_hidden_states"]
    except (OSError, SafetensorError, KeyError) as error:
        raise AdapterError(f"{path} could not be loaded ({one_line(error)}); install the package again") from error
    states = identity.image_hidden_states
    if face.shape != identity.face_embeds.shape or states is None or states.shape[0] % image.shape[0]:
        raise FaceEncoderMismatchError(
            f"the statistics in {path} are of other encoders than the identity; encode the photo with the nano pipeline"
        )
    return replace(
        identity,
        face_embeds=identity.face_embeds + face.to(identity.face_embeds),
        image_hidden_states=states + image.to(states).repeat(states.shape[0] // image.shape[0], 1),
    )
