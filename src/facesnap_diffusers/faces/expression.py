"""What a face does: strengths of the ARKit expressions, as the ICT FaceKit names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np

from ..errors import InputError, as_integer, as_number, shown, suggestion
from .pose import MAX_COUNT


# fmt: off
_ONE = (
    "jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose", "mouthFunnel", "mouthLeft", "mouthPucker", "mouthRight",
    "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper",
)
_TWO = (
    "browDown", "browInnerUp", "browOuterUp", "cheekPuff", "cheekSquint", "eyeBlink", "eyeLookDown", "eyeLookIn",
    "eyeLookOut", "eyeLookUp", "eyeSquint", "eyeWide", "mouthDimple", "mouthFrown", "mouthLowerDown", "mouthPress",
    "mouthSmile", "mouthStretch", "mouthUpperUp", "noseSneer",
)
# fmt: on

EXPRESSION_NAMES = tuple(sorted(_ONE + tuple(f"{name}_{side}" for name in _TWO for side in "LR")))

# Every accepted spelling and the ICT names that it stands for. ARKit has one `browInnerUp` and one `cheekPuff`.
_SPELLINGS: dict[str, tuple[str, ...]] = {name: (name,) for name in EXPRESSION_NAMES}
_SPELLINGS |= {f"{name}{word}": (f"{name}_{word[0]}",) for name in _TWO for word in ("Left", "Right")}
_SPELLINGS |= {name: (f"{name}_L", f"{name}_R") for name in _TWO}
# What trackers report besides and what moves no landmark.
_SPELLINGS |= {"tongueOut": (), "_neutral": ()}

PRESETS: dict[str, dict[str, float]] = {
    "neutral": {},
    "smile": {"mouthSmile": 0.7, "cheekSquint": 0.4, "eyeSquint": 0.2, "mouthDimple": 0.2},
    "laugh": {"mouthSmile": 0.8, "jawOpen": 0.4, "cheekSquint": 0.7, "eyeSquint": 0.5, "mouthUpperUp": 0.4},
    "smirk": {"mouthSmile_L": 0.6, "mouthDimple_L": 0.4, "cheekSquint_L": 0.2, "mouthLeft": 0.15},
    "surprise": {"browInnerUp": 0.9, "browOuterUp": 0.9, "eyeWide": 0.9, "jawOpen": 0.55},
    "fear": {"browInnerUp": 0.9, "browDown": 0.2, "eyeWide": 0.9, "mouthStretch": 0.7, "jawOpen": 0.2},
    "sad": {"browInnerUp": 0.8, "mouthFrown": 0.7, "mouthShrugLower": 0.3, "eyeSquint": 0.2},
    "angry": {"browDown": 0.9, "eyeSquint": 0.4, "noseSneer": 0.4, "mouthPress": 0.5, "mouthFrown": 0.3},
    "disgust": {"noseSneer": 0.9, "browDown": 0.5, "mouthUpperUp": 0.5, "mouthFrown": 0.4, "cheekSquint": 0.4},
    "kiss": {"mouthPucker": 0.9, "mouthFunnel": 0.2},
    "mouth_open": {"jawOpen": 0.6},
    "eyes_closed": {"eyeBlink": 1.0},
    "wink_left": {"eyeBlink_L": 1.0, "cheekSquint_L": 0.5, "mouthSmile_L": 0.3},
    "wink_right": {"eyeBlink_R": 1.0, "cheekSquint_R": 0.5, "mouthSmile_R": 0.3},
}


class Expression:
    r"""
    A facial expression: for each of the 53 expressions of the ICT FaceKit a strength in `[0, 1]`; 0 where none is given.

    Names come in the ICT's spelling (`mouthSmile_L`) or in ARKit's (`mouthSmileLeft`); without a side (`mouthSmile`)
    both are meant. Left and right are the person's. ARKit's `tongueOut` and MediaPipe's `_neutral` are accepted, and
    move no landmark.

        Expression.of("smile")
        Expression({"jawOpen": 0.4, "mouthSmileLeft": 0.8})
        0.5 * Expression.of("smile") + Expression.of("wink_left")
        Expression.of("neutral").sequence("laugh", 12)

    Args:
        weights (`Mapping[str, float]`): Strength by name.

    Raises:
        InputError: A name is not known or given twice, or a strength is not a number in `[0, 1]`.
    """

    __array_ufunc__ = None  # numpy's numbers leave `number * expression` to __rmul__.

    def __init__(self, weights: Mapping[str, float]):
        if not isinstance(weights, Mapping):
            raise InputError(
                f"expression must be a preset's name or a mapping of names to strengths, got {shown(weights)}"
            )
        self._weights: dict[str, float] = {}
        for name, value in weights.items():
            if name not in _SPELLINGS:
                raise InputError(f"expression {shown(name)} is not known{suggestion(name, _SPELLINGS)}")
            strength = as_number(f"strength of expression {name!r}", value, 0, 1)
            for ict_name in _SPELLINGS[name]:
                if ict_name in self._weights:
                    raise InputError(f"expression {name!r} sets {ict_name!r} a second time; give it once")
                self._weights[ict_name] = strength

    @classmethod
    def of(cls, value: str | Mapping[str, float] | Expression) -> Expression:
        """
        An expression from a preset's name (see `PRESETS`), a mapping of names to strengths, the same as text
        (`"jawOpen=0.4,mouthSmileLeft=0.8"`), or another expression.
        """
        if isinstance(value, Expression):
            return value
        if isinstance(value, str) and "=" in value:
            return cls(_strengths(value))
        if isinstance(value, str):
            if value not in PRESETS:
                hint = (
                    suggestion(value, PRESETS)
                    or f"; the presets are {', '.join(PRESETS)}; or write jawOpen=0.4,mouthSmile=0.8"
                )
                raise InputError(f"expression preset {shown(value)} is not known{hint}")
            value = PRESETS[value]
        return cls(value)

    @property
    def weights(self) -> dict[str, float]:
        """Strengths by ICT name; those that are 0 are left out."""
        return {name: self._weights[name] for name in EXPRESSION_NAMES if self._weights.get(name, 0) > 0}

    def to_vector(self, names: Sequence[str]) -> np.ndarray:
        """Strengths in the order of `names` (a predictor's `config.expression_names`), float32."""
        names = _as_names(names)
        unknown = [name for name in self.weights if name not in names]
        if unknown:
            raise InputError(f"names has no {unknown[0]!r}, which this expression needs; use another predictor")
        return np.array([self._weights.get(name, 0.0) for name in names], dtype=np.float32)

    @classmethod
    def from_vector(cls, values: Sequence[float] | np.ndarray, names: Sequence[str] = EXPRESSION_NAMES) -> Expression:
        """The expression with strengths in the order of `names`, such as an encoded face's."""
        names = _as_names(names)
        try:
            array = np.asarray(values)
        except Exception as error:  # what an argument of any type can raise
            raise InputError(f"values must be an array of numbers, got a {type(values).__name__}") from error
        if array.shape != (len(names),):
            raise InputError(f"values must have shape ({len(names)},), one strength for each name, got {array.shape}")
        return cls(dict(zip(names, array.tolist(), strict=True)))

    def __add__(self, other: Expression) -> Expression:
        """Both at once: strengths add up, to 1 at most."""
        if not isinstance(other, Expression):
            return NotImplemented
        names = self.weights.keys() | other.weights.keys()
        return Expression({name: min(1.0, self._weights.get(name, 0) + other._weights.get(name, 0)) for name in names})

    def __mul__(self, factor: float) -> Expression:
        """The same, weaker or stronger: strengths times a factor, to 1 at most."""
        if not isinstance(factor, Real):
            return NotImplemented
        factor = as_number("factor", factor, 0)
        return Expression({name: min(1.0, factor * value) for name, value in self._weights.items()})

    __rmul__ = __mul__

    def interpolate(self, other: str | Mapping[str, float] | Expression, weight: float) -> Expression:
        """The expression between this one (`weight` 0) and another (`weight` 1)."""
        weight = as_number("weight", weight, 0, 1)
        return (1 - weight) * self + weight * Expression.of(other)

    def sequence(self, other: str | Mapping[str, float] | Expression, count: int) -> list[Expression]:
        """`count` expressions (at least 2) from this one to another, both included, at equal steps."""
        count = as_integer("count", count, 2, MAX_COUNT)
        other = Expression.of(other)
        return [self.interpolate(other, step / (count - 1)) for step in range(count)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and self.weights == other.weights

    def __hash__(self) -> int:
        return hash(tuple(self.weights.items()))

    def __repr__(self) -> str:
        return f"Expression({self.weights})"


def _as_names(names: Sequence[str]) -> list[str]:
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise InputError(f"names must be a list of expressions' names, got {shown(names)}")
    return list(names)


def _strengths(text: str) -> dict[str, float]:
    """Strengths by name, from `name=strength` pairs with commas between."""
    weights: dict[str, float] = {}
    for pair in text.split(","):
        name, _, strength = pair.partition("=")
        name = name.strip()
        if name in weights:
            raise InputError(f"expression {shown(name)} is given twice; give it once")
        try:
            weights[name] = float(strength)
        except ValueError:
            raise InputError(f"expression {shown(pair.strip())} must be name=strength, such as jawOpen=0.4") from None
    return weights
