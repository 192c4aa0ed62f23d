"""The crop that a face recognizer takes, as a differentiable function of the picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..errors import InputError
from ..faces.alignment import TEMPLATES
from .shard_settings import RECOGNITION_CROP_SIZES


@dataclass(frozen=True)
class CropTemplate:
    r"""
    Where a recognizer expects the points of a face.

    Attributes:
        points (`tuple` of pairs): Where they lie in a crop of side 1, measured from its top left corner.
        indices (`tuple[int, ...]`, *optional*): Which of the 68 landmarks they are. `None`: the five of
            [`~faces.alignment.five_points`].
        fit_to_image (`bool`): The least-squares similarity takes the template to the image (dlib) and not the image to
            the template (InsightFace). Both are the same for points that fit exactly.
    """

    points: tuple[tuple[float, float], ...]
    indices: tuple[int, ...] | None
    fit_to_image: bool


# InsightFace's points are in pixels with the center of the first one at 0, of a crop of 112.
_ARCFACE = tuple((float(x + 0.5) / 112, float(y + 0.5) / 112) for x, y in TEMPLATES["arcface"])

# dlib's mean face (without jaw, brows and lower lip) in its chip with padding 0.25.
_DLIB_INDICES = (*range(27, 55), *range(60, 65))
_DLIB = (
    (0.49342, 0.30223), (0.49342, 0.37134), (0.49342, 0.43987), (0.49342, 0.51042), (0.41125, 0.55822),
    (0.45069, 0.57290), (0.49342, 0.58540), (0.53614, 0.57290), (0.57558, 0.55822), (0.24782, 0.31095),
    (0.29141, 0.28584), (0.34388, 0.28657), (0.38974, 0.32116), (0.34061, 0.33007), (0.28850, 0.32938),
    (0.59710, 0.32116), (0.64295, 0.28657), (0.69542, 0.28584), (0.73901, 0.31095), (0.69834, 0.32938),
    (0.64622, 0.33007), (0.33610, 0.68682), (0.39399, 0.66360), (0.45257, 0.65159), (0.49342, 0.66172),
    (0.53426, 0.65159), (0.59285, 0.66360), (0.65074, 0.68682), (0.36025, 0.68986), (0.45206, 0.68583),
    (0.49342, 0.69023), (0.53477, 0.68583), (0.62658, 0.68986),
)  # fmt: skip

CROP_TEMPLATES = {
    "arcface": CropTemplate(_ARCFACE, None, fit_to_image=False),
    "dlib": CropTemplate(_DLIB, _DLIB_INDICES, fit_to_image=True),
}


def align_faces(
    images: torch.Tensor, landmarks: torch.Tensor, template: str = "arcface", size: int | None = None
) -> torch.Tensor:
    r"""
    Crops faces as the recognizer that they are for does: `"arcface"` is InsightFace's `norm_crop`, `"dlib"` is dlib's
    `get_face_chip`, both with bilinear interpolation. (dlib averages beforehand where the chip shrinks the face by more
    than 1.5 or so; this does not.) Differentiable by the images.

    Args:
        images (`torch.Tensor` of shape `(batch, channels, height, width)`): Pictures.
        landmarks (`torch.Tensor` of shape `(batch, 68 or 72, 2)`): In pixels, the center of the top left one at (0, 0).
        template (`str`): `"arcface"` or `"dlib"`.
        size (`int`, *optional*): Side of the crop; 112 for ArcFace, 150 for dlib by default.

    Returns:
        `torch.Tensor` of shape `(batch, channels, size, size)`: In the range of `images`, 0 outside of them.

    Raises:
        InputError: A wrong shape or an unknown template.
    """
    if template not in CROP_TEMPLATES:
        raise InputError(f"template={template!r} is unknown; choose one of {', '.join(CROP_TEMPLATES)}")
    if images.ndim != 4 or landmarks.ndim != 3 or landmarks.shape[0] != images.shape[0] or landmarks.shape[1] < 68:
        raise InputError(
            "images must have shape (batch, channels, height, width) and landmarks (batch, 68 or 72, 2), got"
            f" {tuple(images.shape)} and {tuple(landmarks.shape)}"
        )
    size = size or RECOGNITION_CROP_SIZES[template]
    scale, offset = crop_to_image(landmarks[..., :2].to(images.dtype), CROP_TEMPLATES[template], size)

    pixels = torch.arange(size, device=images.device, dtype=images.dtype)
    y, x = torch.meshgrid(pixels, pixels, indexing="ij")
    a, b = scale.real[:, None, None], scale.imag[:, None, None]
    source_x = a * x - b * y + offset.real[:, None, None]
    source_y = b * x + a * y + offset.imag[:, None, None]
    # grid_sample's coordinates without align_corners: -1 is the left edge of the first pixel
    height, width = images.shape[-2:]
    grid = torch.stack([(2 * source_x + 1) / width - 1, (2 * source_y + 1) / height - 1], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def crop_to_image(landmarks: torch.Tensor, template: CropTemplate, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    The similarity from a crop's pixels to the image's, `image = scale · crop + offset`, points as complex numbers x + iy.

    With points relative to their means, the least-squares solution of `target = a · source` is
    `a = Σ conj(source) target / Σ |source|²` (Umeyama 1991, in the plane).

    Returns:
        `scale` and `offset`, complex tensors of shape `(batch,)`.
    """
    points = torch.view_as_complex(_template_points(landmarks, template).contiguous())
    target = torch.view_as_complex(landmarks.new_tensor(template.points) * size - 0.5).expand_as(points)
    points_mean, target_mean = points.mean(dim=1), target.mean(dim=1)
    points, target = points - points_mean[:, None], target - target_mean[:, None]
    product = (target.conj() * points).sum(dim=1)
    if template.fit_to_image:
        scale = product / target.abs().square().sum(dim=1)
    else:
        scale = points.abs().square().sum(dim=1) / product.conj()
    return scale, points_mean - scale * target_mean


def _template_points(landmarks: torch.Tensor, template: CropTemplate) -> torch.Tensor:
    if template.indices is not None:
        return landmarks[:, list(template.indices)]
    eyes = [landmarks[:, 36:42].mean(dim=1), landmarks[:, 42:48].mean(dim=1)]
    return torch.stack([*eyes, landmarks[:, 30], landmarks[:, 48], landmarks[:, 54]], dim=1)
