"""A tiny model pack in InsightFace's format: real ONNX networks that InsightFace itself loads and runs."""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper


BOX = np.array([5.0, 6.0, 5.0, 7.0])  # Distances from the anchor to the box's sides, in strides of 8 px.
KEY_POINTS = np.array([[-2, -2], [2.5, -2.5], [0, 0.5], [-1.5, 3], [2, 2.5]])  # From the anchor, in strides.
SHAPE = np.random.default_rng(3).uniform(-0.6, 0.6, (1103, 3)).astype(np.float32)  # The last 68 are the landmarks.
SHAPE[-68:][[0, 16, 8, 27, 30, 36, 45]] = [
    [-0.7, -0.2, -0.5],
    [0.7, -0.2, -0.5],
    [0, 0.7, 0.2],
    [0, -0.3, 0.4],
    [0, 0, 0.6],
    [-0.5, -0.3, 0.2],
    [0.5, -0.3, 0.2],
]
WEIGHT = np.random.default_rng(4).normal(size=(12, 16)).astype(np.float32)


def save(path: Path, nodes, tensors: dict, inputs, outputs) -> None:
    def value(name, shape):
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        path.stem,
        [value(*item) for item in inputs],
        [value(*item) for item in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def save_detector(path: Path, key_points: bool = True) -> None:
    """SCRFD's outputs, three strides with two anchors each: finds a face around every red 8 × 8 block."""
    nodes, tensors, outputs = [], {"red": np.array([[1, -0.5, -0.5]], np.float32).reshape(1, 3, 1, 1)}, []
    nodes.append(helper.make_node("Conv", ["image", "red"], ["redness"]))
    kinds = [("score", 1, None), ("box", 4, BOX), ("points", 10, KEY_POINTS.ravel())][: 3 if key_points else 2]
    for kind, width, constant in kinds:
        for stride in (8, 16, 32):
            name = f"{kind}_{stride}"
            weight, bias = np.zeros((2 * width, 1, 1, 1), np.float32), np.zeros(2 * width, np.float32)
            if constant is not None:
                bias[:] = np.tile(constant, 2)
            else:
                # Redness is 2 in a red block and 0 in a gray one. Only the first anchor of stride 8 looks for it.
                bias[:] = -30
                if stride == 8:
                    weight[0] = 20
            tensors |= {f"{name}_w": weight, f"{name}_b": bias, f"{name}_s": np.array([-1, width])}
            nodes += [
                helper.make_node(
                    "AveragePool", ["redness"], [f"{name}_p"], kernel_shape=[stride] * 2, strides=[stride] * 2
                ),
                helper.make_node("Conv", [f"{name}_p", f"{name}_w", f"{name}_b"], [f"{name}_c"]),
                helper.make_node("Transpose", [f"{name}_c"], [f"{name}_t"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"{name}_t", f"{name}_s"], [f"{name}_r"]),
                helper.make_node("Sigmoid" if kind == "score" else "Identity", [f"{name}_r"], [name]),
            ]
            outputs.append((name, ["n", width]))
    save(path, nodes, tensors, [("image", [1, 3, "height", "width"])], outputs)


def save_landmark_net(path: Path, depth_sign: float = 1.0) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "zero", "shape"], ["points"]),
    ]
    tensors = {
        "zero": np.zeros((3, 3309), np.float32),
        "shape": (SHAPE * np.array([1, 1, depth_sign], np.float32)).ravel(),
    }
    save(path, nodes, tensors, [("image", [1, 3, 192, 192])], [("points", [1, 3309])])


def save_recognizer(path: Path, weight: np.ndarray = WEIGHT) -> None:
    nodes = [
        helper.make_node("AveragePool", ["image"], ["quarters"], kernel_shape=[56, 56], strides=[56, 56]),
        helper.make_node("Flatten", ["quarters"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["embedding"]),
    ]
    save(path, nodes, {"weight": weight}, [("image", [1, 3, 112, 112])], [("embedding", [1, 16])])


def save_pack(folder: Path, recognizer: str = "w600k_r50") -> Path:
    save_detector(folder / "det_10g.onnx")
    save_landmark_net(folder / "1k3d68.onnx")
    save_recognizer(folder / f"{recognizer}.onnx")
    return folder


def photo_with_faces(*anchors, size=(640, 640)) -> np.ndarray:
    """A gray-green photo, uneven so that crops differ, with a red block at each (x, y), multiples of 8."""
    y, x = np.mgrid[: size[1], : size[0]]
    green = 60 + 80 * np.sin(x / 40) ** 2
    image = np.stack([green * 0.9, green, 40 + 100 * np.cos(y / 55) ** 2], axis=-1).astype(np.uint8)
    for x, y in anchors:
        image[y : y + 8, x : x + 8] = [255, 0, 0]
    return image
