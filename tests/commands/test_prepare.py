"""`facesnap prepare` on photos."""

import io
import shutil
import sys
from collections import Counter

import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest
from skimage.data import rocket
from tiny_preparation import (
    killed,
    portrait,
    write_damaged,
)
from typer.testing import CliRunner

from facesnap_diffusers.data.shards import (
    MANIFEST,
    PreparedFaces,
    read_records,
)


pytestmark = pytest.mark.slow


class TestPhotos:
    def test_command(self, tmp_path):
        """
        Eight photos and 200 damaged files beside them, through the command with real detection, killed on the way. (Slow,
        for dlib looks at 15 pictures, and at those without a face several times.)
        """
        pytest.importorskip("dlib")
        from facesnap_diffusers.cli import app

        source, manifest = tmp_path / "in", tmp_path / "out" / MANIFEST
        source.mkdir()
        pictures = {
            "a_studio": portrait(1),
            "a_selfie": portrait(1, "amateur_selfie"),
            "b_studio": portrait(2),
            "c_studio": portrait(3),
            "blurred": portrait(4).filter(PIL.ImageFilter.GaussianBlur(8)),
            "no face": PIL.Image.fromarray(rocket()),
            "two faces": PIL.Image.fromarray(np.hstack([np.array(portrait(person)) for person in (2, 3)])),
        }
        for name, picture in pictures.items():
            picture.save(source / f"{name}.jpg", quality=95)
        shutil.copy(source / "c_studio.jpg", source / "zz_copy.jpg")
        photos = {path.name for path in source.iterdir()}
        damaged = write_damaged(source / "damaged", 200, good=lambda index: portrait(4, side=200), mixed=16)
        encoder = "dlib/face_recognition_resnet_model_v1"
        arguments = [
            "prepare",
            str(source),
            str(tmp_path / "out"),
            "--face-encoder-id",
            encoder,
            "--recognition-crop",
            "dlib",
            # pictures of 200 pixels are large enough
            "--resolution",
            "150",
            "--min-face",
            "20",
        ]

        before = killed([sys.executable, "-m", "facesnap_diffusers.cli", *arguments], manifest, lines=100)
        assert 100 <= before.count(b"\n") < 208
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert manifest.read_bytes().startswith(before)

        records = list(read_records(tmp_path / "out"))
        assert len(records) == len(damaged) + len(photos) == 208 and all(f.detail for f in records if not f.kept)
        records = {record.source: record for record in records}
        assert records.keys() == photos | {f"damaged/{name}" for name in damaged}
        # the files that Pillow reads all show the same portrait
        reasons = Counter(record.reason for source, record in records.items() if source.startswith("damaged"))
        assert reasons == {"unreadable": 194, "kept": 1, "duplicate": 5}
        expected = {
            "no face.jpg": "no face",
            "two faces.jpg": "several faces",
            "blurred.jpg": "blurred",
            "zz_copy.jpg": "duplicate",
        }
        assert {name: records[name].reason for name in expected} == expected
        assert {"a_studio.jpg", "a_selfie.jpg", "b_studio.jpg", "c_studio.jpg"} <= {
            source for source, record in records.items() if record.kept
        }

        faces = PreparedFaces([str(tmp_path / "out")])
        embeddings = {faces[index].info["source"]: faces[index].embedding for index in range(len(faces))}
        same = np.linalg.norm(embeddings["a_studio.jpg"] - embeddings["a_selfie.jpg"])
        other = np.linalg.norm(embeddings["a_studio.jpg"] - embeddings["b_studio.jpg"])
        assert same < 0.6 < other
        crop = PIL.Image.open(io.BytesIO(faces[0].recognition_crop))
        assert crop.size == (150, 150)

        shown = CliRunner().invoke(app, ["prepare", "--stats", str(tmp_path / "out")])
        assert shown.exit_code == 0 and "unreadable" in shown.output and "duplicate" in shown.output


def test_without_a_model_pack_it_names_the_option(tmp_path, monkeypatch):
    from command_line import command

    from facesnap_diffusers import InputError

    def no_network(*args, **kwargs):
        raise ConnectionError

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("insightface.utils.storage.ensure_available", no_network)
    (tmp_path / "photos").mkdir()
    portrait(1).save(tmp_path / "photos" / "a.jpg")
    with pytest.raises(InputError, match="or pass --face-encoder-id dlib/face_recognition_resnet_model_v1") as caught:
        command("prepare", tmp_path / "photos", tmp_path / "out")
    assert "DlibFaceAnalyzer" not in str(caught.value)
