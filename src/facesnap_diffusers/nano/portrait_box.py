"""Where the face is in the portraits of the nano model."""

from __future__ import annotations

import math

import torch

from ..faces.pose import HeadPose
from ..models.landmark_predictor import rotation_matrix


# The renderer's geometry (examples/nano/people), in cm: x to the right of the picture, y up, z to the camera.
NECK = (0.0, -7.0, 1.0)  # the point about which heads turn
NECK_TO_FACE = (0.0, 6.95, 8.41)  # from there to the middle of the mean face's landmarks
FACE_EXTENT = (-7.36, 6.31, 7.36, -7.51)  # of the mean face, seen from the front: left, top, right, bottom
CAMERA_HEIGHT, CAMERA_DISTANCE, HALF_FRAME = 2.3, 75.0, 14.5


def portrait_box(pose: HeadPose) -> tuple[float, float, float, float]:
    """
    The `face_box` of a head in the usual frame of the nano model. Heads turn about the neck, so a head that looks to the
    side is beside the middle, and one that looks down is lower and larger.

    Returns:
        Left, top, right and bottom as shares of the image.
    """
    angles = torch.tensor([[math.radians(angle) for angle in pose.as_tuple()]])
    x, y, z = (rotation_matrix(angles)[0] @ torch.tensor(NECK_TO_FACE) + torch.tensor(NECK)).tolist()
    scale = CAMERA_DISTANCE / (CAMERA_DISTANCE - z) / (2 * HALF_FRAME)
    left, top, right, bottom = FACE_EXTENT
    center_x, center_y = 0.5 + scale * x, 0.5 - scale * (y - CAMERA_HEIGHT)
    return center_x + scale * left, center_y - scale * top, center_x + scale * right, center_y - scale * bottom
