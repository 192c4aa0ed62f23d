"""The five key points and their picture, against that of InstantID's authors."""

import math

import cv2
import numpy as np
import PIL.Image
import pytest
import torch

from facesnap_diffusers.errors import InputError
from facesnap_diffusers.faces.drawing import draw_landmarks
from facesnap_diffusers.faces.key_points import draw_for_style, draw_key_points, five_points


def ring(center, radius=4.0):
    angles = np.arange(6) * math.pi / 3
    return center + radius * np.column_stack([np.cos(angles), np.sin(angles)])


def landmarks_of(five: np.ndarray, count: int = 72) -> np.ndarray:
    """Landmarks `(count, 2)` whose eyes are rings around the given centers."""
    points = np.tile(five[2], (count, 1))
    points[36:42], points[42:48] = ring(five[0]), ring(five[1])
    points[30], points[48], points[54] = five[2:]
    return points


def random_faces(count: int, width: int, height: int, seed: int = 0) -> np.ndarray:
    """Five points `(count, 5, 2)` of heads in any pose, place and size; some reach out of the picture."""
    rng = np.random.default_rng(seed)
    frontal = np.array([[-30, -35, 10], [30, -35, 10], [0, 0, 35], [-22, 32, 8], [22, 32, 8]], float)
    faces = []
    for _ in range(count):
        yaw, pitch, roll = np.radians(rng.uniform([-85, -50, -180], [85, 50, 180]))
        turn_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        turn_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
        turn_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
        points = (frontal + rng.normal(0, 3, (5, 3))) @ (turn_z @ turn_x @ turn_y).T
        faces.append(points[:, :2] * rng.uniform(0.05, 4) + rng.uniform([0, 0], [width, height]))
    return np.array(faces, dtype=np.float32)


def authors_drawing(size: tuple[int, int], key_points: np.ndarray) -> np.ndarray:
    """The picture that InstantID's scripts draw of five points for an image of width and height `size`, step by step."""
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)]
    stick_width = 4
    width, height = size
    picture = np.zeros([height, width, 3])
    for limb in np.array([[0, 2], [1, 2], [3, 2], [4, 2]]):
        color = colors[limb[0]]
        x, y = key_points[limb][:, 0], key_points[limb][:, 1]
        length = ((x[0] - x[1]) ** 2 + (y[0] - y[1]) ** 2) ** 0.5
        angle = math.degrees(math.atan2(y[0] - y[1], x[0] - x[1]))
        polygon = cv2.ellipse2Poly(
            (int(np.mean(x)), int(np.mean(y))), (int(length / 2), stick_width), int(angle), 0, 360, 1
        )
        picture = cv2.fillConvexPoly(picture.copy(), polygon, color)
    picture = (picture * 0.6).astype(np.uint8)
    for point, color in zip(key_points, colors):
        x, y = point
        picture = cv2.circle(picture.copy(), (int(x), int(y)), 10, color, -1)
    return np.asarray(PIL.Image.fromarray(picture.astype(np.uint8)))


def as_levels(pictures: torch.Tensor) -> np.ndarray:
    levels = pictures.permute(0, 2, 3, 1).numpy() * 255
    assert np.abs(levels - levels.round()).max() < 1e-4
    return levels.round().astype(np.uint8)


