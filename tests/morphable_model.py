"""A stand-in for the ICT FaceKit: the landmarks of the shipped predictor's morphable model, laid out as the public files."""

import numpy as np

from facesnap_diffusers import load_landmark_predictor
from facesnap_diffusers.data.ict_face_model import LANDMARK_VERTICES, PACKED_FILE, IctFaceModel


TRIANGLES = [[0, 1, 2], [0, 2, 3], [3, 2, 1]]


def landmark_arrays():
    """Mean, identity and expression at the landmarks (64 modes of the ICT FaceKit's 100), in float64, and names."""
    predictor = load_landmark_predictor()
    mean, identity, expression = (
        value.double().numpy() for value in (predictor.mean, predictor.shape_basis, predictor.expression_basis)
    )
    return mean, identity, expression, list(predictor.config.expression_names)


def write_checkout(root):
    """One .obj mesh for the neutral face, three identity modes and each expression, as in the public repository."""
    folder = root / "FaceXModel"
    folder.mkdir()
    mean, identity, expression, names = landmark_arrays()
    shift = np.array([0.0, -1.5, 8.0])  # the mesh's origin is inside the head

    def write(name, landmarks):
        lines = ["v 9.0 9.0 9.0"] * (max(LANDMARK_VERTICES) + 1)
        for vertex, (x, y, z) in zip(LANDMARK_VERTICES, landmarks + shift):
            lines[vertex] = f"v {x:.12f} {y:.12f} {z:.12f}"
        faces = ["vn 0.0 0.0 1.0", "vt 0.5 0.5", "f 1/1/1 2/1/1 3/1/1 4/1/1", "f 4/1/1 3/1/1 2/1/1"]
        (folder / f"{name}.obj").write_text("\n".join(["mtllib ICTFaceModelMaterial.mtl", *lines, *faces]))

    write("generic_neutral_mesh", mean)
    for number, mode in enumerate(identity[:3]):
        write(f"identity{number:03}", mean + mode)
    for name, blend in zip(names, expression):
        write(name, mean + blend)
    write("PupilDilate_L", mean)  # the public model has further meshes that are not expressions


def write_packed(folder):
    """The same with all modes, in one file, in single precision."""
    mean, identity, expression, names = landmark_arrays()

    def scatter(landmarks):
        mesh = np.zeros((*landmarks.shape[:-2], max(LANDMARK_VERTICES) + 1, 3), dtype=np.float32)
        mesh[..., LANDMARK_VERTICES, :] = landmarks
        return mesh

    model = IctFaceModel(
        scatter(mean), np.array(TRIANGLES), np.array([0, 0, 1]), scatter(identity), scatter(expression), names,
        np.array(LANDMARK_VERTICES),
    )  # fmt: skip
    np.savez(folder / PACKED_FILE, **{**vars(model), "landmarks72": model.landmarks})
