"""From photos to training shards: nothing lost, nothing done twice, and what is in the shards is right."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from typer.testing import CliRunner

from facesnap_diffusers import Face, load_landmark_predictor
from facesnap_diffusers.errors import InputError
from facesnap_diffusers.models.landmark_predictor import FaceCoefficients
from facesnap_diffusers.preparation.duplicates import DuplicateFinder
from facesnap_diffusers.preparation.face import make_face
from facesnap_diffusers.preparation.photo import PhotoPreparer, PrepareConfig, perceptual_hash
from facesnap_diffusers.preparation.run import prepare, statistics
from facesnap_diffusers.preparation.sources import Columns, Item, count, open_source
from facesnap_diffusers.training.shards import END_OF_TAR, MANIFEST, PreparedFaces, ShardWriter, read_fates


PHOTOS = Path(__file__).parents[2] / "shared/data/photos"
needs_photos = pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the test photos in ../shared/data/photos")
SIZE = (120, 100)


class MarkedFaces:
    """Finds one face in each photo, where a fixed pattern of points would be, and names it by its mean colour."""

    encoder = "test/marked"
    embedding_dim = 3

    def analyze(self, image):
        if image.mean() < 5:
            return []
        if image[0, 0].tolist() == [1, 2, 3]:
            os._exit(9)  # as a library that crashes does
        height, width = image.shape[:2]
        landmarks = frontal_points() * min(height, width) / 100
        box = np.array([*landmarks.min(axis=0), *landmarks.max(axis=0)])
        return [Face(image, box, landmarks, image.mean(axis=(0, 1)) + 1, 1.0, self.encoder)]


def frontal_points():
    mean = load_landmark_predictor().mean[:68, :2].numpy()
    return mean * [3, -3] + [50, 50]


CONFIG = PrepareConfig(face_encoder="test/marked", min_face=20, min_sharpness=0, max_side=200)


def photo(seed, size=SIZE):
    """Noise of large cells: every seed is another photo to the perceptual hash."""
    cells = np.random.default_rng(seed).integers(40, 255, (9, 9, 3), dtype=np.uint8)
    return PIL.Image.fromarray(cells).resize(size, PIL.Image.Resampling.NEAREST)


def write_photos(folder, number, people=0):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        path = folder / (f"person{index % people}" if people else ".") / f"{index:03d}.png"
        path.parent.mkdir(exist_ok=True)
        photo(index).save(path)


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def write_damaged(folder, number=200, good=lambda index: photo(index + 1000)):
    """Files of eight kinds, of which Pillow reads three all the same: these, 18 of 200 files, show `good` photos."""
    folder.mkdir(parents=True)
    expected = {}
    dark = PIL.Image.new("RGB", SIZE)
    for index in range(number):
        kinds = ("truncated", "zero bytes", "huge", "one pixel", "text", "wrong suffix", "cmyk", "animated")
        kind = kinds[index % 8 if index < 48 else index % 5]
        name = f"{index:03d}-{kind.replace(' ', '-')}"
        path, reason = folder / f"{name}.jpg", "unreadable"
        if kind == "truncated":
            data = jpeg(good(index))
            path.write_bytes(data[: len(data) * (index % 5 + 1) // 10])
        elif kind == "zero bytes":
            path.write_bytes(b"")
        elif kind == "wrong suffix":  # a PNG called .jpg is no harm
            buffer = io.BytesIO()
            good(index).save(buffer, "PNG")
            path.write_bytes(buffer.getvalue())
            reason = "kept"
        elif kind == "huge":  # a header of 60,000 × 60,000 pixels over a few bytes
            buffer = io.BytesIO()
            dark.save(buffer, "PNG")
            data = bytearray(buffer.getvalue())
            data[16:24] = (60000).to_bytes(4, "big") * 2
            data[29:33] = __import__("zlib").crc32(bytes(data[12:29])).to_bytes(4, "big")
            path = path.with_suffix(".png")
            path.write_bytes(bytes(data))
        elif kind == "one pixel":
            path.write_bytes(jpeg(PIL.Image.new("RGB", (1, 1))))
        elif kind == "cmyk":
            path.write_bytes(jpeg(good(index).convert("CMYK")))
            reason = "kept"
        elif kind == "animated":
            path = path.with_suffix(".gif")
            frames = [good(index), dark]
            frames[0].save(path, save_all=True, append_images=frames[1:])
            reason = "kept"
        else:
            path.write_text("not an image")
        expected[path.name] = reason
    return expected


def run_silently(*arguments, **keywords):
    return prepare(*arguments, progress=False, analyzer=MarkedFaces, **keywords)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def killed(command: list[str], manifest: Path, lines: int) -> bytes:
    """Kills a command when the manifest has so many lines; returns the complete ones."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (manifest.exists() and manifest.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    content = manifest.read_bytes()
    return content[: content.rfind(b"\n") + 1]


