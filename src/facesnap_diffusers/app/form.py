"""From the values of the page's fields to settings and back, and the pieces of HTML that the page shows."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image

from ..faces.expression import EXPRESSION_NAMES, PRESETS, Expression
from ..identity import FaceIdentity
from ..settings import dump_settings
from .photos import SentPhotos, as_data_url
from .picture_settings import TWO_FACES, PersonSettings, PictureSettings, read_settings


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
    sent: tuple[SentPhotos, ...]
    identities: tuple[FaceIdentity, ...]
    thumbnail: str
    code: str


def person_values(fields: Mapping[str, Any], box: Sequence[float] | None, sample: str | None) -> dict[str, Any]:
    """The plain values of a [`PersonSettings`] from the fields of one person."""
    expression = fields["expression"]
    weights = None if expression == AS_IN_PHOTO else fields["weights"] or {}
    pose = [float(fields[angle]) for angle in ("yaw", "pitch", "roll")] if fields["steers_pose"] else None
    return {
        "sample": sample,
        "pose": pose,
        "expression": weights,
        "face_box": None if box is None else [float(side) for side in box],
        "uses_pose_photo": bool(fields.get("uses_pose_photo")),
    }


def picture_settings(
    fields: Mapping[str, Any], people: Sequence[Mapping[str, Any]], sent: Sequence[SentPhotos]
) -> PictureSettings:
    """
    Settings from the page's fields.

    Args:
        fields (`dict`): Values by name, of the whole picture.
        people (`Sequence[dict]`): Values by name, of each person.
        sent (`Sequence[SentPhotos]`): Who each person is.

    Raises:
        InputError: A value is out of range, in one line.
    """
    boxes: list[Any] = list(fields["boxes"] or []) if fields["places_faces"] else []
    boxes += [None] * (len(people) - len(boxes))
    values: dict[str, Any] = {
        "people": [
            person_values(person, box, photos.sample) for person, box, photos in zip(people, boxes, sent, strict=False)
        ],
        "mode": MODES[fields["mode"]],
        "schedule": fields["schedule"],
        "prompt": fields["prompt"] or "",
        "negative_prompt": fields["negative_prompt"] or "",
    }
    values |= {name: int(fields[name]) for name in ("steps", "seed", "height", "width")}
    values |= {
        name: float(fields[name]) for name in ("strength", "identity_scale", "landmark_scale", "guidance_scale")
    }
    return read_settings(values)


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
    return Expression.of(choice).weights if choice in PRESETS else {}


def boxes_for(count: int, one: Sequence[float]) -> list[list[float]]:
    """Where the faces of one person, or of two, go at first."""
    return [list(one)] if count == 1 else [list(box) for box in TWO_FACES]


# pieces of HTML


def error_html(text: str) -> str:
    """One line that says what was wrong, read out by screen readers; nothing for an empty text."""
    return f'<p class="fs-error" role="alert">{html.escape(text)}</p>' if text else ""


def progress_html(done: int, steps: int, picture: PIL.Image.Image | None) -> str:
    """How far a picture is, and what it looks like by then."""
    shown = "" if picture is None else f'<img class="fs-small" alt="" src="{as_data_url(picture)}">'
    text = f"step {done} of {steps}" if steps else "waiting for its turn"
    bar = f'<progress max="{max(steps, 1)}" value="{done}" aria-label="Progress"></progress>'
    return f'<div class="fs-result">{shown}{bar}<p role="status">{text}</p></div>'


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
