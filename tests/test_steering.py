"""What a caller steers by, down to landmarks."""

import dataclasses

import pytest
import tiny
import torch

from facesnap_diffusers import Expression, HeadPose, load_landmark_predictor
from facesnap_diffusers.models.landmark_predictor import NOISE, rotation_matrix
from facesnap_diffusers.steering import ImageSteering, photo_to_canvas, steer


@pytest.fixture(scope="module")
def predictor():
    return load_landmark_predictor()


def a_face(seed: int, noise: float):
    """An identity whose landmarks a reconstruction misses by `noise` pixels of 3 a centimeter."""
    person = tiny.identity()
    generator = torch.Generator().manual_seed(seed)
    points = person.landmarks + noise * torch.randn(68, 2, generator=generator)
    return dataclasses.replace(person, landmarks=points, shape=None)


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
def test_unsteered_landmarks_are_those_of_the_photo(predictor, noise):
    person = a_face(0, noise)
    points = steer(predictor, person, ImageSteering(), 200, 240)
    expected = photo_to_canvas(person.landmarks[None], (100, 120), 200, 240)
    torch.testing.assert_close(points[:, :68], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([[60.0, 50.0], [70.0, 60.0]], [[32.0, 32.0], [38.4, 38.4]]),  # 0.64 times, then 6.4 to the left
        ([[0.0, 50.0], [10.0, 60.0]], [[0.0, 32.0], [6.4, 38.4]]),  # cut off there, so moved back
        ([[0.0, 50.0], [120.0, 60.0]], [[-6.4, 32.0], [70.4, 38.4]]),  # wider than the image: in its middle
    ],
)
def test_a_photo_covers_an_image_of_other_proportions(points, expected):
    moved = photo_to_canvas(torch.tensor([points]), (100, 120), 64, 64)
    torch.testing.assert_close(moved, torch.tensor([expected]))


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
def test_steered_to_its_own_pose_a_face_stays_as_it_is(predictor, noise):
    person = a_face(1, noise)
    own = predictor.encode(person.landmarks[None])
    pose = HeadPose(*own.rotation[0].tolist())
    expression = Expression(dict(zip(predictor.config.expression_names, own.expression[0].tolist())))
    points = steer(predictor, person, ImageSteering(pose=pose, expression=expression), 100, 120)
    torch.testing.assert_close(points[:, :68], person.landmarks[None], atol=1e-3, rtol=0)


def test_what_a_reconstruction_misses_turns_with_the_face(predictor):
    """An error far above the noise is that of a point of the head, which rotates with it."""
    own = predictor.encode(tiny.face_points()[None])
    seen = predictor.decode(own)
    seen[:, :, 0] += 8.0  # pixels to the right: all of it is missed
    target = dataclasses.replace(own, rotation=own.rotation + torch.tensor([[0.0, 0.0, 90.0]]), scale=2 * own.scale)
    moved = predictor.repose(seen, own, target) - predictor.decode(target)
    turn = rotation_matrix(torch.deg2rad(target.rotation)) @ rotation_matrix(torch.deg2rad(own.rotation)).mT
    x, y = (turn @ torch.tensor([8.0, 0.0, 0.0]))[0, :2].tolist()
    share = 1 - (NOISE * float(own.scale) / 8) ** 2
    torch.testing.assert_close(moved, (2 * share * torch.tensor([x, -y])).expand_as(moved), atol=1e-3, rtol=0)


def test_what_may_be_noise_is_left_behind(predictor):
    own = predictor.encode(tiny.face_points()[None])
    seen = predictor.decode(own)
    seen[:, :, 0] += 0.9 * NOISE * own.scale
    target = dataclasses.replace(own, rotation=own.rotation + torch.tensor([[40.0, 0.0, 0.0]]))
    torch.testing.assert_close(predictor.repose(seen, own, target), predictor.decode(target), atol=1e-4, rtol=0)
