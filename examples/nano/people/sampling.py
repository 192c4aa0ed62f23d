"""Random people and scenes: person i and scene j of person i are functions of (seed, i, j) alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .glasses import GlassesShape
from .hair import HairShape


def linear(rgb) -> np.ndarray:
    """Linear RGB, float32, of sRGB in 0 to 255."""
    return (np.asarray(rgb, np.float32) / 255.0) ** 2.2


SKIN_RAMP = [linear(c) for c in [
    (255, 226, 208), (247, 208, 184), (236, 188, 156), (222, 170, 134), (196, 138, 102), (164, 109, 76),
    (130, 84, 57), (100, 64, 45), (78, 50, 37),
]]  # fmt: skip
SKIN_TONES = ["pale", "fair", "tan", "brown", "dark"]
HAIR_COLORS = {
    "black": (24, 20, 20), "brown": (84, 53, 34), "auburn": (134, 62, 32), "red": (184, 82, 34),
    "blond": (216, 176, 110), "gray": (150, 150, 152), "white": (228, 228, 226), "pink": (228, 112, 160),
    "blue": (52, 92, 196),
}  # fmt: skip
HAIR_STYLES = ["bald", "buzz", "short", "parted", "curly", "bob", "long", "bun"]
EYE_COLORS = {
    "brown": (88, 52, 28),
    "hazel": (128, 100, 50),
    "green": (76, 130, 80),
    "blue": (66, 126, 196),
    "gray": (126, 140, 150),
}
BACKGROUND_COLORS = {
    "white": (238, 238, 236), "gray": (128, 130, 134), "black": (28, 28, 32), "blue": (66, 118, 206), "red": (196, 58, 58),
    "green": (78, 158, 88), "yellow": (236, 202, 84), "orange": (236, 146, 66), "purple": (132, 88, 184), "pink": (240, 166, 190),
}  # fmt: skip
SHIRT_COLORS = {
    "white": (232, 232, 232), "black": (34, 34, 38), "gray": (130, 132, 138), "blue": (46, 88, 170), "red": (186, 44, 48),
    "green": (52, 128, 74), "yellow": (230, 190, 60), "purple": (112, 66, 152),
}  # fmt: skip
BEARDS = ["none", "stubble", "full", "moustache", "goatee"]
EXPRESSIONS = ["neutral", "smiling", "laughing", "surprised", "sad", "angry", "closed eyes", "pouting"]
FRAME_COLORS = [(22, 22, 24), (62, 32, 22), (150, 120, 60), (150, 40, 40), (40, 60, 120)]
LIPSTICKS = [(170, 30, 50), (190, 70, 80), (140, 30, 60), (200, 90, 100)]


@dataclass
class Person:
    """What stays the same in every view. Colours are linear RGB."""

    shape: np.ndarray  # (100,) identity coefficients of the ICT model
    skin_tone: str
    hair_style: str
    hair_color_name: str
    eye_color_name: str
    beard: str
    skin_color: np.ndarray
    lip_color: np.ndarray
    hair_color: np.ndarray
    brow_color: np.ndarray
    beard_color: np.ndarray
    eye_color: np.ndarray
    hair: HairShape | None
    hair_seed: int
    hairline: tuple[float, float]  # polar angle above the forehead, and how much lower at 25 degrees to the sides
    scalp_paint: float
    glasses: GlassesShape | None
    beard_mix: np.ndarray  # (3,) full, moustache, goatee
    beard_opacity: float
    beard_length: float  # cm
    brow_style: np.ndarray  # half thickness, shift, density, tilt
    skin_style: np.ndarray  # blush, freckles, shine, shade under the eyes
    lashes: float
    lid_shade: float
    moles: np.ndarray  # (4, 4) x, y, radius, strength

    @property
    def attributes(self) -> dict:
        return {
            "skin": self.skin_tone,
            "hair_style": self.hair_style,
            "hair_color": self.hair_color_name,
            "bangs": self.hair is not None and self.hair.bangs > 10,
            "eyes": self.eye_color_name,
            "beard": self.beard,
            "glasses": self.glasses is not None,
        }


@dataclass
class Scene:
    """What changes between views of a person."""

    expression: np.ndarray  # (53,)
    expression_name: str
    yaw: float  # degrees, see `face_model.rotation_matrix`
    pitch: float
    roll: float
    background_name: str
    background: np.ndarray  # sRGB in 0 to 1
    gradient: float
    shirt_name: str
    shirt_color: np.ndarray
    collar: np.ndarray  # height (cm), depth of the V (cm)
    key_direction: np.ndarray
    key_color: np.ndarray
    fill_direction: np.ndarray
    fill_color: np.ndarray
    ambient_color: np.ndarray
    rim_color: np.ndarray
    camera: np.ndarray  # centre x, centre y, half height (cm)

    @property
    def direction(self) -> str:
        if abs(self.yaw) > 13:
            return "looking right" if self.yaw > 0 else "looking left"
        if abs(self.pitch) > 8:
            return "looking down" if self.pitch > 0 else "looking up"
        return "facing forward"

    @property
    def attributes(self) -> dict:
        return {
            "expression": self.expression_name,
            "direction": self.direction,
            "shirt": self.shirt_name,
            "background": self.background_name,
        }


class _Draw:
    """Short names for a generator's draws."""

    def __init__(self, *key: int):
        self.rng = np.random.default_rng(key)

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def choice(self, options, weights=None):
        p = None if weights is None else np.asarray(weights, float) / np.sum(weights)
        return options[int(self.rng.choice(len(options), p=p))]


