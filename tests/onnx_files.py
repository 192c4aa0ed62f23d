"""ONNX files in the layout of InsightFace's recognizers, with random weights and fewer channels."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class OnnxFile:
    """Adds layers one after the other; `state` is the name of the last one's output."""

    def __init__(self, seed: int, size: int = 32):
        self.random, self.size = np.random.default_rng(seed), size
        self.nodes, self.weights, self.state, self.shape = [], [], "input.1", (3, size, size)

    def weight(self, values) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def add(self, operator, *inputs, **attributes) -> "OnnxFile":
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, [self.state, *inputs], [output], **attributes))
        self.state = output
        return self

    def convolution(self, channels, kernel=3, stride=1, group=1, padding=None, bias=True) -> "OnnxFile":
        inputs, height, width = self.shape
        padding = kernel // 2 if padding is None else padding
        fan = kernel * kernel * inputs / group
        weights = [self.weight(self.random.standard_normal((channels, inputs // group, kernel, kernel)) / fan**0.5)]
        if bias:
            weights.append(self.weight(0.2 * self.random.standard_normal(channels)))
        sides = [(side + 2 * padding - kernel) // stride + 1 for side in (height, width)]
        self.shape = (channels, *sides)
        return self.add(
            "Conv", *weights, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4, group=group,
            dilations=[1, 1],
        )  # fmt: skip

    def normalization(self) -> "OnnxFile":
        count = self.shape[0]
        scale, mean = self.random.uniform(0.5, 1.5, (2, count))
        shift, variance = 0.3 * self.random.standard_normal(count), self.random.uniform(0.5, 1.5, count)
        names = [self.weight(values) for values in (scale, shift, mean, variance)]
        return self.add("BatchNormalization", *names, epsilon=2e-5, momentum=0.9)

    def prelu(self) -> "OnnxFile":
        return self.add("PRelu", self.weight(self.random.uniform(0.1, 0.4, (self.shape[0], 1, 1))))

    def linear(self, dim, bias=True) -> "OnnxFile":
        count = int(np.prod(self.shape))
        weights = [self.weight(self.random.standard_normal((dim, count)) / count**0.5)]
        if bias:
            weights.append(self.weight(0.2 * self.random.standard_normal(dim)))
        self.shape = (dim,)
        return self.add("Gemm", *weights, alpha=1.0, beta=1.0, transB=1)

    def save(self, path: Path) -> None:
        dim = self.shape[0]
        graph = helper.make_graph(
            self.nodes,
            "recognizer",
            [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, ["None", 3, self.size, self.size])],
            [helper.make_tensor_value_info(self.state, TensorProto.FLOAT, ["None", dim])],
            self.weights,
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), str(path))


def write_iresnet(path: Path, size: int = 32) -> None:
    """IResNet: blocks of BN, convolution, PReLU, convolution, with a convolution beside those that halve the size."""
    file = OnnxFile(0, size).convolution(8).prelu()
    for channels in (8, 16, 16):
        before, shape = file.state, file.shape
        stride = 1 if channels == shape[0] and file.shape[1] < size else 2
        file.normalization().convolution(channels).prelu().convolution(channels, stride=stride)
        after = file.state
        if stride == 2:
            file.state, file.shape = before, shape
            file.convolution(channels, kernel=1, stride=2)
            before = file.state
        file.state = after
        file.add("Add", before)
    file.normalization().add("Flatten", axis=1)
    file.linear(32).normalization().save(path)


def write_mobile_face_net(path: Path) -> None:
    """MobileFaceNet: inverted residuals with depthwise convolutions, at the end a global depthwise one."""
    file = OnnxFile(1).convolution(8, stride=2, bias=False).normalization().prelu()
    file.convolution(8, group=8).prelu()
    for stride in (2, 1, 1):
        before = file.state
        file.convolution(16, kernel=1).prelu().convolution(16, stride=stride, group=16).prelu()
        file.convolution(8, kernel=1)
        if stride == 1:
            file.add("Add", before)
    side = file.shape[1]
    file.convolution(32, kernel=1).prelu().convolution(32, kernel=side, group=32, padding=0)
    file.add("Flatten", axis=1).linear(16, bias=False).normalization().save(path)


def write_mxnet_arcface(path: Path) -> None:
    """As MXNet exported ArcFace: the pixels are scaled in the graph, and dropout stands before the linear layer."""
    file = OnnxFile(2)
    file.add("Sub", file.weight(127.5)).add("Mul", file.weight(0.0078125))
    file.convolution(8, stride=2).normalization().prelu().add("Dropout")
    slope = file.weight(file.random.uniform(0.1, 0.4, 8))
    shape = numpy_helper.from_array(np.array([8, 1, 1]), "slope_shape")
    file.weights.append(shape)
    file.nodes.append(helper.make_node("Reshape", [slope, "slope_shape"], ["slope"]))
    file.convolution(8, stride=2).add("PRelu", "slope").add("Flatten").linear(16).save(path)
