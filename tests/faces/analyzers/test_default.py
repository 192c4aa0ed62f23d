"""The analyzer of each face encoder, made once and shared."""

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from facesnap_diffusers.errors import InputError, MissingDependencyError
from facesnap_diffusers.faces import analyzers
from facesnap_diffusers.faces.analyzers import DlibFaceAnalyzer, InsightFaceAnalyzer, default_analyzer

from .packs import photo_with_faces, save_pack


pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def nothing_shared(monkeypatch):
    monkeypatch.setattr(analyzers, "_shared", {})


def test_packs_are_found_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_pack(tmp_path / ".insightface" / "models" / "antelopev2" / "antelopev2", "glintr100")
    assert default_analyzer("insightface/glintr100").encoder == "insightface/glintr100"
    save_pack(tmp_path / ".insightface" / "models" / "buffalo_l", "other")
    with pytest.raises(InputError, match="insightface/other instead"):
        default_analyzer("insightface/w600k_r50")


@pytest.mark.parametrize("encoder", ["", "insightface", "insightface/unknown", "w600k_r50", None, 3])
def test_unknown_encoder(encoder):
    with pytest.raises(InputError, match="encoder="):
        default_analyzer(encoder)


def test_dlib_not_installed(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "dlib" else find_spec(name))
    with pytest.raises(MissingDependencyError, match=r"facesnap-diffusers\[dlib\]"):
        default_analyzer(DlibFaceAnalyzer.encoder)


@pytest.fixture
def home_with_pack(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_pack(tmp_path / ".insightface" / "models" / "antelopev2", "glintr100")


def in_threads(call, count, threads=8):
    """The answers of calls from several threads, which are switched as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(call, range(count)))
    finally:
        sys.setswitchinterval(interval)


def test_made_once_for_all_threads(home_with_pack, monkeypatch):
    made = []
    real = InsightFaceAnalyzer.__init__

    def counting(self, *args, **kwargs):
        made.append(self)
        real(self, *args, **kwargs)

    monkeypatch.setattr(InsightFaceAnalyzer, "__init__", counting)
    unit = in_threads(lambda i: default_analyzer("insightface/glintr100"), 16)
    assert len({id(analyzer) for analyzer in unit}) == 1 and len(made) == 1
    raw = default_analyzer("insightface/glintr100", normalize=False)
    assert raw is default_analyzer("insightface/glintr100", normalize=False) and raw is not unit[0]
    assert len(made) == 1  # the same models, other lengths
    image = photo_with_faces((320, 240))
    (one,), (other,) = unit[0].analyze(image), raw.analyze(image)
    assert np.linalg.norm(one.embedding) == pytest.approx(1) and np.linalg.norm(other.embedding) != pytest.approx(1)
    np.testing.assert_allclose(one.embedding, other.embedding / np.linalg.norm(other.embedding), rtol=1e-5)


def test_a_failure_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".insightface" / "models" / "antelopev2"
    folder.mkdir(parents=True)
    with pytest.raises(InputError, match=r"no \.onnx"):
        default_analyzer("insightface/glintr100")
    save_pack(folder, "glintr100")
    assert default_analyzer("insightface/glintr100").embedding_dim == 16


def assert_threads_agree(analyzer, images, count):
    """Each of 8 threads' answers equals the one of a single thread, bit for bit."""
    expected = [analyzer.analyze(image) for image in images]
    assert sum(map(len, expected)) >= len(images) - 1
    answers = in_threads(lambda i: analyzer.analyze(images[i % len(images)]), count)
    for i, faces in enumerate(answers):
        assert len(faces) == len(expected[i % len(images)])
        for face, same in zip(faces, expected[i % len(images)]):
            for field in ("box", "landmarks", "embedding"):
                np.testing.assert_array_equal(getattr(face, field), getattr(same, field))
            assert face.score == same.score


def test_insightface_in_8_threads(home_with_pack):
    images = [photo_with_faces((160 + 40 * i, 240), *[(480, 400)] * (i % 2)) for i in range(5)]
    assert_threads_agree(default_analyzer("insightface/glintr100"), [*images, photo_with_faces()], 48)


def test_dlib_in_8_threads():
    pytest.importorskip("dlib", reason="needs the extra dlib")
    from skimage.data import astronaut

    photo = astronaut()
    close_up = photo[40:210, 140:310]  # all but the first need the fast detector only
    images = [photo[:256, 96:352], close_up, close_up[:, ::-1], close_up[5:, 10:]]
    assert_threads_agree(default_analyzer(DlibFaceAnalyzer.encoder), images, 8)
