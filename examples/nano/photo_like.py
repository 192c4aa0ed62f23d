"""Makes rendered heads look more like photos: other backgrounds, light, color, blur, noise, JPEG and crops."""

from __future__ import annotations

import cv2
import numpy as np


COARSEST = 3  # pixels of the coarsest random background


def _smooth_noise(size: int, grid: int, rng: np.random.Generator) -> np.ndarray:
    """`(size, size, 3)` in about -1 to 1, with details as coarse as a grid of `grid` cells."""
    return cv2.resize(
        rng.uniform(-1, 1, (grid, grid, 3)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
    )


def random_background(size: int, rng: np.random.Generator) -> np.ndarray:
    """Blurred blobs of related colors, as out-of-focus surroundings are, `(size, size, 3)` float32 in 0 to 255."""
    picture = np.broadcast_to(rng.uniform(20, 240) + rng.normal(0, 25, 3).astype(np.float32), (size, size, 3)).copy()
    grid, strength, colorful = COARSEST, rng.uniform(0, 80), np.float32(rng.uniform(0.2, 1))
    while grid < size // 2:
        noise = _smooth_noise(size, grid, rng)
        picture += np.float32(strength) * (colorful * noise + (1 - colorful) * noise[..., :1])
        grid, strength = 2 * grid, strength * rng.uniform(0.3, 0.8)
    return picture


def photo_like(head: np.ndarray, background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """
    One random variant of a rendered head.

    Args:
        head: (S, S, 3) uint8.
        background: (S, S) uint8, 255 where it shows no person.

    Returns:
        (S, S, 3) uint8.
    """
    size = head.shape[0]
    picture = head.astype(np.float32)
    if rng.random() < 0.5:
        share = cv2.GaussianBlur(background, (3, 3), 0)[..., None] / np.float32(255)
        picture += share * (random_background(size, rng) - picture)

    # another crop: landmarks of photos are less exact
    angle, scale = rng.normal(0, 2.5), 1 + rng.normal(0, 0.04)
    matrix = cv2.getRotationMatrix2D((size / 2, size / 2), angle, scale)
    matrix[:, 2] += rng.normal(0, 0.02 * size, 2)
    picture = cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    # light from a side, exposure, white balance, contrast, saturation
    if rng.random() < 0.5:
        picture *= 1 + rng.uniform(0, 0.35) * _smooth_noise(size, COARSEST, rng).mean(-1, keepdims=True)
    picture *= np.exp(rng.normal(0, 0.13)) * np.exp(rng.normal(0, 0.04, 3)).astype(np.float32)
    gray = picture.mean(-1, keepdims=True)
    picture = gray + (picture - gray) * np.float32(rng.uniform(0.75, 1.25))
    picture = 128 + (picture - 128) * np.float32(rng.uniform(0.8, 1.2))
    picture = 255 * (np.clip(picture, 0, 255) / 255) ** np.float32(np.exp(rng.normal(0, 0.12)))

    # what lenses, sensors and files do
    if rng.random() < 0.4:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.3))
    if rng.random() < 0.15:
        small = int(size * rng.uniform(0.4, 0.9))
        picture = cv2.resize(cv2.resize(picture, (small, small), interpolation=cv2.INTER_AREA), (size, size))
    if rng.random() < 0.5:
        grain = rng.standard_normal((size, size, 3), dtype=np.float32)
        if rng.random() < 0.5:
            grain = cv2.GaussianBlur(grain, (0, 0), 0.8) * 2
        picture += rng.uniform(1, 9) * grain
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 90))])
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if rng.random() < 0.1:  # a hand, a strand of hair, a microphone
        box = rng.integers(0, size, 2), rng.integers(size // 12, size // 4, 2)
        picture = picture.copy()
        picture[box[0][0] : box[0][0] + box[1][0], box[0][1] : box[0][1] + box[1][1]] = rng.integers(0, 256, 3)
    return picture[:, ::-1] if rng.random() < 0.5 else picture
