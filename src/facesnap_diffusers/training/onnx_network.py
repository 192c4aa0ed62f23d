"""A face recognizer's ONNX file as a differentiable torch module, without a converter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InputError, MissingDependencyError, one_line


Attributes = dict[str, Any]
Operator = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class _Node:
    """A node of the graph: the names of what it takes and of what it makes."""

    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: Attributes


class OnnxNetwork(nn.Module):
    r"""
    The layers of InsightFace's recognizers (IResNet, Duta et al. 2020, arXiv 2004.04989, in `w600k_r50`, `glintr100`;
    MobileFaceNet, Chen et al. 2018, arXiv 1804.07573, in `w600k_mbf`), and of others made of the same: convolutions,
    plain and depthwise, batch normalization with fixed statistics, PReLU, sums, and a linear layer at the end. The
    weights of the file are its buffers: they are never trained.

    Args:
        graph (`onnx.GraphProto`): With one input `(batch, 3, size, size)` and one output.

    Raises:
        InputError: The graph has an operator that this module does not know; names it.
    """

    def __init__(self, graph: Any):
        super().__init__()
        from onnx import helper, numpy_helper

        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        nodes = []
        for node in graph.node:
            attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
            if node.op_type == "Constant":
                constants[node.output[0]] = numpy_helper.to_array(attributes["value"])
                continue
            if node.op_type not in _OPERATORS:
                raise InputError(
                    f"it has the operator {node.op_type}; known are {', '.join(_OPERATORS)}: export it with torch.export"
                )
            nodes.append(_Node(node.op_type, tuple(node.input), node.output[0], attributes))
        self.nodes = nodes
        self._input = next(value.name for value in graph.input if value.name not in constants)
        self._output = graph.output[0].name
        self._index = {name: f"weight_{number}" for number, name in enumerate(constants)}
        for name, array in constants.items():
            tensor = torch.from_numpy(np.array(array))
            self.register_buffer(self._index[name], tensor.float() if tensor.is_floating_point() else tensor)
        # a value is dropped after its last use
        last = {name: number for number, node in enumerate(nodes) for name in node.inputs}
        self._dropped: list[list[str]] = [[] for _ in nodes]
        for name, number in last.items():
            if name not in constants and name != self._output:
                self._dropped[number].append(name)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        r"""
        Args:
            crops (`torch.Tensor` of shape `(batch, 3, size, size)`): As the file takes them; InsightFace's, RGB in `[-1, 1]`.

        Returns:
            `torch.Tensor` of shape `(batch, dim)`: Embeddings.
        """
        values = {self._input: crops}
        for node, dropped in zip(self.nodes, self._dropped, strict=True):
            inputs = [
                None if not name else values[name] if name in values else getattr(self, self._index[name])
                for name in node.inputs
            ]
            values[node.output] = _OPERATORS[node.operator](node.attributes, *inputs)
            for name in dropped:
                values.pop(name, None)
        return values[self._output]


def load_onnx_network(path: str | Path) -> OnnxNetwork:
    r"""
    Raises:
        InputError: The file cannot be read, or has an operator that is not known.
        MissingDependencyError: `onnx`, which insightface brings with it, is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError(f"an ONNX recognizer needs onnx ({one_line(error)}): pip install onnx") from error
    return OnnxNetwork(onnx.load(str(path)).graph).eval()


def _convolution(
    attributes: Attributes, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    pads = attributes.get("pads", [0, 0, 0, 0])  # top, left, bottom, right
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise InputError(f"Conv has auto_pad={attributes['auto_pad']!r}; export it with explicit padding")
    if pads[:2] != pads[2:]:
        x, pads = F.pad(x, (pads[1], pads[3], pads[0], pads[2])), [0, 0, 0, 0]
    return F.conv2d(
        x,
        weight,
        bias,
        stride=tuple(attributes.get("strides", (1, 1))),
        padding=tuple(pads[:2]),
        dilation=tuple(attributes.get("dilations", (1, 1))),
        groups=attributes.get("group", 1),
    )


def _batch_normalization(
    attributes: Attributes,
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
) -> torch.Tensor:
    return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=attributes.get("epsilon", 1e-5))


def _prelu(attributes: Attributes, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    # not F.prelu: the slopes, (channels, 1, 1) or (1,), broadcast from the right
    return torch.where(x < 0, x * slope, x)


def _gemm(
    attributes: Attributes, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | float | None = None
) -> torch.Tensor:
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    product = attributes.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + attributes.get("beta", 1.0) * c


def _flatten(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    axis = attributes.get("axis", 1)
    return x.flatten(axis) if axis else x.reshape(1, -1)


def _reshape(attributes: Attributes, x: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    sizes = [x.shape[place] if size == 0 else size for place, size in enumerate(shape.tolist())]
    return x.reshape(sizes)


def _clip(
    attributes: Attributes, x: torch.Tensor, low: torch.Tensor | None = None, high: torch.Tensor | None = None
) -> torch.Tensor:
    low, high = attributes.get("min", low), attributes.get("max", high)
    return torch.clamp(x, low, high)


_OPERATORS: dict[str, Operator] = {
    "Add": lambda attributes, a, b: a + b,
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "Conv": _convolution,
    "Div": lambda attributes, a, b: a / b,
    "Dropout": lambda attributes, x, *ratio: x,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda attributes, x: x.mean(dim=(2, 3), keepdim=True),
    "Identity": lambda attributes, x: x,
    "MatMul": lambda attributes, a, b: a @ b,
    "Mul": lambda attributes, a, b: a * b,
    "PRelu": _prelu,
    "Relu": lambda attributes, x: F.relu(x),
    "Reshape": _reshape,
    "Sigmoid": lambda attributes, x: torch.sigmoid(x),
    "Sub": lambda attributes, a, b: a - b,
}