class TestRun:
    def test_each_file_has_its_fate(self, tmp_path):
        write_photos(tmp_path / "in", 5)
        expected = {f"{index:03d}.png": "kept" for index in range(5)}
        expected |= {f"damaged/{name}": reason for name, reason in write_damaged(tmp_path / "in/damaged").items()}
        fates = run_silently(open_source(str(tmp_path / "in")), tmp_path / "out", CONFIG)
        assert {fate.source: fate.reason for fate in fates} == expected
        assert len(fates) == 205 and all(fate.detail for fate in fates if not fate.kept)
        found = statistics(tmp_path / "out")
        assert found["photos"] == 205 and found["kept"] == 23 and found["reasons"] == {"unreadable": 182}

    def test_other_reasons(self, tmp_path):
        folder = tmp_path / "in"
        write_photos(folder, 1)
        PIL.Image.new("RGB", SIZE).save(folder / "dark.png")
        photo(0, (600, 500)).save(folder / "larger.jpg", quality=80)
        photo(7, (20, 20)).save(folder / "small.png")
        photo(8).save(folder / "fine.png")
        fates = {fate.source: fate for fate in run_silently(open_source(str(folder)), tmp_path / "out", CONFIG)}
        reasons = {source: fate.reason for source, fate in fates.items()}
        assert reasons == {
            "000.png": "kept", "dark.png": "no face", "fine.png": "kept", "larger.jpg": "duplicate", "small.png": "small face",
        }  # fmt: skip
        assert fates["larger.jpg"].detail == "of 000.png"
        strict = PrepareConfig(face_encoder="test/marked", min_face=20, min_sharpness=1000, max_side=200)
        assert {f.reason for f in run_silently([Item("a", str(folder / "fine.png"))], tmp_path / "b", strict)} == {
            "blurred"
        }
        turned = PrepareConfig(face_encoder="test/marked", min_face=20, min_sharpness=0, max_yaw=0, max_pitch=0)
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
        fates = run_silently(open_source(str(tmp_path / "in")), tmp_path / "out", CONFIG, processes=2)
        assert [fate.source for fate in fates if not fate.kept] == ["003x.png"]
        assert [fate.reason for fate in fates if not fate.kept] == ["crashed"] and len(fates) == 7

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
            "import sys, time; sys.path.insert(0, {tests!r}); import test_prepare as t\n"
            "t.torch.set_num_threads(1)  # as in this process: sums of more threads differ in the last bits\n"
            "class Slow(t.MarkedFaces):\n"
            "    def analyze(self, image):\n"
            "        time.sleep(0.1); return super().analyze(image)\n"
            "t.prepare(t.open_source({source!r}), {output!r}, t.CONFIG, analyzer=Slow, progress=False)\n"
        ).format(tests=str(Path(__file__).parent), source=str(tmp_path / "in"), output=str(tmp_path / "out"))
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
        with pytest.raises(InputError, match="min_face"):
            run_silently([], tmp_path / "out", PrepareConfig(face_encoder="test/marked", min_face=21))

    def test_ray(self, tmp_path):
        ray = pytest.importorskip("ray", reason="needs ray")
        pytest.importorskip("ray.data", reason="needs ray[data]")
        write_photos(tmp_path / "in", 6)
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
        try:
            run_silently(open_source(str(tmp_path / "in")), tmp_path / "ray", CONFIG, processes=1, ray=True)
        finally:
            ray.shutdown()
        run_silently(open_source(str(tmp_path / "in")), tmp_path / "one", CONFIG)
        assert contents(tmp_path / "ray") == contents(tmp_path / "one")


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
        kept = [fate for fate in read_fates(prepared) if fate.kept]
        assert [sample["__key__"] for sample in samples] == [fate.key for fate in kept]
        for sample, fate in zip(samples, kept):
            assert sample["json"]["identity"] == fate.identity and sample["json"]["source"] == fate.source
            assert max(sample["image.jpg"].size) <= 200
            assert sample["head.jpg"].size == (336, 336) and sample["face.png"].size == (112, 112)
        assert samples[0]["json"]["caption"] == "a caption" and samples[1]["json"]["caption"] is None

    def test_read_at_random(self, prepared):
        faces = PreparedFaces([str(prepared)])
        assert len(faces) == 7 and {len(group) for group in faces.people.values()} == {3, 4}
        assert faces[6].info["source"] == "person1/large.png" and faces[0].info["source"] == "person0/000.png"
        assert faces.others(0) == [1, 2]

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
            assert np.abs(face.landmarks[68:] - drawn[68:].numpy()).max() < 0.02
            for name, value in vars(expected).items():
                assert np.allclose(getattr(face, name), value[0].numpy(), atol=2e-2), name

    def test_shards_end_as_tar_files_do(self, prepared):
        assert (prepared / "shard-000000.tar").read_bytes().endswith(END_OF_TAR)

    def test_reader_errors(self, tmp_path):
        with ShardWriter(tmp_path / "empty", {}):
            pass
        with pytest.raises(InputError, match="holds no photos"):
            PreparedFaces([str(tmp_path / "empty")])
        with pytest.raises(InputError, match="facesnap prepare"):
            PreparedFaces([str(tmp_path)])


