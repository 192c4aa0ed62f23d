"""Methods on tiny real checkpoints: known landmarks, SDXL, and settings that are refused."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import tiny
import torch
from evaluation_fixtures import SAMPLING, all_kinds, run, scores

from facesnap_diffusers import FaceSnapPipeline, FaceSnapXLPipeline, InputError
from facesnap_diffusers.evaluation.benchmarks import load_benchmark
from facesnap_diffusers.evaluation.methods import make_method


pytestmark = pytest.mark.slow


def test_known_landmarks_are_taken(astronaut, models, dlib_analyzer, tmp_path):
    """In place of dlib's, for the tokens and for the target, as if the pipeline had been given them."""
    data = tmp_path / "data"
    shutil.copytree(astronaut, data)
    manifest = json.loads((data / "manifest.json").read_text())
    points = 2.5 * np.array(manifest["cases"][0]["driving_landmarks"])
    manifest["people"]["astronaut"]["landmarks"] = points.tolist()
    (data / "manifest.json").write_text(json.dumps(manifest))
    sampling = {**SAMPLING, "base": str(models / "base")}
    run(data, tmp_path / "out", [all_kinds(models)["facesnap"]], [dlib_analyzer], sampling=sampling)

    case = load_benchmark("nano", data).cases[0]
    pipe = FaceSnapPipeline.from_pretrained(models / "base", safety_checker=None)
    pipe.load_facesnap_adapter(models / "adapter")
    pipe.set_progress_bar_config(disable=True)
    photo = np.array(PIL.Image.open(case.reference[0]))
    embedding = dlib_analyzer.analyze(photo)[0].embedding
    image = pipe(
        case.prompt,
        identity=pipe.encode_face(photo, embedding=embedding, landmarks=points),
        pose=case.pose,
        expression=case.expression,
        face_box=case.face_box,
        generator=torch.Generator().manual_seed(case.seed),
        num_inference_steps=2,
        guidance_scale=5.0,
        height=64,
        width=64,
    ).images[0]
    made = np.array(PIL.Image.open(tmp_path / "out/facesnap/astronaut-0.png"), dtype=int)
    assert np.abs(made - np.array(image, dtype=int)).max() <= 1


def test_sdxl(astronaut, tmp_path):
    base = tiny.xl_pipeline()
    base.save_pretrained(tmp_path / "base")
    pipe = FaceSnapXLPipeline.from_pipe(base)
    tiny.add_adapter(pipe)
    pipe.save_facesnap_adapter(tmp_path / "adapter")
    methods = ["text", {"kind": "facesnap", "adapter": str(tmp_path / "adapter")}]
    sampling = {**SAMPLING, "base": str(tmp_path / "base")}
    results = run(astronaut, tmp_path / "out", methods, sampling=sampling, limit=1)
    assert scores(results, "facesnap", "failed")["mean"] == 0
    a, b = (PIL.Image.open(tmp_path / "out" / name / "astronaut-0.png") for name in ("text", "facesnap"))
    assert not np.array_equal(np.array(a), np.array(b))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("magic", "choose one of text"),
        ({"kind": "facesnap", "adaptor": "x"}, "adaptor"),
        ({"kind": "facesnap", "identity_scale": "much"}, "identity_scale"),
        ({"kind": "ip_adapter_faceid_plus", "shortcut": "maybe"}, "shortcut"),
        ({"kind": "text", "name": 3}, "name"),
    ],
)
def test_wrong_settings(values, message):
    with pytest.raises(InputError, match=message):
        make_method(values)
