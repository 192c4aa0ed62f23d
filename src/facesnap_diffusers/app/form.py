"""From the values of the page's fields to settings and back, and the pieces of HTML that the page shows."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image

from ..errors import InputError
from ..faces.expression import EXPRESSION_NAMES, PRESETS, Expression
from ..settings import dump_settings
from .photos import SentPhotos, as_data_url
from .picture_settings import TWO_FACES, PersonSettings, PictureSettings, read_settings
from .studio import Encoded, FoundPose


AS_IN_PHOTO, OWN_SLIDERS = "as in the photo", "own sliders"
EXPRESSION_CHOICES = [AS_IN_PHOTO, *PRESETS, OWN_SLIDERS]
MODES = {"text to image": "text", "image to image": "image", "inpainting": "inpaint"}
GALLERY_SIZE = 12

#: The expressions, by part of the face.
EXPRESSION_GROUPS = {
    title: [name for name in EXPRESSION_NAMES if name.startswith(starts)]
    for title, starts in {
        "Brows": ("brow",),
        "Eyes": ("eye",),
        "Cheeks and nose": ("cheek", "nose"),
        "Jaw": ("jaw",),
        "Mouth": ("mouth",),
    }.items()
}


@dataclass(frozen=True)
class Made:
    """A picture in the gallery, with all that is needed to make it again. It lives in the visitor's session alone."""

    settings: PictureSettings
    encoded: tuple[Encoded, ...]
    picture: str
    thumbnail: str
    code: str
    pose: FoundPose | None = None
    start: dict[str, Any] | None = None  # the value of that field


def person_values(fields: Mapping[str, Any], box: Any, sample: str | None, number: int = 0) -> dict[str, Any]:
    """
    The plain values of a [`PersonSettings`] from the fields of one person, the first or the second. Raises [`InputError`]
    for what is not a value of its field.
    """
    whose, key = " of the second person" if number else "", f"people.{number}"
    expression = fields["expression"]
    if expression not in EXPRESSION_CHOICES:
        raise InputError(
            f"the expression{whose} is not known; choose one of {', '.join(EXPRESSION_CHOICES)}",
            key=f"{key}.expression",
        )
    weights = None if expression == AS_IN_PHOTO else fields["weights"] or {}
    pose = None
    if fields["steers_pose"]:
        angles = ("yaw", "pitch", "roll")
        pose = [_number(fields[angle], f"{angle}{whose}", f"{key}.{angle}") for angle in angles]
    if box is not None:
        if not isinstance(box, Sequence) or isinstance(box, str) or len(box) != 4:
            raise InputError(
                f"the face box{whose} is not left, top, right and bottom; switch the boxes off and on", key="boxes"
            )
        box = [_number(side, f"a side of the face box{whose}", "boxes") for side in box]
    return {
        "sample": sample,
        "pose": pose,
        "expression": weights,
        "face_box": box,
        "uses_pose_photo": bool(fields.get("uses_pose_photo")),
    }


def picture_settings(
    fields: Mapping[str, Any], people: Sequence[Mapping[str, Any]], sent: Sequence[SentPhotos]
) -> PictureSettings:
    """
    Settings from the page's fields.

    Args:
        fields (`dict`): Values by name, of the whole picture, as the browser sent them: an emptied field is `None`.
        people (`Sequence[dict]`): Values by name, of each person.
        sent (`Sequence[SentPhotos]`): Who each person is.

    Raises:
        InputError: A value is missing, not of its field's kind, or out of range, in one line that names the field. `key`
            is its name here, with `people.0.` or `people.1.` before that of a person's field.
    """
    boxes = (fields["boxes"] or []) if fields["places_faces"] else []
    if not isinstance(boxes, list):
        raise InputError("the face boxes are not a list; load the page again", key="boxes")
    boxes = boxes + [None] * (len(people) - len(boxes))
    if fields["mode"] not in list(MODES):
        raise InputError(f"the mode is not known; choose one of {', '.join(MODES)}", key="mode")
    values: dict[str, Any] = {
        "people": [
            person_values(person, box, photos.sample, number)
            for number, (person, box, photos) in enumerate(zip(people, boxes, sent, strict=False))
        ],
        "mode": MODES[fields["mode"]],
        "schedule": fields["schedule"],
        "prompt": fields["prompt"] or "",
        "negative_prompt": fields["negative_prompt"] or "",
    }
    values |= {name: _whole_number(fields[name], name, name) for name in ("steps", "seed", "height", "width")}
    for name in ("strength", "identity_scale", "landmark_scale", "guidance_scale"):
        values[name] = _number(fields[name], name.replace("_", " "), name)
    return read_settings(values)