class TestDataOfYourOwn:
    """Pictures with exact landmarks, as a renderer gives them."""

    @torch.no_grad()
    def test_written_and_read(self, tmp_path):
        predictor = load_landmark_predictor()
        generator = torch.Generator().manual_seed(0)
        truth = predictor.encode(predictor.mean[None] * torch.tensor([4.0, -4.0, 4.0]) + 60).map(torch.clone)
        truth.rotation[:] = torch.tensor([20.0, -10.0, 5.0])
        truth.shape[:] = 0.5 * torch.randn(truth.shape.shape, generator=generator)
        landmarks = predictor.decode(truth, 3)[0].numpy()
        image = np.array(photo(3, (128, 120)))
        info = {"identity": "someone", "caption": "a render", "image_format": "png", "seed": 7}
        with ShardWriter(tmp_path, {"face_encoder": "mine"}) as writer:
            writer.add(make_face(image, landmarks, np.arange(4), predictor, info=info, head_size=64), "first")
            exact = make_face(image, landmarks[:, :2], np.ones(4), predictor, coefficients=truth, max_side=64)
            writer.add(exact, "second")
        with ShardWriter(tmp_path, {"face_encoder": "mine"}) as writer:
            assert [fate.source for fate in writer.fates] == ["first", "second"]

        faces = PreparedFaces([str(tmp_path)])
        first, second = faces[0], faces[1]
        assert np.array_equal(np.array(PIL.Image.open(io.BytesIO(first.image))), image)
        assert first.info.items() >= info.items() and first.info["size"] == [128, 120]
        assert faces.person == ["0/someone", None] and PIL.Image.open(io.BytesIO(first.head)).size == (64, 64)
        assert np.array_equal(first.embedding, np.arange(4)) and np.allclose(first.landmarks, landmarks[:, :2])
        # what the predictor makes of the exact points is close to what they were made from, and draws them again
        assert np.abs(first.rotation - truth.rotation[0].numpy()).max() < 3
        again = predictor.decode(FaceCoefficients(*(torch.tensor(getattr(first, f))[None] for f in vars(truth))))[0]
        assert np.abs(again.numpy() - landmarks[:, :2]).mean() < 0.01 * np.ptp(landmarks[:, 0])
        # of half the size, all pixels are
        assert np.array_equal(second.shape, truth.shape[0].numpy())
        half = predictor.decode(FaceCoefficients(*(torch.tensor(getattr(second, f))[None] for f in vars(truth))))[0]
        assert np.abs(half.numpy() - ((landmarks[:, :2] + 0.5) / 2 - 0.5)).max() < 1e-3
        assert np.abs(second.landmarks - ((landmarks[:, :2] + 0.5) / 2 - 0.5)).max() < 1e-4

    @pytest.mark.parametrize("key", ["", "a.b", "ä", "x" * 81])
    def test_keys_that_a_tar_header_cannot_hold(self, key):
        face = make_face(np.array(photo(3)), frontal_points(), np.ones(4), load_landmark_predictor())
        with pytest.raises(InputError, match="ASCII characters without a dot"):
            face.to_tar(key)


