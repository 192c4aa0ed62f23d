"""Face boxes, and landmarks in pixels."""

import itertools

import numpy as np
import pytest
import torch

from facesnap_diffusers.errors import InputError
from facesnap_diffusers.faces.placing import check_face_box, check_in_pixels
from facesnap_diffusers.faces.pose import HeadPose
from facesnap_diffusers.nano.portrait_box import portrait_box


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 1, 1),
        (-0.2, 0.1, 0.4, 0.7),
        (0.5, 0.5, 1.5, 1.5),
        (-0.5, -0.5, 1.5, 1.5),
        np.array([0.3, 0.2, 0.7, 0.6]),
    ],
    ids=str,
)
def test_boxes(box):
    for form in (box, list(box), torch.tensor(np.array(box)), np.array(box, np.float32)):
        assert check_face_box(form) == pytest.approx(tuple(box))


def test_every_portrait_box_is_one():
    for yaw, pitch, roll in itertools.product(range(-90, 91, 15), range(-45, 46, 15), (-60, 0, 60)):
        check_face_box(portrait_box(HeadPose(yaw, pitch, roll)))
    assert min(portrait_box(HeadPose(yaw=-75))) < 0  # and some of them reach out of the picture


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 1), "four numbers"),
        ("middle", "four numbers"),
        (None, "four numbers"),
        ([[0, 0, 1, 1]], "four numbers"),
        ((0, 0, 10**400, 1), "four numbers"),
        ((0, 0, "a", 1), "four numbers"),
        ((0.5, 0, 0.5, 1), "left < right"),
        ((0, 0.9, 1, 0.1), "top < bottom"),
        ((0, 0, float("nan"), 1), "NaN"),
        ((0, 0, float("inf"), 1), "infinite"),
        ((0, 0, 64, 64), "divide pixels"),
        ((200, 100, 201, 101), "lies outside of the image"),
        ((-0.8, 0, 0.1, 1), "lies outside of the image"),
    ],
)
def test_bad_boxes(box, message):
    with pytest.raises(InputError, match=message) as caught:
        check_face_box(box)
    assert str(caught.value).startswith("face_box") and len(str(caught.value)) < 200


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_landmarks_in_shares_are_told_from_pixels(kind):
    shares = np.random.default_rng(0).uniform(0.2, 0.8, (72, 2)).astype(np.float32)
    for points in (shares, np.stack([shares] * 3), np.concatenate([shares, shares], axis=1)[:, :3]):
        with pytest.raises(InputError, match="landmarks all lie within two pixels, .*; multiply x by its width"):
            check_in_pixels(kind(points))
    for points in (shares * 64, shares * 8, -shares * 100, np.stack([shares, shares * 512])):
        check_in_pixels(kind(points))
