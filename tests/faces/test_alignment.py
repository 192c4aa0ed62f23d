"""Crops of a face, against known transforms, InsightFace's formula and scikit-image."""

import math

import numpy as np
import pytest
import skimage.transform
import torch
from insightface.utils.face_align import norm_crop

from facesnap_diffusers.errors import InputError
from facesnap_diffusers.faces.alignment import (
    CLIP_MEAN_COLOR,
    align_face,
    align_for_clip,
    fit_similarity,
    head_axes,
    similarity_transform,
)
from facesnap_diffusers.faces.key_points import five_points


def landmarks_at(right_eye, left_eye, nose, right_mouth, left_mouth) -> np.ndarray:
    """68 points whose eyes are rings around the given centers."""
    points = np.zeros((68, 2))
    ring = np.array([[-3, 0], [-1, -1], [1, -1], [3, 0], [1, 1], [-1, 1]])
    points[36:42] = ring + right_eye
    points[42:48] = ring + left_eye
    points[30], points[48], points[54] = nose, right_mouth, left_mouth
    return points


def upright_face() -> np.ndarray:
    return landmarks_at([85, 90], [115, 90], [100, 108], [88, 126], [112, 126])


def turned(
    points: np.ndarray, degrees: float, scale: float = 1.0, shift=(0.0, 0.0), about=(100.0, 100.0)
) -> np.ndarray:
    angle = math.radians(degrees)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return scale * (points - about) @ rotation.T + about + shift


class TestSimilarityTransform:
    def test_recovers_a_known_transform(self):
        source = np.random.default_rng(0).normal(size=(9, 2)) * 50
        target = turned(source, 37.0, 1.7, (5, -9))
        matrix = similarity_transform(source, target)
        assert np.allclose(source @ matrix[:, :2].T + matrix[:, 2], target, atol=1e-10)

    @pytest.mark.parametrize("seed", range(5))
    def test_equals_skimage(self, seed):
        source, target = np.random.default_rng(seed).normal(size=(2, 5, 2)) * 40
        peer = skimage.transform.SimilarityTransform.from_estimate(source, target).params
        assert np.allclose(similarity_transform(source, target), peer[:2], atol=1e-9)

    @pytest.mark.parametrize("seed", range(3))
    def test_arrays_and_tensors_in_batches(self, seed):
        source, target = np.random.default_rng(seed).normal(size=(2, 4, 3, 5, 2)) * 40
        a, b, x, y = fit_similarity(source, target)
        for index in np.ndindex(4, 3):
            expected = similarity_transform(source[index], target[index])
            assert np.allclose([[a[index], -b[index], x[index]], [b[index], a[index], y[index]]], expected, atol=1e-9)
        for array, tensor in zip((a, b, x, y), fit_similarity(torch.from_numpy(source), torch.from_numpy(target))):
            assert np.allclose(array, tensor.numpy(), atol=1e-12)

    def test_differentiable(self):
        source = torch.randn(
            2, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
        )
        target = torch.randn(
            2, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True
        )
        assert torch.autograd.gradcheck(fit_similarity, (source, target))

    def test_never_reflects(self):
        source = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
        assert np.linalg.det(similarity_transform(source, source * [1, -1])[:, :2]) > 0

    @pytest.mark.parametrize(
        ("source", "target"),
        [
            (np.zeros((3, 2)), np.ones((3, 2))),
            (np.ones((1, 2)), np.ones((1, 2))),
            (np.eye(3), np.eye(3)),
            (np.eye(2), np.ones((3, 2))),
            (np.array([[np.nan, 0], [1, 1]]), np.eye(2)),
        ],
    )
    def test_bad_points(self, source, target):
        with pytest.raises(InputError, match="source"):
            similarity_transform(source, target)


