"""Crops of a face for the networks that look at it."""

import math

import numpy as np

from facesnap_diffusers.errors import InputError


# Where the five points lie in a 112 × 112 crop for ArcFace: the template of InsightFace's `norm_crop`.
TEMPLATES = {
    "arcface": np.array(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
    )
}
CLIP_MEAN_COLOR = (123, 117, 104)  # CLIP's image mean: what lies outside of the photo becomes 0 to the encoder.


def five_points(landmarks: np.ndarray) -> np.ndarray:
    """
    The five points that recognisers align faces by, from iBUG-68 landmarks.

    Args:
        landmarks (`np.ndarray`): `(68, 2)` or `(68, 3)`, in pixels; further points (the layout of 72) are ignored.

    Returns:
        `np.ndarray`: `(5, 2)`, `float64`: the centres of the right and left eye (means of points 36–41 and 42–47), the
        tip of the nose (30), the right and left corner of the mouth (48, 54). "Right" is the person's: image left.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    if points.ndim != 2 or len(points) < 68 or points.shape[1] not in (2, 3):
        raise InputError(f"landmarks has shape {points.shape}; it must be (68, 2) or (68, 3).")
    if not np.isfinite(points).all():
        raise InputError("landmarks has NaN or infinite values.")
    points = points[:, :2]
    return np.stack([points[36:42].mean(axis=0), points[42:48].mean(axis=0), points[30], points[48], points[54]])


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """
    The rotation, uniform scale and translation that take points nearest to others, in the least-squares sense.

    The same as Umeyama 1991, in its closed form for the plane: with points as complex numbers relative to their means,
    `target = a · source` has the solution `a = Σ conj(source) target / Σ |source|²`.

    Args:
        source (`np.ndarray`): `(N, 2)`, N ≥ 2, not all the same.
        target (`np.ndarray`): `(N, 2)`.

    Returns:
        `np.ndarray`: `(2, 3)`, `float64`: `target ≈ matrix[:, :2] @ source + matrix[:, 2]`.
    """
    source, target = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if source.ndim != 2 or source.shape[1] != 2 or len(source) < 2 or target.shape != source.shape:
        raise InputError(
            f"source and target have shapes {source.shape} and {target.shape}; both must be (N, 2), N ≥ 2."
        )
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise InputError("source or target has NaN or infinite values.")
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    z = (source - source_mean) @ [1, 1j]
    w = (target - target_mean) @ [1, 1j]
    spread = np.vdot(z, z).real
    if spread == 0:
        raise InputError("source has all points in one place; a similarity needs two different ones.")
    a = np.vdot(z, w) / spread
    linear = np.array([[a.real, -a.imag], [a.imag, a.real]])
    return np.column_stack([linear, target_mean - linear @ source_mean])


def align_face(image: np.ndarray, landmarks: np.ndarray, size: int = 112, template: str = "arcface") -> np.ndarray:
    """
    The crop that ArcFace recognisers take: the same as InsightFace's `norm_crop` of [`five_points`].

    Args:
        image (`np.ndarray`): `(H, W, 3)`, `uint8`.
        landmarks (`np.ndarray`): `(68, 2)` or `(68, 3)`, in pixels of `image`.
        size (`int`, *optional*, defaults to 112): The side of the crop; the template is scaled to it.
        template (`str`, *optional*, defaults to `"arcface"`): Where the points go.

    Returns:
        `np.ndarray`: `(size, size, 3)`, `uint8`, black where the photo ends.
    """
    import cv2

    _check_crop(image, size)
    if template not in TEMPLATES:
        raise InputError(f"template={template!r} must be one of {', '.join(TEMPLATES)}.")
    matrix = similarity_transform(five_points(landmarks), TEMPLATES[template] * (size / 112))
    return cv2.warpAffine(image, matrix, (size, size), borderValue=0.0)


def align_for_clip(image: np.ndarray, landmarks: np.ndarray, size: int = 224) -> np.ndarray:
    """
    The head with hair and chin, roll removed: what the CLIP image encoder sees of a person.

    The geometry is that of FFHQ (Karras et al. 2019, "A Style-Based Generator Architecture for GANs", appendix A): a
    square along [`head_axes`], a tenth of the way from eyes to mouth below the eyes; its side is the larger of 4 times
    the distance of the eyes and 3.6 times that from eyes to mouth, so profiles keep their size.

    Args:
        image (`np.ndarray`): `(H, W, 3)`, `uint8`.
        landmarks (`np.ndarray`): `(68, 2)` or `(68, 3)`, in pixels of `image`.
        size (`int`, *optional*, defaults to 224): The side of the crop.

    Returns:
        `np.ndarray`: `(size, size, 3)`, `uint8`, CLIP's mean colour where the photo ends.
    """
    import cv2

    _check_crop(image, size)
    centre, right, side = head_axes(landmarks)
    # Shrinking needs an average over source pixels: warp to a whole multiple of the size, then average blocks.
    factor = min(max(1, math.ceil(side / size)), 4096 // size + 1)
    target = size * factor
    down = np.array([-right[1], right[0]])
    square = np.stack([centre, centre + side / 2 * right, centre + side / 2 * down])
    middle = (target - 1) / 2  # Pixel centres are at whole numbers.
    matrix = similarity_transform(square, middle + target / 2 * np.array([[0, 0], [1, 0], [0, 1]]))
    crop = cv2.warpAffine(image, matrix, (target, target), flags=cv2.INTER_CUBIC, borderValue=CLIP_MEAN_COLOR)
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)


def head_axes(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """
    Where the head is in the image plane, by FFHQ's rule; see [`align_for_clip`].

    The head's right-left direction is that from eye to eye plus that from eyes to mouth turned by 90°: each is
    unreliable in one kind of pose (profiles have no eye distance, nods no height), both together are not.

    Returns:
        The centre `(2,)`, the direction to image right along the head `(2,)`, of unit length, and the side of the
        square that holds the head, in pixels.
    """
    right_eye, left_eye, _, right_corner, left_corner = five_points(landmarks)
    eyes = (right_eye + left_eye) / 2
    across = left_eye - right_eye
    down = (right_corner + left_corner) / 2 - eyes
    right = across + np.array([down[1], -down[0]])
    length = np.hypot(*right)
    if length == 0:
        raise InputError("landmarks has eyes and mouth in one place; pass the landmarks of a face.")
    side = 2 * max(2.0 * np.hypot(*across), 1.8 * np.hypot(*down))
    return eyes + 0.1 * down, right / length, float(side)


def _check_crop(image: np.ndarray, size: int) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        described = f"{image.shape}, {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"image is {described}; it must be an array (H, W, 3) of uint8.")
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or not 8 <= size <= 4096:
        raise InputError(f"size={size!r} must be an integer from 8 to 4096.")
