"""The second pass for small faces."""

from types import SimpleNamespace

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tiny
import torch
from skimage.data import astronaut

from facesnap_diffusers import (
    AdapterError,
    FaceSnapImg2ImgPipeline,
    FaceSnapInpaintPipeline,
    FaceSnapPipeline,
    FaceSnapXLImg2ImgPipeline,
    HeadPose,
    InputError,
    Person,
    redraw_faces,
)
from facesnap_diffusers.pipelines import refine


CALL = {"num_inference_steps": 4, "strength": 0.5}


def picture(height=96, width=128):
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.fixture(scope="module")
def pipe():
    return tiny.with_adapter(tiny.sd_pipeline())


SMALL, OTHER = (0.1, 0.2, 0.25, 0.4), (0.7, 0.5, 0.8, 0.65)


def test_only_the_squares_of_small_faces_change(pipe):
    image = picture()
    people = [Person(tiny.identity(), SMALL), Person(tiny.identity(4), OTHER)]
    result = redraw_faces(pipe, image, "a cat", people, generator=tiny.seeded(), **CALL)
    changed = (pixels(result) != pixels(image)).any(-1)
    squares = np.zeros_like(changed)
    for left, top, right, bottom in (SMALL, OTHER):
        x, y = (left + right) / 2 * 128, (top + bottom) / 2 * 96
        half = max((right - left) * 128, (bottom - top) * 96) + 1
        rows, columns = np.mgrid[:96, :128]
        square = (abs(columns + 0.5 - x) <= half) & (abs(rows + 0.5 - y) <= half)
        assert changed[square].mean() > 0.5
        squares |= square
    assert not changed[~squares].any()
    assert result.size == image.size


@pytest.mark.parametrize("make", [tiny.sd_pipeline, tiny.xl_pipeline])
def test_a_square_is_image_to_image_with_the_same_landmarks(make):
    pipe = tiny.with_adapter(make())
    image, who, box, pose = picture(64, 64), tiny.identity(), (0.25, 0.25, 0.5, 0.5), HeadPose(yaw=20)
    result = redraw_faces(
        pipe, image, "a cat", [Person(who, box, pose=pose)], feather=0, generator=tiny.seeded(), **CALL
    )
    # the box is 16 pixels wide, its square 32, from (8, 8) on; enlarged to the tiny model's 64
    points = pipe.predict_landmarks(who, face_box=box, pose=pose, height=64, width=64)
    cls = FaceSnapXLImg2ImgPipeline if make is tiny.xl_pipeline else FaceSnapImg2ImgPipeline
    image_to_image = tiny.facesnap(pipe, cls)
    redrawn = image_to_image(
        "a cat",
        image=image.crop((8, 8, 40, 40)).resize((64, 64), PIL.Image.Resampling.LANCZOS),
        identity=who,
        landmarks=2 * (points - 8),
        generator=tiny.seeded(),
        **CALL,
    ).images[0]
    expected = pixels(image)
    expected[8:40, 8:40] = pixels(redrawn.resize((32, 32), PIL.Image.Resampling.LANCZOS))
    assert abs(pixels(result) - expected).max() <= 1
    assert abs(expected - pixels(image)).max() > 20


def unchanged_but(monkeypatch, change=lambda image: image):
    """Puts in place an image-to-image that changes what it gets in this way only; returns what it is called with."""
    calls = []

    def image_to_image(prompt, image, **kwargs):
        calls.append({"image": image, **kwargs})
        return SimpleNamespace(images=[change(image)])

    monkeypatch.setattr(refine, "_image_to_image", lambda pipe: image_to_image)
    return calls


def test_a_face_is_redrawn_in_full_size_at_its_place(pipe, monkeypatch):
    """Enlarged to the model's size, with landmarks on the face that is there, and put back where it was cut out."""
    calls = unchanged_but(monkeypatch)
    image = PIL.Image.fromarray(astronaut())
    box = (0.36, 0.12, 0.52, 0.36)  # of the face
    result = redraw_faces(pipe, image, "a cat", [Person(tiny.identity(), box)], size=768)
    (call,) = calls
    # the box is 82 × 123 pixels, its square twice the larger side
    assert call["image"].size == (768, 768) and (call["height"], call["width"]) == (768, 768)
    expected = image.crop((102, 0, 348, 246)).resize((768, 768), PIL.Image.Resampling.LANCZOS)
    assert abs(pixels(call["image"]) - pixels(expected)).mean() < 1
    low, high = call["landmarks"][0].amin(0), call["landmarks"][0].amax(0)
    inside = 768 / 246 * (torch.tensor([0.36, 0.12, 0.52, 0.36]) * 512 - torch.tensor([102, 0, 102, 0]))
    assert (low > inside[:2] - 8).all() and (high < inside[2:] + 8).all()
    # what enlarging and shrinking leave of it: less than a tenth of what a shift by one pixel would give
    original = pixels(image)[:246, 102:348]
    difference = abs(pixels(result)[:246, 102:348] - original).mean()
    assert 0 < difference < 0.1 * abs(np.diff(original, axis=1)).mean()


