"""Where a face stands in the generated image: from a photo's frame, or into a box that the caller gives."""

import torch


#: The face box of a head-and-shoulders portrait: left, top, right, bottom as shares of the image.
PORTRAIT_BOX = (0.3, 0.2, 0.7, 0.65)


def photo_to_canvas(landmarks: torch.Tensor, photo_size: tuple[int, int], height: int, width: int) -> torch.Tensor:
    r"""
    Moves landmarks from a photo to an image that the photo, scaled, covers; like a centred crop, but one that is
    shifted as far as needed to keep the face inside.

    Args:
        landmarks (`torch.Tensor` of shape `(batch, points, 2)`): In pixels of the photo.
        photo_size (`tuple[int, int]`): Height and width of the photo.
        height (`int`), width (`int`): Size of the image.

    Returns:
        `torch.Tensor` of shape `(batch, points, 2)`: in pixels of the image.
    """
    photo_height, photo_width = photo_size
    scale = max(height / photo_height, width / photo_width)
    canvas = landmarks.new_tensor([width, height])
    offset = (canvas - landmarks.new_tensor([photo_width, photo_height]) * scale) / 2
    moved = landmarks * scale + offset

    low, high = moved.amin(dim=1, keepdim=True), moved.amax(dim=1, keepdim=True)
    shift = (-low).clamp(min=0) - (high - canvas).clamp(min=0)
    centre = canvas / 2 - (low + high) / 2
    return moved + torch.where(high - low <= canvas, shift, centre)


def fit_into_box(
    landmarks: torch.Tensor, frontal: torch.Tensor, face_box: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    r"""
    Scales and moves landmarks so that the same face, seen from the front with a neutral expression, fits into a box.
    Measuring the frontal face keeps size and place steady when pose and expression change from image to image.

    Args:
        landmarks (`torch.Tensor` of shape `(batch, points, 2)`): The face as posed.
        frontal (`torch.Tensor` of shape `(batch, points, 2)`): The face from the front, in the same unit and with the
            same origin of rotation.
        face_box (`torch.Tensor` of shape `(batch, 4)`): Left, top, right, bottom as shares of the image.
        height (`int`), width (`int`): Size of the image.

    Returns:
        `torch.Tensor` of shape `(batch, points, 2)`: in pixels of the image.
    """
    box = face_box * face_box.new_tensor([width, height, width, height])
    low, high = frontal.amin(dim=1), frontal.amax(dim=1)
    scale = ((box[:, 2:] - box[:, :2]) / (high - low)).amin(dim=-1)
    centre = (low + high) / 2
    return (landmarks - centre[:, None]) * scale[:, None, None] + ((box[:, :2] + box[:, 2:]) / 2)[:, None]
