"""The differentiable crop against InsightFace's and dlib's own."""

import numpy as np
import PIL.Image
import pytest
import torch
from tiny_preparation import portrait

from facesnap_diffusers.data.recognition_crop import align_faces
from facesnap_diffusers.faces.key_points import five_points


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def faces():
    """Photos of faces with dlib's 68 landmarks."""
    pytest.importorskip("dlib")
    from facesnap_diffusers import DlibFaceAnalyzer

    analyzer = DlibFaceAnalyzer()
    photos = [portrait(1), portrait(2, "amateur_selfie"), portrait(2).rotate(15), portrait(3)]
    found = [face for photo in photos for face in analyzer.analyze(np.array(photo))]
    assert len(found) == 4
    return found


def as_batch(face):
    pixels = torch.from_numpy(face.image).permute(2, 0, 1)[None] / 255
    return pixels, torch.from_numpy(face.landmarks)[None]


class TestAlignment:
    def test_equals_norm_crop_of_insightface(self, faces):
        from insightface.utils.face_align import norm_crop

        for face in faces:
            expected = norm_crop(face.image, five_points(face.landmarks).astype(np.float32))
            ours = align_faces(*as_batch(face), "arcface")[0].permute(1, 2, 0).numpy()
            assert np.abs(ours * 255 - expected).mean() <= 2

    @pytest.mark.parametrize("turn", [0, 35])
    def test_equals_face_chip_of_dlib(self, faces, turn):
        import dlib

        for face in faces:
            # dlib averages where it shrinks a lot: bring the face to about the chip's size
            scale = 150 / np.ptp(face.landmarks[:, 0])
            angle = np.radians(turn)
            height, width = face.image.shape[:2]
            image = PIL.Image.fromarray(face.image)
            image = image.resize((round(width * scale), round(height * scale)), PIL.Image.Resampling.LANCZOS)
            points = (face.landmarks + 0.5) * scale
            center = np.array(image.size) / 2
            image = image.rotate(turn, PIL.Image.Resampling.BICUBIC)
            rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            points = np.round((points - center) @ rotation.T + center - 0.5).astype(int)  # dlib's points are whole
            image = np.array(image)

            shape = dlib.full_object_detection(dlib.rectangle(0, 0, 9, 9), [dlib.point(*p) for p in points.tolist()])
            expected = dlib.get_face_chip(image, shape, 150, 0.25)
            pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
            ours = align_faces(pixels, torch.from_numpy(points)[None].float(), "dlib")[0].permute(1, 2, 0).numpy()
            assert np.abs(ours * 255 - expected).mean() <= 2
