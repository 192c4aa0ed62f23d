import http.server
import io
import math
import threading
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import PIL.Image
import pytest
from onnx import helper, numpy_helper

from facesnap_diffusers.errors import InputError, MissingDependencyError, NoFaceFoundError
from facesnap_diffusers.faces.alignment import TEMPLATES, similarity_transform
from facesnap_diffusers.faces.analyzers import (
    DlibFaceAnalyzer,
    FaceAnalyzer,
    InsightFaceAnalyzer,
    default_analyzer,
)
from facesnap_diffusers.faces.detection import find_face
from facesnap_diffusers.faces.face import Face


PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "photos"


# A tiny model pack in InsightFace's format: real ONNX networks that InsightFace itself loads and runs.

BOX = np.array([5.0, 6.0, 5.0, 7.0])  # Distances from the anchor to the box's sides, in strides of 8 px.
KEY_POINTS = np.array([[-2, -2], [2.5, -2.5], [0, 0.5], [-1.5, 3], [2, 2.5]])  # From the anchor, in strides.
SHAPE = np.random.default_rng(3).uniform(-0.6, 0.6, (1103, 3)).astype(np.float32)  # The last 68 are the landmarks.
SHAPE[-68:][[0, 16, 8, 27, 30, 36, 45]] = [
    [-0.7, -0.2, -0.5],
    [0.7, -0.2, -0.5],
    [0, 0.7, 0.2],
    [0, -0.3, 0.4],
    [0, 0, 0.6],
    [-0.5, -0.3, 0.2],
    [0.5, -0.3, 0.2],
]
WEIGHT = np.random.default_rng(4).normal(size=(12, 16)).astype(np.float32)


def save(path: Path, nodes, tensors: dict, inputs, outputs) -> None:
    def value(name, shape):
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        path.stem,
        [value(*item) for item in inputs],
        [value(*item) for item in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def save_detector(path: Path, key_points: bool = True) -> None:
    """SCRFD's outputs, three strides with two anchors each: finds a face around every red 8 × 8 block."""
    nodes, tensors, outputs = [], {"red": np.array([[1, -0.5, -0.5]], np.float32).reshape(1, 3, 1, 1)}, []
    nodes.append(helper.make_node("Conv", ["image", "red"], ["redness"]))
    kinds = [("score", 1, None), ("box", 4, BOX), ("points", 10, KEY_POINTS.ravel())][: 3 if key_points else 2]
    for kind, width, constant in kinds:
        for stride in (8, 16, 32):
            name = f"{kind}_{stride}"
            weight, bias = np.zeros((2 * width, 1, 1, 1), np.float32), np.zeros(2 * width, np.float32)
            if constant is not None:
                bias[:] = np.tile(constant, 2)
            else:
                # Redness is 2 in a red block and 0 in a grey one. Only the first anchor of stride 8 looks for it.
                bias[:] = -30
                if stride == 8:
                    weight[0] = 20
            tensors |= {f"{name}_w": weight, f"{name}_b": bias, f"{name}_s": np.array([-1, width])}
            nodes += [
                helper.make_node(
                    "AveragePool", ["redness"], [f"{name}_p"], kernel_shape=[stride] * 2, strides=[stride] * 2
                ),
                helper.make_node("Conv", [f"{name}_p", f"{name}_w", f"{name}_b"], [f"{name}_c"]),
                helper.make_node("Transpose", [f"{name}_c"], [f"{name}_t"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"{name}_t", f"{name}_s"], [f"{name}_r"]),
                helper.make_node("Sigmoid" if kind == "score" else "Identity", [f"{name}_r"], [name]),
            ]
            outputs.append((name, ["n", width]))
    save(path, nodes, tensors, [("image", [1, 3, "height", "width"])], outputs)


def save_landmark_net(path: Path, depth_sign: float = 1.0) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "zero", "shape"], ["points"]),
    ]
    tensors = {
        "zero": np.zeros((3, 3309), np.float32),
        "shape": (SHAPE * np.array([1, 1, depth_sign], np.float32)).ravel(),
    }
    save(path, nodes, tensors, [("image", [1, 3, 192, 192])], [("points", [1, 3309])])