class TestDrawKeyPoints:
    @pytest.mark.parametrize(("count", "width", "height"), [(64, 320, 240), (64, 97, 200), (8, 1024, 1024)])
    def test_equals_the_authors_drawing(self, count, width, height):
        """Bit for bit, in 64 poses."""
        faces = random_faces(count, width, height)
        drawn = as_levels(draw_key_points(torch.from_numpy(faces), height, width))
        seen = 0
        for five, picture in zip(faces, drawn):
            expected = authors_drawing((width, height), five)
            assert np.array_equal(picture, expected)
            seen += expected.any()
        assert seen > 0.8 * count

    def test_from_72_landmarks(self):
        faces = random_faces(64, 320, 240, seed=1)
        landmarks = np.array([landmarks_of(five) for five in faces], dtype=np.float32)
        drawn = as_levels(draw_key_points(torch.from_numpy(landmarks), 240, 320))
        for points, picture in zip(landmarks, drawn):
            five = [points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]]
            # a mean's last bit is not the same in every library; where it decides about a whole pixel, it is left out
            if np.abs(np.array(five[:2]) - np.round(five[:2])).min() > 1e-3:
                assert np.array_equal(picture, authors_drawing((320, 240), np.array(five)))

    def test_far_outside_and_coinciding_points(self):
        far = torch.full((1, 5, 2), 1e30)
        assert not draw_key_points(far, 32, 32).any() and not draw_key_points(-far, 32, 32).any()
        same = draw_key_points(torch.full((1, 5, 2), 16.0), 32, 32)
        assert same[0, :, 16, 16].tolist() == [1, 0, 1]  # the last color lies on top

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_types(self, dtype):
        points = torch.tensor([[[10, 10], [30, 10], [20, 20], [12, 30], [28, 30]]], dtype=dtype)
        expected = authors_drawing((40, 40), points[0].float().numpy())
        picture = draw_key_points(points, 40, 40)
        assert picture.dtype == torch.float32 and np.array_equal(as_levels(picture)[0], expected)

    @pytest.mark.parametrize("shape", [(5, 2), (1, 68, 2), (1, 5, 3), (1, 72, 3)], ids=str)
    def test_bad_shapes(self, shape):
        with pytest.raises(InputError, match="landmarks must have shape"):
            draw_key_points(torch.zeros(shape), 8, 8)

    def test_bad_values(self):
        with pytest.raises(InputError, match="not finite"):
            draw_key_points(torch.full((1, 5, 2), math.nan), 8, 8)
        for height in (0, -1, 2.5, True, 10**9):
            with pytest.raises(InputError, match="height"):
                draw_key_points(torch.zeros(1, 5, 2), height, 8)

    def test_empty_batch(self):
        assert draw_key_points(torch.zeros(0, 5, 2), 8, 6).shape == (0, 3, 8, 6)


def test_draw_for_style():
    landmarks = torch.from_numpy(random_faces(1, 64, 64)).repeat(1, 15, 1)[:, :72]
    assert torch.equal(draw_for_style("instantid5", landmarks, 64, 64), draw_key_points(landmarks, 64, 64))
    assert torch.equal(draw_for_style("facesnap72", landmarks, 64, 64), draw_landmarks(landmarks, 64, 64))


class TestFivePoints:
    five = np.array([[85, 90], [115, 90], [100, 108], [88, 126], [112, 126]], float)

    @pytest.mark.parametrize("count", [68, 72])
    @pytest.mark.parametrize("dimensions", [2, 3])
    def test_known_points(self, count, dimensions):
        landmarks = landmarks_of(self.five, count)
        if dimensions == 3:
            landmarks = np.column_stack([landmarks, np.arange(count)])
        assert np.allclose(five_points(landmarks), self.five)
        batch = np.stack([landmarks, landmarks + 3])[:, None]
        found = five_points(torch.from_numpy(batch))
        assert found.shape == (2, 1, 5, 2)
        assert np.allclose(found[1, 0].numpy(), five_points(landmarks + 3))

    def test_five_stay_five(self):
        assert five_points(self.five) is self.five

    def test_differentiable(self):
        points = torch.from_numpy(landmarks_of(self.five))[None].requires_grad_()
        five_points(points).sum().backward()
        assert points.grad.sum().item() == pytest.approx(10) and points.grad[0, 36, 0].item() == pytest.approx(1 / 6)

    @pytest.mark.parametrize("shape", [(4, 2), (5, 3), (68, 4), (70, 2), (136,), (), (68, 1)], ids=str)
    def test_bad_shapes(self, shape):
        for landmarks in (np.zeros(shape), torch.zeros(shape)):
            with pytest.raises(InputError, match="landmarks"):
                five_points(landmarks)

    def test_no_array(self):
        with pytest.raises(InputError, match="landmarks"):
            five_points([[1, 2]])
