"""Metrics of one image, each against a closed form or another implementation."""

import math

import numpy as np
import pytest
import tiny
import torch
from torchmetrics.functional.retrieval import retrieval_hit_rate

from facesnap_diffusers import InputError
from facesnap_diffusers.evaluation import metrics
from facesnap_diffusers.models.landmark_predictor import FaceCoefficients


def test_likeness():
    a, b = torch.randn(2, 512, generator=torch.Generator().manual_seed(0))
    assert metrics.cosine_similarity(a.numpy(), b.numpy()) == pytest.approx(
        float(torch.cosine_similarity(a, b, dim=0)), abs=1e-6
    )
    assert metrics.euclidean_distance(a.numpy(), b.numpy()) == pytest.approx(float(torch.dist(a, b)), rel=1e-6)
    assert metrics.cosine_similarity(a.numpy(), 3 * a.numpy()) == pytest.approx(1, abs=1e-6)


def test_retrieval_is_that_of_torchmetrics():
    rng = np.random.default_rng(0)
    gallery = rng.normal(size=(50, 16))
    images = gallery + 1.2 * rng.normal(size=(50, 16))
    ranks = [metrics.retrieval_rank(image, gallery, i) for i, image in enumerate(images)]
    for k in (1, 5):
        expected = [
            float(
                retrieval_hit_rate(
                    -torch.cdist(torch.tensor(image)[None], torch.tensor(gallery))[0],
                    torch.arange(50) == i,
                    top_k=k,
                )
            )
            for i, image in enumerate(images)
        ]
        assert [float(rank < k) for rank in ranks] == expected
        assert 0.2 < np.mean(expected) < 1


def test_shuffled_pairs_are_found_at_chance_level():
    rng = np.random.default_rng(1)
    gallery = rng.normal(size=(40, 32))
    people = np.repeat(np.arange(40), 100)
    images = gallery[people] + 0.1 * rng.normal(size=(4000, 32))
    right = [metrics.retrieval_rank(image, gallery, i) for image, i in zip(images, people)]
    assert np.mean(np.array(right) < 1) == 1
    shuffled = np.array(
        [metrics.retrieval_rank(image, gallery, i) for image, i in zip(rng.permutation(images), people)]
    )
    for k in (1, 5):
        chance = k / 40
        # four standard errors; each image of a person hits or misses like the others, so 40 shuffles count 4000
        assert abs(np.mean(shuffled < k) - chance) < 4 * math.sqrt(chance * (1 - chance) / 4000)


def test_equal_embeddings_find_nobody():
    assert metrics.retrieval_rank(np.ones(4), np.ones((10, 4)), 3) == 9


@pytest.mark.parametrize(("angle", "expected"), [(0, 1), (60, -1), (30, 0), (15, 0.5)])
def test_copy_paste_of_angles_in_a_plane(angle, expected):
    """The reference at 0°, the ground truth at 60°."""
    reference, ground_truth, generated = (
        np.array([math.cos(math.radians(a)), math.sin(math.radians(a))]) for a in (0, 60, angle)
    )
    assert metrics.copy_paste(generated, ground_truth, reference) == pytest.approx(expected, abs=1e-6)


def test_landmark_nme():
    target = tiny.face_points().numpy()
    unit = np.linalg.norm(target[36] - target[45])
    assert metrics.landmark_nme(target, target) == 0
    assert metrics.landmark_nme(target + np.array([0.3 * unit, 0.4 * unit]), target) == pytest.approx(0.5)
    moved = target.copy()
    moved[8] += [0, unit]
    assert metrics.landmark_nme(moved, target) == pytest.approx(1 / 68)


def test_angles_go_round():
    assert metrics.angle_errors([10, -5, 179], [-20, 5, -179]).tolist() == [30, 10, 2]


def test_pose_copy(predictor):
    def face(yaw, seed):
        shape = torch.randn(1, predictor.shape_basis.shape[0], generator=torch.Generator().manual_seed(seed))
        expression = torch.zeros(1, predictor.expression_basis.shape[0])
        coefficients = FaceCoefficients(
            0.7 * shape, expression, torch.tensor([[yaw, 0.0, 0.0]]), torch.tensor([8.0]), torch.zeros(1, 3)
        )
        return predictor.decode(coefficients)[0].numpy() + 100 * seed

    rotations, posed = metrics.read_landmarks(predictor, [face(30.0, 1), face(0.0, 2), face(30.0, 3), face(15.0, 4)])
    asked, reference, as_asked, between = posed
    assert np.abs(rotations[:, 0] - [30, 0, 30, 15]).max() < 3
    assert metrics.pose_copy(asked, asked, reference) == 0
    assert metrics.pose_copy(reference, asked, reference) == 1
    assert metrics.pose_copy(asked + 0.25 * (reference - asked), asked, reference) == pytest.approx(0.25, abs=1e-6)
    # other people in these poses: the person must not matter
    assert abs(metrics.pose_copy(as_asked, asked, reference)) < 0.15
    assert abs(metrics.pose_copy(between, asked, reference) - 0.5) < 0.15
    assert metrics.pose_copy(asked, asked, asked + 1e-3) is None


def test_pixels_and_background():
    image = np.full((64, 64, 3), 200, dtype=np.uint8)
    assert metrics.pixel_error(image, np.full((128, 128, 3), 149, dtype=np.uint8)) == pytest.approx(0.2)
    image[:, :, :] = (60, 120, 200)
    image[10:, 12:52] = (250, 250, 250)
    colors = {"white": (238, 238, 236), "blue": (66, 118, 206), "gray": (128, 130, 134)}
    assert metrics.background_color(image, colors) == "blue"
    with pytest.raises(InputError, match="colors"):
        metrics.background_color(image, {})
