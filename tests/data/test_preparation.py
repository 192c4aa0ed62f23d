"""Preparing an input: nothing lost, nothing done twice, whatever stops the run."""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from tiny_preparation import (
    CONFIG,
    LENIENT,
    SIZE,
    MarkedFaces,
    contents,
    frontal_points,
    killed,
    photo,
    run_silently,
    write_damaged,
    write_photos,
)

from facesnap_diffusers import load_landmark_predictor
from facesnap_diffusers.data import photo_preparation, preparation
from facesnap_diffusers.data.people import divide_people
from facesnap_diffusers.data.photo_preparation import PhotoPreparer, mirrored_hash, perceptual_hash
from facesnap_diffusers.data.preparation import prepare, statistics
from facesnap_diffusers.data.shard_settings import PrepareConfig
from facesnap_diffusers.data.shards import MANIFEST, PhotoRecord, PreparedFaces, ShardWriter
from facesnap_diffusers.data.sources import Item, _files, open_source
from facesnap_diffusers.errors import InputError


pytestmark = pytest.mark.slow


TESTS = str(Path(__file__).parents[1])


class TestRun:
    def test_each_file_has_its_fate(self, tmp_path):
        write_photos(tmp_path / "in", 5)
        expected = {f"{index:03d}.png": "kept" for index in range(5)}
        expected |= {f"damaged/{name}": reason for name, reason in write_damaged(tmp_path / "in/damaged").items()}
        records = run_silently(open_source(str(tmp_path / "in")), tmp_path / "out", CONFIG)
        assert {record.source: record.reason for record in records} == expected
        assert len(records) == 205 and all(record.detail for record in records if not record.kept)
        counts = statistics(tmp_path / "out")
        assert counts["photos"] == 205 and counts["kept"] == 23 and counts["reasons"] == {"unreadable": 182}

    def test_other_reasons(self, tmp_path):
        folder = tmp_path / "in"
        write_photos(folder, 1)
        PIL.Image.new("RGB", SIZE).save(folder / "dark.png")
        photo(0, (600, 500)).save(folder / "larger.jpg", quality=80)
        photo(7, (20, 20)).save(folder / "small.png")
        photo(8).save(folder / "fine.png")
        records = {
            record.source: record for record in run_silently(open_source(str(folder)), tmp_path / "out", CONFIG)
        }
        reasons = {source: record.reason for source, record in records.items()}
        assert reasons == {
            "000.png": "kept", "dark.png": "no face", "fine.png": "kept", "larger.jpg": "duplicate", "small.png": "small photo",
        }  # fmt: skip
        assert records["larger.jpg"].detail == "of 000.png"
        far = PrepareConfig(**{**LENIENT, "min_face": 80}, min_sharpness=0)
        (record,) = run_silently([Item("a", str(folder / "fine.png"))], tmp_path / "far", far)
        assert record.reason == "small face" and "of a training picture of 100" in record.detail
        strict = PrepareConfig(**LENIENT, min_sharpness=1000)
        assert {f.reason for f in run_silently([Item("a", str(folder / "fine.png"))], tmp_path / "b", strict)} == {
            "blurred"
        }
        turned = PrepareConfig(**LENIENT, min_sharpness=0, max_yaw=0, max_pitch=0)
        assert {f.reason for f in run_silently([Item("a", str(folder / "fine.png"))], tmp_path / "c", turned)} == {
            "pose"
        }

    def test_processes_change_nothing(self, tmp_path):
        write_photos(tmp_path / "in", 12, people=3)
        for name, processes in (("one", 1), ("two", 2)):
            run_silently(open_source(str(tmp_path / "in")), tmp_path / name, CONFIG, processes=processes)
        assert contents(tmp_path / "one") == contents(tmp_path / "two")
        assert statistics(tmp_path / "one")["people"] == 3

    def test_a_photo_that_kills_its_process(self, tmp_path):
        write_photos(tmp_path / "in", 6)
        image = photo(50)
        image.putpixel((0, 0), (1, 2, 3))
        image.save(tmp_path / "in/003x.png")
        records = run_silently(open_source(str(tmp_path / "in")), tmp_path / "out", CONFIG, processes=2)
        assert [record.source for record in records if not record.kept] == ["003x.png"]
        assert [record.reason for record in records if not record.kept] == ["crashed"] and len(records) == 7

    @pytest.mark.parametrize("cut", [0, 1, 700])
    def test_what_a_kill_leaves_is_completed(self, tmp_path, cut):
        """Whatever a kill cuts off, the end is the same as without it, and no complete line is worked on again."""
        write_photos(tmp_path / "in", 8)
        items = list(open_source(str(tmp_path / "in")))
        run_silently(items, tmp_path / "once", CONFIG, shard_bytes=150_000)
        assert len(list((tmp_path / "once").glob("*.tar"))) > 2

        shutil.copytree(tmp_path / "once", tmp_path / "twice")
        manifest = tmp_path / "twice" / MANIFEST
        lines = manifest.read_bytes().splitlines(keepends=True)
        # killed in the middle of a line, with half a sample in the shard and the later shards not yet there
        manifest.write_bytes(b"".join(lines[:5]) + lines[5][:20])
        fifth, sixth = (json.loads(lines[number]) for number in (4, 5))
        for path in (tmp_path / "twice").glob("*.tar"):
            if path.name > sixth["shard"]:
                path.unlink()
        end = sixth["start"] + 700 - cut if sixth["shard"] != fifth["shard"] else fifth["end"] + cut
        with open(tmp_path / "twice" / sixth["shard"], "r+b") as file:
            file.truncate(end)

        seen = []

        class Counted(MarkedFaces):
            def analyze(self, image):
                if image.std() > 0:  # the first one only tells whether the analyzer works
                    seen.append(image)
                return super().analyze(image)

        prepare(items, tmp_path / "twice", CONFIG, shard_bytes=150_000, analyzer=Counted, progress=False)
        assert contents(tmp_path / "once") == contents(tmp_path / "twice")
        assert len(seen) == 3
        run_silently(items, tmp_path / "twice", CONFIG, shard_bytes=150_000)
        assert contents(tmp_path / "once") == contents(tmp_path / "twice")

    def test_killed_for_real(self, tmp_path):
        write_photos(tmp_path / "in", 60)
        script = (
            "import sys, time, torch; sys.path.insert(0, {tests!r}); import tiny_preparation as t\n"
            "from facesnap_diffusers.data.sources import open_source\n"
            "torch.set_num_threads(1)  # as in this process: sums of more threads differ in the last bits\n"
            "class Slow(t.MarkedFaces):\n"
            "    def analyze(self, image):\n"
            "        time.sleep(0.1); return super().analyze(image)\n"
            "t.prepare(open_source({source!r}), {output!r}, t.CONFIG, analyzer=Slow, progress=False)\n"
        ).format(tests=TESTS, source=str(tmp_path / "in"), output=str(tmp_path / "out"))
        manifest = tmp_path / "out" / MANIFEST
        before = killed([sys.executable, "-c", script], manifest, lines=10)
        assert 10 <= before.count(b"\n") < 60
        run_silently(open_source(str(tmp_path / "in")), tmp_path / "out", CONFIG)
        assert manifest.read_bytes().startswith(before)
        run_silently(open_source(str(tmp_path / "in")), tmp_path / "once", CONFIG)
        assert contents(tmp_path / "out") == contents(tmp_path / "once")

    def test_other_settings_are_refused(self, tmp_path):
        write_photos(tmp_path / "in", 1)
        run_silently(open_source(str(tmp_path / "in")), tmp_path / "out", CONFIG)
        with pytest.raises(InputError, match=r"other settings \(min_face\)"):
            run_silently([], tmp_path / "out", PrepareConfig(**{**LENIENT, "min_face": 21}, min_sharpness=0))

    def test_ray(self, tmp_path):
        ray = pytest.importorskip("ray", reason="needs ray")
        pytest.importorskip("ray.data", reason="needs ray[data]")
        write_photos(tmp_path / "in", 6)
        path = os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")])
        ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
        try:
            run_silently(open_source(str(tmp_path / "in")), tmp_path / "ray", CONFIG, processes=1, ray=True)
        finally:
            ray.shutdown()
        run_silently(open_source(str(tmp_path / "in")), tmp_path / "one", CONFIG)
        assert contents(tmp_path / "ray") == contents(tmp_path / "one")


