"""What a face does: strengths of the ARKit expressions, as the ICT FaceKit names them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import InputError


_ONE: tuple[str, ...] = (
    "jawForward",
    "jawLeft",
    "jawOpen",
    "jawRight",
    "mouthClose",
    "mouthFunnel",
    "mouthLeft",
    "mouthPucker",
)
_ONE += ("mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper")
_TWO: tuple[str, ...] = (
    "browDown",
    "browInnerUp",
    "browOuterUp",
    "cheekPuff",
    "cheekSquint",
    "eyeBlink",
    "eyeLookDown",
    "eyeLookIn",
)
_TWO += ("eyeLookOut", "eyeLookUp", "eyeSquint", "eyeWide", "mouthDimple", "mouthFrown", "mouthLowerDown")
_TWO += ("mouthPress", "mouthSmile", "mouthStretch", "mouthUpperUp", "noseSneer")

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

    def __init__(self, weights: Mapping[str, float]):
        if not isinstance(weights, Mapping):
            raise InputError(f"expression must be a preset's name or a mapping of names to strengths, got {weights!r}")
        self._weights: dict[str, float] = {}
        for name, value in weights.items():
            if name not in _SPELLINGS:
                raise InputError(f"expression {name!r} is not known{_suggestion(name, _SPELLINGS)}")
            try:
                strength = float(value)
            except (TypeError, ValueError):
                strength = math.nan
            if not 0 <= strength <= 1:
                raise InputError(f"expression {name!r} must have a strength between 0 and 1, got {value!r}")
            for ict_name in _SPELLINGS[name]:
                if ict_name in self._weights:
                    raise InputError(f"expression {name!r} sets {ict_name!r} a second time; give it once")
                self._weights[ict_name] = strength

    @classmethod
    def of(cls, value: str | Mapping[str, float] | Expression) -> Expression:
        """An expression from a preset's name (see `PRESETS`), a mapping of names to strengths, or another one."""
        if isinstance(value, Expression):
            return value
        if isinstance(value, str):
            if value not in PRESETS:
                hint = _suggestion(value, PRESETS) or f"; the presets are {', '.join(PRESETS)}"
                raise InputError(f"expression preset {value!r} is not known{hint}")
            value = PRESETS[value]
        return cls(value)

    @property
    def weights(self) -> dict[str, float]:
        """Strengths by ICT name; those that are 0 are left out."""
        return {name: self._weights[name] for name in EXPRESSION_NAMES if self._weights.get(name, 0) > 0}

    def to_vector(self, names: Sequence[str]) -> np.ndarray:
        """Strengths in the order of `names` (a predictor's `config.expression_names`), float32."""
        unknown = [name for name in self.weights if name not in names]
        if unknown:
            raise InputError(f"names has no {unknown[0]!r}, which this expression needs; use another predictor")
        return np.array([self._weights.get(name, 0.0) for name in names], dtype=np.float32)

    @classmethod
    def from_vector(cls, values: Sequence[float] | np.ndarray, names: Sequence[str] = EXPRESSION_NAMES) -> Expression:
        """The expression with strengths in the order of `names`, such as an encoded face's."""
        if len(values) != len(names):
            raise InputError(f"values has {len(values)} strengths for {len(names)} names; give one for each")
        return cls(dict(zip(names, (float(value) for value in values))))

    def __add__(self, other: Expression) -> Expression:
        """Both at once: strengths add up, to 1 at most."""
        if not isinstance(other, Expression):
            return NotImplemented
        names = self.weights.keys() | other.weights.keys()
        return Expression({name: min(1.0, self._weights.get(name, 0) + other._weights.get(name, 0)) for name in names})

    def __mul__(self, factor: float) -> Expression:
        """The same, weaker or stronger: strengths times a factor, to 1 at most."""
        if not isinstance(factor, (int, float)):
            return NotImplemented
        if not 0 <= factor < math.inf:
            raise InputError(f"factor must be a number that is not negative, got {factor}")
        return Expression({name: min(1.0, factor * value) for name, value in self._weights.items()})

    __rmul__ = __mul__

    def interpolate(self, other: str | Mapping[str, float] | Expression, weight: float) -> Expression:
        """The expression between this one (`weight` 0) and another (`weight` 1)."""
        if not 0 <= weight <= 1:
            raise InputError(f"weight must lie between 0 and 1, got {weight}")
        return (1 - weight) * self + weight * Expression.of(other)

    def sequence(self, other: str | Mapping[str, float] | Expression, count: int) -> list[Expression]:
        """`count` expressions from this one to another, both included, at equal steps."""
        if count < 2:
            raise InputError(f"count must be at least 2, got {count}")
        return [self.interpolate(other, step / (count - 1)) for step in range(count)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and self.weights == other.weights

    def __hash__(self) -> int:
        return hash(tuple(self.weights.items()))

    def __repr__(self) -> str:
        return f"Expression({self.weights})"


def _suggestion(name: object, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(str(name), known, n=3)
    return f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
