"""An analyzer of painted faces, which tests can place as they like."""

import math

import numpy as np

from facesnap_diffusers.faces.face import Face


class DotFaces:
    """Finds faces painted as three dots: a red right eye, a green left eye, a blue mouth; as detectors do, only if the
    head is upright within `max_roll` and there is a margin around it."""

    encoder = "test/dots"
    embedding_dim = 2

    def __init__(self, max_roll: float = 30.0):
        self.max_roll = max_roll
        self.calls = 0

    def analyze(self, image):
        self.calls += 1
        faces = []
        for level in (255, 215, 175):
            dots = [(image == level * np.eye(3, dtype=int)[channel]).all(axis=-1).nonzero() for channel in range(3)]
            if min(len(dot[0]) for dot in dots) == 0:
                continue
            right, left, mouth = (np.array([dot[1].mean(), dot[0].mean()]) for dot in dots)
            distance = np.hypot(*(left - right))
            center = (right + left + mouth) / 3
            box = np.concatenate([center - distance * 1.2, center + distance * 1.2])
            roll = math.degrees(math.atan2(*(left - right)[::-1]))
            if abs(roll) > self.max_roll or (box < 0).any() or (box >= np.tile(image.shape[1::-1], 2)).any():
                continue
            landmarks = np.tile(center, (68, 1))
            landmarks[36:42], landmarks[42:48], landmarks[48:] = right, left, mouth
            faces.append(Face(image, box, landmarks, np.array([level, distance]), level / 255, self.encoder))
        return faces


def dots(*faces, size=(300, 240)) -> np.ndarray:
    """A photo with faces (x, y, distance of the eyes, level)."""
    image = np.full((size[1], size[0], 3), 90, np.uint8)
    y, x = np.mgrid[: size[1], : size[0]]
    for center_x, center_y, distance, level in faces:
        for channel, (dx, dy) in enumerate([(-0.5, -0.4), (0.5, -0.4), (0, 0.6)]):
            near = np.hypot(x - center_x - dx * distance, y - center_y - dy * distance) <= 3
            image[near] = level * np.eye(3, dtype=int)[channel]
    return image
