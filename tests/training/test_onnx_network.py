"""Recognizers as torch modules, straight from ONNX files in InsightFace's layouts, against ONNX Runtime."""

import configparser
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx_files import OnnxFile, write_iresnet, write_mobile_face_net, write_mxnet_arcface

from facesnap_diffusers.errors import InputError
from facesnap_diffusers.training.onnx_network import load_onnx_network
from facesnap_diffusers.training.recognizer import load_network


LAYOUTS = [write_iresnet, write_mobile_face_net, write_mxnet_arcface]


@pytest.mark.parametrize("write", LAYOUTS)
def test_equals_onnx_runtime(write, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    write(tmp_path / "network.onnx")
    network = load_onnx_network(tmp_path / "network.onnx")
    session = runtime.InferenceSession(str(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        crops = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch)) * 2 - 1
        (expected,) = session.run(None, {"input.1": crops.numpy()})
        with torch.no_grad():
            embeds = network(crops).numpy()
        assert embeds.shape == expected.shape and np.abs(expected).max() > 0.3
        assert np.abs(embeds - expected).max() < 1e-5


@pytest.mark.parametrize("write", LAYOUTS)
def test_gradient(write, tmp_path):
    """By the crops, against finite differences in float64."""
    write(tmp_path / "network.onnx")
    network = load_onnx_network(tmp_path / "network.onnx").double()
    generator = torch.Generator().manual_seed(0)
    crops = torch.rand(2, 3, 32, 32, generator=generator, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(crops).square().sum(), crops)
    direction = torch.randn(crops.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        ahead, behind = (network(crops + step * direction).square().sum() for step in (1e-7, -1e-7))
    assert ((ahead - behind) / 2e-7).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-4)


def test_an_unknown_operator_is_named(tmp_path):
    OnnxFile(0).convolution(4).add("Sin").add("Flatten").linear(8).save(tmp_path / "network.onnx")
    with pytest.raises(InputError, match="has the operator Sin; known are Add, BatchNormalization"):
        load_network(str(tmp_path / "network.onnx"))


def test_padding_that_is_not_the_same_on_both_sides(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    write_iresnet(tmp_path / "network.onnx")
    model = onnx.load(str(tmp_path / "network.onnx"))
    attributes = {item.name: item for item in model.graph.node[0].attribute}
    attributes["pads"].CopyFrom(helper.make_attribute("pads", [0, 1, 2, 1]))
    onnx.save(model, str(tmp_path / "network.onnx"))
    crops = torch.rand(2, 3, 32, 32)
    session = runtime.InferenceSession(str(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"input.1": crops.numpy()})
    with torch.no_grad():
        assert np.abs(load_onnx_network(tmp_path / "network.onnx")(crops).numpy() - expected).max() < 1e-5


def test_the_extra_does_not_replace_torch():
    """Nothing in `train` asks for torchvision, whose wheels bring a torch of their own version."""
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[2] / "setup.cfg")
    train = config["options.extras_require"]["train"].split()
    assert "accelerate" in train and not {"onnx2torch", "torchvision", "torch"} & set(train)
