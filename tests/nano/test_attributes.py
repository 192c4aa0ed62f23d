"""What examples/nano teaches and measures of hair, beard, glasses, eyes and skin."""

import numpy as np
import pytest
import torch


pytest.importorskip("dlib")
pytest.importorskip("cv2")
pytest.importorskip("scipy")

from attributes import CLASSES, as_seen, class_numbers, measures, person_mask
from dataset import SEED, TO_PACKAGE
from head_loss import align_heads, eye_colors
from people.sampling import sample_person, sample_scene
from photo_like import photo_like
from start_taught_adapter import fit_projection
from teach_image_encoder import PATCH, SIZE, UNKNOWN, Teaching, enlarged, load_reader, reader_path, to_pixels
from train_judge import Judge, overlap
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from wide_eval_set import turned_scenes

from facesnap_diffusers.faces.alignment import align_for_clip
from facesnap_diffusers.models.mixer import FacialAttributeMixer


pytestmark = pytest.mark.slow


def tiny_encoder(layers: int = 2) -> CLIPVisionModelWithProjection:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        image_size=64,
        patch_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=layers,
        projection_dim=8,
    )
    return CLIPVisionModelWithProjection(config).eval()


def portraits(renderer, people=range(4), views=1):
    index = renderer.model.expression_index
    return [
        renderer.render(sample_person(SEED, person), sample_scene(SEED, person, view, index))
        for person in people
        for view in range(views)
    ]


def test_classes_and_measures_are_those_of_the_person():
    people = [sample_person(SEED, index) for index in range(60)]
    numbers = np.stack([class_numbers(person.attributes) for person in people])
    names = list(CLASSES)
    for row, person in zip(numbers, people):
        told = {name: CLASSES[name][value] for name, value in zip(names, row)}
        assert told["hair style"] == person.hair_style and told["glasses"] == (person.glasses is not None)
        assert (told["hair length"] == "long") == (person.hair_style == "long")
        assert (told["hair color"] == "none") == (person.hair_style == "bald")
    values = np.stack([measures(person) for person in people])
    assert np.isfinite(values).all() and (values.std(0) > 0).all()
    again = np.stack([measures(sample_person(SEED, index)) for index in range(60)])
    np.testing.assert_array_equal(values, again)


def test_what_looks_alike_counts_as_one():
    names = list(CLASSES)
    numbers = np.array([[len(CLASSES[name]) - 1 for name in names], [0] * len(names)])
    numbers[:, names.index("hair style")] = [CLASSES["hair style"].index(name) for name in ("parted", "bun")]
    numbers[:, names.index("beard")] = [CLASSES["beard"].index(name) for name in ("goatee", "moustache")]
    seen = as_seen(numbers)
    told = [{name: CLASSES[name][number] for name, number in zip(names, row)} for row in seen]
    assert [one["hair style"] for one in told] == ["short", "bun"] and [one["beard"] for one in told] == [
        "goatee",
        "none",
    ]
    others = [k for k, name in enumerate(names) if name not in ("hair style", "beard")]
    np.testing.assert_array_equal(seen[:, others], numbers[:, others])


def test_the_mask_is_where_the_renderer_draws_the_person(renderer):
    index = renderer.model.expression_index
    for number, portrait in enumerate(portraits(renderer, range(36))):
        person = person_mask(portrait.image, sample_scene(SEED, number, 0, index))
        drawn = portrait.coverage > 127
        assert (person & drawn).sum() / (person | drawn).sum() > 0.97


def test_a_photo_like_head_shows_the_same_person_elsewhere(renderer):
    portrait = portraits(renderer, [2])[0]
    head = align_for_clip(portrait.image, portrait.landmarks + TO_PACKAGE, SIZE)
    background = np.zeros(head.shape[:2], np.uint8)
    variants = [photo_like(head, background, np.random.default_rng(k)) for k in range(8)]
    assert all(variant.shape == head.shape and variant.dtype == np.uint8 for variant in variants)
    same = photo_like(head, background, np.random.default_rng(3))
    np.testing.assert_array_equal(variants[3], same)
    assert all(2 < np.abs(variant.astype(int) - head).mean() < 90 for variant in variants)


def test_a_larger_encoder_starts_with_the_states_of_the_smaller_one():
    small = tiny_encoder()
    large = enlarged(small).eval()
    assert (large.config.image_size, large.config.patch_size, large.config.num_hidden_layers) == (SIZE, PATCH, 3)
    picture = torch.rand(1, 3, 8, 8)
    pictures = [torch.nn.functional.interpolate(picture, (side, side), mode="bicubic") for side in (64, SIZE)]
    with torch.no_grad():
        wanted, found = (
            encoder(pixels, output_hidden_states=True).hidden_states[-2]
            for encoder, pixels in zip((small, large), pictures)
        )
    error = (found - wanted).square().mean() / (wanted - wanted.mean(1, keepdim=True)).square().mean()
    assert error < 1e-2