def save_recogniser(path: Path, weight: np.ndarray = WEIGHT) -> None:
    nodes = [
        helper.make_node("AveragePool", ["image"], ["quarters"], kernel_shape=[56, 56], strides=[56, 56]),
        helper.make_node("Flatten", ["quarters"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["embedding"]),
    ]
    save(path, nodes, {"weight": weight}, [("image", [1, 3, 112, 112])], [("embedding", [1, 16])])


def save_pack(folder: Path, recogniser: str = "w600k_r50") -> Path:
    save_detector(folder / "det_10g.onnx")
    save_landmark_net(folder / "1k3d68.onnx")
    save_recogniser(folder / f"{recogniser}.onnx")
    return folder


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return save_pack(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def analyzer(pack):
    return InsightFaceAnalyzer(pack, providers=["CPUExecutionProvider"])


def photo_with_faces(*anchors, size=(640, 640)) -> np.ndarray:
    """A grey-green photo, uneven so that crops differ, with a red block at each (x, y), multiples of 8."""
    y, x = np.mgrid[: size[1], : size[0]]
    green = 60 + 80 * np.sin(x / 40) ** 2
    image = np.stack([green * 0.9, green, 40 + 100 * np.cos(y / 55) ** 2], axis=-1).astype(np.uint8)
    for x, y in anchors:
        image[y : y + 8, x : x + 8] = [255, 0, 0]
    return image


class TestInsightFace:
    def test_follows_the_protocol(self, analyzer):
        assert isinstance(analyzer, FaceAnalyzer)
        assert analyzer.encoder == "insightface/w600k_r50" and analyzer.embedding_dim == 16

    def test_box_landmarks_and_score(self, analyzer):
        image = photo_with_faces((320, 240))
        (face,) = analyzer.analyze(image)
        assert np.allclose(face.box, [320 - 40, 240 - 48, 320 + 40, 240 + 56], atol=1e-3)
        # The landmark net sees 1.5 times the longer side of the box; its answers are in half-sides from the centre.
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
        centres = sorted(((face.box[:2] + face.box[2:]) / 2).round().tolist() for face in faces)
        assert centres == [[120, 164], [320, 404], [520, 164]]

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

    def test_own_recogniser_has_its_own_name(self, tmp_path):
        assert InsightFaceAnalyzer(save_pack(tmp_path, "my_faces")).encoder == "insightface/my_faces"

    def test_pack_by_name_in_root(self, tmp_path):
        save_pack(tmp_path / "models" / "some_pack")
        assert InsightFaceAnalyzer("some_pack", root=tmp_path).encoder == "insightface/w600k_r50"

    def test_folder_that_unpacks_one_level_too_deep(self, tmp_path):
        save_pack(tmp_path / "models" / "antelopev2" / "antelopev2", "glintr100")
        assert InsightFaceAnalyzer("antelopev2", root=tmp_path).encoder == "insightface/glintr100"
        folder = tmp_path / "models" / "antelopev2"
        assert InsightFaceAnalyzer(str(folder)).encoder == "insightface/glintr100"

    def test_default_analyzer(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        save_pack(tmp_path / ".insightface" / "models" / "antelopev2" / "antelopev2", "glintr100")
        assert default_analyzer("insightface/glintr100").encoder == "insightface/glintr100"
        save_pack(tmp_path / ".insightface" / "models" / "buffalo_l", "other")
        with pytest.raises(InputError, match="insightface/other instead"):
            default_analyzer("insightface/w600k_r50")


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
        "damage, word",
        {
            "empty folder": (lambda t: None, "no .onnx"),
            "no detector": (lambda t: TestModelPacks().without(t, "det_10g.onnx"), "detection"),
            "no landmarks": (lambda t: TestModelPacks().without(t, "1k3d68.onnx"), "landmark_3d_68"),
            "no recogniser": (lambda t: TestModelPacks().without(t, "w600k_r50.onnx"), "recognition"),
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
        save_recogniser(save_pack(tmp_path) / "w600k_r50.onnx", weight)
        with pytest.raises(InputError, match="embedding"):
            InsightFaceAnalyzer(tmp_path).analyze(photo_with_faces((320, 240)))


def face(**changes) -> Face:
    fields = {
        "image": np.zeros((64, 64, 3), np.uint8),
        "box": np.array([10.0, 10.0, 50.0, 50.0]),
        "landmarks": np.ones((68, 2)),
        "embedding": np.ones(4),
        "score": 1.0,
        "encoder": "test/encoder",
    }
    return Face(**(fields | changes))


class TestFace:
    def test_arrays_become_float32(self):
        assert {face().box.dtype, face().landmarks.dtype, face().embedding.dtype} == {np.dtype(np.float32)}

    @pytest.mark.parametrize(
        "changes",
        [
            {"image": np.zeros((64, 64), np.uint8)},
            {"image": np.zeros((64, 64, 3))},
            {"image": "photo"},
            {"box": np.zeros(5)},
            {"box": [0, 0, np.nan, 1]},
            {"box": "wide"},
            {"landmarks": np.zeros((5, 2))},
            {"landmarks": np.zeros((68, 4))},
            {"landmarks": np.full((68, 2), np.inf)},
            {"landmarks": None},
            {"embedding": np.zeros(512)},
            {"embedding": np.full(512, np.nan)},
            {"embedding": np.ones((1, 512))},
            {"embedding": []},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_bad_fields(self, changes):
        with pytest.raises(InputError, match=next(iter(changes))):
            face(**changes)


class DotFaces:
    """Finds faces painted as three dots: a red right eye, a green left eye, a blue mouth; as detectors do, only if the
    head is upright within `max_roll` and there is a margin around it."""

    encoder = "test/dots"
    embedding_dim = 2

    def __init__(self, max_roll: float = 30.0):
        self.max_roll = max_roll
        self.calls = 0

    def analyze(self, image):
        self.calls += 1
        faces = []
        for level in (255, 215, 175):
            dots = [(image == level * np.eye(3, dtype=int)[channel]).all(axis=-1).nonzero() for channel in range(3)]
            if min(len(dot[0]) for dot in dots) == 0:
                continue
            right, left, mouth = (np.array([dot[1].mean(), dot[0].mean()]) for dot in dots)
            distance = np.hypot(*(left - right))
            centre = (right + left + mouth) / 3
            box = np.concatenate([centre - distance * 1.2, centre + distance * 1.2])
            roll = math.degrees(math.atan2(*(left - right)[::-1]))
            if abs(roll) > self.max_roll or (box < 0).any() or (box >= np.tile(image.shape[1::-1], 2)).any():
                continue
            landmarks = np.tile(centre, (68, 1))
            landmarks[36:42], landmarks[42:48], landmarks[48:] = right, left, mouth
            faces.append(Face(image, box, landmarks, np.array([level, distance]), level / 255, self.encoder))
        return faces


def dots(*faces, size=(300, 240)) -> np.ndarray:
    """A photo with faces (x, y, distance of the eyes, level)."""
    image = np.full((size[1], size[0], 3), 90, np.uint8)
    y, x = np.mgrid[: size[1], : size[0]]
    for centre_x, centre_y, distance, level in faces:
        for channel, (dx, dy) in enumerate([(-0.5, -0.4), (0.5, -0.4), (0, 0.6)]):
            near = np.hypot(x - centre_x - dx * distance, y - centre_y - dy * distance) <= 3
            image[near] = level * np.eye(3, dtype=int)[channel]
    return image


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
        """Of two faces in a photo that lies on its side, each is found again after turning, not its neighbour."""
        upright = dots((80, 120, 30, 255), (200, 120, 36, 215))
        for index, level in enumerate([215, 255]):
            assert find_face(np.rot90(upright), DotFaces(180.0), face_index=index).embedding[0] == level

    def test_face_index_counts_from_the_largest(self):
        image = dots((60, 120, 20, 255), (220, 120, 40, 215), (130, 60, 30, 175))
        levels = [find_face(image, DotFaces(), face_index=index).embedding[0] for index in (None, 0, 1, 2)]
        assert levels == [215, 215, 175, 255]

    @pytest.mark.parametrize("face_index", [1, -1, 99, 0.0, "0", True, [0]], ids=str)
    def test_bad_face_index(self, face_index):
        with pytest.raises(InputError, match="face_index"):
            find_face(dots((150, 120, 40, 255)), DotFaces(), face_index=face_index)

    def test_no_face(self):
        with pytest.raises(NoFaceFoundError) as caught:
            find_face(np.zeros((120, 160, 3), np.uint8), DotFaces(), name="pose_image")
        assert "pose_image (160×120)" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("encoder", ["", "insightface", "insightface/unknown", "w600k_r50", None, 3])
def test_unknown_encoder(encoder):
    with pytest.raises(InputError, match="encoder="):
        default_analyzer(encoder)


def test_dlib_not_installed(monkeypatch):
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "dlib" else find_spec(name))
    with pytest.raises(MissingDependencyError, match=r"facesnap-diffusers\[dlib\]"):
        default_analyzer(DlibFaceAnalyzer.encoder)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the test photos are not there")
class TestDlib:
    @pytest.fixture(scope="class")
    def dlib_analyzer(self):
        pytest.importorskip("dlib", reason="needs the extra dlib")
        return DlibFaceAnalyzer()

    @pytest.fixture(scope="class")
    def faces(self, dlib_analyzer):
        names = [path.stem for path in sorted(PHOTOS.glob("*.jpg")) if path.stem != "landscape_no_face"]
        assert len(names) >= 17
        return {name: find_face(PHOTOS / f"{name}.jpg", dlib_analyzer) for name in names}

    def test_follows_the_protocol(self, dlib_analyzer):
        assert isinstance(dlib_analyzer, FaceAnalyzer)
        assert isinstance(default_analyzer(dlib_analyzer.encoder), DlibFaceAnalyzer)

    def test_every_face_is_found(self, faces, dlib_analyzer):
        for name, found in faces.items():
            assert found.embedding.shape == (128,) and found.landmarks.shape == (68, 2), name
            height, width = found.image.shape[:2]
            x, y = found.landmarks[30]
            assert 0 < x < width and 0 < y < height, name
            assert found.encoder == dlib_analyzer.encoder, name

    def test_landscape(self, dlib_analyzer):
        with pytest.raises(NoFaceFoundError, match=r"face_image \(640×380\)"):
            find_face(PHOTOS / "landscape_no_face.jpg", dlib_analyzer)

    def test_the_same_man_is_nearest(self, faces):
        pair = {"man_a_neutral", "man_a_smiling"}
        names = list(faces)
        distances = {
            (a, b): np.linalg.norm(faces[a].embedding - faces[b].embedding)
            for i, a in enumerate(names)
            for b in names[:i]
        }
        same = [distance for names, distance in distances.items() if set(names) == pair]
        others = [distance for names, distance in distances.items() if set(names) != pair]
        assert same[0] < 0.6 and same[0] < min(others)

    def test_rotated_photo_is_turned_upright(self, faces):
        found = faces["man_rotated_90"]
        assert found.image.shape == (409, 330, 3)  # 330 × 409 as stored
        eyes, mouth = found.landmarks[36:48].mean(axis=0), found.landmarks[48:].mean(axis=0)
        assert mouth[1] - eyes[1] > 3 * abs(mouth[0] - eyes[0])

    @pytest.mark.parametrize("turns", [2, 3])
    def test_turned_by_hand(self, turns, faces, dlib_analyzer):
        expected = faces["man_a_neutral"]
        found = find_face(np.rot90(expected.image, turns), dlib_analyzer)
        assert np.array_equal(found.image, expected.image)
        assert np.allclose(found.landmarks, expected.landmarks, atol=2)

    def test_exif(self, faces, dlib_analyzer, tmp_path):
        expected = faces["man_a_neutral"]
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        PIL.Image.fromarray(np.ascontiguousarray(np.rot90(expected.image))).save(tmp_path / "a.png", exif=exif)
        assert np.array_equal(find_face(tmp_path / "a.png", dlib_analyzer).landmarks, expected.landmarks)

    def test_head_with_a_large_roll(self, faces, dlib_analyzer):
        """Its landmarks, turned back, are those of the upright head."""
        expected = faces["woman_older"]
        image = PIL.Image.fromarray(expected.image)
        turned = np.array(image.rotate(50, resample=PIL.Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)))
        found = find_face(turned, dlib_analyzer)
        centre = (np.array(image.size) - 1) / 2
        angle = math.radians(50)
        rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        back = (found.landmarks - centre) @ rotation.T + centre
        eyes = np.hypot(*(expected.landmarks[36] - expected.landmarks[45]))
        assert np.hypot(*(back - expected.landmarks)[17:].T).mean() < 0.08 * eyes
        assert np.linalg.norm(found.embedding - expected.embedding) < 0.4

    def test_tight_crop(self, faces, dlib_analyzer):
        expected = faces["man_happy"]
        x0, y0 = expected.landmarks.min(axis=0).astype(int)
        x1, y1 = expected.landmarks.max(axis=0).astype(int)
        found = find_face(expected.image[y0 : y1 + 1, x0 : x1 + 1], dlib_analyzer)
        eyes = np.hypot(*(expected.landmarks[36] - expected.landmarks[45]))
        difference = found.landmarks + [x0, y0] - expected.landmarks
        assert np.hypot(*difference.T).mean() < 0.15 * eyes
        assert np.linalg.norm(found.embedding - expected.embedding) < 0.5

    @pytest.mark.parametrize("side", [48, 3000])
    def test_small_and_large_photos(self, side, faces, dlib_analyzer):
        expected = faces["man_a_neutral"]
        resized = PIL.Image.fromarray(expected.image).resize((side, side), PIL.Image.Resampling.LANCZOS)
        found = find_face(resized, dlib_analyzer)
        scale = min(side, 2048) / 250
        eyes = np.hypot(*(expected.landmarks[36] - expected.landmarks[45]))
        assert np.hypot(*(found.landmarks / scale - expected.landmarks).T).mean() < 0.1 * eyes
        assert found.image.shape[0] == min(side, 2048)

    def test_two_women(self, faces, dlib_analyzer):
        first, second = (find_face(PHOTOS / "two_women.jpg", dlib_analyzer, face_index=i) for i in (0, 1))
        assert abs(first.box[0] - second.box[0]) > 50
        with pytest.raises(InputError, match="shows 2 faces"):
            find_face(PHOTOS / "two_women.jpg", dlib_analyzer, face_index=2)


def test_photo_in_a_file_object_is_named(analyzer):
    with pytest.raises(InputError, match=r"pose_image is a BytesIO"):
        find_face(io.BytesIO(b""), analyzer, name="pose_image")
