"""Everything that says what picture the app makes, apart from the photos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import InputError
from ..faces.expression import Expression
from ..faces.placing import check_face_box
from ..faces.pose import HeadPose
from ..pipelines.people import boxes_overlap
from ..settings import parse_settings, strict_dataclass


MAX_PROMPT = 2000  # characters

Share = Annotated[float, Field(ge=0, le=1)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT)]

#: Where the faces of one person and of two go, as shares of the image: left, top, right, bottom.
ONE_FACE = (0.28, 0.22, 0.72, 0.72)
TWO_FACES = ((0.1, 0.3, 0.4, 0.85), (0.6, 0.3, 0.9, 0.85))


@strict_dataclass(frozen=True)
class PersonSettings:
    r"""
    How one person is steered.

    Attributes:
        sample (`str`, *optional*): The name of a sample person; without it there are photos.
        pose ([`HeadPose`] as `(yaw, pitch, roll)`, *optional*): In degrees; without it, the photo's.
        expression (`dict[str, float]`, *optional*): Strengths by ARKit name; without it, the photo's.
        face_box (`tuple`, *optional*): Left, top, right and bottom as shares of the image; without it, as in the photo.
        uses_pose_photo (`bool`): Whether a pose photo gives what is `None` of the above.
    """

    sample: str | None = None
    pose: tuple[float, float, float] | None = None
    expression: dict[str, float] | None = None
    face_box: tuple[float, float, float, float] | None = None
    uses_pose_photo: bool = False

    def __post_init__(self) -> None:
        self.steering()

    def steering(self) -> dict[str, Any]:
        """The keyword arguments of a call, and of a `Person`, that steer."""
        check: dict[str, Callable[[], Any]] = {
            "pose": lambda: HeadPose(*self.pose),  # type: ignore[misc]
            "expression": lambda: Expression(self.expression),  # type: ignore[arg-type]
            "face_box": lambda: check_face_box(self.face_box),
        }
        values = {}
        for name, checked in check.items():
            if getattr(self, name) is not None:
                try:
                    values[name] = checked()
                except InputError as error:
                    error.key = name
                    raise
        return values


@strict_dataclass(frozen=True)
class PictureSettings:
    r"""
    What a picture is made from. Made from plain values by [`read_settings`], so that the gallery can keep it.

    Attributes:
        prompt (`str`), negative_prompt (`str`): As in a call of a pipeline.
        people (`tuple[PersonSettings, ...]`): One, or two.
        mode (`str`): `"text"`, `"image"` (image-to-image) or `"inpaint"`.
        strength (`float`): How much of the start picture is drawn anew; for the latter two modes.
        identity_scale (`float`), landmark_scale (`float`): As in `set_facesnap_scale`.
        schedule (`str`): `"exact"`, or `"fast"`: FFRNet not at every step.
        steps (`int`), guidance_scale (`float`), seed (`int`): As in a call of a pipeline.
        height (`int`), width (`int`): In pixels.
    """

    prompt: Prompt
    negative_prompt: Prompt = ""
    people: Annotated[tuple[PersonSettings, ...], Field(min_length=1, max_length=2)] = (PersonSettings(),)
    mode: Literal["text", "image", "inpaint"] = "text"
    strength: Share = 0.6
    identity_scale: Annotated[float, Field(ge=0, le=2)] = 1.0
    landmark_scale: Annotated[float, Field(ge=0, le=2)] = 1.0
    schedule: Literal["exact", "fast"] = "exact"
    steps: Annotated[int, Field(ge=1, le=100)] = 20
    guidance_scale: Annotated[float, Field(ge=0, le=30)] = 5.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    height: Annotated[int, Field(ge=64, le=2048, multiple_of=8)] = 512
    width: Annotated[int, Field(ge=64, le=2048, multiple_of=8)] = 512

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise InputError("the prompt is empty; say what the picture shows", key="prompt")
        if len(self.people) > 1 and any(person.face_box is None for person in self.people):
            raise InputError("each of two people needs a face box; switch the boxes on", key="boxes")
        boxes = [person.face_box for person in self.people if person.face_box is not None]
        if len(boxes) == 2 and boxes_overlap(*boxes):
            raise InputError("the two face boxes overlap; move them apart", key="boxes")


def read_settings(values: dict[str, Any]) -> PictureSettings:
    """Settings from plain values, as a browser sends them. Raises [`InputError`] in one line for what is not valid."""
    return parse_settings(PictureSettings, values, "settings")


def without_steering(settings: PictureSettings) -> PictureSettings:
    """For adapters without FFRNet: nothing that steers, but the boxes that say where each of two people counts."""
    boxes = [person.face_box if len(settings.people) > 1 else None for person in settings.people]
    people = zip(settings.people, boxes, strict=True)
    return replace(settings, people=tuple(PersonSettings(person.sample, face_box=box) for person, box in people))
