"""Landmarks as a picture: what FFRNet is conditioned on."""

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import InputError, as_integer, as_number, shown
from .layout import NUM_LANDMARKS, PARTS


MAX_SIDE = 2**14  # Of a picture, in pixels: a batch of one takes 3 GiB then.


def landmark_radius(landmarks: torch.Tensor, height: int, width: int) -> torch.Tensor:
    r"""
    The default radius of a landmark's disc: 1/32 of the landmarks' root mean square distance from their center, which
    is 3 pixels for a face that fills a picture of 512 pixels. It follows the face, so that eyes and lips of a small one
    do not run into blobs and a resized picture shows the same; it is at least 1 pixel, so that no disc gets lost, and
    at most 1/32 of the shorter side.

    Args:
        landmarks (`torch.Tensor` of shape `(batch, 72, 2)`): In pixels.
        height (`int`): Of the picture, in pixels.
        width (`int`): Of the picture, in pixels.

    Returns:
        `torch.Tensor` of shape `(batch,)`, in pixels.
    """
    deviation = landmarks - landmarks.mean(dim=1, keepdim=True)
    size = deviation.square().sum(dim=-1).mean(dim=1).sqrt()
    return (size / 32).clamp(min=1, max=max(1.0, min(height, width) / 32))


def draw_landmarks(landmarks: torch.Tensor, height: int, width: int, radius: float | None = None) -> torch.Tensor:
    r"""
    Draws each landmark as a small antialiased disc in the color of its part, on black. Parts lie over each other in
    the order of `faces.layout.PARTS`. The center of the top left pixel is at (0, 0). Differentiable by the landmarks;
    memory grows with the picture, not with the number of landmarks.

    Args:
        landmarks (`torch.Tensor` of shape `(batch, 72, 2)`): In pixels, x right and y down. What lies outside the
            picture is cut off.
        height (`int`): Of the picture, in pixels.
        width (`int`): Of the picture, in pixels.
        radius (`float`, *optional*): Of the discs, in pixels. By default [`landmark_radius`].

    Returns:
        `torch.Tensor` of shape `(batch, 3, height, width)`: RGB in `[0, 1]`, float32 (float64 for float64 landmarks).

    Raises:
        InputError: A wrong shape, a size or radius that is not positive, or landmarks that are not finite.
    """
    check_points(landmarks, (NUM_LANDMARKS,))
    check_size(height, width)
    if radius is not None and not as_number("radius", radius, unit=" of pixels") > 0:
        raise InputError(f"radius must be a positive number of pixels, got {radius}")
    if landmarks.dtype != torch.float64:
        landmarks = landmarks.float()

    if radius is None:
        radii = landmark_radius(landmarks.detach(), height, width)
    else:
        radii = landmarks.new_full((landmarks.shape[0],), radius)
    # A disc touches no pixel beyond `reach` of its center's, and coordinates that far outside can be cut at once.
    reach = int(radii.max().ceil()) + 1 if len(radii) else 1
    limit = landmarks.new_tensor([width, height])
    landmarks = torch.minimum(landmarks.clamp(min=-2 * reach), limit + 2 * reach)

    image = landmarks.new_zeros(landmarks.shape[0], 3, height, width)
    for part in PARTS:
        coverage = _coverage(landmarks[:, part.indices], radii, reach, height, width)[:, None]
        color = landmarks.new_tensor(part.color)[None, :, None, None] / 255
        image = image + coverage * (color - image)
    return image


def check_size(height: int, width: int) -> None:
    """Raises [`InputError`] unless height and width are those of a picture, in pixels."""
    as_integer("height", height, 1, MAX_SIDE)
    as_integer("width", width, 1, MAX_SIDE)


def check_points(landmarks: Any, counts: Sequence[int]) -> None:
    """Raises [`InputError`] unless `landmarks` are a tensor `(batch, one of counts, 2)` of finite real numbers."""
    if not isinstance(landmarks, torch.Tensor):
        raise InputError(f"landmarks must be a torch.Tensor, got {shown(landmarks)}")
    if landmarks.ndim != 3 or landmarks.shape[1] not in counts or landmarks.shape[2] != 2:
        expected = " or ".join(map(str, counts))
        raise InputError(f"landmarks must have shape (batch, {expected}, 2), got {tuple(landmarks.shape)}")
    is_dense = landmarks.layout == torch.strided and landmarks.device.type != "meta"
    if not is_dense or landmarks.is_complex() or landmarks.dtype == torch.bool:
        raise InputError(f"landmarks must be a dense tensor of real numbers, got {landmarks.dtype}")
    if not torch.isfinite(landmarks).all():
        raise InputError("landmarks has values that are not finite; leave out faces that were not found")


def _coverage(points: torch.Tensor, radii: torch.Tensor, reach: int, height: int, width: int) -> torch.Tensor:
    """How much of each pixel the union of discs covers, `(batch, height, width)` in `[0, 1]`."""
    batch = points.shape[0]
    steps = torch.arange(-reach, reach + 1, device=points.device)
    window = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).flatten(0, 1)
    pixels = points.detach().round().long()[:, :, None] + window  # (batch, points, window, 2)
    distance = torch.linalg.vector_norm(pixels - points[:, :, None], dim=-1)
    covered = (radii[:, None, None] + 0.5 - distance).clamp(0, 1)

    x, y = pixels.unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    covered = torch.where(inside, covered, 0)
    index = torch.where(inside, y * width + x, 0)
    canvas = points.new_zeros(batch, height * width)
    canvas = canvas.scatter_reduce(1, index.flatten(1), covered.flatten(1), reduce="amax")
    return canvas.unflatten(1, (height, width))
