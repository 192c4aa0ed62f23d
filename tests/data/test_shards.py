"""Shards on disk: WebDatasets, read at random, with a manifest and settings."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny_preparation import (
    CONFIG,
    MarkedFaces,
    frontal_points,
    photo,
    run_silently,
    write_photos,
)

from facesnap_diffusers import load_landmark_predictor
from facesnap_diffusers.data.shard_settings import ShardSettings
from facesnap_diffusers.data.shards import END_OF_TAR, MANIFEST, PreparedFaces, ShardWriter, read_records
from facesnap_diffusers.data.sources import open_source
from facesnap_diffusers.errors import InputError
from facesnap_diffusers.faces.key_points import five_points


class MarkedKeyPoints(MarkedFaces):
    """Finds key points, a few pixels beside those of the landmarks."""

    def analyze(self, image):
        return [
            dataclasses.replace(face, key_points=five_points(face.landmarks) + [2, 3])
            for face in super().analyze(image)
        ]


def test_a_shard_that_is_gone_is_not_made_anew(tmp_path):
    write_photos(tmp_path / "in", 3)
    run_silently(open_source(str(tmp_path / "in")), tmp_path / "out", CONFIG)
    (tmp_path / "out/shard-000000.tar").unlink()
    with pytest.raises(
        InputError, match=r"shard-000000.tar has 0 bytes, of which manifest.jsonl names \d+; restore it"
    ):
        run_silently(open_source(str(tmp_path / "in")), tmp_path / "out", CONFIG)


class TestShards:
    @pytest.fixture
    def prepared(self, tmp_path):
        write_photos(tmp_path / "in", 6, people=2)
        (tmp_path / "in/person0/000.txt").write_text("a caption\n")
        photo(99, (600, 500)).save(tmp_path / "in/person1/large.png")
        run_silently(open_source(str(tmp_path / "in")), tmp_path / "out", CONFIG)
        return tmp_path / "out"

    def test_are_web_datasets(self, prepared):
        webdataset = pytest.importorskip("webdataset")
        samples = list(webdataset.WebDataset(str(prepared / "shard-000000.tar"), shardshuffle=False).decode("pil"))
        kept = [record for record in read_records(prepared) if record.kept]
        assert [sample["__key__"] for sample in samples] == [record.key for record in kept]
        for sample, record in zip(samples, kept):
            assert sample["json"]["identity"] == record.identity and sample["json"]["source"] == record.source
            assert min(sample["image.jpg"].size) <= 130  # 1.3 times the training pictures
            assert sample["clip_crop.jpg"].size == (336, 336) and sample["recognition_crop.png"].size == (112, 112)
        assert samples[0]["json"]["caption"] == "a caption" and samples[1]["json"]["caption"] is None

    def test_read_at_random(self, prepared):
        faces = PreparedFaces([str(prepared)])
        assert len(faces) == 7 and {len(group) for group in faces.people.values()} == {3, 4}
        assert faces[6].info["source"] == "person1/large.png" and faces[0].info["source"] == "person0/000.png"
        assert faces.same_person(0) == [1, 2]

    def test_values(self, prepared):
        predictor = load_landmark_predictor()
        faces = PreparedFaces([str(prepared)])
        for index, source in ((0, photo(0)), (6, photo(99, (600, 500)))):
            face = faces[index]
            scale = face.info["size"][0] / source.width
            points = (frontal_points() * min(source.size) / 100 + 0.5) * scale - 0.5
            assert face.landmarks.shape == (72, 2) and np.abs(face.landmarks[:68] - points).max() < 1e-3
            assert np.allclose(face.embedding, np.array(source).mean(axis=(0, 1)) + 1, atol=1e-3)
            with torch.no_grad():
                expected = predictor.encode(torch.from_numpy(points).float()[None])
                drawn = predictor.decode(expected)[0]
            assert np.abs(face.landmarks[68:] - drawn[68:].numpy()).max() < 0.03
            for name, value in vars(expected).items():
                assert np.allclose(getattr(face, name), value[0].numpy(), atol=2e-2), name

    def test_key_points_of_the_detector(self, prepared, tmp_path):
        """Records say whether the photos have them: of an analyzer that gives them all have, of another none."""
        write_photos(tmp_path / "more", 2)
        run_silently(open_source(str(tmp_path / "more")), tmp_path / "with", CONFIG, analyzer=MarkedKeyPoints)
        for folder, given in ((prepared, False), (tmp_path / "with", True)):
            assert {record.key_points for record in read_records(folder) if record.kept} == {given}
            face = PreparedFaces([str(folder)])[0]
            assert (face.key_points is not None) == given
        assert np.abs(face.key_points - five_points(face.landmarks) - [2, 3]).max() < 1e-3

    def test_shards_end_as_tar_files_do(self, prepared):
        assert (prepared / "shard-000000.tar").read_bytes().endswith(END_OF_TAR)

    @pytest.mark.parametrize("when", ["photo", "record", "end"])
    def test_a_full_disk_leaves_what_was_written(self, prepared, tmp_path, when):
        faces = PreparedFaces([str(prepared)])
        writer = ShardWriter(tmp_path / "new", faces.settings[0])
        writer.add(faces[0], "first")
        file = writer._manifest if when == "record" else writer._shard
        flush, name = file.flush, "_manifest" if when == "record" else "_shard"

        class Full:
            def __getattr__(self, attribute):
                return getattr(file, attribute)

            def write(self, data):
                file.write(data[: len(data) // 2])
                flush()
                raise OSError(28, "No space left on device")

        setattr(writer, name, Full())
        with pytest.raises(InputError, match="No space left on device"):
            writer.close() if when == "end" else writer.add(faces[1], "second")
        writer.close()
        with ShardWriter(tmp_path / "new", faces.settings[0]) as again:
            assert "first" in again and "second" not in again and again.total == 1
            again.add(faces[1], "second")
        new = PreparedFaces([str(tmp_path / "new")])
        for index in range(2):
            assert np.array_equal(new[index].embedding, faces[index].embedding)
        assert (tmp_path / "new/shard-000000.tar").read_bytes().endswith(END_OF_TAR)

    def test_reader_errors(self, tmp_path):
        with ShardWriter(tmp_path / "empty", ShardSettings("mine")):
            pass
        with pytest.raises(InputError, match="holds no photos"):
            PreparedFaces([str(tmp_path / "empty")])
        with pytest.raises(InputError, match="facesnap prepare"):
            PreparedFaces([str(tmp_path)])

    def test_a_damaged_photo_is_named(self, prepared):
        faces = PreparedFaces([str(prepared)])
        _, start, end = faces.places[2]
        path = prepared / "shard-000000.tar"
        content = bytearray(path.read_bytes())
        content[start + 100 : start + 300] = bytes(200)
        path.write_bytes(content)
        assert faces[1].info["source"] and faces[3].info["source"]
        with pytest.raises(InputError, match=rf"shard-000000.tar: the photo in bytes {start} to {end} cannot be read"):
            faces[2]
        path.unlink()
        with pytest.raises(InputError, match="shard-000000.tar: the photo in bytes 0 to .* cannot be read"):
            faces[0]

    @pytest.mark.parametrize("shard", ["../secret.tar", "/etc/passwd", "a\\b.tar", ".."])
    def test_a_manifest_that_points_elsewhere_is_refused(self, prepared, shard):
        lines = (prepared / MANIFEST).read_text().splitlines()
        lines[0] = json.dumps({**json.loads(lines[0]), "shard": shard})
        (prepared / MANIFEST).write_text("\n".join(lines) + "\n")
        with pytest.raises(InputError, match="outside of its folder"):
            PreparedFaces([str(prepared)])

    def test_a_damaged_manifest_is_refused_in_one_line(self, prepared):
        content = (prepared / MANIFEST).read_text()
        for line in ('{"source": 1', '{"unknown": 1}', '{"source": "a", "kept": true, "reason": "kept"}'):
            (prepared / MANIFEST).write_text(line + "\n" + content)
            with pytest.raises(InputError, match="manifest.jsonl (has a damaged line|does not say where)") as error:
                PreparedFaces([str(prepared)])
            assert "\n" not in str(error.value)

    @pytest.mark.parametrize("name", [MANIFEST, "people.jsonl", "prepare.json"])
    def test_bytes_that_are_no_text_are_refused(self, prepared, name):
        path = prepared / name
        path.write_bytes(b'{"key": "\xf4"}\n' + (path.read_bytes() if path.exists() else b""))
        with pytest.raises(InputError, match=f"{name} (has a damaged line|is not JSON)"):
            PreparedFaces([str(prepared)])