def hair_shape(style: str, draw: _Draw) -> HairShape | None:
    u = draw.uniform
    if style in ("bald", "buzz"):
        return None
    hair = HairShape(front=u(46, 55), peak=u(-3, 4), side=u(86, 96), phase=u(0, 6))
    if style == "short":
        hair.thickness, hair.top, hair.quiff, hair.blunt = u(0.3, 0.6), u(0.6, 1.4), u(0.2, 2.4), u(0.2, 0.6)
        hair.lock_lift = 0.35
    if style == "parted":
        hair.parting = u(0.28, 0.46) * draw.choice([-1, 1])
        hair.sweep = -np.sign(hair.parting) * u(7, 14)
        hair.thickness, hair.top, hair.quiff, hair.blunt = u(0.4, 0.7), u(0.8, 1.4), u(0.4, 1.2), u(0.4, 0.7)
    if style == "curly":
        hair.thickness, hair.top, hair.sides, hair.curl, hair.blunt = u(0.7, 2.8), u(0.3, 1.2), u(0.0, 0.7), 0.2, 0.7
        hair.bangs, hair.side = u(0, 7), u(92, 100)
        hair.lock_count, hair.lock_width, hair.lock_curl, hair.lock_lift = 900, 0.5, 0.5, 0.5
    if style in ("bob", "long"):
        hair.length = u(7.5, 10.5) if style == "bob" else u(16, 20)
        hair.opening, hair.thickness, hair.sides, hair.front = u(58, 70), u(0.6, 0.9), u(0.3, 0.7), u(46, 54)
        hair.flare, hair.tuck = (u(0.4, 1.0), u(0.6, 1.3)) if style == "bob" else (u(-0.1, 0.6), 0.0)
        hair.wave = u(0.25, 0.6) if draw.chance(0.4) else 0.0
        hair.lock_count, hair.lock_width = 760, 0.65
        if draw.chance(0.35):
            hair.bangs, hair.blunt = u(15, 21), 1.0
        else:
            hair.parting = u(-0.3, 0.3)
    if style == "bun":
        hair.thickness, hair.top, hair.blunt, hair.bun = u(0.2, 0.4), u(0.1, 0.4), 0.2, u(2.2, 3.1)
        hair.lock_lift, hair.side = 0.14, u(88, 94)
    return hair


def _beard(kind: str, draw: _Draw) -> tuple[np.ndarray, float, float]:
    """Mix of masks, opacity and length."""
    u = draw.uniform
    if kind == "stubble":
        return np.array([1.0, 0, 0]), u(0.3, 0.5), 0.0
    if kind == "full":
        return np.array([1.0, 0, 0]), u(0.88, 1.0), u(0.3, 0.8)
    if kind == "moustache":
        return np.array([0, 1.0, 0]), 0.95, 0.2
    if kind == "goatee":
        return np.array([0, 0.6, 1.0]), 0.95, 0.3
    return np.zeros(3), 0.0, 0.0


