"""What an adapter's config says of the recognizers of its identity loss, and training that goes on with nano by its name."""

import json

import pytest
import tiny_training
import torch
from diffusers import UNet2DConditionModel

from facesnap_diffusers import FaceSnapConfig
from facesnap_diffusers.nano.model import SHIPPED_NANO
from facesnap_diffusers.training.base import adapter_config, load_pipeline, local_image_size
from facesnap_diffusers.training.dlib_network import load_dlib_network
from facesnap_diffusers.training.recognizer import recognizer_name


DLIB = "dlib/face_recognition_resnet_model_v1"
DLIB_NETWORK = f"{load_dlib_network.__module__}:{load_dlib_network.__qualname__}"


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (DLIB_NETWORK, DLIB),
        ("~/.insightface/models/buffalo_l/w600k_r50.onnx", "insightface/w600k_r50"),
        ("glintr100.pt2", "insightface/glintr100"),
        ("networks/mine.onnx", "mine.onnx"),
        ("my_package.networks:load", "my_package.networks:load"),
    ],
)
def test_name_of_a_recognizer(network, name):
    assert recognizer_name(network) == name


def test_configs_without_an_identity_loss_are_as_before():
    values = FaceSnapConfig().to_dict()
    assert "identity_loss_recognizers" not in values and FaceSnapConfig.from_dict(values) == FaceSnapConfig()
    both = FaceSnapConfig(identity_loss_recognizers=["a/b"], ffrnet_config=FaceSnapConfig(face_encoder_id="c/d"))
    assert "identity_loss_recognizers" not in both.to_dict()["ffrnet_config"]
    assert FaceSnapConfig.from_dict(json.loads(json.dumps(both.to_dict()))) == both
    assert both.trained_with_face_encoder_ids == ["insightface/w600k_r50", "c/d", "a/b"]


@pytest.mark.slow
def test_the_recognizer_is_noted_and_carried_on(base, faces, tmp_path):
    def saved(name, network, **changes):
        loss = {"weight": 0.0 if network is None else 0.5, "recognizer": network and {"network": network}}
        config = tiny_training.config(base, faces, tmp_path / "run", identity_loss=loss, **changes)
        load_pipeline(config).save_facesnap_adapter(tmp_path / name)
        return json.loads((tmp_path / name / "facesnap_config.json").read_text()).get("identity_loss_recognizers")

    assert saved("none", None) is None
    assert saved("first", DLIB_NETWORK) == [DLIB]
    for network, expected in ((None, [DLIB]), (DLIB_NETWORK, [DLIB]), ("x/mine.onnx", [DLIB, "mine.onnx"])):
        assert saved("next", network, adapter={"start_from": str(tmp_path / "first")}) == expected


@pytest.mark.slow
def test_nano_by_its_name(faces, tmp_path, monkeypatch):
    """Base and adapter are those in the package, with their weights."""
    monkeypatch.chdir(tmp_path)
    changes = {"base": {"model": "nano"}, "adapter": {"start_from": "nano"}}
    config = tiny_training.config(tmp_path / "nowhere", faces, tmp_path / "run", **changes)
    pipeline = load_pipeline(config)
    unet = UNet2DConditionModel.from_pretrained(SHIPPED_NANO / "base/unet", dtype=torch.float32)
    for name, tensor in unet.state_dict().items():
        assert torch.equal(pipeline.unet.state_dict()[name], tensor), name
    expected = FaceSnapConfig.load(SHIPPED_NANO / "adapter")
    assert expected.identity_loss_recognizers == [DLIB]
    assert adapter_config(config) == expected
    assert local_image_size(config, expected) == pipeline.face_image_encoder.config.image_size
    noted = [*expected.identity_loss_recognizers, config.identity_loss.recognizer.network]
    trained = pipeline.facesnap_config
    assert trained.replace(parts=expected.parts) == expected.replace(identity_loss_recognizers=noted)
