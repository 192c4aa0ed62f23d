"""Adapters without FFRNet: what steers the face is refused, for nothing would follow it."""

from dataclasses import replace

import pytest
import tiny
import torch

from facesnap_diffusers import HeadPose, InputError, Person, redraw_faces


LEFT, RIGHT = (0.0, 0.1, 0.45, 0.9), (0.55, 0.1, 1.0, 0.9)


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny.new_pipeline()
    tiny.add_adapter(pipe)
    pipe.ffrnet = None
    return pipe


@pytest.mark.parametrize(
    "steering",
    [
        {"pose": HeadPose(yaw=20)},
        {"expression": "smile"},
        {"face_box": LEFT},
        {"pose_image": tiny.picture()},
        {"landmarks": tiny.face_points()},
    ],
    ids=lambda steering: next(iter(steering)),
)
def test_what_steers_is_refused(pipe, steering):
    with pytest.raises(InputError, match=f"{next(iter(steering))}= has no effect: this adapter has no FFRNet"):
        tiny.generate(pipe, identity=tiny.identity(), **steering)


def test_people_keep_their_boxes(pipe):
    people = [Person(tiny.identity(1), LEFT), Person(tiny.identity(2), RIGHT)]
    swapped = [Person(tiny.identity(2), LEFT), Person(tiny.identity(1), RIGHT)]
    assert (tiny.generate(pipe, people=people) - tiny.generate(pipe, people=swapped)).abs().max() > 1e-4
    people[1] = Person(tiny.identity(2), RIGHT, expression="smile")
    with pytest.raises(InputError, match="expression= has no effect"):
        tiny.generate(pipe, people=people)


def test_redrawing_needs_no_landmarks(pipe):
    image = tiny.picture().resize((256, 256))
    people = [Person(tiny.identity(1), (0.1, 0.1, 0.25, 0.25))]
    call = {"num_inference_steps": 2, "generator": tiny.seeded()}
    redrawn = redraw_faces(pipe, image, "a cat", people=people, size=128, **call)
    assert redrawn.size == image.size and redrawn.tobytes() != image.tobytes()
    with pytest.raises(InputError, match="pose= has no effect"):
        redraw_faces(pipe, image, "a cat", people=[replace(people[0], pose=HeadPose(yaw=20))], size=128, **call)


def test_the_photo_still_counts(pipe):
    first, second = (tiny.generate(pipe, identity=tiny.identity(seed)) for seed in (1, 2))
    assert not torch.equal(first, second)
