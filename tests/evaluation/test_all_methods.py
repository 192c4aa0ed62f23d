"""One run of all methods: its results and pictures, and going on with it."""

import io
import json

import numpy as np
import PIL.Image
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from evaluation_fixtures import all_kinds, run, scores
from insightface.utils.face_align import norm_crop
from transformers import CLIPImageProcessor

from facesnap_diffusers import InputError
from facesnap_diffusers.evaluation.benchmarks import load_benchmark
from facesnap_diffusers.faces.key_points import five_points


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