def broken_environment():
    raise InputError("model='buffalo_l' is neither a folder nor downloadable; unpack the pack")


class Stubborn(MarkedFaces):
    """Fails on photos, but not on the gray picture with which it is tried."""

    def analyze(self, image):
        if image.std() > 0:
            raise RuntimeError("CUDA error: out of memory")
        return super().analyze(image)


class TestEnvironment:
    @pytest.mark.parametrize("processes", [1, 2])
    def test_what_is_wrong_with_it_is_not_blamed_on_photos(self, tmp_path, processes):
        write_photos(tmp_path / "in", 3)
        items = list(open_source(str(tmp_path / "in")))
        with pytest.raises(InputError, match="is neither a folder nor downloadable"):
            run_silently(items, tmp_path / "out", CONFIG, analyzer=broken_environment, processes=processes)
        assert not (tmp_path / "out").exists()
        misspelt = PrepareConfig(**{**LENIENT, "face_encoder_id": "insightface/w600k_r5"})
        with pytest.raises(InputError, match="is not one of"):
            prepare(items, tmp_path / "out", misspelt, progress=False)
        assert [record.reason for record in run_silently(items, tmp_path / "out", CONFIG)] == ["kept"] * 3

    @pytest.mark.parametrize("wrong", ["disk", "folder", "address"])
    def test_what_keeps_photos_from_being_read_is_not_blamed_on_them(self, tmp_path, monkeypatch, wrong):
        """Each error names its photo."""

        def fail(photo):
            raise OSError(5, "Input/output error", photo)

        names = [f"{tmp_path}/{'gone' if wrong == 'folder' else 'in'}/{number}.jpg" for number in range(25)]
        if wrong == "address":
            names = [f"https://photos.example/{number}.jpg" for number in range(25)]
            monkeypatch.setattr(photo_preparation, "read_photo", fail)
        (tmp_path / "in").mkdir()
        if wrong == "disk":
            monkeypatch.setattr(photo_preparation.Path, "read_bytes", fail)
        items = [Item(str(number), name) for number, name in enumerate(names)]
        with pytest.raises(InputError, match="20 photos in a row failed with .*; mend that and .* --retry failed"):
            run_silently(items, tmp_path / "out", CONFIG)

    def test_processes_that_always_die_end_the_run(self, tmp_path, monkeypatch):
        def crashes(items, *_):
            for item in items:
                yield item, PhotoRecord(item.source, False, "crashed", "its process died"), None

        monkeypatch.setattr(preparation, "_with_processes", crashes)
        items = [Item(str(number), None) for number in range(25)]
        with pytest.raises(InputError, match="20 photos in a row crashed with .* --retry crashed"):
            run_silently(items, tmp_path / "out", CONFIG, processes=2)

    def test_the_same_failure_of_all_photos_ends_the_run_and_they_can_be_tried_again(self, tmp_path):
        write_photos(tmp_path / "in", 25)
        items = list(open_source(str(tmp_path / "in")))
        with pytest.raises(InputError, match="20 photos in a row failed with .*CUDA error.* --retry failed"):
            run_silently(items, tmp_path / "out", CONFIG, analyzer=Stubborn)
        assert statistics(tmp_path / "out")["reasons"] == {"failed": 20}
        records = run_silently(items, tmp_path / "out", CONFIG)
        assert [record.reason for record in records] == ["failed"] * 20 + ["kept"] * 5
        records = run_silently(items, tmp_path / "out", CONFIG, retry=["failed"])
        assert len(records) == 25 and {record.reason for record in records} == {"kept"}
        faces = PreparedFaces([str(tmp_path / "out")])
        assert sorted(faces[index].info["source"] for index in range(25)) == [item.source for item in items]

    def test_two_at_a_time_are_refused(self, tmp_path):
        write_photos(tmp_path / "in", 1)
        refused = pytest.raises(InputError, match=f"is written to by process {os.getpid()}")
        with ShardWriter(tmp_path / "out", CONFIG.shard_settings()), refused:
            run_silently(open_source(str(tmp_path / "in")), tmp_path / "out", CONFIG)
        run_silently(open_source(str(tmp_path / "in")), tmp_path / "out", CONFIG)

    def test_processes_take_turns_on_devices(self):
        class Count:
            value = 0

            def get_lock(self):
                return contextlib.nullcontext()

        started, found = Count(), []
        for _ in range(4):
            preparer = PhotoPreparer(CONFIG, MarkedFaces)
            preparation._start_process(preparer, [5, 7], started)
            found.append(preparer.device_id)
        assert found == [5, 7, 5, 7]

    def test_providers_and_device_reach_the_analyzer(self, monkeypatch):
        seen = {}
        monkeypatch.setattr(photo_preparation, "InsightFaceAnalyzer", lambda pack, **options: seen.update(options))
        config = PrepareConfig()
        providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        _ = PhotoPreparer(config, providers=providers, device_id=3).analyzer
        assert seen["providers"] == [("CUDAExecutionProvider", {"device_id": 3}), "CPUExecutionProvider"]
        with pytest.raises(InputError, match="does not run on ONNX Runtime"):
            _ = PhotoPreparer(PrepareConfig("dlib/face_recognition_resnet_model_v1"), device_id=3).analyzer

    def test_memory_for_a_photo_is_bounded(self, tmp_path):
        """
        Records of photos already prepared stay on the disk: under 300 bytes of memory for each. So do those that are divided
        into people, and the paths of a folder, each under 200.
        """
        count = 20_000
        run_silently([], tmp_path, CONFIG)
        (tmp_path / "shard-000000.tar").write_bytes(bytes(count))
        random = np.random.default_rng(0)
        with open(tmp_path / MANIFEST, "w") as file:
            for number, values in enumerate(random.integers(0, 2**63, (count, 2)).tolist()):
                place = {"key": f"{number:09d}", "shard": "shard-000000.tar", "start": number, "end": number + 1}
                person = f"person-{number // 5}" if number % 10 else None
                record = PhotoRecord(
                    f"some/longer/folder/{number}.jpg", True, "kept", "", *place.values(), person, *values
                )
                file.write(record.to_line())
        tracemalloc.start()
        writer = ShardWriter(tmp_path, CONFIG.shard_settings())
        duplicates = preparation._Duplicates(3, tmp_path)
        used = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert f"some/longer/folder/{count - 1}.jpg" in writer and duplicates._photos.find(values[0]) is not None
        writer.close()
        # the buckets of the finders are themselves some 10 MB, however many photos there are
        assert (used - 12e6) / count < 300

        tracemalloc.start()
        divide_people(tmp_path)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert statistics(tmp_path)["people"] == count / 5 and used / count < 200

        folder = tmp_path / "photos"
        folder.mkdir()
        for number in range(3000):
            (folder / f"a photo of this year, number {number}.jpg").touch()
            (folder / f"a photo of this year, number {number}.txt").touch()
        tracemalloc.start()
        for number, (_, caption) in enumerate(_files(folder)):  # noqa: B007
            if number == 1500:
                # but for the interpreter's table of strings, one large piece that grows at times
                pieces = [trace.size for trace in tracemalloc.take_snapshot().traces if trace.size < 1e6]
        tracemalloc.stop()
        assert number == 2999 and caption is not None and sum(pieces) / 6000 < 200


