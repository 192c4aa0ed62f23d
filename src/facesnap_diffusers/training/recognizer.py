"""Face recognizers as differentiable torch modules, for the identity loss."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..adapter.config import FaceSnapConfig
from ..data.recognition_crop import align_faces
from ..data.shard_settings import RECOGNITION_CROP_SIZES
from ..errors import InputError, MissingDependencyError, one_line
from ..faces.analyzers import DlibFaceAnalyzer
from ..faces.analyzers.insightface import MODEL_PACKS
from .onnx_network import load_onnx_network
from .training_config import RecognizerConfig


DLIB_NETWORK = "facesnap_diffusers.training.dlib_network:load_dlib_network"


class FaceRecognizer(nn.Module):
    r"""
    A frozen recognition network with the crop that it takes.

    Args:
        network (`nn.Module`): Crops `(batch, 3, size, size)` to embeddings `(batch, dim)`.
        crop (`str`): Alignment of its crops, `"arcface"` or `"dlib"`.
        size (`int`, *optional*): Side of its crops; the template's usual one by default.
        mean (`float`), std (`float`): It takes `(pixel - mean) / std` of pixels in `[0, 1]`; InsightFace's 0.5 and 0.5.
        bgr (`bool`): It takes blue first.
        center (`torch.Tensor` of shape `(dim,)`, *optional*): Mean embedding of many people. Embeddings are compared
            relative to it: for networks such as dlib's, whose embeddings of any two people have a large part in common.
    """

    def __init__(
        self,
        network: nn.Module,
        crop: str = "arcface",
        size: int | None = None,
        mean: float = 0.5,
        std: float = 0.5,
        bgr: bool = False,
        center: torch.Tensor | None = None,
    ):
        super().__init__()
        self.center: torch.Tensor | None
        self.register_buffer("center", center, persistent=False)
        self.network = network.eval().requires_grad_(False)
        self.crop = crop
        self.size = size or RECOGNITION_CROP_SIZES[crop]
        self.mean, self.std, self.bgr = mean, std, bgr

    @cached_property
    def dim(self) -> int:
        """Length of an embedding."""
        tensors = [*self.network.parameters(), *self.network.buffers()]
        device = tensors[0].device if tensors else None
        with torch.no_grad():
            return int(self.network(torch.zeros(1, 3, self.size, self.size, device=device)).shape[-1])

    def train(self, mode: bool = True) -> FaceRecognizer:
        """Stays in evaluation mode: its batch statistics are those it was trained with."""
        return super().train(False)

    def forward(self, images: torch.Tensor, landmarks: torch.Tensor) -> torch.Tensor:
        r"""
        Args:
            images (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB in `[0, 1]`.
            landmarks (`torch.Tensor` of shape `(batch, 68 or 72, 2)`): In pixels of the images.

        Returns:
            `torch.Tensor` of shape `(batch, dim)`: embeddings of unit length.
        """
        return self.embed(align_faces(images, landmarks, self.crop, self.size))

    def embed(self, crops: torch.Tensor) -> torch.Tensor:
        """Embeddings of unit length of aligned crops `(batch, 3, size, size)`, RGB in `[0, 1]`."""
        pixels = crops.flip(1) if self.bgr else crops
        return self.relative(self.network((pixels - self.mean) / self.std))

    def relative(self, embeds: torch.Tensor) -> torch.Tensor:
        """Embeddings `(batch, dim)` as the network gives them, relative to the center, of unit length."""
        return F.normalize(embeds if self.center is None else embeds - self.center.to(embeds.dtype), dim=-1)


def load_recognizer(config: RecognizerConfig) -> FaceRecognizer:
    """Loads what a config describes. Raises [`InputError`] or [`MissingDependencyError`] where it cannot be loaded."""
    options = asdict(config)
    network, path = load_network(options.pop("network")), options.pop("center")
    if path is None:
        return FaceRecognizer(network, **options)
    try:
        center = torch.from_numpy(np.load(Path(path).expanduser())).float()
    except (OSError, ValueError) as error:
        raise InputError(f"recognizer.center {path!r} cannot be read ({one_line(error)}); name a .npy file") from error
    if center.ndim != 1:
        raise InputError(f"recognizer.center {path!r} must have shape (dim,), got {tuple(center.shape)}")
    recognizer = FaceRecognizer(network, **options)
    if len(center) != recognizer.dim:
        raise InputError(
            f"recognizer.center {path!r} has {len(center)} numbers, the recognizer's embeddings {recognizer.dim}; name its own"
        )
    recognizer.center = center
    return recognizer


def check_embeddings(recognizer: FaceRecognizer, network: str, adapter: FaceSnapConfig) -> None:
    r"""
    Whether a recognizer's embeddings can be compared with the stored ones of an adapter's face encoder.

    Args:
        recognizer ([`FaceRecognizer`]): Of the identity loss.
        network (`str`): Its name, see [`load_network`].
        adapter ([`FaceSnapConfig`]): Of the adapter.

    Raises:
        InputError: It is another known face encoder, or its embeddings have another length.
    """
    name, encoder = recognizer_name(network), adapter.face_encoder_id
    known = name in MODEL_PACKS or name == DlibFaceAnalyzer.encoder
    if (known and name != encoder) or recognizer.dim != adapter.face_embed_dim:
        raise InputError(
            f"identity_loss.reference embedding compares {name}, of {recognizer.dim} numbers, with the adapter's {encoder}, of"
            f" {adapter.face_embed_dim}; use that one's network, or set reference to target or photo"
        )


def load_network(name: str) -> nn.Module:
    r"""
    Loads a recognition network.

    Args:
        name (`str`): One of

            - the path of an ONNX file, e.g. `w600k_r50.onnx` of an InsightFace pack: see [`OnnxNetwork`];
            - the path of a program that `torch.export.save` (`.pt2`) or `torch.jit.save` (`.pt`, `.pth`) wrote;
            - `package.module:function`: a function without arguments that returns a module.

    Raises:
        InputError: It cannot be loaded.
        MissingDependencyError: An ONNX file without onnx.
    """
    module, colon, function = name.partition(":")
    path = Path(name).expanduser()
    if not path.is_file() and colon and module.replace(".", "").isidentifier():
        return _from_function(name, module, function)
    if not path.is_file():
        raise InputError(f"recognizer {name!r} is neither a file nor package.module:function; name one of the two")
    loaders = {".onnx": load_onnx_network, ".pt2": _from_export, ".pt": _from_script, ".pth": _from_script}
    if path.suffix not in loaders:
        raise InputError(f"recognizer {name!r} ends in none of {', '.join(loaders)}; convert it to one of them")
    try:
        return loaders[path.suffix](path)
    except (InputError, MissingDependencyError):
        raise
    except Exception as error:  # onnx and torch raise many kinds for damaged and unknown content
        raise InputError(f"recognizer {name!r} could not be loaded ({one_line(error)}); use another file") from error


def recognizer_name(network: str) -> str:
    r"""
    The name under which an adapter's config keeps the recognizer of its identity loss.

    Args:
        network (`str`): As [`load_network`] takes it.

    Returns:
        `str`: The id of the face encoder that has this network, which its function or the name of its file says; or else
        the name of the file, or the function.
    """
    if network == DLIB_NETWORK:
        return DlibFaceAnalyzer.encoder
    path = Path(network).expanduser()
    if not path.is_file() and ":" in network:
        return network
    encoder = f"insightface/{path.stem}"
    return encoder if encoder in MODEL_PACKS else path.name


def _from_function(name: str, module: str, function: str) -> nn.Module:
    try:
        network = getattr(import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"recognizer {name!r} cannot be imported ({one_line(error)}); name package.module:function"
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(f"recognizer {name!r} returned {type(network).__name__}; it must return a torch.nn.Module")
    return network


def _from_export(path: Path) -> nn.Module:
    network = torch.export.load(path).module()
    # it has one mode, the exported one, and raises when another is set
    network.train = network.eval = lambda mode=True: network  # type: ignore[method-assign,misc]
    return network


def _from_script(path: Path) -> nn.Module:
    return torch.jit.load(str(path), map_location="cpu")
