"""Reads the 72 landmarks of the ICT FaceKit morphable face model (MIT, USC Institute for Creative Technologies)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facesnap_diffusers.faces.expression import EXPRESSION_NAMES


# Vertices of the 68 landmarks, as the ICT FaceKit lists them, and two eyelid vertices next to each outer eye corner.
# fmt: off
LANDMARK_VERTICES = [
    1225, 1888, 1052, 367, 1719, 1722, 2199, 1447, 966, 3661, 4390, 3927, 3924, 2608, 3272, 4088, 3443,
    268, 493, 1914, 2044, 1401, 3615, 4240, 4114, 2734, 2509,
    978, 4527, 4942, 4857, 1140, 2075, 1147, 4269, 3360,
    1507, 1542, 1537, 1528, 1518, 1511, 3742, 3751, 3756, 3721, 3725, 3732,
    5708, 5695, 2081, 0, 4275, 6200, 6213, 6346, 6461, 5518, 5957, 5841,
    5702, 5711, 5533, 6216, 6207, 6470, 5517, 5966,
    1544, 1508, 3758, 3722,
]
# fmt: on
NEUTRAL_MESH = "generic_neutral_mesh"


@dataclass
class LandmarkModel:
    """The morphable model at the 72 landmarks, in cm: x to the person's left, y up, z forward."""

    mean: np.ndarray  # (72, 3), centred on the landmarks' mean
    identity: np.ndarray  # (modes, 72, 3) for coefficients that are standard normal
    expression: np.ndarray  # (expressions, 72, 3) for coefficients from 0 to 1
    expression_names: list[str]


def load_landmark_model(path: str | Path) -> LandmarkModel:
    """
    Args:
        path: A checkout of the public ICT-FaceKit (or its `FaceXModel` folder), or a packed `ict_face_model.npz` (or
            its folder).
    """
    path = Path(path)
    if (path / "ict_face_model.npz").is_file():
        path = path / "ict_face_model.npz"
    if path.suffix == ".npz":
        with np.load(path) as packed:
            vertices = packed["landmarks72"]
            neutral = packed["vertices"][vertices].astype(np.float64)
            identity = packed["identity"][:, vertices].astype(np.float64)
            expression = packed["expression"][:, vertices].astype(np.float64)
            names = [str(name) for name in packed["expression_names"]]
    else:
        folder, identities, names = find_meshes(path)
        neutral = _landmarks_of(folder / f"{NEUTRAL_MESH}.obj")
        identity = np.stack([_landmarks_of(folder / f"{mesh}.obj") - neutral for mesh in identities])
        expression = np.stack([_landmarks_of(folder / f"{mesh}.obj") - neutral for mesh in names])
    return LandmarkModel(neutral - neutral.mean(axis=0), identity, expression, names)


def find_meshes(checkout: Path) -> tuple[Path, list[str], list[str]]:
    """The folder of the meshes in a checkout of ICT-FaceKit, and the names of the identity modes and the expressions."""
    folder = checkout / "FaceXModel" if (checkout / "FaceXModel").is_dir() else checkout
    meshes = sorted(mesh.stem for mesh in folder.glob("*.obj"))
    if NEUTRAL_MESH not in meshes:
        raise FileNotFoundError(f"{checkout} has no {NEUTRAL_MESH}.obj; pass a checkout of ICT-FaceKit")
    missing = [name for name in EXPRESSION_NAMES if name not in meshes]
    if missing:
        raise FileNotFoundError(f"{folder} has no {missing[0]}.obj; pass a complete checkout of ICT-FaceKit")
    identities = [mesh for mesh in meshes if mesh.startswith("identity")]
    # other meshes, such as PupilDilate_L, are no expressions
    return folder, identities, list(EXPRESSION_NAMES)


def mirror_shape_basis(
    identity: np.ndarray, mirror: list[int], num_symmetric: int, num_asymmetric: int
) -> tuple[np.ndarray, np.ndarray]:
    """
    Principal components of the landmarks over people, split into those that a mirrored face shares and those that
    change their sign in it. Coefficients stay standard normal and become independent of the source's order of modes.

    Returns:
        Arrays of shape `(num_symmetric, 72, 3)` and `(num_asymmetric, 72, 3)`.
    """
    mirrored = identity[:, mirror] * [-1, 1, 1]
    bases = []
    for modes, count in (((identity + mirrored) / 2, num_symmetric), ((identity - mirrored) / 2, num_asymmetric)):
        _, deviation, directions = np.linalg.svd(modes.reshape(len(modes), -1), full_matrices=False)
        bases.append((deviation[:count, None] * directions[:count]).reshape(count, -1, 3))
    return tuple(bases)


def _landmarks_of(mesh: Path) -> np.ndarray:
    with mesh.open() as lines:
        vertices = [line for line in lines if line.startswith("v ")]
    return np.array([vertices[index].split()[1:4] for index in LANDMARK_VERTICES], dtype=np.float64)
