"""What the renderer knows about a person: classes with names, measures as numbers, and where a picture shows them."""

from __future__ import annotations

import cv2
import numpy as np
from people.hair import HairShape
from people.renderer import background
from people.sampling import BEARDS, EYE_COLORS, HAIR_COLORS, HAIR_STYLES, SKIN_TONES, Person, Scene


LENGTH_OF_STYLE = {"bob": "chin", "long": "long", "bun": "tied"}  # of all other styles: short
HAIR_LENGTHS = ["short", "chin", "long", "tied"]
CLASSES = {
    "hair length": HAIR_LENGTHS,
    "hair style": HAIR_STYLES,
    "hair color": [*HAIR_COLORS, "none"],  # a bald head has none
    "bangs": [False, True],
    "beard": BEARDS,
    "glasses": [False, True],
    "eyes": list(EYE_COLORS),
    "skin": SKIN_TONES,
}
ALIKE = {"hair style": {"parted": "short"}, "beard": {"moustache": "none"}}
"""Values that look like others: at 128 px nobody sees where short hair is parted, or a moustache as thin as these."""
_HAIR_MEASURES = ("front", "thickness", "top", "quiff", "sides", "bangs", "length", "flare", "wave", "bun")
_NO_GLASSES = [0.0] * 5
ROUNDING = 1  # of a channel between a background as it is computed and as a picture has it
SPECK = 3  # pixels of a person that are no larger look like the background by chance
SHAPE_COEFFICIENTS = 30  # the first, which move the head most


def classes(attributes: dict) -> dict[str, str | bool]:
    """The value of each of `CLASSES`, from a person's attributes as `dataset.Shard` has them."""
    style = attributes["hair_style"]
    return {
        "hair length": LENGTH_OF_STYLE.get(style, "short"),
        "hair style": style,
        "hair color": "none" if style == "bald" else attributes["hair_color"],
        "bangs": attributes["bangs"],
        "beard": attributes["beard"],
        "glasses": attributes["glasses"],
        "eyes": attributes["eyes"],
        "skin": attributes["skin"],
    }


def class_numbers(attributes: dict) -> np.ndarray:
    """Positions in `CLASSES`, `(8,)` int64."""
    return np.array([CLASSES[name].index(value) for name, value in classes(attributes).items()])


def as_seen(numbers: np.ndarray) -> np.ndarray:
    """The same for positions (N, 8) in `CLASSES`, with those in place that `ALIKE` says look so."""
    numbers = numbers.copy()
    for name, alike in ALIKE.items():
        column = list(CLASSES).index(name)
        for value, other in alike.items():
            numbers[numbers[:, column] == CLASSES[name].index(value), column] = CLASSES[name].index(other)
    return numbers


def measures(person: Person) -> np.ndarray:
    """
    What can be measured of a person, `(64,)` float32: colors (sRGB in 0 to 1) of skin, lips, hair, brows, beard and eyes,
    the form of hair, beard, brows and glasses (cm, degrees), freckles and moles, the first coefficients of the head's
    shape. All stay the same in a mirrored picture.
    """
    hair = person.hair or HairShape(thickness=0.0, top=0.0)
    colors = [person.skin_color, person.lip_color, person.hair_color, person.brow_color]
    colors += [person.beard_color * person.beard_opacity, person.eye_color]
    glasses = _NO_GLASSES
    if person.glasses is not None:
        shape = person.glasses
        glasses = [1.0, shape.width, shape.height, shape.squareness, shape.thickness]
    numbers = [getattr(hair, name) for name in _HAIR_MEASURES]
    numbers += [abs(hair.parting or 0.0), person.scalp_paint]
    numbers += [person.beard_opacity, person.beard_length, *person.beard_mix, *glasses]
    numbers += [*person.brow_style, person.skin_style[0], person.skin_style[1], person.lashes, person.lid_shade]
    numbers += [person.moles[:, 3].sum()]
    shades = np.clip(np.concatenate(colors), 0, 1) ** (1 / 2.2)
    return np.concatenate([shades, numbers, person.shape[:SHAPE_COEFFICIENTS]]).astype(np.float32)


def person_mask(image: np.ndarray, scene: Scene) -> np.ndarray:
    """Where a rendered picture (S, S, 3) differs from its scene's background: bool (S, S)."""
    behind = 255 * background(scene, image.shape[0])
    mask = (np.abs(image - behind) > ROUNDING).any(-1).astype(np.uint8)
    return cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((SPECK, SPECK), np.uint8)).astype(bool)
