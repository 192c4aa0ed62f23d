"""Where a head looks."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError, as_integer, as_number, shown


LIMITS = {"yaw": 90, "pitch": 90, "roll": 180}
MAX_COUNT = 100_000  # Poses or expressions in a sequence.


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
            angle = as_number(name, getattr(self, name), -limit, limit, unit=" of degrees")
            object.__setattr__(self, name, angle)

    def as_tuple(self) -> tuple[float, float, float]:
        """Yaw, pitch and roll: the order of `FaceCoefficients.rotation`."""
        return self.yaw, self.pitch, self.roll

    def interpolate(self, other: HeadPose, weight: float) -> HeadPose:
        """The pose between this one (`weight` 0) and another (`weight` 1), angle by angle."""
        if not isinstance(other, HeadPose):
            raise InputError(f"other must be a HeadPose, got {shown(other)}")
        weight = as_number("weight", weight, 0, 1)
        return HeadPose(
            *((1 - weight) * a + weight * b for a, b in zip(self.as_tuple(), other.as_tuple(), strict=True))
        )

    def sequence(self, other: HeadPose, count: int) -> list[HeadPose]:
        """`count` poses (at least 2) from this one to another, both included, at equal steps."""
        count = as_integer("count", count, 2, MAX_COUNT)
        return [self.interpolate(other, step / (count - 1)) for step in range(count)]

    @classmethod
    def turntable(cls, count: int, yaw: float = 60.0, pitch: float = 0.0) -> list[HeadPose]:
        """`count` poses from `-yaw` to `yaw` at equal steps."""
        end = cls(yaw=yaw, pitch=pitch)
        return cls(yaw=-end.yaw, pitch=end.pitch).sequence(end, count)
