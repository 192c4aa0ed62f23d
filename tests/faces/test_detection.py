"""Faces in photos that are turned, tightly cropped or of several people."""

import numpy as np
import PIL.Image
import pytest

from facesnap_diffusers.errors import InputError, NoFaceFoundError
from facesnap_diffusers.faces.detection import find_face

from .dots import DotFaces, dots


class TestFindFace:
    def test_upright(self):
        analyzer = DotFaces()
        image = dots((150, 120, 40, 255))
        found = find_face(image, analyzer)
        assert np.array_equal(found.image, image) and analyzer.calls == 1
        assert np.allclose(found.landmarks[[36, 42, 48]], [[130, 104], [170, 104], [150, 144]], atol=0.3)

    def test_tightly_cropped(self):
        image = dots((30, 30, 40, 255), size=(60, 60))
        assert DotFaces().analyze(image) == []
        found = find_face(image, DotFaces())
        assert np.array_equal(found.image, image)
        assert np.allclose(found.landmarks[[36, 42, 48]], [[10, 14], [50, 14], [30, 54]], atol=0.3)
        assert found.box[0] < 0 and found.box[2] > 60

    @pytest.mark.parametrize("max_roll", [30.0, 180.0], ids=["sees upright faces only", "sees every face"])
    @pytest.mark.parametrize("turns", [1, 2, 3])
    @pytest.mark.parametrize("cropped", [False, True])
    def test_turned(self, turns, max_roll, cropped):
        upright = dots((30, 32, 40, 255), size=(70, 60)) if cropped else dots((190, 100, 40, 255))
        expected = find_face(upright, DotFaces())
        found = find_face(np.rot90(upright, turns), DotFaces(max_roll))
        assert np.array_equal(found.image, upright)
        assert np.allclose(found.landmarks, expected.landmarks, atol=0.01)
        assert np.allclose(found.box, expected.box, atol=0.01)

    def test_tilted_head_is_left_as_it_is(self):
        image = np.asarray(PIL.Image.fromarray(dots((150, 120, 40, 255))).rotate(50))
        assert np.array_equal(find_face(image, DotFaces(180.0)).image, image)

    def test_turned_upright_in_a_group(self):
        """Of two faces in a photo that lies on its side, each is found again after turning, not its neighbor."""
        upright = dots((80, 120, 30, 255), (200, 120, 36, 215))
        for index, level in enumerate([215, 255]):
            assert find_face(np.rot90(upright), DotFaces(180.0), which=index).embedding[0] == level

    def test_face_index_counts_from_the_largest(self):
        image = dots((60, 120, 20, 255), (220, 120, 40, 215), (130, 60, 30, 175))
        levels = [find_face(image, DotFaces(), which=index).embedding[0] for index in (None, 0, 1, 2)]
        assert levels == [215, 215, 175, 255]

    @pytest.mark.parametrize("face_index", [1, -1, 99, 0.0, "0", True, [0]], ids=str)
    def test_bad_face_index(self, face_index):
        with pytest.raises(InputError, match="face_index"):
            find_face(dots((150, 120, 40, 255)), DotFaces(), which=face_index)

    def test_no_face(self):
        with pytest.raises(NoFaceFoundError) as caught:
            find_face(np.zeros((120, 160, 3), np.uint8), DotFaces(), name="pose_image")
        assert "pose_image (160×120)" in str(caught.value) and "\n" not in str(caught.value)
