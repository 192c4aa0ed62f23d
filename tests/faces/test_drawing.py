"""The landmark picture, against a stored one and from its definition."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from facesnap_diffusers.errors import InputError
from facesnap_diffusers.faces.drawing import draw_landmarks, landmark_radius
from facesnap_diffusers.faces.key_points import draw_key_points
from facesnap_diffusers.faces.layout import MIRROR, NUM_LANDMARKS, PARTS


DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def landmarks():
    return torch.tensor(np.loadtxt(DATA / "landmarks_reference.csv", delimiter=",", dtype=np.float32))[None]


def far_away(batch=1):
    return torch.full((batch, NUM_LANDMARKS, 2), -1000.0)


def test_parts_cover_each_landmark_once():
    assert sorted(index for part in PARTS for index in part.indices) == list(range(NUM_LANDMARKS))


def test_mirror_swaps_right_and_left_parts():
    assert [MIRROR[MIRROR[index]] for index in range(NUM_LANDMARKS)] == list(range(NUM_LANDMARKS))
    for part in PARTS:
        other = part.name.replace("right", "?").replace("left", "right").replace("?", "left")
        counterpart = next(candidate for candidate in PARTS if candidate.name == other)
        assert {MIRROR[index] for index in part.indices} == set(counterpart.indices)


def test_matches_the_stored_picture(landmarks):
    expected = np.asarray(PIL.Image.open(DATA / "landmarks_reference.png").convert("RGB"))
    image = draw_landmarks(landmarks, 128, 128)[0].permute(1, 2, 0).numpy()
    assert np.abs(255 * image - expected).max() <= 1


@pytest.mark.parametrize(
    ("index", "color"),
    [(8, "white"), (17, "cyan"), (26, "blue"), (30, "lime"), (68, "magenta"), (71, "yellow"), (60, "red")],
)
def test_each_part_has_the_color_of_the_paper(index, color):
    points = far_away()
    points[0, index] = torch.tensor([10.0, 7.0])
    image = draw_landmarks(points, 16, 24, radius=2)
    expected = torch.tensor(PIL.ImageColor.getrgb(color)) / 255
    torch.testing.assert_close(image[0, :, 7, 10], expected)
    assert image[0, :, 0, 0].abs().sum() == 0


def test_disc_has_the_area_of_a_circle():
    points = far_away()
    points[0, 0] = torch.tensor([20.3, 19.6])
    for radius in (2.0, 3.5, 6.0):
        area = draw_landmarks(points, 40, 40, radius=radius)[0, 0].sum().item()
        assert area == pytest.approx(np.pi * radius**2, rel=0.03)


def test_later_parts_lie_over_earlier_ones():
    points = far_away()
    points[0, [3, 30, 60]] = torch.tensor([8.0, 8.0])  # jaw, nose, mouth
    assert draw_landmarks(points, 16, 16, radius=3)[0, :, 8, 8].tolist() == [1, 0, 0]


def test_faces_of_a_batch_do_not_mix(landmarks):
    batch = torch.cat([landmarks, landmarks + 30, far_away()])
    images = draw_landmarks(batch, 96, 128)
    assert images.shape == (3, 3, 96, 128)
    for points, image in zip(batch, images):
        torch.testing.assert_close(draw_landmarks(points[None], 96, 128, radius=None)[0], image)
    assert images[2].abs().sum() == 0
    assert images.min() >= 0 and images.max() <= 1


def test_points_outside_are_cut_off(landmarks):
    wide = draw_landmarks(landmarks + 100, 328, 328, radius=2)[:, :, 100:228, 130:228]
    torch.testing.assert_close(
        draw_landmarks(landmarks - torch.tensor([30.0, 0.0]), 128, 98, radius=2), wide, atol=1e-4, rtol=0
    )


def test_default_radius_follows_the_face(landmarks):
    small, large = landmark_radius(landmarks, 512, 512), landmark_radius(4 * landmarks, 512, 512)
    assert small.item() >= 1 and large.item() == pytest.approx(4 * small.item(), rel=0.5)
    assert landmark_radius(100 * landmarks, 512, 512).item() == 16
    assert landmark_radius(landmarks / 100, 512, 512).item() == 1


def test_drawing_is_differentiable():
    points = far_away().double()
    points[0, :3] = torch.tensor([[8.2, 8.4], [11.3, 4.1], [3.1, 12.7]])
    weight = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value(points):
        return (draw_landmarks(points, 16, 16, radius=2) * weight).sum()

    gradient = torch.autograd.functional.jacobian(value, points)
    for index, axis in ((0, 0), (0, 1), (2, 1)):
        step = torch.zeros_like(points)
        step[0, index, axis] = 1e-5
        difference = (value(points + step) - value(points - step)) / 2e-5
        assert gradient[0, index, axis].item() == pytest.approx(difference.item(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_output_dtype(landmarks, dtype):
    image = draw_landmarks(landmarks.to(dtype), 64, 64)
    assert image.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_wrong_arguments_are_named(landmarks):
    for bad in (landmarks[:, :68], landmarks[0], torch.zeros(1, 72, 3)):
        with pytest.raises(InputError, match="landmarks must have shape"):
            draw_landmarks(bad, 64, 64)
    for value in (float("nan"), float("inf")):
        broken = landmarks.clone()
        broken[0, 5, 1] = value
        with pytest.raises(InputError, match="not finite"):
            draw_landmarks(broken, 64, 64)
    with pytest.raises(InputError, match="height"):
        draw_landmarks(landmarks, 0, 64)
    for radius in (0, -1, float("nan")):
        with pytest.raises(InputError, match="radius"):
            draw_landmarks(landmarks, 64, 64, radius=radius)


def test_empty_batch():
    assert draw_landmarks(torch.zeros(0, 72, 2), 8, 8).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    "points",
    ["x", None, np.zeros((1, 72, 2)), torch.zeros(72, 2), torch.zeros(1, 72, 2, dtype=torch.complex64)]
    + [
        torch.zeros(1, 72, 2, device="meta"),
        torch.zeros(1, 72, 2).to_sparse(),
        torch.zeros(1, 72, 2, dtype=torch.bool),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_what_are_no_landmarks(points):
    for draw in (draw_landmarks, draw_key_points):
        with pytest.raises(InputError, match="landmarks must"):
            draw(points, 64, 64)