class TestSources:
    def test_folder(self, tmp_path):
        write_photos(tmp_path, 4, people=2)
        (tmp_path / ".hidden").write_text("")
        items = list(open_source(str(tmp_path)))
        assert [(item.source, item.identity) for item in items] == [
            ("person0/000.png", "person0"), ("person0/002.png", "person0"),
            ("person1/001.png", "person1"), ("person1/003.png", "person1"),
        ]  # fmt: skip
        assert count(str(tmp_path)) == 4

    @pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
    def test_lists(self, tmp_path, kind):
        write_photos(tmp_path, 2)
        path = tmp_path / f"list.{kind}"
        lines = {
            "csv": 'file,identity,caption\n000.png,7,"a, b"\n001.png,,\n',
            "jsonl": '{"file": "000.png", "identity": 7, "caption": "a, b"}\n{"file": "001.png"}\n',
            "txt": "000.png\n001.png\n",
        }
        path.write_text(lines[kind])
        columns = Columns(image="file")
        items = list(open_source(str(path), columns))
        assert [Path(item.photo).name for item in items] == ["000.png", "001.png"]
        assert all(Path(item.photo).is_file() for item in items) and count(str(path)) == 2
        if kind != "txt":
            assert (items[0].identity, items[0].caption) == ("7", "a, b")
            assert (items[1].identity, items[1].caption) == (None, None)
            with pytest.raises(InputError, match="--image-column"):
                list(open_source(str(path)))

    def test_web_data_set(self, tmp_path):
        webdataset = pytest.importorskip("webdataset")
        for shard in range(2):
            with webdataset.TarWriter(str(tmp_path / f"in-{shard:03d}.tar")) as writer:
                for index in range(2):
                    data = jpeg(photo(10 * shard + index))
                    info = {"identity": f"p{shard}", "caption": "c"}
                    writer.write({"__key__": f"{index}", "jpg": data, "json": info})
        items = list(open_source(str(tmp_path / "in-{000..001}.tar")))
        assert [item.source for item in items] == ["in-000.tar:0", "in-000.tar:1", "in-001.tar:0", "in-001.tar:1"]
        assert [item.identity for item in items] == ["p0", "p0", "p1", "p1"] and items[0].caption == "c"
        fates = run_silently(items, tmp_path / "out", CONFIG)
        assert [fate.reason for fate in fates] == ["kept"] * 4

    def test_data_set(self, tmp_path):
        datasets = pytest.importorskip("datasets")
        good, bad = jpeg(photo(1)), b"nonsense"
        features = datasets.Features(
            {
                "image": datasets.Image(),
                "identity": datasets.ClassLabel(names=["x", "y"]),
                "text": datasets.Value("string"),
            }
        )
        rows = {
            "image": [{"bytes": good, "path": None}, {"bytes": bad, "path": None}, None],
            "identity": [1, 0, 0],
            "text": ["c", None, ""],
        }
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
        items = list(open_source(str(tmp_path / "set"), Columns(caption="text")))
        assert [(item.identity, item.caption) for item in items] == [("y", "c"), ("x", None), ("x", None)]
        fates = run_silently(items, tmp_path / "out", CONFIG)
        assert [fate.reason for fate in fates] == ["kept", "unreadable", "unreadable"]

    def test_errors(self, tmp_path):
        with pytest.raises(InputError, match="no folder, list"):
            open_source(str(tmp_path / "none"))
        with pytest.raises(InputError, match="is not a file"):
            list(open_source(str(tmp_path / "none-{0..1}.tar")))


