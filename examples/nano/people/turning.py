"""Heads turned further than `sample_scene` turns them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .face_model import rotation_matrix
from .renderer import pose_points
from .sampling import Scene


FURTHEST = {"yaw": 65.0, "pitch": 28.0, "roll": 28.0}
"""Degrees, to either side."""
_FACE = np.array([0.0, 0.0, 9.4])  # cm, the middle of the mean face's landmarks


def turned_further(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one of the head's angles drawn anew, and the camera moved along with the face."""
    axis = rng.choice(list(FURTHEST))
    turned = replace(scene, **{axis: float(rng.uniform(-1, 1) * FURTHEST[axis])})
    before, after = (pose_points(_FACE, rotation_matrix(s.yaw, s.pitch, s.roll)) for s in (scene, turned))
    return replace(turned, camera=scene.camera + np.append((after - before)[:2], 0))
