"""Several people in one image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch

from ..errors import InputError
from ..faces.expression import Expression
from ..faces.pose import HeadPose
from ..identity import FaceIdentity
from ..steering import Steering, as_boxes, check_followed


@dataclass(frozen=True)
class Person:
    r"""
    One of several people in an image: `pipe(prompt, people=[Person(...), Person(...)])`.

    Attributes:
        identity ([`FaceIdentity`] or photo): Who it is: what `pipe.encode_face` gave, or a photo, or a list of photos of
            the person.
        face_box (`tuple[float, float, float, float]`): Where the face goes: left, top, right, bottom as shares of the
            image. Boxes must not overlap; each place of the image goes by the identity whose box is nearest.
        pose ([`HeadPose`], *optional*): Yaw, pitch and roll; the identity's own by default.
        expression (`str`, `dict` or [`Expression`], *optional*): The identity's own by default.
        pose_image (photo, *optional*): A photo to take pose and expression from.
    """

    identity: Any
    face_box: Sequence[float] | None = None
    pose: HeadPose | None = None
    expression: str | dict[str, float] | Expression | None = None
    pose_image: Any = None


def with_identities(people: Sequence[Person], encode_face: Callable[[Any], FaceIdentity]) -> list[Person]:
    """The people, with an identity in place of each photo."""
    encoded = []
    for i, person in enumerate(people):
        if not isinstance(person.identity, FaceIdentity):
            try:
                person = replace(person, identity=encode_face(person.identity))
            except InputError as error:
                raise type(error)(f"people[{i}]: {error}") from None
        encoded.append(person)
    return encoded


def boxes_overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two boxes (left, top, right, bottom) have an area in common."""
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(one[3], other[3])


def check_people_followed(ffrnet: Any, people: Sequence[Person]) -> None:
    """As [`check_followed`] for what steers each of some people. A face box also says where the identity counts."""
    for person in people:
        check_followed(ffrnet, Steering(person.pose_image, person.pose, person.expression).given)


def check_people(people: Any) -> tuple[list[Person], torch.Tensor]:
    """The people and their boxes `(people, 4)`; raises [`InputError`] unless each has one of its own."""
    if isinstance(people, Person) or not isinstance(people, (list, tuple)):
        raise InputError(f"people must be a list of Person, got {type(people).__name__}")
    if not people:
        raise InputError("people is an empty list; give at least one Person")
    boxes = []
    for i, person in enumerate(people):
        if not isinstance(person, Person):
            raise InputError(f"people[{i}] must be a Person, got {type(person).__name__}")
        if person.identity is None:
            raise InputError(f"people[{i}] has no identity; give a FaceIdentity or a photo")
        if person.face_box is None:
            raise InputError(f"people[{i}] has no face_box; say where each of the {len(people)} faces goes")
        for name in ("pose", "expression", "pose_image"):
            if isinstance(getattr(person, name), (list, tuple)):
                raise InputError(f"people[{i}]: {name} must be one for this person, got a list")
        try:
            box = as_boxes(person.face_box)
        except InputError as error:
            raise InputError(f"people[{i}]: {error}") from None
        if len(box) != 1:
            raise InputError(f"people[{i}]: face_box must be one box of four numbers, got {len(box)} boxes")
        boxes += box
    for (i, one), (j, other) in combinations(enumerate(boxes), 2):
        if boxes_overlap(one.tolist(), other.tolist()):
            raise InputError(f"people[{i}] and people[{j}] have face_boxes that overlap; move them apart")
    return list(people), torch.stack(boxes)
