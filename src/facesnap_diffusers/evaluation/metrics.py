"""Metrics of one image, as plain functions of its landmarks, embedding and pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..faces.layout import OUTER_EYE_CORNERS
from ..models.landmark_predictor import LandmarkPredictor


#: Smallest distance between the target's and the reference's pose and expression, in units of the interocular distance,
#: from which it can be measured which of them an image follows.
MIN_STEERING = 0.05


def cosine_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of the angle between two embeddings `(D,)`, from -1 to 1."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def euclidean_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Distance of two embeddings `(D,)`: what dlib's recognizer is trained for (the same person below 0.6)."""
    return float(np.linalg.norm(a - b))


def retrieval_rank(embedding: np.ndarray, gallery: np.ndarray, index: int) -> int:
    r"""
    How many of a gallery are at least as near to an embedding as the right one: 0 is a top-1 hit, below 5 a top-5 hit.
    Ties count against the image, so that embeddings which are all alike are misses.

    Args:
        embedding (`np.ndarray` of shape `(D,)`): Of the image.
        gallery (`np.ndarray` of shape `(people, D)`): Of the reference of each person.
        index (`int`): Whose reference is the right one.
    """
    distances = np.linalg.norm(gallery - embedding, axis=1)
    return int((distances <= distances[index]).sum()) - 1


def copy_paste(generated: np.ndarray, ground_truth: np.ndarray, reference: np.ndarray) -> float:
    r"""
    Whether a face is nearer to the reference photo than to the ground truth: 1 for a copy of the reference, -1 for a
    copy of the ground truth, 0 for neither. `(θ_gt - θ_gr) / θ_tr` with θ the angles between the three embeddings (Xu et al. 2025,
    "WithAnyone", equation 2).
    """
    angles = [
        np.arccos(np.clip(cosine_similarity(a, b), -1, 1))
        for a, b in ((generated, ground_truth), (generated, reference), (ground_truth, reference))
    ]
    return float((angles[0] - angles[1]) / max(angles[2], 1e-6))


def interocular_distance(landmarks: np.ndarray) -> float:
    """Distance of the outer eye corners, in the unit of the landmarks `(68 or more, 2)`."""
    right, left = OUTER_EYE_CORNERS
    return float(np.linalg.norm(landmarks[right, :2] - landmarks[left, :2]))


def landmark_nme(landmarks: np.ndarray, target: np.ndarray) -> float:
    r"""
    Normalised mean error: the mean distance of the 68 points from where they should be, in units of the target's
    interocular distance (Sagonas et al. 2013, "300 Faces in-the-Wild Challenge").

    Args:
        landmarks (`np.ndarray` of shape `(68 or more, 2 or 3)`): In pixels.
        target (`np.ndarray` of shape `(68 or more, 2 or 3)`): In pixels of the same image.
    """
    errors = np.linalg.norm(landmarks[:68, :2] - target[:68, :2], axis=1)
    return float(errors.mean() / interocular_distance(target))


def angle_errors(rotation: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Absolute differences `(3,)` of yaw, pitch and roll in degrees, at most 180."""
    return np.abs((np.asarray(rotation) - np.asarray(target) + 180) % 360 - 180)


def pose_copy(generated: np.ndarray, target: np.ndarray, reference: np.ndarray) -> float | None:
    r"""
    How much of the reference's pose and expression is copied in place of the target's: 0 as in the target, 1 as in the
    reference; the generated face's place along the line from the target to the reference, `⟨g - t, r - t⟩ / |r - t|²`.

    Args:
        generated, target, reference (`np.ndarray` of shape `(72, 2)`): As [`read_landmarks`] gives them, so that only
            rotation and expression tell them apart.

    Returns:
        `float`, or `None` where target and reference differ by less than `MIN_STEERING`.
    """
    from_target, towards_reference = generated - target, reference - target
    if np.linalg.norm(towards_reference, axis=1).mean() < MIN_STEERING * interocular_distance(target):
        return None
    return float((from_target * towards_reference).sum() / (towards_reference**2).sum())


@torch.no_grad()
def read_landmarks(predictor: LandmarkPredictor, landmarks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    r"""
    Pose and expression of several faces, as the landmark predictor reads them.

    Args:
        predictor ([`LandmarkPredictor`]): Reads them.
        landmarks (`Sequence[np.ndarray]`): The first 68 points of each are read, in two dimensions, so that detected and
            re-targeted ones are read alike.

    Returns:
        Yaw, pitch and roll in degrees, `(len(landmarks), 3)`, and the mean person in that pose and with that expression:
        points `(len(landmarks), 72, 2)`, in cm, all of one size and in one place.
    """
    points = np.stack([np.asarray(face, dtype=np.float32)[:68, :2] for face in landmarks])
    coefficients = predictor.encode(torch.from_numpy(points).to(predictor.device)).to("cpu")
    mean_person = replace(
        coefficients,
        shape=torch.zeros_like(coefficients.shape),
        scale=torch.ones_like(coefficients.scale),
        translation=torch.zeros_like(coefficients.translation),
    )
    posed = predictor.decode(mean_person.to(predictor.device))
    return coefficients.rotation.numpy(), posed.cpu().numpy()


def pixel_error(image: np.ndarray, ground_truth: np.ndarray) -> float:
    """Mean absolute difference of two images `(H, W, 3)`, `uint8`, from 0 to 1; the ground truth is scaled to the image."""
    if ground_truth.shape != image.shape:
        ground_truth = cv2.resize(ground_truth, image.shape[1::-1], interpolation=cv2.INTER_AREA)
    return float(np.abs(image.astype(np.float32) - ground_truth.astype(np.float32)).mean() / 255)


def background_color(image: np.ndarray, colors: dict[str, tuple[int, int, int]]) -> str:
    r"""
    The name of the colour behind a portrait: the one nearest, in CIE L*a*b*, to the median of the two upper corners, each a
    quarter of the height and an eighth of the width.

    Args:
        image (`np.ndarray` of shape `(H, W, 3)`): `uint8`, RGB.
        colors (`dict[str, tuple[int, int, int]]`): RGB in 0 to 255 by name.
    """
    if not colors:
        raise InputError("colors is empty; give at least one")
    height, width = max(1, image.shape[0] // 4), max(1, image.shape[1] // 8)
    corners = np.concatenate([image[:height, :width].reshape(-1, 3), image[:height, -width:].reshape(-1, 3)])
    background = _lab(np.median(corners, axis=0)[None])
    distances = np.linalg.norm(_lab(np.array(list(colors.values()))) - background, axis=1)
    return list(colors)[int(distances.argmin())]


def _lab(rgb: np.ndarray) -> np.ndarray:
    return cv2.cvtColor((rgb[None] / 255).astype(np.float32), cv2.COLOR_RGB2LAB)[0]
