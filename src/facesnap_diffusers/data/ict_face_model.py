"""The ICT FaceKit morphable face model (MIT, USC Institute for Creative Technologies): read from a checkout or one file."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..errors import InputError, one_line
from ..faces.expression import EXPRESSION_NAMES
from ..files import atomic_file


PACKED_FILE = "ict_face_model.npz"
NEUTRAL_MESH = "generic_neutral_mesh"
# Vertices of the 68 landmarks, as the ICT FaceKit lists them, and two eyelid vertices next to each outer eye corner.
# fmt: off
LANDMARK_VERTICES = (
    1225, 1888, 1052, 367, 1719, 1722, 2199, 1447, 966, 3661, 4390, 3927, 3924, 2608, 3272, 4088, 3443,
    268, 493, 1914, 2044, 1401, 3615, 4240, 4114, 2734, 2509,
    978, 4527, 4942, 4857, 1140, 2075, 1147, 4269, 3360,
    1507, 1542, 1537, 1528, 1518, 1511, 3742, 3751, 3756, 3721, 3725, 3732,
    5708, 5695, 2081, 0, 4275, 6200, 6213, 6346, 6461, 5518, 5957, 5841,
    5702, 5711, 5533, 6216, 6207, 6470, 5517, 5966,
    1544, 1508, 3758, 3722,
)
# fmt: on


@dataclass
class IctFaceModel:
    r"""
    Heads as a neutral mesh plus linear displacements, in cm: x to the person's left, y up, z forward.

    Attributes:
        vertices (`np.ndarray`): `(V, 3)`, the neutral mesh.
        triangles (`np.ndarray`): `(T, 3)`, numbers of vertices.
        triangle_polygon (`np.ndarray`): `(T,)`, the number of the source's polygon that each triangle is a part of.
        identity (`np.ndarray`): `(modes, V, 3)`, for coefficients that are standard normal over people.
        expression (`np.ndarray`): `(expressions, V, 3)`, for coefficients from 0 to 1.
        expression_names (`list[str]`): Of the expressions, in their order.
        landmarks (`np.ndarray`): `(72,)`, the vertices of the landmarks, in the order of `faces.layout`.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    triangle_polygon: np.ndarray
    identity: np.ndarray
    expression: np.ndarray
    expression_names: list[str]
    landmarks: np.ndarray

    @classmethod
    def load(cls, path: str | Path) -> IctFaceModel:
        r"""
        Reads the model, in the precision in which it is stored.

        Args:
            path (`str` or `Path`): A checkout of the public ICT-FaceKit, its `FaceXModel` folder, or a file that [`save`]
                wrote, or its folder.

        Raises:
            InputError: There is no model at `path`, or a part of it is missing.
        """
        path = Path(path)
        if (path / PACKED_FILE).is_file():
            path = path / PACKED_FILE
        return cls._from_file(path) if path.suffix == ".npz" else cls._from_checkout(path)

    def save(self, path: str | Path) -> None:
        """Writes one file, `.npz`, with the displacements in half precision."""
        with atomic_file(path) as temporary:
            np.savez_compressed(
                temporary,
                vertices=self.vertices.astype(np.float32),
                triangles=self.triangles.astype(np.int32),
                triangle_polygon=self.triangle_polygon.astype(np.int32),
                identity=self.identity.astype(np.float16),
                expression=self.expression.astype(np.float16),
                expression_names=np.array(self.expression_names),
                landmarks72=self.landmarks.astype(np.int32),
            )

    @classmethod
    def _from_file(cls, path: Path) -> IctFaceModel:
        try:
            with np.load(path) as packed:
                return cls(
                    vertices=packed["vertices"],
                    triangles=packed["triangles"],
                    triangle_polygon=packed["triangle_polygon"],
                    identity=packed["identity"],
                    expression=packed["expression"],
                    expression_names=[str(name) for name in packed["expression_names"]],
                    landmarks=packed["landmarks72"],
                )
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{path} is not a packed ICT face model ({one_line(error)}); make it with"
                " examples/landmark_predictor/pack.py"
            ) from error

    @classmethod
    def _from_checkout(cls, path: Path) -> IctFaceModel:
        folder = path / "FaceXModel" if (path / "FaceXModel").is_dir() else path
        meshes = {mesh.stem for mesh in folder.glob("*.obj")}
        if NEUTRAL_MESH not in meshes:
            raise InputError(f"{path} has no {NEUTRAL_MESH}.obj; pass a checkout of ICT-FaceKit, or a packed model")
        missing = [name for name in EXPRESSION_NAMES if name not in meshes]
        if missing:
            raise InputError(f"{folder} has no {missing[0]}.obj; pass a complete checkout of ICT-FaceKit")
        vertices = _read_vertices(folder / f"{NEUTRAL_MESH}.obj")
        triangles, polygons = _read_triangles(folder / f"{NEUTRAL_MESH}.obj")

        def displacements(names: list[str]) -> np.ndarray:
            return np.stack([_read_vertices(folder / f"{name}.obj") - vertices for name in names])

        # further meshes, such as PupilDilate_L, are not expressions
        return cls(
            vertices=vertices,
            triangles=triangles,
            triangle_polygon=polygons,
            identity=displacements(sorted(mesh for mesh in meshes if mesh.startswith("identity"))),
            expression=displacements(list(EXPRESSION_NAMES)),
            expression_names=list(EXPRESSION_NAMES),
            landmarks=np.array(LANDMARK_VERTICES),
        )


def _read_vertices(mesh: Path) -> np.ndarray:
    """`(V, 3)`, in cm."""
    with mesh.open() as lines:
        return np.array([line.split()[1:4] for line in lines if line.startswith("v ")], dtype=np.float64)


def _read_triangles(mesh: Path) -> tuple[np.ndarray, np.ndarray]:
    """`(T, 3)` vertices of the triangles, and `(T,)` the number of the polygon that each is a part of."""
    with mesh.open() as lines:
        polygons = [line.split()[1:] for line in lines if line.startswith("f ")]
    triangles, numbers = [], []
    for number, corners in enumerate(polygons):
        first, *rest = (int(corner.partition("/")[0]) - 1 for corner in corners)
        for second, third in pairwise(rest):
            triangles.append((first, second, third))
            numbers.append(number)
    return np.array(triangles), np.array(numbers)
