"""A second pass for small faces: latents hold too few numbers for them, so each is drawn again at full size."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch

from .._upstream import progress_bar_config
from ..base_models import is_sdxl
from ..errors import InputError, NoFaceFoundError, as_number
from ..faces.face import Face
from ..steering import Steering
from .mixin import FaceSnapMixin
from .people import Person, boxes_overlap, check_people, check_people_followed, with_identities
from .picture import as_size, open_pictures


#: Arguments of image-to-image that are those of each square.
_OF_THE_SQUARE = [
    "image",
    "height",
    "width",
    "face_image",
    "identity",
    "face_index",
    "pose_image",
    "pose",
    "expression",
    "face_box",
    "landmarks",
    "people",
]


def redraw_faces(
    pipe: FaceSnapMixin,
    image: PIL.Image.Image,
    prompt: str,
    people: Sequence[Person] | None = None,
    *,
    strength: float = 0.5,
    size: int | None = None,
    margin: float = 0.5,
    feather: float = 0.15,
    **kwargs: Any,
) -> PIL.Image.Image:
    r"""
    Draws the small faces of a finished image again: a square around each is cut out and enlarged, goes through
    image-to-image with the same identity and the same landmarks, and is put back with soft edges. Where a square
    reaches into the face box of somebody else, that box stays as it is.

    Args:
        pipe: The FaceSnap pipeline that made the image, or another with the same kind of adapter.
        image (`PIL.Image.Image`, path, URL or bytes): The image.
        prompt (`str`): What the squares show: a portrait; the prompt of the image, if it says no more than that.
        people (`list[`[`Person`]`]`, *optional*): As in the call that made the image; for a single person a list of one.
            Without them the faces are found in the image, and each is drawn again as the person that it shows, in the pose
            that it has.
        strength (`float`): How much is drawn anew, from 0 to 1.
        size (`int`, *optional*): Side of the enlarged square, in pixels; by default the base model's own size. Faces
            whose square is as large already are left as they are.
        margin (`float`): What the square has around the face box on each side, as a share of the box; up to 100.
        feather (`float`): Width of the soft edges, as a share of the square's side; up to 0.5.
        kwargs: Arguments of the image-to-image pipeline, such as `generator` and `num_inference_steps`; not those that say
            who is where, and how large, for these are each square's.

    Returns:
        `PIL.Image.Image`: a new image of the same size (a file with a side over 2048 px is scaled down to that); outside of the
        squares nothing changes. Warns where there is nothing to do: no face is small.

    Raises:
        InputError: An argument has a wrong type or is out of range.
        NoFaceFoundError: `people` are not given and the image shows no face.
    """
    if not isinstance(image, PIL.Image.Image):
        image = open_pictures(image, "image")
    if not isinstance(image, PIL.Image.Image):
        raise InputError(f"image must be a PIL image, got {type(image).__name__}")
    if not isinstance(pipe, FaceSnapMixin):
        raise InputError(f"pipe must be a FaceSnap pipeline, got {type(pipe).__name__}")
    strength, feather = as_number("strength", strength, 0, 1), as_number("feather", feather, 0, 0.5)
    margin = as_number("margin", margin, 0, 100)
    if not isinstance(prompt, str):
        raise InputError(f"prompt must be one string, got {type(prompt).__name__}")
    if size is not None:
        size = as_size("size", size, pipe.vae_scale_factor)
    for name in _OF_THE_SQUARE:
        if name in kwargs:
            raise InputError(f"{name}= is that of each square here; leave it out, size= is the side of the squares")
    conditioner = pipe.face_conditioner("redraw_faces")
    faces = None
    if people is None:
        people, faces = _people_in(image, pipe)
    people, boxes = check_people(people)
    if faces is None:
        check_people_followed(pipe.ffrnet, people)
    people = with_identities(people, pipe.encode_face)
    if size is None:
        sample_size = pipe.unet.config.sample_size
        size = (sample_size if isinstance(sample_size, int) else min(sample_size)) * pipe.vae_scale_factor
    image_to_image = _image_to_image(pipe)

    result = image.convert("RGB")
    scale = boxes.new_tensor([result.width, result.height, result.width, result.height])
    boxes = boxes * scale
    redrawn_faces = 0
    for i, (person, box) in enumerate(zip(people, boxes, strict=True)):
        left, top, side = _square(box, margin, result.height, result.width)
        if side >= size:
            continue
        redrawn_faces += 1
        points = None
        if pipe.ffrnet is not None:
            if faces is None:
                steering = Steering(person.pose_image, person.pose, person.expression, person.face_box)
            else:
                steering = Steering(pose_image=faces[i])
            points = conditioner.drawn_points([person.identity], steering, result.height, result.width)
            points = (points - points.new_tensor([left, top])) * (size / side)
        crop = result.crop((left, top, left + side, top + side))
        redrawn = image_to_image(
            prompt,
            image=crop.resize((size, size), PIL.Image.Resampling.LANCZOS),
            identity=person.identity,
            landmarks=points,
            strength=strength,
            height=size,
            width=size,
            **{**kwargs, "output_type": "pil", "return_dict": True},
        ).images[0]
        redrawn = redrawn.resize((side, side), PIL.Image.Resampling.LANCZOS)
        other_boxes = torch.cat([boxes[:i], boxes[i + 1 :]]).numpy()
        mask = _soft_mask(left, top, side, result.height, result.width, other_boxes, feather)
        result.paste(redrawn, (left, top), mask)
    if not redrawn_faces:
        warnings.warn(
            f"redraw_faces changed nothing: with its margin, every face is at least {size} px large already",
            stacklevel=2,
        )
    return result


def _people_in(image: PIL.Image.Image, pipe: FaceSnapMixin) -> tuple[list[Person], list[Face]]:
    """The people that an image shows, the largest first, each with the face that it was found by."""
    conditioner = pipe.face_conditioner("redraw_faces")
    picture = np.array(image.convert("RGB"))
    faces = sorted(conditioner.analyzer.analyze(picture), key=lambda face: face.area, reverse=True)
    people: list[Any] = []
    kept = []
    for face in faces:
        box = _box_of(face, image.height, image.width)
        if any(boxes_overlap(box, person.face_box) for person in people):
            continue  # a second box of the same face
        people.append(Person(conditioner.identity_of(face), box))
        kept.append(face)
    if not people:
        raise NoFaceFoundError("no face found in image; pass people= with the face_box of each")
    return people, kept


def _box_of(face: Face, height: int, width: int) -> tuple[float, ...]:
    """The box around a face's landmarks as shares of the image, the part that lies inside."""
    scale = np.array([width, height], dtype=np.float32)
    low, high = face.landmarks[:, :2].min(0) / scale, face.landmarks[:, :2].max(0) / scale
    return (*low.clip(0, 0.99).tolist(), *high.clip(0.01, 1).tolist())