def test_the_face_of_somebody_else_in_the_square_stays(pipe, monkeypatch):
    unchanged_but(monkeypatch, PIL.ImageOps.invert)
    image = picture(64, 128)
    # the square around the small face is 26 pixels wide, from column 32 to 58
    small, large = (0.3, 0.4, 0.4, 0.6), (0.41, 0.05, 0.9, 0.95)
    people = [Person(tiny.identity(), small), Person(tiny.identity(4), large)]
    changed = (pixels(redraw_faces(pipe, image, "a cat", people)) != pixels(image)).any(-1)
    assert changed[26:38, 39:51].mean() > 0.9
    assert not changed[4:60, 53:].any()


def test_at_the_edge_of_the_image_nothing_fades(pipe, monkeypatch):
    unchanged_but(monkeypatch, PIL.ImageOps.invert)
    image = PIL.Image.new("RGB", (96, 96), (100, 100, 100))
    result = pixels(redraw_faces(pipe, image, "a cat", [Person(tiny.identity(), (0, 0, 0.25, 0.25))], size=64))
    assert (result[:40, :40] == 155).all() and (result[48:] == 100).all() and (result[:, 48:] == 100).all()
    assert 100 < result[20, 44, 0] < 155


def test_large_faces_are_left(pipe):
    image = picture()
    result = redraw_faces(pipe, image, "a cat", [Person(tiny.identity(), (0.2, 0.1, 0.8, 0.9))], **CALL)
    assert (pixels(result) == pixels(image)).all()


def test_edges_are_soft(pipe):
    image = PIL.Image.new("RGB", (96, 96), (128, 128, 128))
    result = redraw_faces(pipe, image, "a cat", [Person(tiny.identity(), (0.35, 0.35, 0.65, 0.65))], **CALL)
    difference = abs(pixels(result) - 128).max(-1)
    rows = np.flatnonzero(difference.any(1))
    border = difference[rows[0] : rows[-1] + 1][:2].mean()
    assert 0 < border < 0.25 * difference[40:56, 40:56].mean()


def test_errors_are_typed(pipe):
    people = [Person(tiny.identity(), SMALL)]
    for arguments, message in [
        ({"image": "photo.png"}, "does not exist"),
        ({"prompt": ["a cat"]}, "prompt must be"),
        ({"size": 60.5}, "size must be"),
        ({"size": 0}, "size must be"),
        ({"strength": 2}, "strength must be"),
        ({"feather": 0.8}, "feather must be"),
        ({"margin": -1}, "margin must be"),
        ({"people": [Person(tiny.identity())]}, "has no face_box"),
        ({"people": [Person(tiny.identity(), SMALL)] * 2}, "overlap"),
    ]:
        with pytest.raises(InputError, match=message):
            redraw_faces(pipe, **{"image": picture(), "prompt": "a cat", "people": people, **arguments})
    base = tiny.sd_pipeline()
    base.unet = tiny.sd_unet(in_channels=9)
    inpainting = tiny.facesnap(base, FaceSnapInpaintPipeline)
    tiny.add_adapter(inpainting, parts=["mixer", "identity_attention"])
    with pytest.raises(InputError, match="takes 9 channels"):
        redraw_faces(inpainting, picture(), "a cat", people)
    with pytest.raises(AdapterError, match="redraw_faces needs"):
        redraw_faces(FaceSnapPipeline.from_pipe(tiny.sd_pipeline()), picture(), "a cat", people)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margin": float("inf")}, "margin must be a finite number"),
        ({"strength": True}, "strength must be a finite number"),
        ({"feather": "x"}, "feather must be a finite number"),
        ({"size": 63}, "size must be a positive multiple"),
        ({"height": 64}, "height= is that of each square"),
        ({"identity": tiny.identity()}, "identity= is that of each square"),
    ],
)
def test_odd_values(pipe, arguments, message):
    with pytest.raises(InputError, match=message):
        redraw_faces(pipe, picture(), "a cat", [Person(tiny.identity(), SMALL)], **{**CALL, **arguments})
    with pytest.raises(InputError, match="pipe must be a FaceSnap pipeline"):
        redraw_faces(None, picture(), "a cat", [Person(tiny.identity(), SMALL)])


def test_a_box_of_less_than_a_pixel_and_a_tuple(pipe):
    image, people = picture(), [Person(tiny.identity(), (0.5, 0.5, 0.501, 0.501))]
    result = redraw_faces(pipe, image, "a cat", people, return_dict=False, generator=tiny.seeded(), **CALL)
    changed = (pixels(result) != pixels(image)).any(-1)
    assert changed.sum() <= 1 and result.size == image.size