class TestCopies:
    def test_mirrored_and_cropped_ones(self, tmp_path):
        """The face stays the same, the border and the side do not."""
        folder = tmp_path / "in"
        folder.mkdir()
        for number in range(4):
            whole = photo(number, (300, 240)).resize((300, 240), PIL.Image.Resampling.BILINEAR)
            whole.save(folder / f"{number}-a.png")
            PIL.ImageOps.mirror(whole).save(folder / f"{number}-b.png")
            whole.crop((14, 8, 296, 236)).save(folder / f"{number}-c.png")

        class Exact(MarkedFaces):
            """Finds the face where it is in the picture, whatever the border, and gives nearly the same embedding."""

            def analyze(self, image):
                (face,) = super().analyze(image)
                if image.shape[1] == 282:  # the cropped one
                    moved = frontal_points() * 2.4 - [14, 8]
                    face = dataclasses.replace(face, landmarks=moved, embedding=face.embedding * 1.02)
                elif image.shape[1] == 300:
                    face = dataclasses.replace(face, landmarks=centered(image))
                return [face]

        def centered(image):
            points = frontal_points() * 2.4
            mirrored = any(
                np.array_equal(image[:, ::-1], np.array(PIL.Image.open(folder / f"{number}-a.png")))
                for number in range(4)
            )
            if not mirrored:
                return points
            turned = points[load_landmark_predictor().config.mirror[:68]]
            return np.column_stack([image.shape[1] - 1 - turned[:, 0], turned[:, 1]])

        records = run_silently(open_source(str(folder)), tmp_path / "out", CONFIG, analyzer=Exact)
        assert [record.reason for record in records] == ["kept", "duplicate", "duplicate"] * 4
        assert [record.detail for record in records if not record.kept] == [
            f"of {number}-a.png" for number in range(4) for _ in range(2)
        ]

    def test_hash_of_a_mirrored_photo(self):
        for seed in range(5):
            image = np.array(photo(seed, (270, 240)))
            mirrored = perceptual_hash(np.ascontiguousarray(image[:, ::-1]))
            assert (mirrored_hash(perceptual_hash(image)) ^ mirrored).bit_count() <= 1