def test_closed_eyes_teach_no_color_and_what_was_taught_can_be_loaded(tmp_path):
    start = tiny_encoder()
    spread = np.zeros(79, np.float32), np.ones(79, np.float32)
    model = Teaching(enlarged(start), spread)
    heads = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    classes = np.zeros((4, len(CLASSES)), int)
    wanted = np.zeros((4, 79), np.float32)
    open_eyes = model.losses(heads, classes, wanted)["classes"]
    classes[:, list(CLASSES).index("eyes")] = UNKNOWN
    closed = model.losses(heads, classes, wanted)["classes"]
    found, _ = model(to_pixels(heads, model.processor))
    of_eyes = [torch.nn.functional.cross_entropy(read[6], torch.zeros(4, dtype=int)) for read in found]
    torch.testing.assert_close(open_eyes - closed, torch.stack(of_eyes).mean())

    torch.save(model.state_dict(), reader_path(tmp_path))
    model.encoder.save_pretrained(tmp_path / "image_encoder")
    with torch.no_grad():
        again, _ = load_reader(tmp_path)(to_pixels(heads, model.processor))
    torch.testing.assert_close(again[0][0], found[0][0])


def test_heads_are_aligned_as_the_image_encoder_sees_them(renderer):
    shown = portraits(renderer, range(3))
    points = np.stack([portrait.landmarks for portrait in shown]) + TO_PACKAGE
    pictures = torch.from_numpy(np.stack([portrait.image for portrait in shown])).permute(0, 3, 1, 2).float()
    found = align_heads(pictures, torch.from_numpy(points), SIZE).permute(0, 2, 3, 1).numpy()
    for head, portrait, places in zip(found, shown, points):
        wanted = align_for_clip(portrait.image, places, SIZE)
        inside = head.sum(-1) > 0  # outside of the picture one is black, the other of CLIP's mean color
        assert np.abs(head - wanted)[inside].mean() < 6


def test_the_colors_of_eyes_are_read_where_they_are(renderer):
    for portrait in portraits(renderer):
        points = torch.from_numpy(portrait.landmarks + TO_PACKAGE)[None]
        places = torch.stack(torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="xy"), -1)
        picture = torch.zeros(1, 3, 128, 128)
        for eye, channel in ((points[0, 36:42], 0), (points[0, 42:48], 1)):
            near = (places - eye.mean(0)).norm(dim=2) < 0.5 * (eye[3] - eye[0]).norm()
            picture[0, channel][near] = 1.0
        picture.requires_grad_(True)
        colors = eye_colors(picture, points)
        # 0.5 of a width is 2.8 standard deviations: of a disc of that size 1 - exp(-2.8 ** 2 / 2)
        torch.testing.assert_close(colors.detach()[0], torch.tensor([[0.98, 0, 0], [0, 0.98, 0]]), atol=0.02, rtol=0)
        colors.sum().backward()
        assert picture.grad[0, :, -20:].abs().max() < 1e-6 < picture.grad.abs().max()


def test_a_fitted_projection_reads_from_new_states_what_it_read_from_the_old():
    torch.manual_seed(0)
    mixer = FacialAttributeMixer(
        cross_attention_dim=16,
        face_embed_dim=8,
        image_embed_dim=12,
        num_tokens=4,
        hidden_size=16,
        num_layers=1,
        attention_head_dim=8,
    )
    new = torch.randn(50, 5, 20)
    old = new @ torch.randn(20, 12) + 1.0
    embeddings = torch.randn(50, 8)
    with torch.no_grad():
        before = mixer(embeddings, old)
        unexplained = fit_projection(mixer, old, new)
        after = mixer(embeddings, new)
    assert unexplained < 1e-4 and mixer.config.image_embed_dim == 20
    torch.testing.assert_close(after, before, atol=0.02, rtol=0)


def test_the_judge_answers_every_class_and_every_pixel():
    named, mask = Judge()(torch.rand(2, 3, 128, 128) * 2 - 1)
    assert [logits.shape for logits in named] == [(2, len(values)) for values in CLASSES.values()]
    assert mask.shape == (2, 128, 128)
    one, other = np.zeros((2, 1, 4, 4), bool)
    one[:, :2], other[:, 1:3] = True, True
    assert overlap(one, other) == pytest.approx([1 / 3])


@pytest.mark.parametrize(("axis", "degrees"), [("yaw", 60), ("roll", 25), ("pitch", 25)])
def test_wide_scenes_are_turned_about_one_axis(renderer, axis, degrees):
    made = turned_scenes(axis, renderer.model, 3, sample_person(SEED, 3), renderer.size)
    reference, turned = next(made), next(made)
    assert abs(getattr(reference, axis)) < 20 and abs(getattr(turned, axis)) == degrees
    assert all(abs(getattr(turned, other)) <= 10 for other in {"yaw", "roll", "pitch"} - {axis})