class TestAlignFace:
    image = np.random.default_rng(1).integers(0, 256, (240, 200, 3), dtype=np.uint8)

    @pytest.mark.parametrize("size", [112, 224])
    @pytest.mark.parametrize("degrees", [0, 25, -70])
    def test_equals_norm_crop(self, size, degrees):
        landmarks = turned(upright_face(), degrees, 1.3, (-20, 30))
        peer = norm_crop(self.image, five_points(landmarks).astype(np.float32), image_size=size)
        # OpenCV computes with positions in 1/32 px: a last bit in the matrix may move a pixel by one such step.
        difference = np.abs(align_face(self.image, landmarks, size).astype(int) - peer)
        assert difference.mean() < 0.05 and difference.max() <= 16

    @pytest.mark.parametrize("arguments", [{"size": 0}, {"size": 112.0}, {"size": 10**6}, {"template": "other"}])
    def test_bad_arguments(self, arguments):
        with pytest.raises(InputError, match=next(iter(arguments))):
            align_face(self.image, upright_face(), **arguments)

    @pytest.mark.parametrize("size", [112, 224])
    def test_detectors_own_points(self, size):
        """FaceID Plus's crop: `norm_crop` of the five points that the detector gives."""
        points = five_points(turned(upright_face(), 12, 1.2)) + np.random.default_rng(2).normal(0, 2, (5, 2))
        peer = norm_crop(self.image, points.astype(np.float32), image_size=size)
        difference = np.abs(align_face(self.image, points.astype(np.float32), size).astype(int) - peer)
        assert difference.mean() < 0.05 and difference.max() <= 16

    def test_clip_crop_of_five_points(self):
        landmarks = turned(upright_face(), 25)
        assert np.array_equal(
            align_for_clip(self.image, five_points(landmarks)), align_for_clip(self.image, landmarks)
        )

    @pytest.mark.parametrize(
        "landmarks",
        [
            np.zeros((6, 2)),
            np.zeros((68, 4)),
            np.zeros((70, 2)),
            np.zeros(136),
            np.full((68, 2), np.nan),
            np.zeros((1, 68, 2)),
            "here",
            None,
            [[1, 2], [3]],
        ],
        ids=str,
    )
    def test_bad_landmarks(self, landmarks):
        for align in (align_face, align_for_clip):
            with pytest.raises(InputError, match="landmarks"):
                align(self.image, landmarks)

    @pytest.mark.parametrize(
        "image",
        [np.zeros((0, 8, 3), np.uint8), np.zeros((8, 8)), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8), "photo"],
    )
    def test_bad_image(self, image):
        for align in (align_face, align_for_clip):
            with pytest.raises(InputError, match="image"):
                align(image, upright_face())


class TestAlignForClip:
    def test_geometry(self):
        # By hand: eyes 30 apart, 36 from eyes to mouth: side = max(4 · 30, 3.6 · 36) = 129.6, center 3.6 below the eyes.
        center, right, side = head_axes(upright_face())
        assert np.allclose(center, [100, 93.6]) and np.allclose(right, [1, 0]) and math.isclose(side, 129.6)

    @pytest.mark.parametrize("degrees", [-170, -90, -30, 15, 60, 135])
    def test_axes_turn_with_the_head(self, degrees):
        center, right, side = head_axes(turned(upright_face(), degrees, 2.0))
        assert np.allclose(right, [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
        assert np.allclose(center, turned(np.array([[100, 93.6]]), degrees, 2.0)[0]) and math.isclose(side, 259.2)

    def test_profile_keeps_its_roll_and_size(self):
        # A head turned by 85° has almost no eye distance, which says nothing of the roll then.
        profile = upright_face()
        profile[:, 0] = 100 + (profile[:, 0] - 100) * math.cos(math.radians(85))
        profile[42:48, 1] += 1.0
        _, right, side = head_axes(profile)
        assert abs(math.degrees(math.atan2(right[1], right[0]))) < 2 and abs(side - 129.6) < 2

    @pytest.mark.parametrize("degrees", [0, 30, -100])
    @pytest.mark.parametrize("scale", [0.4, 1.0, 5.0])
    def test_points_land_where_the_geometry_says(self, degrees, scale):
        """Paints a disc on each eye and the mouth and finds their centers in the crop."""
        about = (600.0, 600.0)
        landmarks = turned(upright_face() + 500, degrees, scale, about=about)
        y, x = np.mgrid[:1200, :1200]
        image = np.zeros((1200, 1200, 3), np.uint8)
        places = five_points(landmarks)
        for channel, point in enumerate([places[0], places[1], places[3:].mean(axis=0)]):
            image[np.hypot(x - point[0], y - point[1]) <= 6 * scale, channel] = 255
        crop = align_for_clip(image, landmarks)
        assert crop.shape == (224, 224, 3)
        y, x = np.mgrid[:224, :224]
        pixel = 224 / 129.6
        for channel, (dx, dy) in enumerate([(-15, -3.6), (15, -3.6), (0, 32.4)]):
            weight = crop[..., channel].astype(float)
            found = np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()
            assert np.abs(found - [111.5 + dx * pixel, 111.5 + dy * pixel]).max() < 0.6

    def test_shrinking_averages(self):
        """A fine checkerboard becomes gray; without averaging it would alias to black and white."""
        y, x = np.mgrid[:2000, :2000]
        image = np.repeat(((x + y) % 2 * 255).astype(np.uint8)[..., None], 3, axis=-1)
        crop = align_for_clip(image, turned(upright_face(), 20, 8.0, (900, 900)))
        assert crop.std() < 10 and abs(crop.mean() - 127.5) < 3

    def test_outside_is_clips_mean(self):
        crop = align_for_clip(np.zeros((100, 120, 3), np.uint8), upright_face() - [85, 90])
        assert tuple(crop[0, 0]) == CLIP_MEAN_COLOR and tuple(crop[150, 150]) == (0, 0, 0)

    def test_all_in_one_place(self):
        with pytest.raises(InputError, match="landmarks"):
            align_for_clip(np.zeros((100, 120, 3), np.uint8), np.ones((68, 2)))
