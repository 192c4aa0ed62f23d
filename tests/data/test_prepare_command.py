"""`facesnap prepare` on real photos."""

import io
import shutil
import sys
from collections import Counter

import numpy as np
import PIL.Image
import pytest
from tiny_preparation import (
    PHOTOS,
    killed,
    needs_photos,
    write_damaged,
)
from typer.testing import CliRunner

from facesnap_diffusers.data.shards import (
    MANIFEST,
    PreparedFaces,
    read_records,
)


@needs_photos
class TestRealPhotos:
    def test_command(self, tmp_path):
        """
        All photos and 200 damaged files beside them, through the command with real detection, killed on the way. (Slow,
        for dlib looks at 37 pictures, and at those without a face several times.)
        """
        pytest.importorskip("dlib")
        from facesnap_diffusers.cli import app

        source, manifest = tmp_path / "in", tmp_path / "out" / MANIFEST
        shutil.copytree(PHOTOS, source, ignore=shutil.ignore_patterns("README.md"))
        photos = {path.name for path in source.iterdir()}
        portrait = PIL.Image.open(PHOTOS / "man_happy.jpg").convert("RGB")
        portrait = portrait.resize([side * 200 // max(portrait.size) for side in portrait.size])
        damaged = write_damaged(source / "damaged", 200, good=lambda index: portrait)
        shutil.copy(source / "woman_older.jpg", source / "zz_copy.jpg")
        encoder = "dlib/face_recognition_resnet_model_v1"
        arguments = [
            "prepare",
            str(source),
            str(tmp_path / "out"),
            "--face-encoder-id",
            encoder,
            "--recognition-crop",
            "dlib",
        ]

        before = killed([sys.executable, "-m", "facesnap_diffusers.cli", *arguments], manifest, lines=100)
        assert 100 <= before.count(b"\n") < 219
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert manifest.read_bytes().startswith(before)

        records = list(read_records(tmp_path / "out"))
        assert len(records) == len(damaged) + len(photos) + 1 == 219 and all(f.detail for f in records if not f.kept)
        records = {record.source: record for record in records}
        assert records.keys() == photos | {f"damaged/{name}" for name in damaged} | {"zz_copy.jpg"}
        # the files that Pillow reads all show the same portrait
        reasons = Counter(record.reason for source, record in records.items() if source.startswith("damaged"))
        assert reasons == {"unreadable": 182, "kept": 1, "duplicate": 17}
        expected = {
            "landscape_no_face.jpg": "no face", "two_women.jpg": "several faces", "woman_blurred.jpg": "blurred",
            "zz_copy.jpg": "duplicate",
        }  # fmt: skip
        assert {name: records[name].reason for name in expected} == expected
        assert {"man_a_neutral.jpg", "man_a_smiling.jpg", "man_angry.jpg", "woman_older.jpg"} <= {
            source for source, record in records.items() if record.kept
        }

        faces = PreparedFaces([str(tmp_path / "out")])
        embeddings = {faces[index].info["source"]: faces[index].embedding for index in range(len(faces))}
        same = np.linalg.norm(embeddings["man_a_neutral.jpg"] - embeddings["man_a_smiling.jpg"])
        other = np.linalg.norm(embeddings["man_a_neutral.jpg"] - embeddings["man_angry.jpg"])
        assert same < 0.6 < other
        crop = PIL.Image.open(io.BytesIO(faces[0].recognition_crop))
        assert crop.size == (150, 150)

        shown = CliRunner().invoke(app, ["prepare", "--stats", str(tmp_path / "out")])
        assert shown.exit_code == 0 and "unreadable" in shown.output and "duplicate" in shown.output
