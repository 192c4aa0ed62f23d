"""The methods that an evaluation can compare, by the kind that a config names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import InputError
from ...settings import parse_settings
from .base import Method
from .facesnap import FaceSnap
from .ground_truth import GroundTruth
from .image_folder import ImageFolder
from .ip_adapter_faceid import IPAdapterFaceID
from .ip_adapter_faceid_plus import IPAdapterFaceIDPlus
from .reference_photo import ReferencePhoto
from .text_to_image import TextToImage


METHODS: dict[str, type[Method]] = {
    "text": TextToImage,
    "facesnap": FaceSnap,
    "ip_adapter_faceid": IPAdapterFaceID,
    "ip_adapter_faceid_plus": IPAdapterFaceIDPlus,
    "images": ImageFolder,
    "reference": ReferencePhoto,
    "ground_truth": GroundTruth,
}


def make_method(values: Mapping[str, Any] | str) -> Method:
    r"""
    A method from its entry in a config.

    Args:
        values (`dict` or `str`): `kind`, one of `METHODS`, and its settings; or the kind alone.

    Raises:
        InputError: The kind or a setting is not known, or has a wrong type.
    """
    values = {"kind": values} if isinstance(values, str) else dict(values)
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in METHODS:
        raise InputError(f"method kind {kind!r} is not known; choose one of {', '.join(METHODS)}")
    return parse_settings(METHODS[kind], values, f"method {kind}")
