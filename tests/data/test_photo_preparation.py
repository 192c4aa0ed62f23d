"""What one photo becomes."""

import io

import numpy as np
import PIL.Image
import pytest
from tiny_preparation import (
    jpeg,
    photo,
    portrait,
)

from facesnap_diffusers.data.photo_preparation import PhotoPreparer, perceptual_hash
from facesnap_diffusers.data.shard_settings import PrepareConfig
from facesnap_diffusers.data.sources import Item


def test_hash_survives_scaling_and_compression():
    for seed in range(5):
        image = photo(seed, (400, 300))
        again = PIL.Image.open(io.BytesIO(jpeg(image.resize((150, 110)), quality=60)))
        difference = perceptual_hash(np.array(image)) ^ perceptual_hash(np.array(again))
        assert difference.bit_count() <= 3
    assert (perceptual_hash(np.array(photo(1))) ^ perceptual_hash(np.array(photo(2)))).bit_count() > 10


def test_rolled_photo_is_upright_in_the_shard(tmp_path):
    pytest.importorskip("dlib")
    config = PrepareConfig(face_encoder_id="dlib/face_recognition_resnet_model_v1", resolution=256, min_face=32)
    upright = portrait(1)
    upright = upright.crop((0, 0, upright.width, round(0.9 * upright.height)))
    upright.rotate(90, expand=True).save(tmp_path / "lying.jpg")
    record, face = PhotoPreparer(config)(Item("a", str(tmp_path / "lying.jpg")))
    assert record.kept
    assert face.info["file_size"] == list(upright.size) and upright.width != upright.height
    assert face.landmarks[36:48, 1].mean() < face.landmarks[48:68, 1].mean()  # eyes above the mouth
