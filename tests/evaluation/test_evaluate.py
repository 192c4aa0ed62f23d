"""Runs with references that have no face, adapters of other kinds, and what is refused."""

import json

import pytest
import tiny
from evaluation_fixtures import DLIB, SAMPLING, run, scores

from facesnap_diffusers import FaceSnapPipeline


pytestmark = pytest.mark.slow


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
    told = {name: method["trained_with_face_encoder_ids"] for name, method in results["methods"].items()}
    assert told == {"both": [DLIB], "clip": []}


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
