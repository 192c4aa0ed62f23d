"""The 72 facial landmarks: the iBUG 68 and two eyelid points next to each outer eye corner."""

from dataclasses import dataclass


NUM_LANDMARKS = 72


@dataclass(frozen=True)
class FacePart:
    """
    Attributes:
        name: "right" and "left" are the person's.
        indices: Landmarks of the part; for eyes, the eyelid points come last.
        color: RGB in 0..255, as the FaceSnap paper draws it.
    """

    name: str
    indices: tuple[int, ...]
    color: tuple[int, int, int]


JAW = FacePart("jaw", tuple(range(0, 17)), (255, 255, 255))
RIGHT_BROW = FacePart("right_brow", tuple(range(17, 22)), (0, 255, 255))
LEFT_BROW = FacePart("left_brow", tuple(range(22, 27)), (0, 0, 255))
NOSE = FacePart("nose", tuple(range(27, 36)), (0, 255, 0))
RIGHT_EYE = FacePart("right_eye", (*range(36, 42), 68, 69), (255, 0, 255))
LEFT_EYE = FacePart("left_eye", (*range(42, 48), 70, 71), (255, 255, 0))
MOUTH = FacePart("mouth", tuple(range(48, 68)), (255, 0, 0))

# In drawing order: later parts lie over earlier ones.
PARTS = (JAW, RIGHT_BROW, LEFT_BROW, NOSE, RIGHT_EYE, LEFT_EYE, MOUTH)

# For each landmark, its counterpart in a mirrored face.
# fmt: off
MIRROR = (
    16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0,
    26, 25, 24, 23, 22, 21, 20, 19, 18, 17,
    27, 28, 29, 30, 35, 34, 33, 32, 31,
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,
    70, 71, 68, 69,
)
# fmt: on

OUTER_EYE_CORNERS = (36, 45)
