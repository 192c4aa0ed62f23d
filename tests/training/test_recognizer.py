"""Recognition networks as torch modules, from functions, files and ONNX."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_files import write_iresnet
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

    def test_an_onnx_file_is_a_recognizer(self, tmp_path):
        write_iresnet(tmp_path / "network.onnx")
        recognizer = FaceRecognizer(load_network(str(tmp_path / "network.onnx")), size=32)
        crops = torch.rand(2, 3, 32, 32)
        expected = nn.functional.normalize(load_network(str(tmp_path / "network.onnx"))(crops * 2 - 1), dim=-1)
        assert torch.allclose(recognizer.embed(crops), expected, atol=1e-6)
        assert not any(parameter.requires_grad for parameter in recognizer.parameters())

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
