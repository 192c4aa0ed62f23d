"""Whole runs of methods that copy pictures, whose scores are known, and summaries."""

import dataclasses
import json
import math
import shutil

import numpy as np
import PIL.Image
import pytest
from evaluation_fixtures import DLIB, GridAnalyzer, run, scores

from facesnap_diffusers import InputError
from facesnap_diffusers.evaluation.benchmarks import load_benchmark
from facesnap_diffusers.evaluation.scoring import summarize


pytestmark = pytest.mark.slow


def test_summary():
    rows = [
        {"case": "1", "person": "a", "group": "x", "m": 1.0},
        {"case": "2", "person": "a", "group": "x", "m": 2.0},
        {"case": "3", "person": "a", "group": "y", "m": 6.0},
        {"case": "4", "person": "a", "group": "y", "m": None},
    ]
    summary = summarize(rows)
    assert summary["all"]["m"] == {"mean": 3.0, "median": 2.0, "sem": pytest.approx(math.sqrt(7 / 3)), "n": 3}
    assert summary["x"]["m"]["mean"] == 1.5
    assert summary["y"]["m"]["n"] == 1


class TestLimits:
    """Methods that copy pictures: what the metrics say is known."""

    def test_the_reference_and_the_truth(self, people, tmp_path):
        results = run(people, tmp_path, ["reference", "ground_truth"])
        assert scores(results, "reference", "face_similarity")["mean"] == pytest.approx(1, abs=1e-6)
        assert scores(results, "reference", "face_distance")["mean"] == 0
        assert scores(results, "reference", "top1")["mean"] == 1
        assert scores(results, "reference", "no_face")["mean"] == 0
        assert scores(results, "reference", "copy_paste")["mean"] == pytest.approx(1, abs=1e-5)
        assert scores(results, "ground_truth", "copy_paste")["mean"] == pytest.approx(-1, abs=1e-5)
        for metric in (
            "ground_truth_nme",
            "ground_truth_yaw_error",
            "ground_truth_distance",
            "ground_truth_pixel_error",
        ):
            assert scores(results, "ground_truth", metric)["mean"] == 0
        assert scores(results, "reference", "ground_truth_pixel_error")["mean"] > 0
        assert results["people"] == results["gallery"] == 3
        assert results["cases"] == 6

    def test_the_truth_in_another_size(self, people, tmp_path):
        """Points are counted from the middle of the first pixel: half a pixel more of a picture is not half of the other."""
        made = tmp_path / "made"
        made.mkdir()
        for case in json.loads((people / "manifest.json").read_text())["cases"]:
            picture = PIL.Image.open(people / case["ground_truth"])
            picture.resize((picture.width // 2, picture.height // 2), PIL.Image.Resampling.BOX).save(
                made / f"{case['id']}.png"
            )

        class CenteredAnalyzer(GridAnalyzer):
            def analyze(self, image):
                faces = super().analyze(image)
                return [dataclasses.replace(face, landmarks=face.landmarks - 0.5) for face in faces]

        methods = [{"kind": "images", "name": "made", "folder": str(made)}]
        results = run(people, tmp_path / "results", methods, analyzers=[CenteredAnalyzer()])
        assert scores(results, "made", "ground_truth_nme")["mean"] == pytest.approx(0, abs=1e-6)

    def test_several_references_are_as_long_as_one(self, people, tmp_path):
        data = shutil.copytree(people, tmp_path / "people")
        manifest = json.loads((data / "manifest.json").read_text())
        manifest["people"]["a"]["reference"].append("b/reference.png")
        (data / "manifest.json").write_text(json.dumps(manifest))
        run(data, tmp_path, ["reference"], analyzers=[GridAnalyzer()])
        analyze = GridAnalyzer().analyze
        one, other = (
            analyze(np.asarray(PIL.Image.open(data / name / "reference.png").convert("RGB")))[0].embedding
            for name in "ab"
        )
        mean = (one + other) / np.linalg.norm(one + other) * (np.linalg.norm(one) + np.linalg.norm(other)) / 2
        rows = [json.loads(line) for line in (tmp_path / "reference/scores.jsonl").read_text().splitlines()]
        (found,) = {row["face_distance"] for row in rows if row["person"] == "a"}
        assert found == pytest.approx(np.linalg.norm(one - mean), rel=1e-5)

    def test_shuffled_pairs_are_found_at_chance_level(self, tmp_path):
        """Whole runs on 20 people: their own pictures with some noise find them, those of a random other one do not."""
        rng = np.random.default_rng(4)
        cells = rng.integers(20, 236, (20, 4, 4, 3))
        (tmp_path / "data").mkdir()
        people, cases = {}, []
        for number, picture in enumerate(cells):
            name = f"{number:02}"
            PIL.Image.fromarray(picture.astype(np.uint8)).resize((32, 32), 0).save(tmp_path / "data" / f"{name}.png")
            people[name] = {"reference": [f"{name}.png"]}
            cases += [{"id": f"{name}-{image}", "person": name, "prompt": "someone"} for image in range(3)]
        manifest = {"format": "facesnap-nano-eval", "version": 2, "people": people, "cases": cases}
        (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
        shown = {"own": np.repeat(np.arange(20), 3), "shuffled": rng.integers(0, 20, 60)}
        for name, chosen in shown.items():
            (tmp_path / name).mkdir()
            for case, number in zip(cases, chosen):
                noisy = np.clip(cells[number] + rng.integers(-20, 21, (4, 4, 3)), 1, 255).astype(np.uint8)
                PIL.Image.fromarray(noisy).resize((32, 32), 0).save(tmp_path / name / f"{case['id']}.png")
        methods = [{"kind": "images", "name": name, "folder": str(tmp_path / name)} for name in shown]
        results = run(tmp_path / "data", tmp_path / "out", methods, sheet_rows=0)
        assert scores(results, "own", "top1")["mean"] == 1
        for k in (1, 5):
            chance = k / 20
            found = scores(results, "shuffled", f"top{k}")["mean"]
            assert abs(found - chance) < 4 * math.sqrt(chance * (1 - chance) / 60), k
        # a random choice shows the right one now and then: those are the hits
        hits = np.mean(shown["shuffled"] == shown["own"])
        assert scores(results, "shuffled", "top1")["mean"] == pytest.approx(hits)
        assert hits > 0

    def test_an_identical_photo_to_dlib(self, astronaut, tmp_path, dlib_analyzer):
        results = run(astronaut, tmp_path, ["reference"], [dlib_analyzer])
        assert scores(results, "reference", "face_similarity")["mean"] == pytest.approx(1, abs=1e-6)
        assert scores(results, "reference", "face_distance")["mean"] == 0
        (row, _) = [json.loads(line) for line in (tmp_path / "reference" / "scores.jsonl").read_text().splitlines()]
        found = dlib_analyzer.analyze(np.array(PIL.Image.open(astronaut / "astronaut" / "reference.png")))[0]
        true = dlib_analyzer.analyze(np.array(PIL.Image.open(astronaut / "astronaut" / "0.png")))[0]
        assert row["ground_truth_distance"] == pytest.approx(
            np.linalg.norm(found.embedding - true.embedding), abs=1e-5
        )
        unit = np.linalg.norm(true.landmarks[36] - true.landmarks[45])
        errors = np.linalg.norm(found.landmarks - true.landmarks, axis=1)
        assert row["ground_truth_nme"] == pytest.approx(errors.mean() / unit, rel=1e-4)
        assert row["ground_truth_nme"] > 0.02

    def test_images_of_another_program(self, people, tmp_path):
        folder = tmp_path / "theirs"
        folder.mkdir()
        for case in load_benchmark("nano", people).cases:
            picture = PIL.Image.open(case.reference[0]).resize((64, 64))
            if case.id == "a-0":
                picture = PIL.Image.new("RGB", (64, 64))
            elif case.person == "b":
                picture = PIL.Image.open(people / "a" / "reference.png").resize((64, 64))
            picture.save(folder / f"{case.id}.webp", lossless=True)
        method = {"kind": "images", "name": "their | way", "folder": str(folder)}
        results = run(people, tmp_path / "out", [method])
        assert scores(results, "their | way", "no_face")["mean"] == pytest.approx(1 / 6)
        # the black one finds nobody, and b's images show a
        assert scores(results, "their | way", "top1")["mean"] == pytest.approx(3 / 6)
        assert scores(results, "their | way", "top5")["mean"] == pytest.approx(5 / 6)
        assert scores(results, "their | way", "face_similarity")["n"] == 5
        assert "their \\| way" in (tmp_path / "out" / "results.md").read_text()
        PIL.Image.new("RGB", (64, 64), "red").save(folder / "b-0.webp")
        with pytest.raises(InputError, match="b-0.png was made with other settings or data"):
            run(people, tmp_path / "out", [method])
        (folder / "a-1.webp").unlink()
        with pytest.raises(InputError, match="a-1"):
            run(people, tmp_path / "again", ["reference", method])
        assert not (tmp_path / "again/reference").exists(), "found out before any work"

    def test_damaged_features_are_computed_again(self, astronaut, tmp_path):
        results = run(astronaut, tmp_path, ["reference"])
        for path in (tmp_path / "features").iterdir():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert run(astronaut, tmp_path, ["reference"])["methods"] == results["methods"]

    def test_people_without_a_face_are_left_out(self, tmp_path):
        for name, color in {"dark": "black", "red": "red", "blue": "blue"}.items():
            PIL.Image.new("RGB", (64, 64), color).save(tmp_path / f"{name}.png")
        options = {"benchmark": "unsplash50", "clip_model_id": "none", "limit": 9}
        results = run(tmp_path, tmp_path / "out", ["reference"], **options)
        assert (results["cases"], results["gallery"]) == (6, 2)
        text = (tmp_path / "out" / "results.md").read_text()
        assert (
            "no face is found in their reference: 1 of the people" in text and "dark" not in text
        )  # names stay private
        assert results["people_without_face"] == ["dark"]
        for name in ("red", "blue"):
            PIL.Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
        shutil.rmtree(tmp_path / "out")  # has images, too
        with pytest.raises(InputError, match="no reference shows a face"):
            run(tmp_path, tmp_path / "none", ["reference"], **options)

    def test_two_recognizers(self, astronaut, tmp_path, dlib_analyzer):
        results = run(astronaut, tmp_path, ["reference"], [GridAnalyzer(), dlib_analyzer])
        assert scores(results, "reference", f"face_distance/{DLIB}")["n"] == 2
        assert scores(results, "reference", f"no_face/{DLIB}")["mean"] == 0
        assert results["face_encoder_ids"] == ["tests/grid", DLIB]
