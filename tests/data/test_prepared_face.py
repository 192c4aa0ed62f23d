"""Pictures with exact landmarks, as a renderer gives them, to what shards hold."""

import io
from functools import partial

import numpy as np
import PIL.Image
import pytest
import torch
from tiny_preparation import (
    frontal_points,
    photo,
)

from facesnap_diffusers import load_landmark_predictor
from facesnap_diffusers.data.prepared_face import PreparedFace, make_face, resize_points
from facesnap_diffusers.data.recognition_crop import align_faces
from facesnap_diffusers.data.shard_settings import ShardSettings
from facesnap_diffusers.data.shards import (
    PreparedFaces,
    ShardWriter,
)
from facesnap_diffusers.errors import InputError
from facesnap_diffusers.faces.alignment import align_face, align_for_clip
from facesnap_diffusers.faces.key_points import five_points


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
                image, landmarks[:, :2], np.ones(4), predictor, settings, coefficients=ground_truth, min_side=60
            )
            writer.add(exact, "second")
        with ShardWriter(tmp_path, settings) as writer:
            assert "first" in writer and "second" in writer and "third" not in writer and writer.total == 2

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


class TestCrops:
    """What the settings of shards say is what a photo has."""

    def make(self, **settings):
        image, landmarks = np.array(photo(3, (128, 120))), frontal_points() + [8, 4]
        settings = ShardSettings("mine", clip_crop_size=64, **settings)
        return image, landmarks, make_face(image, landmarks, UNIT, load_landmark_predictor(), settings)

    @pytest.mark.parametrize(("image_crop", "align"), [("head", align_for_clip), ("arcface", align_face)])
    def test_clip_crop(self, image_crop, align):
        image, landmarks, face = self.make(image_crop=image_crop)
        crop = np.array(PIL.Image.open(io.BytesIO(face.clip_crop))).astype(int)
        assert crop.shape == (64, 64, 3)
        assert np.abs(crop - align(image, landmarks, 64)).mean() < 3  # of JPEG
        other_align = align_face if align is align_for_clip else align_for_clip
        assert np.abs(crop - other_align(image, landmarks, 64)).mean() > 20

    @pytest.mark.parametrize(("image_crop", "moves"), [("head", False), ("arcface", True)])
    def test_key_points(self, image_crop, moves):
        """The detector's own: stored, scaled with the picture, and what ArcFace's crop is aligned by."""
        image, landmarks, without = self.make(image_crop=image_crop)
        key_points = five_points(landmarks) + [6.0, -4.0]
        settings = ShardSettings("mine", clip_crop_size=64, image_crop=image_crop)
        make = partial(make_face, image, landmarks, UNIT, load_landmark_predictor(), settings, key_points=key_points)
        face = PreparedFace.from_tar(make().to_tar("a"))
        assert np.allclose(face.key_points, key_points, atol=1e-5) and face.landmarks.shape == (72, 2)
        assert np.allclose(make(min_side=60).key_points, (key_points + 0.5) / 2 - 0.5)
        assert (face.clip_crop != without.clip_crop) == moves and without.key_points is None
        assert PreparedFace.from_tar(without.to_tar("a")).key_points is None
        expected = align_face(image, key_points, 64) if moves else align_for_clip(image, landmarks, 64)
        crop = np.array(PIL.Image.open(io.BytesIO(face.clip_crop))).astype(int)
        assert np.abs(crop - expected).mean() < 3  # of JPEG
        with pytest.raises(InputError, match=r"key_points must have shape \(5, 2\), got \(4, 2\)"):
            make(key_points=key_points[:4])

    @pytest.mark.parametrize(("template", "size"), [("arcface", 112), ("dlib", 150)])
    def test_recognition_crop(self, template, size):
        image, landmarks, face = self.make(recognition_crop=template)
        crop = np.array(PIL.Image.open(io.BytesIO(face.recognition_crop)))
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        expected = align_faces(pixels, torch.from_numpy(landmarks).float()[None], template)[0].permute(1, 2, 0)
        assert crop.shape == (size, size, 3) and np.abs(crop / 255 - expected.numpy()).max() < 0.51 / 255 + 1e-6

    def test_without_a_recognition_crop(self, tmp_path):
        *_, face = self.make(recognition_crop=None)
        assert face.recognition_crop is None
        again = PreparedFace.from_tar(face.to_tar("a"))
        assert again.recognition_crop is None and again.clip_crop == face.clip_crop

    def test_an_embedding_of_another_length_is_refused(self):
        image, landmarks, predictor = np.array(photo(3)), frontal_points(), load_landmark_predictor()
        with pytest.raises(InputError, match="length 2, the shards are for embeddings of unit length"):
            make_face(image, landmarks, np.ones(4), predictor, ShardSettings("mine"))
        raw = make_face(image, landmarks, np.ones(4), predictor, ShardSettings("mine", normalized_embeds=False))
        assert np.array_equal(raw.embedding, np.ones(4))


def test_points_stay_on_what_they_show_when_an_image_is_resized():
    """Against Pillow: the brightness-weighted center of a spot, before and after a box of the image is scaled."""
    y, x = np.mgrid[:200, :300]
    point = np.array([181.3, 90.7])
    spot = np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * 8.0**2)).astype(np.float32)
    for scale, corner, shape in (
        (0.5, (0, 0), (150, 100)),
        (0.4, (120, 30), (60, 64)),
        (2, (131.5, 42.25), (200, 200)),
    ):
        box = (*corner, corner[0] + shape[0] / scale, corner[1] + shape[1] / scale)
        resized = np.array(PIL.Image.fromarray(spot).resize(shape, PIL.Image.Resampling.BICUBIC, box=box))
        rows, columns = np.mgrid[: shape[1], : shape[0]]
        center = np.array([(resized * columns).sum(), (resized * rows).sum()]) / resized.sum()
        assert np.abs(center - resize_points(point, scale, corner)).max() < 0.02
