"""Recognition networks as torch modules, from functions, files and ONNX."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from smooth_recognizer import SmoothRecognizer
from torch import nn

from facesnap_diffusers.errors import InputError
from facesnap_diffusers.training.recognizer import FaceRecognizer, load_network, load_recognizer
from facesnap_diffusers.training.training_config import RecognizerConfig


class TestRecognizer:
    def test_convention_and_frozen(self):
        recognizer = FaceRecognizer(SmoothRecognizer(), size=32, bgr=True)
        recognizer.train()
        assert not recognizer.training and not any(p.requires_grad for p in recognizer.parameters())
        crops = torch.rand(2, 3, 32, 32)
        embeds = recognizer.embed(crops)
        expected = nn.functional.normalize(SmoothRecognizer()(crops[:, [2, 1, 0]] * 2 - 1), dim=-1)
        assert torch.allclose(embeds, expected, atol=1e-6)

    def test_relative_to_a_center(self, tmp_path):
        """The cosine of two embeddings is that of what is left without the center, in the loss too."""
        crops = torch.rand(4, 3, 32, 32)
        raw = SmoothRecognizer()(crops * 2 - 1)
        center = raw.mean(0)
        np.save(tmp_path / "center.npy", center.detach().numpy())
        config = RecognizerConfig("smooth_recognizer:SmoothRecognizer", size=32, center=str(tmp_path / "center.npy"))
        recognizer = load_recognizer(config)
        expected = nn.functional.normalize(raw - center, dim=-1)
        assert torch.allclose(recognizer.embed(crops), expected, atol=1e-5)
        assert torch.allclose(recognizer.relative(raw), expected, atol=1e-5)

    def test_a_wrong_center(self, tmp_path):
        np.save(tmp_path / "matrix.npy", np.zeros((3, 3)))
        (tmp_path / "notes.npy").write_bytes(b"nonsense")
        for name, reason in (
            ("matrix", "must have shape"),
            ("notes", "cannot be read"),
            ("missing", "cannot be read"),
        ):
            config = RecognizerConfig("smooth_recognizer:SmoothRecognizer", center=str(tmp_path / f"{name}.npy"))
            with pytest.raises(InputError, match=reason):
                load_recognizer(config)

    def test_from_function(self):
        network = load_network("smooth_recognizer:SmoothRecognizer")
        crops = torch.rand(1, 3, 32, 32)
        assert torch.equal(network(crops), SmoothRecognizer()(crops))

    def test_from_export(self, tmp_path):
        crops = torch.rand(2, 3, 32, 32)
        batch = {0: torch.export.Dim("batch", min=1)}
        torch.export.save(
            torch.export.export(SmoothRecognizer(), (crops,), dynamic_shapes=[batch]), tmp_path / "network.pt2"
        )
        recognizer = FaceRecognizer(load_network(str(tmp_path / "network.pt2")), size=32)
        crops = torch.rand(3, 3, 32, 32, requires_grad=True)
        embeds = recognizer.embed(crops)
        assert torch.allclose(embeds, FaceRecognizer(SmoothRecognizer(), size=32).embed(crops), atol=1e-6)
        (gradient,) = torch.autograd.grad(embeds[0, 0], crops)
        assert gradient[0].any() and not gradient[1:].any()

    def test_from_onnx(self, tmp_path, monkeypatch):
        """The layers of InsightFace's ArcFace networks, against ONNX Runtime."""
        runtime = pytest.importorskip("onnxruntime")
        try:
            import torchvision  # noqa: F401
        except ImportError:
            # onnx2torch imports it for two detection operators that no recognizer has
            ops = types.ModuleType("torchvision.ops")
            ops.roi_align = None
            module = types.ModuleType("torchvision")
            module.ops = ops
            monkeypatch.setitem(sys.modules, "torchvision", module)
            monkeypatch.setitem(sys.modules, "torchvision.ops", ops)
        pytest.importorskip("onnx2torch", reason="needs onnx2torch")
        path = tmp_path / "arcface.onnx"
        write_arcface_onnx(path)

        crops = torch.rand(2, 3, 32, 32, requires_grad=True)
        network = load_network(str(path))
        embeds = network(crops)
        (expected,) = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
            None, {"input.1": crops.detach().numpy()}
        )
        assert embeds.shape == (2, 16)
        assert np.abs(embeds.detach().numpy() - expected).max() < 1e-4
        (gradient,) = torch.autograd.grad(embeds.square().sum(), crops)
        assert torch.isfinite(gradient).all() and gradient.any()

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("missing.onnx", "neither a file nor"),
            ("no_such_module:function", "cannot be imported"),
            ("tiny_training:normal_samples", "must return"),
            ("notes.txt", "ends in none of"),
            ("broken.pt2", "could not be loaded"),
        ],
    )
    def test_errors(self, name, reason, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for file in ("notes.txt", "broken.pt2"):
            Path(file).write_bytes(b"nonsense")
        with pytest.raises(InputError, match=reason):
            load_network(name)


def write_arcface_onnx(path):
    """A residual block with the operators of ArcFace's IResNet, as ONNX."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    weights = {
        "conv1": 0.2 * generator.standard_normal((8, 3, 3, 3)),
        "bias1": generator.standard_normal(8),
        "slope": generator.uniform(0.1, 0.4, (8, 1, 1)),
        "gamma": generator.uniform(0.5, 1.5, 8),
        "beta": generator.standard_normal(8),
        "mean": generator.standard_normal(8),
        "var": generator.uniform(0.5, 1.5, 8),
        "conv2": 0.2 * generator.standard_normal((8, 8, 3, 3)),
        "bias2": generator.standard_normal(8),
        "fc": 0.05 * generator.standard_normal((16, 8 * 16 * 16)),
        "fc_bias": generator.standard_normal(16),
    }
    nodes = [
        helper.make_node(
            "Conv", ["input.1", "conv1", "bias1"], ["a"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4
        ),
        helper.make_node("PRelu", ["a", "slope"], ["b"]),
        helper.make_node("BatchNormalization", ["b", "gamma", "beta", "mean", "var"], ["c"]),
        helper.make_node("Conv", ["c", "conv2", "bias2"], ["d"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Add", ["d", "b"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "fc", "fc_bias"], ["683"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "arcface",
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("683", TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.save(model, str(path))
