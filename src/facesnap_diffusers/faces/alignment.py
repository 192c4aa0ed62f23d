"""Crops of a face for the networks that look at it, and the similarity that places them."""

import math

import numpy as np

from ..errors import InputError, as_integer, shown
from .key_points import Points, five_points


# Where the five points lie in a 112 × 112 crop for ArcFace: the template of InsightFace's `norm_crop`.
TEMPLATES = {
    "arcface": np.array(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
    )
}
CLIP_MEAN_COLOR = (123, 117, 104)  # CLIP's image mean: what lies outside of the photo becomes 0 to the encoder.


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """
    The rotation, uniform scale and translation that take points nearest to others, in the least-squares sense.

    Args:
        source (`np.ndarray`): `(N, 2)`, N ≥ 2, not all the same.
        target (`np.ndarray`): `(N, 2)`.

    Returns:
        `np.ndarray`: `(2, 3)`, `float64`: `target ≈ matrix[:, :2] @ source + matrix[:, 2]`.

    Raises:
        InputError: A wrong shape, values that are not finite, or all points of `source` in one place.
    """
    source, target = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if source.ndim != 2 or source.shape[1] != 2 or len(source) < 2 or target.shape != source.shape:
        raise InputError(
            f"source and target have shapes {source.shape} and {target.shape}; both must be (N, 2), N ≥ 2"
        )
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise InputError("source or target has NaN or infinite values")
    if not np.ptp(source, axis=0).any():
        raise InputError("source has all points in one place; a similarity needs two different ones")
    a, b, x, y = fit_similarity(source, target)
    return np.array([[a, -b, x], [b, a, y]])


def fit_similarity(source: Points, target: Points) -> tuple[Points, Points, Points, Points]:
    """
    The least-squares similarity from points to others (Umeyama 1991), in its closed form for the plane, of arrays or
    tensors: with points as complex numbers relative to their means, `target = z · source` has the solution
    `z = Σ conj(source) target / Σ |source|²`. Differentiable.

    Args:
        source (`np.ndarray` or `torch.Tensor` of shape `(..., N, 2)`): Points, not all in one place.
        target (`np.ndarray` or `torch.Tensor` of shape `(..., N, 2)`): Where they go.

    Returns:
        `a, b, x, y`, each of shape `(...)`: a point `(u, v)` goes to `(a u - b v + x, b u + a v + y)`.
    """
    source_x, source_y = source[..., 0], source[..., 1]  # (..., N)
    target_x, target_y = target[..., 0], target[..., 1]
    source_mean_x, source_mean_y = source_x.mean(-1), source_y.mean(-1)  # (...)
    target_mean_x, target_mean_y = target_x.mean(-1), target_y.mean(-1)
    source_x, source_y = source_x - source_mean_x[..., None], source_y - source_mean_y[..., None]
    target_x, target_y = target_x - target_mean_x[..., None], target_y - target_mean_y[..., None]
    spread = (source_x * source_x + source_y * source_y).sum(-1)
    a = (source_x * target_x + source_y * target_y).sum(-1) / spread
    b = (source_x * target_y - source_y * target_x).sum(-1) / spread
    x = target_mean_x - (a * source_mean_x - b * source_mean_y)
    y = target_mean_y - (b * source_mean_x + a * source_mean_y)
    return a, b, x, y


def align_face(image: np.ndarray, landmarks: np.ndarray, size: int = 112, template: str = "arcface") -> np.ndarray:
    """
    The crop that ArcFace recognizers take: the same as InsightFace's `norm_crop` of [`five_points`].

    Args:
        image (`np.ndarray`): `(H, W, 3)`, `uint8`.
        landmarks (`np.ndarray`): In pixels of `image`: `(68 | 72, 2 | 3)`, or the five points `(5, 2)` that the detector
            itself found ([`Face.five_points`]).
        size (`int`, *optional*, defaults to 112): The side of the crop; the template is scaled to it.
        template (`str`, *optional*, defaults to `"arcface"`): Where the points go.

    Returns:
        `np.ndarray`: `(size, size, 3)`, `uint8`, black where the photo ends.

    Raises:
        InputError: A wrong shape or size, or an unknown template.
    """
    import cv2

    _check_crop(image, size)
    if template not in TEMPLATES:
        raise InputError(f"template must be one of {', '.join(TEMPLATES)}, got {shown(template)}")
    matrix = similarity_transform(_checked_five_points(landmarks), TEMPLATES[template] * (size / 112))
    return cv2.warpAffine(image, matrix, (size, size), borderValue=0.0)