def sample_person(seed: int, index: int) -> Person:
    draw = _Draw(seed, 1, index)
    u = draw.uniform
    shape = draw.rng.normal(size=100) * np.where(np.arange(100) < 15, 1.15, 1.05)
    shape = np.clip(shape, -2.6, 2.6).astype(np.float32)
    feminine = u(0, 1)
    masculine = feminine < 0.47

    tone = u(0, len(SKIN_RAMP) - 1.01)
    low = int(tone)
    skin = (SKIN_RAMP[low] * (1 - tone + low) + SKIN_RAMP[low + 1] * (tone - low)) * draw.rng.uniform(0.95, 1.05, 3)
    skin_tone = SKIN_TONES[int(np.searchsorted([1.2, 3.0, 4.4, 6.0], tone))]
    light_skinned = tone < 4.4

    names = list(HAIR_COLORS)
    weights = np.array([0.24, 0.20, 0.08, 0.08, 0.14, 0.08, 0.06, 0.06, 0.06])
    if not light_skinned:
        weights = weights * np.array([5, 2, 0.3, 0.1, 0.25, 0.8, 0.5, 0.6, 0.6])
    color_name = draw.choice(names, weights)
    style_weights = (
        [0.10, 0.16, 0.26, 0.22, 0.14, 0.01, 0.03, 0.01]
        if masculine
        else [0.01, 0.03, 0.09, 0.10, 0.17, 0.20, 0.26, 0.14]
    )
    style = draw.choice(HAIR_STYLES, style_weights)
    hair_color = linear(HAIR_COLORS[color_name]) * u(0.85, 1.15)
    natural = hair_color if color_name not in ("pink", "blue") else linear(HAIR_COLORS["brown"]) * u(0.5, 1.2)
    brow_color = natural * (u(0.4, 0.8) if color_name not in ("white", "gray") else u(0.3, 0.6))

    lip = skin * np.array([u(0.82, 1.02), u(0.45, 0.62), u(0.48, 0.66)])
    if not masculine and draw.chance(0.35):
        lip = linear(draw.choice(LIPSTICKS))
    beard = draw.choice(BEARDS, [0.48, 0.16, 0.18, 0.09, 0.09]) if masculine else "none"
    beard_mix, opacity, length = _beard(beard, draw)
    glasses = None
    if draw.chance(0.18):
        glasses = GlassesShape(u(1.7, 2.2), u(1.35, 1.8), u(2.0, 4.5), u(0.12, 0.2), linear(draw.choice(FRAME_COLORS)))
    moles = np.zeros((4, 4), np.float32)
    for k in range(draw.choice([0, 0, 1, 2])):
        moles[k] = u(-5, 5), u(-6, 2), u(0.24, 0.38), 1.0
    eyes = draw.choice(list(EYE_COLORS) if light_skinned else ["brown", "brown", "brown", "hazel", "green"])
    scalp_paint = {"bald": 0.0 if draw.chance(0.6) else u(0.12, 0.3), "buzz": u(0.75, 0.92)}.get(style, 0.85)
    hair, hair_seed = hair_shape(style, draw), int(draw.rng.integers(2**31))
    if hair is None:
        front_line = (46 + 8 * (hair_seed % 1000) / 1000, -3 + 8 * (hair_seed % 777) / 777)
    else:
        front_line = (hair.front + 1, hair.peak)
    return Person(
        shape=shape,
        skin_tone=skin_tone,
        hair_style=style,
        hair_color_name=color_name,
        eye_color_name=eyes,
        beard=beard,
        skin_color=skin,
        lip_color=lip,
        hair_color=hair_color,
        brow_color=brow_color,
        beard_color=natural * 0.85,
        eye_color=linear(EYE_COLORS[eyes]) * 1.3,
        hair=hair,
        hair_seed=hair_seed,
        hairline=front_line,
        scalp_paint=scalp_paint,
        glasses=glasses,
        beard_mix=beard_mix,
        beard_opacity=opacity,
        beard_length=length,
        brow_style=np.array([u(0.26, 0.46) if masculine else u(0.16, 0.30), u(-0.1, 0.3), u(0.75, 1.0), u(-0.1, 0.1)]),
        skin_style=np.array(
            [u(0.2, 0.9), u(0.4, 0.9) if light_skinned and draw.chance(0.13) else 0.0, u(0.5, 1.3), u(0.1, 0.9)]
        ),
        lashes=u(0.25, 0.4) if masculine else u(0.5, 0.85),
        lid_shade=0.0 if masculine else (u(0.3, 1.0) if draw.chance(0.3) else 0.0),
        moles=moles,
    )


