"""The ICT FaceKit, read from a checkout of it and from one file."""

import numpy as np
import pytest
from morphable_model import TRIANGLES, landmark_arrays, write_checkout, write_packed

from facesnap_diffusers.data.ict_face_model import IctFaceModel
from facesnap_diffusers.errors import InputError


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ICT-FaceKit")
    write_checkout(folder)
    return folder


def assert_landmarks(model, modes, atol):
    mean, identity, expression, names = landmark_arrays()
    points = model.vertices[model.landmarks]
    assert model.expression_names == names
    np.testing.assert_allclose(points - points.mean(axis=0), mean - mean.mean(axis=0), atol=atol)
    np.testing.assert_allclose(model.identity[:, model.landmarks], identity[:modes], atol=atol)
    np.testing.assert_allclose(model.expression[:, model.landmarks], expression, atol=atol)


def test_checkout(checkout):
    for path in (checkout, str(checkout / "FaceXModel")):
        model = IctFaceModel.load(path)
        assert_landmarks(model, modes=3, atol=1e-9)
        # a quad is two triangles, counted as one polygon
        np.testing.assert_array_equal(model.triangles, TRIANGLES)
        np.testing.assert_array_equal(model.triangle_polygon, [0, 0, 1])


def test_packed(tmp_path):
    write_packed(tmp_path)
    for path in (tmp_path, tmp_path / "ict_face_model.npz"):
        assert_landmarks(IctFaceModel.load(path), modes=None, atol=1e-6)


def test_saved_and_loaded(checkout, tmp_path):
    model = IctFaceModel.load(checkout)
    model.save(tmp_path / "ict_face_model.npz")
    loaded = IctFaceModel.load(tmp_path)
    assert_landmarks(loaded, modes=3, atol=2e-3)  # half precision
    assert loaded.identity.dtype == np.float16
    np.testing.assert_array_equal(loaded.triangles, TRIANGLES)
    np.testing.assert_array_equal(loaded.triangle_polygon, [0, 0, 1])


def test_what_is_not_a_model_is_refused(checkout, tmp_path):
    with pytest.raises(InputError, match=r"no generic_neutral_mesh.obj; pass a checkout"):
        IctFaceModel.load(tmp_path)
    (tmp_path / "generic_neutral_mesh.obj").symlink_to(checkout / "FaceXModel" / "generic_neutral_mesh.obj")
    with pytest.raises(InputError, match=r"no browDown_L.obj; pass a complete checkout"):
        IctFaceModel.load(tmp_path)
    np.savez(tmp_path / "other.npz", vertices=np.zeros((3, 3)))
    (tmp_path / "damaged.npz").write_bytes(b"nonsense")
    for name in ("other", "damaged", "missing"):
        with pytest.raises(InputError, match="is not a packed ICT face model"):
            IctFaceModel.load(tmp_path / f"{name}.npz")