def align_for_clip(image: np.ndarray, landmarks: np.ndarray, size: int = 224) -> np.ndarray:
    """
    The head with hair and chin, roll removed: what the CLIP image encoder sees of a person.

    The geometry is that of FFHQ (Karras et al. 2019, "A Style-Based Generator Architecture for GANs", appendix A): a
    square along [`head_axes`], a tenth of the way from eyes to mouth below the eyes; its side is the larger of 4 times
    the distance of the eyes and 3.6 times that from eyes to mouth, so profiles keep their size.

    Args:
        image (`np.ndarray`): `(H, W, 3)`, `uint8`.
        landmarks (`np.ndarray`): `(68 | 72, 2 | 3)` or `(5, 2)`, in pixels of `image`.
        size (`int`, *optional*, defaults to 224): The side of the crop.

    Returns:
        `np.ndarray`: `(size, size, 3)`, `uint8`, CLIP's mean color where the photo ends.

    Raises:
        InputError: A wrong shape or size, or eyes and mouth in one place.
    """
    import cv2

    _check_crop(image, size)
    center, right, side = head_axes(landmarks)
    # Shrinking needs an average over source pixels: warp to a whole multiple of the size, then average blocks.
    factor = min(max(1, math.ceil(side / size)), 4096 // size + 1)
    target = size * factor
    down = np.array([-right[1], right[0]])
    square = np.stack([center, center + side / 2 * right, center + side / 2 * down])
    middle = (target - 1) / 2  # The center of the first pixel is at 0.
    matrix = similarity_transform(square, middle + target / 2 * np.array([[0, 0], [1, 0], [0, 1]]))
    crop = cv2.warpAffine(image, matrix, (target, target), flags=cv2.INTER_CUBIC, borderValue=CLIP_MEAN_COLOR)
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)


def align_for_encoder(
    image: np.ndarray, landmarks: np.ndarray, crop: str, size: int, key_points: np.ndarray | None = None
) -> np.ndarray:
    """
    What an adapter's image encoder sees of a photo: the `crop` that its config names, `"head"` ([`align_for_clip`]) or
    `"arcface"` ([`align_face`]), as `(size, size, 3)`, `uint8`. Recognizers align by the detector's own `key_points`
    `(5, 2)`, so `"arcface"` does where there are some.
    """
    if crop == "arcface":
        return align_face(image, landmarks if key_points is None else key_points, size=size)
    return align_for_clip(image, landmarks, size=size)


def head_axes(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """
    Where the head is in the image plane, by FFHQ's rule; see [`align_for_clip`].

    The head's right-left direction is that from eye to eye plus that from eyes to mouth turned by 90°: each is
    unreliable in one kind of pose (profiles have no eye distance, nods no height), both together are not.

    Returns:
        The center `(2,)`, the direction to image right along the head `(2,)`, of unit length, and the side of the
        square that holds the head, in pixels.

    Raises:
        InputError: A wrong shape, or eyes and mouth in one place.
    """
    right_eye, left_eye, _, right_corner, left_corner = _checked_five_points(landmarks)
    eyes = (right_eye + left_eye) / 2
    across = left_eye - right_eye
    down = (right_corner + left_corner) / 2 - eyes
    right = across + np.array([down[1], -down[0]])
    length = np.hypot(*right)
    if length == 0:
        raise InputError("landmarks has eyes and mouth in one place; pass the landmarks of a face")
    side = 2 * max(2.0 * np.hypot(*across), 1.8 * np.hypot(*down))
    return eyes + 0.1 * down, right / length, float(side)


def _checked_five_points(landmarks: np.ndarray) -> np.ndarray:
    """`(5, 2)`, `float64`, finite."""
    try:
        points = np.asarray(landmarks, dtype=np.float64)
    except Exception as error:  # what an argument of any type can raise
        raise InputError(f"landmarks must be an array of numbers, got a {type(landmarks).__name__}") from error
    if points.ndim != 2:
        raise InputError(f"landmarks must have shape (68 or 72, 2 or 3) or (5, 2), got {points.shape}")
    points = five_points(points)
    if not np.isfinite(points).all():
        raise InputError("landmarks has NaN or infinite values")
    return points


def _check_crop(image: np.ndarray, size: int) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        described = f"{image.shape}, {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"image must be an array (H, W, 3) of uint8, got {described}")
    if image.size == 0:
        raise InputError(f"image is empty, of shape {image.shape}; pass a photo")
    as_integer("size", size, 8, 4096)