def named_expression(name: str, strength: float, draw: _Draw, index: dict[str, int]) -> np.ndarray:
    """(53,) coefficients of a named expression, with a person's usual asymmetry."""
    values = np.zeros(len(index), np.float32)

    def both(key: str, low: float, high: float):
        level = draw.uniform(low, high)
        for side in "LR":
            values[index[f"{key}_{side}"]] = level + draw.uniform(-0.06, 0.06)

    def one(key: str, low: float, high: float):
        values[index[key]] = draw.uniform(low, high)

    if name == "neutral":
        both("mouthSmile", 0, 0.12), both("eyeBlink", 0, 0.08)
    elif name == "smiling":
        both("mouthSmile", 0.7, 1), both("cheekSquint", 0.2, 0.6), both("mouthDimple", 0, 0.4)
        both("mouthUpperUp", 0, 0.25), both("mouthLowerDown", 0, 0.25)
    elif name == "laughing":
        both("mouthSmile", 0.8, 1), both("cheekSquint", 0.4, 0.9), both("mouthUpperUp", 0.3, 0.6)
        both("mouthLowerDown", 0.3, 0.6), one("jawOpen", 0.25, 0.45), both("eyeSquint", 0.1, 0.4)
    elif name == "surprised":
        one("jawOpen", 0.5, 0.85), both("browInnerUp", 0.7, 1), both("browOuterUp", 0.7, 1), both("eyeWide", 0.6, 1)
        one("mouthFunnel", 0, 0.4)
    elif name == "sad":
        (
            both("mouthFrown", 0.8, 1),
            both("browInnerUp", 0.7, 1),
            both("eyeBlink", 0.1, 0.25),
            one("mouthShrugLower", 0.3, 0.7),
        )
    elif name == "angry":
        (
            both("browDown", 0.8, 1),
            both("noseSneer", 0.5, 0.9),
            both("mouthPress", 0.2, 0.6),
            both("mouthFrown", 0.3, 0.6),
        )
        both("eyeSquint", 0.2, 0.6)
    elif name == "closed eyes":
        both("eyeBlink", 0.95, 1), both("mouthSmile", 0, 0.25)
    elif name == "pouting":
        one("mouthPucker", 0.8, 1), both("eyeBlink", 0, 0.15)
    values *= strength
    if name != "closed eyes":
        gaze = draw.uniform(0, 0.35)
        away, toward = draw.choice([("L", "R"), ("R", "L")])
        if draw.chance(0.5):
            values[index[f"eyeLookOut_{away}"]] = values[index[f"eyeLookIn_{toward}"]] = gaze
    return np.clip(values, 0, 1)


def sample_scene(seed: int, person: int, view: int, expression_index: dict[str, int]) -> Scene:
    draw = _Draw(seed, 2, person, view)
    u = draw.uniform
    name = draw.choice(EXPRESSIONS, [0.24, 0.22, 0.13, 0.11, 0.09, 0.09, 0.06, 0.06])
    strength = 1.0 if name in ("neutral", "closed eyes") or draw.chance(0.7) else u(0.65, 1.0)
    expression = named_expression(name, strength, draw, expression_index)
    background_name, shirt_name = draw.choice(list(BACKGROUND_COLORS)), draw.choice(list(SHIRT_COLORS))
    background = np.array(BACKGROUND_COLORS[background_name]) / 255.0 * u(0.92, 1.07) + draw.rng.normal(0, 0.012, 3)
    background = np.clip(background, 0, 1)
    yaw = float(np.clip(draw.rng.normal(0, 17), -40, 40))
    pitch = float(np.clip(draw.rng.normal(0, 7), -18, 18))
    azimuth, elevation = np.deg2rad(u(-55, 55)), np.deg2rad(u(8, 55))
    warmth, glow = u(-0.1, 0.1), background**2.2
    return Scene(
        expression=expression,
        expression_name=name,
        yaw=yaw,
        pitch=pitch,
        roll=u(-7, 7),
        background_name=background_name,
        background=background,
        gradient=u(0, 0.3),
        shirt_name=shirt_name,
        shirt_color=linear(SHIRT_COLORS[shirt_name]),
        collar=np.array([u(-10.6, -9.4), u(1.5, 3.0) if draw.chance(0.3) else 0.0]),
        key_direction=np.array(
            [np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)]
        ),
        key_color=u(0.9, 1.25) * np.array([1 + warmth, 1, 1 - warmth]),
        fill_direction=np.array([-np.sin(azimuth), 0.2, 1.0]),
        fill_color=np.full(3, u(0.18, 0.42)),
        ambient_color=u(0.22, 0.36) * np.array([0.7, 0.7, 0.735]) + 0.15 * glow,
        rim_color=0.45 * glow + 0.15,
        camera=np.array([u(-0.8, 0.8), u(1.9, 2.7), u(13.8, 15.2)]),
    )
