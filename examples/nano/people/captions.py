"""Captions: what a picture shows, in words that the tokenizer knows whole."""

from __future__ import annotations

import itertools

import numpy as np

from .sampling import (
    BACKGROUND_COLORS,
    BEARDS,
    EXPRESSIONS,
    EYE_COLORS,
    HAIR_COLORS,
    HAIR_STYLES,
    SHIRT_COLORS,
    SKIN_TONES,
)


OPENING = "a photo of a person"
_HAIR = {
    "bald": "bald head",
    "buzz": "{color} buzz cut",
    "short": "short {color} hair",
    "parted": "parted {color} hair",
    "curly": "curly {color} hair",
    "bob": "{color} bob hair",
    "long": "long {color} hair",
    "bun": "{color} hair in a bun",
}
_BEARD = {"stubble": "stubble", "full": "full beard", "moustache": "moustache", "goatee": "goatee"}
_MIRROR = {"looking left": "looking right", "looking right": "looking left"}
DIRECTIONS = ["facing forward", "looking left", "looking right", "looking up", "looking down"]


def person_clauses(attributes: dict) -> list[str]:
    """What a caption can say about the person, whatever the scene."""
    hair = _HAIR[attributes["hair_style"]].format(color=attributes["hair_color"])
    clauses = [hair + (" with bangs" if attributes["bangs"] else "")]
    clauses += [f"{attributes['skin']} skin", f"{attributes['eyes']} eyes"]
    if attributes["beard"] != "none":
        clauses.append(_BEARD[attributes["beard"]])
    if attributes["glasses"]:
        clauses.append("wearing glasses")
    return clauses


def scene_clauses(attributes: dict, mirrored: bool = False) -> list[str]:
    """What it can say about the scene; in a mirrored picture left is right."""
    direction = attributes["direction"]
    return [
        attributes["expression"],
        _MIRROR.get(direction, direction) if mirrored else direction,
        f"{attributes['shirt']} shirt",
        f"{attributes['background']} background",
    ]


def caption(attributes: dict, mirrored: bool = False, rng: np.random.Generator | None = None) -> str:
    """One sentence with everything, or, given a generator, with a random part of it.

    Half of the random captions leave the person out: those are the prompts that identity tokens will complete.
    """
    person, scene = person_clauses(attributes), scene_clauses(attributes, mirrored)
    if rng is not None:
        person = [c for c in person if rng.random() < 0.7] if rng.random() < 0.55 else []
        scene = [c for c, kept in zip(scene, (0.75, 0.65, 0.7, 0.85)) if rng.random() < kept]
    clauses = person + scene
    if rng is not None and rng.random() < 0.25:
        rng.shuffle(clauses)
    if person and clauses[0] == person[0]:
        return ", ".join([f"{OPENING} with {clauses[0]}", *clauses[1:]])
    return ", ".join([OPENING, *clauses])


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    phrases = [OPENING + " with bangs , wearing glasses skin eyes shirt background"]
    phrases += [*SKIN_TONES, *EYE_COLORS, *HAIR_COLORS, *SHIRT_COLORS, *BACKGROUND_COLORS, *EXPRESSIONS, *DIRECTIONS]
    phrases += [*_HAIR.values(), *_BEARD.values()]
    words = set(itertools.chain.from_iterable(p.format(color="black").split() for p in phrases))
    assert set(_HAIR) == set(HAIR_STYLES)
    assert set(_BEARD) == set(BEARDS) - {"none"}
    return sorted(words)
