"""People given as photos, and faces that are found in the image itself."""

import warnings
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import tiny
import torch

from facesnap_diffusers import Face, InputError, NoFaceFoundError, Person, redraw_faces
from facesnap_diffusers.pipelines import refine


PHOTO = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8))
LEFT, RIGHT = (0.1, 0.2, 0.25, 0.45), (0.6, 0.3, 0.75, 0.55)


class Finder:
    """Finds faces of the mean shape in boxes, as shares of the image; each with an embedding of its own."""

    encoder = tiny.FACE_ENCODER
    embedding_dim = tiny.FACE_EMBED_DIM

    def __init__(self, *boxes):
        self.boxes = boxes

    def analyze(self, image):
        height, width = image.shape[:2]
        points = tiny.face_points().numpy()
        low, high = points.min(0), points.max(0)
        faces = []
        for i, (left, top, right, bottom) in enumerate(self.boxes):
            box = np.array([left * width, top * height, right * width, bottom * height])
            inside = (points - low) / (high - low) * (box[2:] - box[:2]) + box[:2]
            embedding = np.eye(tiny.FACE_EMBED_DIM, dtype=np.float32)[i]
            faces.append(Face(image, box, inside, embedding, 1.0, self.encoder))
        return faces


@pytest.fixture
def pipe():
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    pipe.face_analyzer = Finder((0.2, 0.2, 0.8, 0.9))
    return pipe


def test_a_photo_is_a_person(pipe, tmp_path):
    PHOTO.save(tmp_path / "photo.png")
    call = {"num_inference_steps": 1, "output_type": "pt"}
    encoded = Person(pipe.encode_face(PHOTO), LEFT)
    expected = pipe("two friends", people=[encoded], generator=tiny.seeded(), **call).images
    for photo in (PHOTO, str(tmp_path / "photo.png"), tmp_path / "photo.png", np.asarray(PHOTO)):
        image = pipe("two friends", people=[Person(photo, LEFT)], generator=tiny.seeded(), **call).images
        assert torch.equal(image, expected)
    with pytest.raises(InputError, match=r"people\[1\]: .*does not exist"):
        pipe("two friends", people=[encoded, Person("nowhere.png", RIGHT)], **call)
    pipe.face_analyzer = Finder()
    with pytest.raises(NoFaceFoundError, match=r"people\[0\]: no face"):
        pipe("two friends", people=[Person(PHOTO, LEFT)], **call)


CALL = {"num_inference_steps": 2, "strength": 1.0}


def test_faces_are_found_in_the_image(pipe):
    pipe.face_analyzer = Finder(LEFT, RIGHT)
    result = redraw_faces(pipe, PHOTO, "a cat", generator=tiny.seeded(), **CALL)
    changed = (np.asarray(result) != np.asarray(PHOTO)).any(-1)
    for left, top, right, bottom in (LEFT, RIGHT):
        face = changed[round(top * 96) : round(bottom * 96), round(left * 128) : round(right * 128)]
        assert face.mean() > 0.9
    assert not changed[75:].any()
    pipe.face_analyzer = Finder()
    with pytest.raises(NoFaceFoundError, match="pass people="):
        redraw_faces(pipe, PHOTO, "a cat", **CALL)


def test_each_face_is_drawn_as_the_one_that_was_found_there(pipe, monkeypatch):
    calls = []

    def image_to_image(prompt, image, **kwargs):
        calls.append(kwargs)
        return SimpleNamespace(images=[image])

    monkeypatch.setattr(refine, "_image_to_image", lambda pipe: image_to_image)
    tall, wide = (0.25, 0.4, 0.35, 0.6), (0.6, 0.4, 0.8, 0.55)
    pipe.face_analyzer = Finder(tall, wide)
    redraw_faces(pipe, PHOTO, "a cat", **CALL)
    # the larger one first; by hand: left, top and side of the square around twice the box, in pixels
    for call, box, number, square in zip(calls, (wide, tall), (1, 0), ((64, 20, 51), (19, 29, 38)), strict=True):
        assert call["identity"].face_embeds.argmax() == number
        points = call["landmarks"][0, :68] * (square[2] / call["width"]) + torch.tensor(square[:2])
        found = torch.cat([points.amin(0), points.amax(0)])
        torch.testing.assert_close(found, torch.tensor(box) * torch.tensor([128, 96, 128, 96]), atol=1.5, rtol=0)


def test_says_when_there_is_nothing_to_do(pipe):
    large = (0.1, 0.05, 0.9, 0.95)
    pipe.face_analyzer = Finder(large)
    with pytest.warns(UserWarning, match="redraw_faces changed nothing"):
        result = redraw_faces(pipe, PHOTO, "a cat", **CALL)
    assert np.array_equal(np.asarray(result), np.asarray(PHOTO))
    pipe.face_analyzer = Finder(LEFT)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        redraw_faces(pipe, PHOTO, "a cat", **CALL)


def test_shares_are_not_pixels(pipe):
    points = pipe.predict_landmarks(tiny.identity(), height=64, width=64) / 64
    with pytest.raises(InputError, match="shares of the image"):
        pipe("a cat", identity=tiny.identity(), landmarks=points, num_inference_steps=1)


def test_a_face_may_stand_half_outside(pipe):
    box = (-0.2, 0.2, 0.3, 0.8)
    points = pipe.predict_landmarks(tiny.identity(), height=64, width=64, face_box=box)[0]
    assert points[:, 0].min() < 0 and torch.isfinite(points).all()
    image = pipe("a cat", identity=tiny.identity(), face_box=box, num_inference_steps=1, output_type="pt").images
    assert torch.isfinite(image).all()
