"""Every method on tiny real checkpoints: images of its own, as diffusers makes them, and settings that are refused."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from evaluation_fixtures import SAMPLING, all_kinds, run, scores
from insightface.utils.face_align import norm_crop
from transformers import CLIPImageProcessor

from facesnap_diffusers import FaceSnapPipeline, FaceSnapXLPipeline, InputError
from facesnap_diffusers.evaluation.benchmarks import load_benchmark
from facesnap_diffusers.evaluation.methods import make_method
from facesnap_diffusers.faces.key_points import five_points


pytestmark = pytest.mark.slow


def test_all_make_images_of_their_own(all_methods):
    results, output, _, _ = all_methods
    names = list(results["methods"])
    images = {name: np.array(PIL.Image.open(output / name / "astronaut-0.png")) for name in names}
    assert all(image.shape == (64, 64, 3) and image.std() > 1 for image in images.values())
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            same = {a, b} == {"text", "off"}
            assert np.array_equal(images[a], images[b]) == same, (a, b)


def test_face_id_is_what_diffusers_makes(all_methods, models, dlib_analyzer):
    """Stock diffusers, called by hand as its documentation shows."""
    _, output, data, _ = all_methods
    pipe = StableDiffusionPipeline.from_pretrained(models / "base", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(str(models / "face_id"), subfolder=None, weight_name="weights.bin", image_encoder_folder=None)
    case = load_benchmark("nano", data).cases[0]
    embedding = dlib_analyzer.analyze(np.array(PIL.Image.open(case.reference[0])))[0].embedding
    positive = torch.from_numpy(embedding / np.linalg.norm(embedding))[None, None, None]
    check_is_made_by(pipe, positive, case, output / "face_id")


def test_face_id_plus_is_what_diffusers_makes(all_methods, models, dlib_analyzer):
    """The same for Plus v2: CLIP's view of the crop goes where diffusers' documentation puts it."""
    _, output, data, _ = all_methods
    pipe = StableDiffusionPipeline.from_pretrained(
        models / "base", safety_checker=None, image_encoder=tiny.image_encoder()
    )
    side = {"height": 32, "width": 32}
    pipe.register_modules(feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side))
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(
        str(models / "face_id_plus"), subfolder=None, weight_name="weights.bin", image_encoder_folder=None
    )
    case = load_benchmark("nano", data).cases[0]
    photo = np.array(PIL.Image.open(case.reference[0]))
    face = dlib_analyzer.analyze(photo)[0]
    crop = norm_crop(photo, five_points(face.landmarks).astype(np.float32), image_size=224)
    positive = torch.from_numpy(face.embedding / np.linalg.norm(face.embedding))[None, None, None]
    clip_embeds = pipe.prepare_ip_adapter_image_embeds([PIL.Image.fromarray(crop)], None, "cpu", 1, True)[0]
    layer = pipe.unet.encoder_hid_proj.image_projection_layers[0]
    layer.clip_embeds, layer.shortcut = clip_embeds, True
    check_is_made_by(pipe, positive, case, output / "plus")


def check_is_made_by(pipe, embeds, case, folder):
    """The method's image is what the stock pipeline makes of the face embeddings, zeros for the other half."""
    image = pipe(
        case.prompt,
        ip_adapter_image_embeds=[torch.cat([torch.zeros_like(embeds), embeds])],
        generator=torch.Generator().manual_seed(case.seed),
        num_inference_steps=2,
        guidance_scale=5.0,
        negative_prompt="",
        height=64,
        width=64,
    ).images[0]
    made = np.array(PIL.Image.open(folder / "astronaut-0.png"), dtype=int)
    assert np.abs(made - np.array(image, dtype=int)).max() <= 1


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
