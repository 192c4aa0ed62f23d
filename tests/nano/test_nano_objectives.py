"""The runs that examples/nano/objectives.py compares."""

import json

import pytest


pytest.importorskip("dlib")
pytest.importorskip("cv2")
pytest.importorskip("scipy")

from objectives import ARMS, SECOND, SEEDS
from prepare_shards import CROP_SIZE

from facesnap_diffusers.data.recognition_crop import RECOGNITION_CROP_SIZES
from facesnap_diffusers.training.training_config import load_config


@pytest.mark.parametrize("arm", ARMS)
def test_the_config_of_a_run(arm):
    config = load_config(SECOND, [f"{name}={json.dumps(value)}" for name, value in ARMS[arm].items()])
    recognizer = config.identity_loss.recognizer
    # what check_shards wants of a loss against photos
    assert (recognizer.size or RECOGNITION_CROP_SIZES[recognizer.crop]) == CROP_SIZE
    assert (config.identity_loss.weight > 0) == (arm != "diffusion")
    assert set(SEEDS) < set(ARMS)
