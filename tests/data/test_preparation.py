"""Preparing an input: nothing lost, nothing done twice, whatever stops the run."""

import json
import os
import shutil
import sys
from pathlib import Path

import PIL.Image
import pytest
from tiny_preparation import (
    CONFIG,
    LENIENT,
    SIZE,
    MarkedFaces,
    contents,
    killed,
    photo,
    run_silently,
    write_damaged,
    write_photos,
)

from facesnap_diffusers.data.preparation import prepare, statistics
from facesnap_diffusers.data.shard_settings import PrepareConfig
from facesnap_diffusers.data.shards import MANIFEST
from facesnap_diffusers.data.sources import Item, open_source
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
            "000.png": "kept", "dark.png": "no face", "fine.png": "kept", "larger.jpg": "duplicate", "small.png": "small face",
        }  # fmt: skip
        assert records["larger.jpg"].detail == "of 000.png"
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
