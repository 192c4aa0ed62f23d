"""InstantID's five key points as a picture, from our landmarks."""

import torch

from ..errors import InputError
from .drawing import draw_landmarks
from .layout import NUM_LANDMARKS


# right eye (image left), left eye, nose, right and left corner of the mouth
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
NOSE = 2
LIMB_HALF_WIDTH = 4.0
LIMB_BRIGHTNESS = 0.6
POINT_RADIUS = 10.0


def draw_key_points(landmarks: torch.Tensor, height: int, width: int) -> torch.Tensor:
    r"""
    Draws what InstantID's ControlNet (arXiv 2401.07519) is conditioned on: the eyes' centres, the tip of the nose and
    the corners of the mouth as coloured discs of radius 10, over dimmed ellipses that join each to the nose. Sizes are
    in pixels, as they were in its training, at about 1024.

    Args:
        landmarks (`torch.Tensor` of shape `(batch, 72, 2)`): In pixels, x right and y down.
        height (`int`): Of the picture, in pixels.
        width (`int`): Of the picture, in pixels.

    Returns:
        `torch.Tensor` of shape `(batch, 3, height, width)`: RGB in `[0, 1]`.

    Raises:
        InputError: Landmarks of another shape, or not finite.
    """
    if landmarks.ndim != 3 or landmarks.shape[1:] != (NUM_LANDMARKS, 2):
        raise InputError(f"landmarks must have shape (batch, {NUM_LANDMARKS}, 2), got {tuple(landmarks.shape)}")
    if not torch.isfinite(landmarks).all():
        raise InputError("landmarks has values that are not finite; leave out faces that were not found")
    points = key_points(landmarks)
    y = torch.arange(height, device=points.device, dtype=points.dtype)[None, :, None]
    x = torch.arange(width, device=points.device, dtype=points.dtype)[None, None, :]
    colors = points.new_tensor(COLORS) / 255

    image = points.new_zeros(len(points), 3, height, width)
    for i, color in enumerate(colors):
        if i == NOSE:
            continue
        middle, half = (points[:, i] + points[:, NOSE]) / 2, (points[:, i] - points[:, NOSE]) / 2
        length = half.norm(dim=-1).clamp(min=1)
        cos, sin = (half / length[:, None])[..., None, None].unbind(1)
        dx, dy = x - middle[:, :1, None], y - middle[:, 1:, None]
        along, across = dx * cos + dy * sin, dy * cos - dx * sin
        inside = (along / length[:, None, None]).square() + (across / LIMB_HALF_WIDTH).square() <= 1
        image = torch.where(inside[:, None], color[:, None, None] * LIMB_BRIGHTNESS, image)
    for i, color in enumerate(colors):
        distance = torch.hypot(x - points[:, i, :1, None], y - points[:, i, 1:, None])
        image = torch.where((distance <= POINT_RADIUS)[:, None], color[:, None, None], image)
    return image


def key_points(landmarks: torch.Tensor) -> torch.Tensor:
    """The five key points `(batch, 5, 2)` of landmarks `(batch, 72, 2)`."""
    right_eye, left_eye = landmarks[:, 36:42].mean(1), landmarks[:, 42:48].mean(1)
    return torch.stack([right_eye, left_eye, landmarks[:, 30], landmarks[:, 48], landmarks[:, 54]], dim=1)


def draw_for_style(style: str, landmarks: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The picture that an adapter's `landmark_style` asks for."""
    draw = draw_key_points if style == "instantid5" else draw_landmarks
    return draw(landmarks, height, width)
