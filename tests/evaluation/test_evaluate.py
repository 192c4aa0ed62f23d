"""Whole runs of all methods: results, continuing a run, and what is refused."""

import io
import json

import numpy as np
import PIL.Image
import pytest
import tiny
from evaluation_fixtures import DLIB, SAMPLING, all_kinds, run, scores

from facesnap_diffusers import FaceSnapPipeline, InputError


pytestmark = pytest.mark.slow


def test_metrics_and_reports(all_methods):
    results, output, _, _ = all_methods
    assert scores(results, "text", "clip_i_text")["mean"] == pytest.approx(1, abs=1e-6)
    assert scores(results, "facesnap", "clip_i_text")["mean"] < 1
    for metric in ("landmark_nme", "yaw_error", "ground_truth_nme", "clip_t", "clip_i", "background"):
        assert scores(results, "facesnap", metric)["n"] == 2, metric
    assert json.loads((output / "results.json").read_text())["methods"].keys() == results["methods"].keys()
    table = (output / "results.md").read_text()
    assert len([line for line in table.splitlines() if line.startswith("| ")]) == 2 + len(results["methods"])
    sheet = PIL.Image.open(output / "contact_sheet.png")
    assert sheet.width > 9 * 192
    assert sheet.height > 2 * 192


def test_it_goes_on_where_it_was(all_methods, models):
    results, output, data, options = all_methods
    methods = list(all_kinds(models).values())[:2]
    missing, kept = output / "facesnap" / "astronaut-1.png", output / "facesnap" / "astronaut-0.png"
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (missing, kept)}
    missing.unlink()
    again = run(data, output, methods, batch_size=1, **options)
    assert kept.stat().st_mtime_ns == before[kept][1]
    # alone instead of in a batch of two: the same but by rounding
    old = np.array(PIL.Image.open(io.BytesIO(before[missing][0])), dtype=int)
    assert np.abs(np.array(PIL.Image.open(missing), dtype=int) - old).max() <= 1
    assert scores(again, "facesnap", "clip_t")["mean"] == pytest.approx(
        scores(results, "facesnap", "clip_t")["mean"], abs=0.2
    )


def test_it_does_not_mix_settings(all_methods, models):
    _, output, data, options = all_methods
    changed = {**options, "sampling": {**options["sampling"], "guidance_scale": 3.0}}
    with pytest.raises(InputError, match="other settings"):
        run(data, output, ["text"], **changed)
    other = models / "adapter/other-weights.txt"
    other.touch()
    try:
        with pytest.raises(InputError, match="other settings"):
            run(data, output, list(all_kinds(models).values())[:2], **options)
    finally:
        other.unlink()


def test_a_reference_without_a_face(people, models, tmp_path):
    """dlib finds no face in a made-up person: the method fails on that one, and it shows."""
    sampling = {**SAMPLING, "base": str(models / "base")}
    methods = [{"kind": "facesnap", "adapter": str(models / "adapter")}]
    results = run(people, tmp_path, methods, sampling=sampling, limit=2, batch_size=2)
    assert scores(results, "facesnap", "failed")["mean"] == scores(results, "facesnap", "no_face")["mean"] == 0.5
    assert scores(results, "facesnap", "top1")["n"] == 2
    failed = list((tmp_path / "facesnap").glob("*.failed"))
    stamps = [path.stat().st_mtime_ns for path in failed]
    run(people, tmp_path, methods, sampling=sampling, limit=2)
    assert len(failed) == 1
    assert [path.stat().st_mtime_ns for path in failed] == stamps


def test_an_adapter_without_embeddings_is_not_flattered(astronaut, models, tmp_path):
    pipe = FaceSnapPipeline.from_pretrained(models / "base", safety_checker=None)
    tiny.add_adapter(pipe, face_embed_dim=None)
    pipe.save_facesnap_adapter(tmp_path / "clip")
    methods = [{"kind": "facesnap", "name": name, "adapter": str(folder)} for name, folder in
               (("both", models / "adapter"), ("clip", tmp_path / "clip"))]  # fmt: skip
    sampling = {**SAMPLING, "base": str(models / "base")}
    results = run(astronaut, tmp_path / "out", methods, sampling=sampling, limit=1)
    told = {name: method["trained_with_face_encoder_id"] for name, method in results["methods"].items()}
    assert told == {"both": DLIB, "clip": None}


@pytest.mark.parametrize(
    ("method", "sampling", "message"),
    [
        ("text", {}, "sampling.base is missing"),
        ("text", {"base": "{models}/nowhere"}, "nowhere"),
        ({"kind": "facesnap", "landmarks": "mine"}, {"base": "{models}/base"}, "'retargeted' or 'driving'"),
        (
            {"kind": "ip_adapter_faceid", "adapter": "{models}/face_id", "weight_name": "x.bin"},
            {"base": "{models}/base"},
            "x.bin",
        ),
        ({"kind": "facesnap", "adapter": "{models}/base"}, {"base": "{models}/base"}, "not a FaceSnap adapter"),
    ],
)
def test_what_cannot_be_loaded(people, models, tmp_path, method, sampling, message):
    method, sampling = json.loads(json.dumps([method, sampling]).replace("{models}", str(models)))
    with pytest.raises(ValueError, match=message) as caught:
        run(people, tmp_path, [method], sampling=sampling)
    assert "\n" not in str(caught.value)
