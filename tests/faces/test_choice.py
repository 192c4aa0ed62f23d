"""Which of several faces in a photo is meant."""

import numpy as np
import pytest
import torch

from facesnap_diffusers import FaceIdentity
from facesnap_diffusers.errors import FaceEncoderMismatchError, InputError
from facesnap_diffusers.faces.choice import FaceChoice
from facesnap_diffusers.faces.detection import find_face

from .dots import DotFaces, dots


# From left to right: small, medium, large; the embedding of each is (level, distance of the eyes).
PHOTO = dots((60, 120, 20, 255), (130, 60, 30, 175), (220, 120, 40, 215))
SMALL, MEDIUM, LARGE = 255, 175, 215


def level(which, photo=PHOTO, analyzer=None) -> int:
    return int(find_face(photo, analyzer or DotFaces(), which).embedding[0])


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (None, LARGE),
        (0, LARGE),
        (np.int64(1), MEDIUM),
        (2, SMALL),
        (FaceChoice.by_size(1), MEDIUM),
        (FaceChoice.from_left(), SMALL),
        (FaceChoice.from_left(1), MEDIUM),
        (FaceChoice.from_left(2), LARGE),
        (FaceChoice.from_right(), LARGE),
        (FaceChoice.from_right(2), SMALL),
        (FaceChoice.nearest_to(0.4, 0), MEDIUM),
        (FaceChoice.nearest_to(0, 1), SMALL),
        (FaceChoice.nearest_to(0.99, 0.4), LARGE),
        (FaceChoice.nearest_to(130 / 299, 60 / 239), MEDIUM),
        (FaceChoice.most_like([255, 20]), SMALL),
        (FaceChoice.most_like(np.array([1750.0, 300.0])), MEDIUM),
        (FaceChoice.most_like(torch.tensor([215.0, 41.0], requires_grad=True)), LARGE),
    ],
)
def test_choices(which, expected):
    assert level(which) == expected


def test_most_like_a_person():
    face = find_face(PHOTO, DotFaces(), 2)
    assert level(FaceChoice.most_like(face)) == SMALL
    identity = FaceIdentity(torch.tensor([175.0, 30.0]), DotFaces.encoder)
    assert level(FaceChoice.most_like(identity)) == MEDIUM


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("max_roll", [30.0, 180.0], ids=["sees upright faces only", "sees every face"])
def test_places_are_those_of_the_photo_as_given(turns, max_roll):
    """In a photo that lies on its side, left is the left of the photo, not of the people."""
    turned = np.rot90(PHOTO, turns)
    places = {SMALL: (60, 112), MEDIUM: (130, 57), LARGE: (220, 112)}
    height, width = PHOTO.shape[:2]
    for name, (x, y) in places.items():
        h, w = height, width
        for _ in range(turns):
            x, y, h, w = y, w - 1 - x, w, h
        places[name] = (x / (w - 1), y / (h - 1))
    analyzer = DotFaces(max_roll)
    for name, (x, y) in places.items():
        assert level(FaceChoice.nearest_to(x, y), turned, analyzer) == name
    leftmost = sorted(places, key=lambda name: places[name][0])
    if turns == 2:
        for i, name in enumerate(leftmost):
            assert level(FaceChoice.from_left(i), turned, analyzer) == name
    else:  # two of the three are in one column
        assert {level(FaceChoice.from_left(i), turned, analyzer) for i in range(3)} == set(places)


@pytest.mark.parametrize("which", [-1, 0.0, "0", "left", True, [0], (0.3, 0.5), 10**400, np.float64(1)], ids=repr)
def test_bad_choices(which):
    with pytest.raises(InputError, match="face_index must be an integer from 0.*or a FaceChoice") as caught:
        find_face(PHOTO, DotFaces(), which)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (3, "face_index=3 is out of range: face_image shows 3 faces, counted from 0, the largest first"),
        (FaceChoice.from_left(5), "face_index=5 .* 3 faces, counted from 0, the leftmost first"),
        (FaceChoice.from_right(3), "the rightmost first"),
    ],
)
def test_out_of_range(which, message):
    with pytest.raises(InputError, match=message):
        find_face(PHOTO, DotFaces(), which)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FaceChoice.from_left(-1), "face_index"),
        (lambda: FaceChoice.by_size("large"), "face_index"),
        (lambda: FaceChoice.nearest_to(100, 50), "^x must be a finite number from 0 to 1, got 100"),
        (lambda: FaceChoice.nearest_to(0.5, float("nan")), "^y must"),
        (lambda: FaceChoice.nearest_to("left", 0), "^x must"),
        (lambda: FaceChoice.most_like("her"), "^reference must"),
        (lambda: FaceChoice.most_like(None), "^reference must"),
        (lambda: FaceChoice.most_like(np.zeros(2)), "^reference must"),
        (lambda: FaceChoice.most_like(np.ones((1, 2))), r"got shape \(1, 2\)"),
        (lambda: FaceChoice.most_like([1, float("inf")]), "^reference must"),
        (lambda: FaceChoice("small"), "^order must be one of size, left, right, point, likeness, got 'small'"),
        (lambda: FaceChoice("size", -5), "^face_index"),
        (lambda: FaceChoice("point"), "^point must"),
        (lambda: FaceChoice("point", point=(0.5, 7)), "^y must"),
        (lambda: FaceChoice("likeness"), "^reference must"),
        (lambda: FaceChoice("likeness", embedding=np.zeros(4)), "^reference must"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_another_encoder():
    identity = FaceIdentity(torch.ones(2), "somebody/else")
    for reference in (identity, np.ones(3)):
        with pytest.raises(FaceEncoderMismatchError, match="encode it anew"):
            find_face(PHOTO, DotFaces(), FaceChoice.most_like(reference))
