"""Where a head looks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InputError


LIMITS = {"yaw": 90, "pitch": 90, "roll": 180}


@dataclass(frozen=True)
class HeadPose:
    r"""
    A head's rotation in degrees, with signs as one sees it in the picture (`docs/landmarks.md` shows them):

    - `yaw` > 0: the nose turns to the right of the picture (the person looks to their left). From -90 to 90.
    - `pitch` > 0: the nose goes up (the person looks up). From -90 to 90.
    - `roll` > 0: the head tilts clockwise (towards the person's left shoulder). From -180 to 180.

    The head first turns about its own vertical axis (yaw), is then lifted (pitch) and then tilted in the picture
    (roll): as a turn-table, seen by a raised or lowered camera, that may be tilted.

    Raises:
        InputError: An angle is not a finite number, or out of range.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            try:
                value = float(value)
            except (TypeError, ValueError):
                raise InputError(f"{name} must be a number of degrees, got {value!r}") from None
            if not math.isfinite(value) or abs(value) > limit:
                raise InputError(f"{name} must lie between -{limit} and {limit} degrees, got {value:g}")
            object.__setattr__(self, name, value)

    def as_tuple(self) -> tuple[float, float, float]:
        """Yaw, pitch and roll: the order of `FaceCoefficients.rotation`."""
        return self.yaw, self.pitch, self.roll

    def interpolate(self, other: HeadPose, weight: float) -> HeadPose:
        """The pose between this one (`weight` 0) and another (`weight` 1), angle by angle."""
        if not 0 <= weight <= 1:
            raise InputError(f"weight must lie between 0 and 1, got {weight}")
        return HeadPose(*(a + weight * (b - a) for a, b in zip(self.as_tuple(), other.as_tuple())))

    def sequence(self, other: HeadPose, count: int) -> list[HeadPose]:
        """`count` poses from this one to another, both included, at equal steps."""
        if count < 2:
            raise InputError(f"count must be at least 2, got {count}")
        return [self.interpolate(other, step / (count - 1)) for step in range(count)]

    @classmethod
    def turntable(cls, count: int, yaw: float = 60.0, pitch: float = 0.0) -> list[HeadPose]:
        """`count` poses from `-yaw` to `yaw` at equal steps."""
        return cls(yaw=-yaw, pitch=pitch).sequence(cls(yaw=yaw, pitch=pitch), count)
