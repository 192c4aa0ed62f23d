"""dlib's face recognition network as a differentiable torch module, read from dlib's own file."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InputError, one_line
from ..faces.analyzers.dlib import RECOGNIZER_FILE, dlib_models


# Channels of its residual blocks in order; a block halves the resolution where the channels change.
_BLOCKS = (32, 32, 32, 64, 64, 64, 64, 128, 128, 128, 256, 256, 256, 256)
_HALVING = (3, 7, 10, 13)
_MEAN_COLOR = (122.782, 117.001, 104.298)


class DlibNetwork(nn.Module):
    r"""
    The 29 convolutions of dlib's `face_recognition_resnet_model_v1` (King 2017, "High Quality Face Recognition with Deep
    Metric Learning"). Its batch normalizations are plain scales and offsets.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Convolution(3, 32, 7, stride=2)
        widths = [32, *_BLOCKS]
        self.blocks = nn.ModuleList(
            _Block(before, after, halves=number in _HALVING) for number, (before, after) in enumerate(pairwise(widths))
        )
        self.embedding = nn.Linear(256, 128, bias=False)
        self.mean_color: torch.Tensor
        self.register_buffer("mean_color", torch.tensor(_MEAN_COLOR)[:, None, None], persistent=False)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        r"""
        Args:
            crops (`torch.Tensor` of shape `(batch, 3, 150, 150)`): dlib's face chips, RGB in `[-1, 1]`.

        Returns:
            `torch.Tensor` of shape `(batch, 128)`: dlib's embeddings; two of one person are nearer than 0.6.
        """
        return self.hidden_states(crops)[-1]

    def hidden_states(self, crops: torch.Tensor) -> list[torch.Tensor]:
        """The states after each block, `(batch, channels, height, width)`, and last of all the embeddings."""
        pixels = (crops + 1) * 127.5
        states = [F.max_pool2d(F.relu(self.stem((pixels - self.mean_color) / 256)), 3, stride=2)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return [*states, self.embedding(states[-1].mean(dim=(2, 3)))]


class _Convolution(nn.Module):
    """A convolution and dlib's affine layer. Those with a stride are not padded."""

    def __init__(self, channels_in: int, channels: int, size: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, size, stride, padding=size // 2 if stride == 1 else 0)
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.offset = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.conv(states) * self.scale + self.offset


class _Block(nn.Module):
    """A residual block, which may halve the resolution."""

    def __init__(self, channels_in: int, channels: int, halves: bool):
        super().__init__()
        self.halves = halves
        self.first = _Convolution(channels_in, channels, 3, stride=2 if halves else 1)
        self.second = _Convolution(channels, channels, 3)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        residual = self.second(F.relu(self.first(states)))
        shortcut = F.avg_pool2d(states, 2) if self.halves else states
        # dlib's sum of two sizes is as large as the larger one in each dimension; the smaller one is filled up with zeros
        channels, height, width = (max(a, b) for a, b in zip(residual.shape[1:], shortcut.shape[1:], strict=True))
        return F.relu(_padded(residual, channels, height, width) + _padded(shortcut, channels, height, width))


def _padded(states: torch.Tensor, channels: int, height: int, width: int) -> torch.Tensor:
    padding = (0, width - states.shape[3], 0, height - states.shape[2], 0, channels - states.shape[1])
    return F.pad(states, padding)


def load_dlib_network(path: str | Path | None = None) -> DlibNetwork:
    r"""
    Loads dlib's network. In a training config: `recognizer: {network:
    "facesnap_diffusers.training.dlib_network:load_dlib_network", crop: dlib}`.

    Args:
        path (`str` or `Path`, *optional*): `dlib_face_recognition_resnet_model_v1.dat`; that of the installed package
            `face-recognition-models` by default.

    Raises:
        InputError: The file is not that network's.
        MissingDependencyError: No path is given, and the package is not installed.
    """
    path = Path(path or dlib_models() / RECOGNIZER_FILE)
    network = DlibNetwork()
    try:
        reader = _ParameterReader(path.read_bytes())
        for layer in network.modules():
            if isinstance(layer, _Convolution):
                assert layer.conv.bias is not None
                reader.read("con_4", layer.conv.weight, layer.conv.bias)
                reader.read("affine_", layer.scale, layer.offset)
        transposed = torch.empty(256, 128)
        reader.read("fc_2", transposed, sizes_before=2)
        network.embedding.weight.data.copy_(transposed.T)
    except (OSError, ValueError, IndexError) as error:  # the last where the file is cut off
        raise InputError(f"{path} is not dlib's recognizer ({one_line(error)}); name {RECOGNIZER_FILE}") from error
    return network.eval()


class _ParameterReader:
    """
    Reads a network that dlib serialized, layer after layer in the order of computation.

    A layer begins with its name; then come its parameters as one tensor: a version, four sizes, and the values in float32,
    little-endian. An integer is a byte that says how many bytes it takes, and these bytes.
    """

    def __init__(self, content: bytes):
        self._content, self._position = content, 0

    @torch.no_grad()
    def read(self, name: str, *parameters: torch.Tensor, sizes_before: int = 0) -> None:
        """Fills the parameters with those of the next layer of that name. Raises `ValueError` where there is no such layer."""
        self._position = self._content.index(name.encode(), self._position) + len(name)
        version, *sizes = [self._integer() for _ in range(sizes_before + 5)][sizes_before:]
        count = sum(parameter.numel() for parameter in parameters)
        if version != 2 or math.prod(sizes) != count:
            raise ValueError(f"{name} has parameters of shape {sizes}, version {version}, not {count}")
        values = torch.from_numpy(np.frombuffer(self._content, "<f4", count, self._position).astype(np.float32))
        self._position += 4 * count
        for parameter, part in zip(
            parameters, values.split([parameter.numel() for parameter in parameters]), strict=True
        ):
            parameter.copy_(part.view_as(parameter))

    def _integer(self) -> int:
        size = self._content[self._position]
        start, self._position = self._position + 1, self._position + 1 + size
        return int.from_bytes(self._content[start : self._position], "little")
