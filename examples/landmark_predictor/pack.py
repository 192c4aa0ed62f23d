"""Packs a checkout of the public ICT-FaceKit into one file, which the scripts here and examples/nano read.

    python pack.py path/to/ICT-FaceKit ict_face_model.npz

Meshes become displacements from the neutral one, in half precision; polygons are split into triangles.
"""

import argparse
from pathlib import Path

import numpy as np
from ict import LANDMARK_VERTICES, NEUTRAL_MESH, find_meshes


def read_vertices(mesh: Path) -> np.ndarray:
    """(V, 3), in cm."""
    with mesh.open() as lines:
        return np.array([line.split()[1:4] for line in lines if line.startswith("v ")], dtype=np.float32)


def read_triangles(mesh: Path) -> tuple[np.ndarray, np.ndarray]:
    """(T, 3) vertices of the triangles, and (T,) the number of the polygon that each is a part of."""
    with mesh.open() as lines:
        polygons = [line.split()[1:] for line in lines if line.startswith("f ")]
    triangles, polygon = [], []
    for number, corners in enumerate(polygons):
        first, *rest = (int(corner.partition("/")[0]) - 1 for corner in corners)
        for second, third in zip(rest, rest[1:]):
            triangles.append((first, second, third))
            polygon.append(number)
    return np.array(triangles, dtype=np.int32), np.array(polygon, dtype=np.int32)


def pack(checkout: Path, output: Path) -> None:
    folder, identities, expressions = find_meshes(checkout)
    vertices = read_vertices(folder / f"{NEUTRAL_MESH}.obj")
    triangles, polygon = read_triangles(folder / f"{NEUTRAL_MESH}.obj")

    def displacements(names: list[str]) -> np.ndarray:
        return np.stack([(read_vertices(folder / f"{name}.obj") - vertices).astype(np.float16) for name in names])

    np.savez_compressed(
        output,
        vertices=vertices,
        triangles=triangles,
        triangle_polygon=polygon,
        identity=displacements(identities),
        expression=displacements(expressions),
        expression_names=np.array(expressions),
        landmarks72=np.array(LANDMARK_VERTICES, dtype=np.int32),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="of ICT-FaceKit, or its FaceXModel folder")
    parser.add_argument("output", type=Path, help="file to write, .npz")
    args = parser.parse_args()
    pack(args.checkout, args.output)


if __name__ == "__main__":
    main()
