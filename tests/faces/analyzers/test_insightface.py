"""InsightFace's analyzer, on model packs made for the test."""

import http.server
import math
import threading
import zipfile
from functools import partial

import numpy as np
import PIL.Image
import pytest

from facesnap_diffusers.errors import InputError, NoFaceFoundError
from facesnap_diffusers.faces.alignment import TEMPLATES, similarity_transform
from facesnap_diffusers.faces.analyzers import FaceAnalyzer, InsightFaceAnalyzer
from facesnap_diffusers.faces.detection import find_face

from .packs import (
    KEY_POINTS,
    SHAPE,
    WEIGHT,
    photo_with_faces,
    save_detector,
    save_landmark_net,
    save_pack,
    save_recognizer,
)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return save_pack(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def analyzer(pack):
    return InsightFaceAnalyzer(pack, providers=["CPUExecutionProvider"])


class TestInsightFace:
    def test_follows_the_protocol(self, analyzer):
        assert isinstance(analyzer, FaceAnalyzer)
        assert analyzer.encoder == "insightface/w600k_r50" and analyzer.embedding_dim == 16

    def test_box_landmarks_and_score(self, analyzer):
        image = photo_with_faces((320, 240))
        (face,) = analyzer.analyze(image)
        assert np.allclose(face.box, [320 - 40, 240 - 48, 320 + 40, 240 + 56], atol=1e-3)
        # The landmark net sees 1.5 times the longer side of the box; its answers are in half-sides from the center.
        half = 1.5 * 104 / 2
        assert np.allclose(face.landmarks[:, :2], [320, 244] + SHAPE[-68:, :2] * half, atol=1e-2)
        assert np.allclose(face.landmarks[:, 2], SHAPE[-68:, 2] * half, atol=1e-2)
        assert math.isclose(face.score, 1 / (1 + math.exp(-(20 * 255 / 128 - 30))), rel_tol=1e-3)
        assert face.image is image and face.encoder == analyzer.encoder

    def test_embedding(self, analyzer):
        """The chain of alignment, RGB order, scaling and unit length, computed without InsightFace."""
        import cv2

        image = photo_with_faces((320, 240))
        (face,) = analyzer.analyze(image)
        matrix = similarity_transform([320, 240] + 8 * KEY_POINTS, TEMPLATES["arcface"])
        crop = cv2.warpAffine(image, matrix, (112, 112)).astype(np.float64) / 127.5 - 1
        expected = crop.reshape(2, 56, 2, 56, 3).mean(axis=(1, 3)).transpose(2, 0, 1).ravel() @ WEIGHT
        expected /= np.linalg.norm(expected)
        assert np.allclose(face.embedding, expected, atol=2e-3)
        assert math.isclose(np.linalg.norm(face.embedding), 1, rel_tol=1e-5)

    def test_scaled_photo(self, analyzer):
        """At a quarter of the size, the detector sees nearly the same picture: all coordinates shrink with it."""
        large = photo_with_faces((320, 240))
        small = np.asarray(PIL.Image.fromarray(large).resize((320, 320), PIL.Image.Resampling.BOX))
        (expected,), (face,) = analyzer.analyze(large), analyzer.analyze(small)
        assert np.allclose(face.box * 2, expected.box, atol=1)
        assert np.allclose(face.landmarks * 2, expected.landmarks, atol=1)

    def test_several_faces(self, analyzer):
        faces = analyzer.analyze(photo_with_faces((120, 160), (320, 400), (520, 160)))
        centers = sorted(((face.box[:2] + face.box[2:]) / 2).round().tolist() for face in faces)
        assert centers == [[120, 164], [320, 404], [520, 164]]

    def test_no_face(self, analyzer):
        assert analyzer.analyze(photo_with_faces()) == []
        with pytest.raises(NoFaceFoundError, match=r"face_image\[3\] \(640×480\)"):
            find_face(photo_with_faces(size=(640, 480)), analyzer, name="face_image[3]")

    def test_depth_is_towards_the_camera_whichever_way_the_pack_counts(self, analyzer, tmp_path):
        save_pack(tmp_path)
        save_landmark_net(tmp_path / "1k3d68.onnx", depth_sign=-1.0)
        image = photo_with_faces((320, 240))
        (away,) = InsightFaceAnalyzer(tmp_path).analyze(image)
        (towards,) = analyzer.analyze(image)
        assert np.allclose(away.landmarks, towards.landmarks, atol=1e-3)
        assert towards.landmarks[30, 2] > towards.landmarks[[0, 16], 2].max()

    def test_detection_size(self, pack):
        """An 8 px block in a photo of 640 px is only 4 px at 320."""
        image = photo_with_faces((320, 320))
        assert InsightFaceAnalyzer(pack, detection_size=320).analyze(image) == []
        assert len(InsightFaceAnalyzer(pack, detection_size=640).analyze(image)) == 1

    def test_own_recognizer_has_its_own_name(self, tmp_path):
        assert InsightFaceAnalyzer(save_pack(tmp_path, "my_faces")).encoder == "insightface/my_faces"

    def test_pack_by_name_in_root(self, tmp_path):
        save_pack(tmp_path / "models" / "some_pack")
        assert InsightFaceAnalyzer("some_pack", root=tmp_path).encoder == "insightface/w600k_r50"

    def test_folder_that_unpacks_one_level_too_deep(self, tmp_path):
        save_pack(tmp_path / "models" / "antelopev2" / "antelopev2", "glintr100")
        assert InsightFaceAnalyzer("antelopev2", root=tmp_path).encoder == "insightface/glintr100"
        folder = tmp_path / "models" / "antelopev2"
        assert InsightFaceAnalyzer(str(folder)).encoder == "insightface/glintr100"


@pytest.fixture
def model_server(tmp_path, monkeypatch):
    """A server for pack archives in the place of InsightFace's."""
    import insightface.utils.storage

    files = tmp_path / "served"
    files.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=files)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(insightface.utils.storage, "MODEL_ZOO_RELEASE_DOWNLOAD_URL", url)
        yield files
        server.shutdown()