def _number(value: Any, name: str, key: str) -> float:
    if value is None or value == "":
        raise InputError(f"{name} is empty; enter a number", key=key)
    # larger ones are in no field's range, and may not fit a float
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e12:
        raise InputError(f"{name} is not a number in its range; enter another", key=key)
    return float(value)


def _whole_number(value: Any, name: str, key: str) -> int:
    number = _number(value, name, key)
    if not number.is_integer():
        raise InputError(f"{name} is {number:g}; enter a whole number", key=key)
    return int(number)


def field_values(settings: PictureSettings) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The reverse of [`picture_settings`]: values of the page's fields, and of those of each person."""
    plain = dump_settings(settings)
    modes = {mode: label for label, mode in MODES.items()}
    boxes = [person.face_box for person in settings.people]
    fields = {name: value for name, value in plain.items() if name not in ("people", "mode")}
    fields |= {
        "mode": modes[settings.mode],
        "places_faces": boxes[0] is not None,
        "boxes": [list(box) for box in boxes if box is not None],
        "second": len(settings.people) > 1,
    }
    return fields, [_person_fields(person) for person in settings.people]


def _person_fields(person: PersonSettings) -> dict[str, Any]:
    yaw, pitch, roll = person.pose or (0.0, 0.0, 0.0)
    weights = person.expression
    preset = AS_IN_PHOTO if weights is None else preset_of(weights)
    return {
        "steers_pose": person.pose is not None,
        "yaw": yaw,
        "pitch": pitch,
        "roll": roll,
        "expression": preset,
        "weights": weights or {},
        "uses_pose_photo": person.uses_pose_photo,
    }


def preset_of(weights: Mapping[str, float]) -> str:
    """The name of the preset that some strengths are, or that of the sliders."""
    expression = Expression(dict(weights))
    return next((name for name in PRESETS if Expression.of(name) == expression), OWN_SLIDERS)


def preset_weights(choice: str) -> dict[str, float]:
    """The strengths to which a choice of the expression menu sets the sliders."""
    return Expression.of(choice).weights if choice in list(PRESETS) else {}


def boxes_for(count: int, one: Sequence[float]) -> list[list[float]]:
    """Where the faces of one person, or of two, go at first."""
    return [list(one)] if count == 1 else [list(box) for box in TWO_FACES]


# pieces of HTML


def error_html(text: str, role: str = "alert") -> str:
    """One line that says what was wrong, read out by screen readers where it is an alert; nothing for an empty text."""
    return f'<p class="fs-error" role="{role}">{html.escape(text)}</p>' if text else ""


def progress_html(done: int, steps: int, picture: PIL.Image.Image | None) -> str:
    """How far a picture is, and what it looks like by then."""
    shown = "" if picture is None else f'<img class="fs-small" alt="" src="{as_data_url(picture)}">'
    bar = f'<progress max="{steps}" value="{done}" aria-label="Progress"></progress>'
    return f'<div class="fs-result">{shown}{bar}<p role="status">step {done} of {steps}</p></div>'


def picture_html(picture: str, prompt: str, seed: int) -> str:
    """A finished picture, a data URL, with a link that saves it."""
    described = html.escape(prompt, quote=True)
    return (
        f'<div class="fs-result"><img class="fs-picture" alt="Picture: {described}" src="{picture}">'
        f'<p role="status"><a class="fs-button" download="facesnap-{seed}.png" href="{picture}">Save the picture</a></p></div>'
    )


def empty_html(text: str) -> str:
    """What stands where a picture will be."""
    return f'<div class="fs-empty">{html.escape(text)}</div>'


def gallery_html(made: Sequence[Made]) -> str:
    """The pictures of this visit as buttons, the last one first."""
    buttons = [
        f'<li><button type="button" data-index="{index}" aria-label="Use the settings of picture {index + 1}:'
        f' {html.escape(item.settings.prompt, quote=True)}"><img alt="" src="{item.thumbnail}"></button></li>'
        for index, item in reversed(list(enumerate(made)))
    ]
    return f'<ul class="fs-gallery">{"".join(buttons)}</ul>' if buttons else ""
