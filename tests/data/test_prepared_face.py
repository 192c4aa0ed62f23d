"""Pictures with exact landmarks, as a renderer gives them, to what shards hold."""

import io

import numpy as np
import PIL.Image
import pytest
import torch
from tiny_preparation import (
    frontal_points,
    photo,
)

from facesnap_diffusers import load_landmark_predictor
from facesnap_diffusers.data.prepared_face import make_face
from facesnap_diffusers.data.shard_settings import ShardSettings
from facesnap_diffusers.data.shards import (
    PreparedFaces,
    ShardWriter,
)
from facesnap_diffusers.errors import InputError


UNIT = np.ones(4) / 2


class TestDataOfYourOwn:
    """Pictures with exact landmarks, as a renderer gives them."""

    @torch.no_grad()
    def test_written_and_read(self, tmp_path):
        predictor = load_landmark_predictor()
        generator = torch.Generator().manual_seed(0)
        ground_truth = predictor.encode(predictor.mean[None] * torch.tensor([4.0, -4.0, 4.0]) + 60).map(torch.clone)
        ground_truth.rotation[:] = torch.tensor([20.0, -10.0, 5.0])
        ground_truth.shape[:] = 0.5 * torch.randn(ground_truth.shape.size(), generator=generator)
        landmarks = predictor.decode(ground_truth, 3)[0].numpy()
        image = np.array(photo(3, (128, 120)))
        info = {"identity": "someone", "caption": "a render", "image_format": "png", "seed": 7}
        settings = ShardSettings("mine", normalized_embeds=False, clip_crop_size=64)
        with ShardWriter(tmp_path, settings) as writer:
            writer.add(make_face(image, landmarks, np.arange(4), predictor, settings, info=info), "first")
            exact = make_face(
                image, landmarks[:, :2], np.ones(4), predictor, settings, coefficients=ground_truth, max_side=64
            )
            writer.add(exact, "second")
        with ShardWriter(tmp_path, settings) as writer:
            assert [record.source for record in writer.records] == ["first", "second"]

        faces = PreparedFaces([str(tmp_path)])
        first, second = faces[0], faces[1]
        assert np.array_equal(np.array(PIL.Image.open(io.BytesIO(first.image))), image)
        assert first.info.items() >= info.items() and first.info["size"] == [128, 120]
        assert faces.person == ["0/someone", None] and PIL.Image.open(io.BytesIO(first.clip_crop)).size == (64, 64)
        assert np.array_equal(first.embedding, np.arange(4)) and np.allclose(first.landmarks, landmarks[:, :2])
        # what the predictor makes of the exact points is close to what they were made from, and draws them again
        assert np.abs(first.rotation - ground_truth.rotation[0].numpy()).max() < 3
        again = predictor.decode(first.coefficients)[0]
        assert np.abs(again.numpy() - landmarks[:, :2]).mean() < 0.01 * np.ptp(landmarks[:, 0])
        # of half the size, all pixels are
        assert np.array_equal(second.shape, ground_truth.shape[0].numpy())
        half = predictor.decode(second.coefficients)[0]
        assert np.abs(half.numpy() - ((landmarks[:, :2] + 0.5) / 2 - 0.5)).max() < 1e-3
        assert np.abs(second.landmarks - ((landmarks[:, :2] + 0.5) / 2 - 0.5)).max() < 1e-4

    @pytest.mark.parametrize("key", ["", "a.b", "ä", "x" * 80])
    def test_keys_that_a_tar_header_cannot_hold(self, key):
        face = make_face(np.array(photo(3)), frontal_points(), UNIT, load_landmark_predictor(), ShardSettings("mine"))
        with pytest.raises(InputError, match="ASCII characters without a dot"):
            face.to_tar(key)