class TestModelPacks:
    @pytest.mark.parametrize("nested", [False, True])
    def test_download(self, nested, model_server, tmp_path, pack):
        with zipfile.ZipFile(model_server / "antelopev2.zip", "w") as archive:
            for file in pack.glob("*.onnx"):
                archive.write(file, f"antelopev2/{file.name}" if nested else file.name)
        analyzer = InsightFaceAnalyzer("antelopev2", root=tmp_path / "root")
        assert len(analyzer.analyze(photo_with_faces((320, 240)))) == 1

    def test_cannot_be_downloaded(self, model_server, tmp_path):
        with pytest.raises(InputError) as caught:
            InsightFaceAnalyzer("buffalo_l", root=tmp_path)
        message = str(caught.value)
        assert "\n" not in message
        assert all(
            word in message for word in ("model='buffalo_l'", str(tmp_path / "models"), "non-commercial", "Dlib")
        )

    def test_broken_archive(self, model_server, tmp_path):
        (model_server / "buffalo_l.zip").write_bytes(b"not a zip")
        for _ in range(2):  # What the first try leaves behind must not confuse the second.
            with pytest.raises(InputError, match="model='buffalo_l'.*unpack"):
                InsightFaceAnalyzer("buffalo_l", root=tmp_path)

    def without(self, folder, file):
        save_pack(folder)
        (folder / file).unlink()

    @pytest.mark.parametrize(
        ("damage", "word"),
        {
            "empty folder": (lambda t: None, "no .onnx"),
            "no detector": (lambda t: TestModelPacks().without(t, "det_10g.onnx"), "detection"),
            "no landmarks": (lambda t: TestModelPacks().without(t, "1k3d68.onnx"), "landmark_3d_68"),
            "no recognizer": (lambda t: TestModelPacks().without(t, "w600k_r50.onnx"), "recognition"),
            "no key points": (lambda t: save_detector(save_pack(t) / "det_10g.onnx", key_points=False), "key points"),
            "truncated": (lambda t: (save_pack(t) / "w600k_r50.onnx").write_bytes(b"\x08\x08"), "cannot be loaded"),
            "git-lfs pointer": (
                lambda t: (save_pack(t) / "1k3d68.onnx").write_text("version https"),
                "cannot be loaded",
            ),
        }.values(),
    )
    def test_damaged(self, damage, word, tmp_path):
        damage(tmp_path)
        with pytest.raises(InputError, match=word) as caught:
            InsightFaceAnalyzer(tmp_path)
        assert str(caught.value).startswith("model=") and "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"providers": ["NoSuchExecutionProvider"]},
            {"providers": []},
            {"providers": "CPUExecutionProvider"},
            {"providers": 3},
            {"providers": [None]},
            {"detection_size": 0},
            {"detection_size": 100},
            {"detection_size": "640"},
            {"detection_threshold": 0},
            {"detection_threshold": 1.5},
            {"detection_threshold": "high"},
            {"model": None},
            {"model": ""},
            {"model": "../elsewhere"},
            {"model": "/no/such/folder"},
            {"model": "~nobody_of_that_name/pack"},
        ],
        ids=str,
    )
    def test_bad_arguments(self, arguments, pack, model_server, tmp_path):
        with pytest.raises(InputError, match=next(iter(arguments))) as caught:
            InsightFaceAnalyzer(**{"model": pack, "root": tmp_path, **arguments})
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("weight", [np.full_like(WEIGHT, np.nan), np.zeros_like(WEIGHT)], ids=["nan", "zero"])
    def test_useless_embedding(self, weight, tmp_path):
        save_recognizer(save_pack(tmp_path) / "w600k_r50.onnx", weight)
        with pytest.raises(InputError, match="embedding"):
            InsightFaceAnalyzer(tmp_path).analyze(photo_with_faces((320, 240)))