def _image_to_image(pipe: FaceSnapMixin) -> Any:
    from .facesnap_img2img import FaceSnapImg2ImgPipeline
    from .facesnap_xl_img2img import FaceSnapXLImg2ImgPipeline

    pipe._require_adapter("redraw_faces")
    channels = pipe.unet.config.in_channels
    if channels != pipe.unet.config.out_channels:
        raise InputError(
            f"this pipeline's UNet takes {channels} channels, as inpainting models do; pass one of a plain base model"
        )
    is_xl = is_sdxl(pipe.unet)
    image_to_image = (FaceSnapXLImg2ImgPipeline if is_xl else FaceSnapImg2ImgPipeline).from_pipe(pipe, controlnet=None)
    image_to_image.set_progress_bar_config(**progress_bar_config(pipe))
    return image_to_image


def _square(box: torch.Tensor, margin: float, height: int, width: int) -> tuple[int, int, int]:
    """Left, top and side of the square around a face box, all in pixels, inside of the image."""
    left, top, right, bottom = box.tolist()
    side = min(max(round((1 + 2 * margin) * max(right - left, bottom - top)), 1), height, width)
    corner = [(left + right - side) / 2, (top + bottom - side) / 2]
    x, y = (round(min(max(value, 0), limit - side)) for value, limit in zip(corner, (width, height), strict=True))
    return x, y, side


def _soft_mask(
    left: int, top: int, side: int, height: int, width: int, other_boxes: np.ndarray, feather: float
) -> PIL.Image.Image:
    """
    White; toward those of its edges that are none of the image's, and toward the boxes of others, it fades to black
    along half a cosine.
    """
    right, bottom = left + side, top + side
    x, y = np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
    inner_edges = ((left > 0, x - left), (top > 0, y - top), (right < width, right - x), (bottom < height, bottom - y))
    distances = [distance for is_inner, distance in inner_edges if is_inner]
    distances += [np.maximum.reduce([x0 - x, x - x1, y0 - y, y - y1]) for x0, y0, x1, y1 in other_boxes]
    nearest = np.minimum.reduce([np.full_like(x, np.inf), *distances])
    ramp = np.clip(nearest / max(feather * side, 0.5), 0, 1)
    return PIL.Image.fromarray(np.round(255 * (1 - np.cos(np.pi * ramp)) / 2).astype(np.uint8))