class TestDuplicates:
    @pytest.mark.parametrize("bits", [0, 3, 10])
    def test_finds_what_comparing_all_pairs_finds(self, bits):
        random = np.random.default_rng(bits)
        hashes = [int(value) for value in random.integers(0, 2**63, 40)]
        for value in hashes[:40]:
            flips = random.choice(64, random.integers(0, 14), replace=False)
            hashes.append(value ^ sum(1 << int(flip) for flip in flips))
        finder, found = DuplicateFinder(bits), []
        for number, value in enumerate(hashes):
            found.append(finder.find(value) is not None)
            finder.add(value, str(number))
        expected = [
            any((value ^ other).bit_count() <= bits for other in hashes[:number])
            for number, value in enumerate(hashes)
        ]
        assert found == expected and sum(expected) > 0 and not all(expected[40:])

    def test_hash_survives_scaling_and_compression(self):
        for seed in range(5):
            image = photo(seed, (400, 300))
            other = PIL.Image.open(io.BytesIO(jpeg(image.resize((150, 110)), quality=60)))
            difference = perceptual_hash(np.array(image)) ^ perceptual_hash(np.array(other))
            assert difference.bit_count() <= 3
        assert (perceptual_hash(np.array(photo(1))) ^ perceptual_hash(np.array(photo(2)))).bit_count() > 10


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
        arguments = ["prepare", str(source), str(tmp_path / "out"), "--face-encoder", encoder, "--crop", "dlib"]

        before = killed([sys.executable, "-m", "facesnap_diffusers.cli", *arguments], manifest, lines=100)
        assert 100 <= before.count(b"\n") < 219
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert manifest.read_bytes().startswith(before)

        fates = list(read_fates(tmp_path / "out"))
        assert len(fates) == len(damaged) + len(photos) + 1 == 219 and all(f.detail for f in fates if not f.kept)
        fates = {fate.source: fate for fate in fates}
        assert fates.keys() == photos | {f"damaged/{name}" for name in damaged} | {"zz_copy.jpg"}
        # the files that Pillow reads all show the same portrait
        reasons = Counter(fate.reason for source, fate in fates.items() if source.startswith("damaged"))
        assert reasons == {"unreadable": 182, "kept": 1, "duplicate": 17}
        expected = {
            "landscape_no_face.jpg": "no face", "two_women.jpg": "several faces", "woman_blurred.jpg": "blurred",
            "zz_copy.jpg": "duplicate",
        }  # fmt: skip
        assert {name: fates[name].reason for name in expected} == expected
        assert {"man_a_neutral.jpg", "man_a_smiling.jpg", "man_angry.jpg", "woman_older.jpg"} <= {
            source for source, fate in fates.items() if fate.kept
        }

        faces = PreparedFaces([str(tmp_path / "out")])
        embeddings = {faces[index].info["source"]: faces[index].embedding for index in range(len(faces))}
        same = np.linalg.norm(embeddings["man_a_neutral.jpg"] - embeddings["man_a_smiling.jpg"])
        other = np.linalg.norm(embeddings["man_a_neutral.jpg"] - embeddings["man_angry.jpg"])
        assert same < 0.6 < other
        crop = PIL.Image.open(io.BytesIO(faces[0].face))
        assert crop.size == (150, 150)

        shown = CliRunner().invoke(app, ["prepare", "--stats", str(tmp_path / "out")])
        assert shown.exit_code == 0 and "unreadable" in shown.output and "duplicate" in shown.output

    def test_rolled_photo_is_upright_in_the_shard(self):
        pytest.importorskip("dlib")
        config = PrepareConfig(face_encoder="dlib/face_recognition_resnet_model_v1")
        fate, face = PhotoPreparer(config)(Item("a", str(PHOTOS / "man_rotated_90.jpg")))
        assert fate.kept
        assert face.landmarks[36:48, 1].mean() < face.landmarks[48:68, 1].mean()  # eyes above the mouth
