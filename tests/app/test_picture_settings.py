"""Settings from a browser: what is valid, and one line for what is not."""

import pytest

from facesnap_diffusers.app.form import field_values, picture_settings, preset_of, preset_weights
from facesnap_diffusers.app.photos import SentPhotos
from facesnap_diffusers.app.picture_settings import read_settings
from facesnap_diffusers.errors import InputError
from facesnap_diffusers.faces.expression import PRESETS, Expression
from facesnap_diffusers.faces.pose import HeadPose


FIELDS = {
    "prompt": "a photo of a person",
    "negative_prompt": "",
    "mode": "inpainting",
    "schedule": "fast",
    "steps": 4,
    "seed": 7,
    "height": 128,
    "width": 192,
    "strength": 0.5,
    "identity_scale": 0.8,
    "landmark_scale": 1.0,
    "guidance_scale": 1,
    "places_faces": True,
    "boxes": [[0.1, 0.2, 0.4, 0.6], [0.5, 0.2, 0.8, 0.6]],
}
PERSON = {
    "steers_pose": True,
    "yaw": 20,
    "pitch": 0,
    "roll": -5,
    "expression": "smile",
    "weights": preset_weights("smile"),
}


def test_fields_to_settings_and_back():
    people = [PERSON, {**PERSON, "steers_pose": False, "expression": "as in the photo"}]
    settings = picture_settings(
        FIELDS, people, [SentPhotos(sample="person-00"), SentPhotos(photos=("data:image/png,",))]
    )
    first, second = settings.people
    assert first.steering() == {
        "pose": HeadPose(20, 0, -5),
        "expression": Expression.of("smile"),
        "face_box": (0.1, 0.2, 0.4, 0.6),
    }
    assert second.steering() == {"face_box": (0.5, 0.2, 0.8, 0.6)}
    fields, persons = field_values(settings)
    assert {name: fields[name] for name in FIELDS} == FIELDS
    assert fields["second"]
    assert {name: persons[0][name] for name in PERSON} == PERSON
    assert picture_settings(fields, persons, [SentPhotos(sample="person-00"), SentPhotos()]) == settings


def test_without_a_box_the_face_stays_where_it_is():
    settings = picture_settings({**FIELDS, "places_faces": False}, [PERSON], [SentPhotos()])
    assert settings.people[0].face_box is None
    with pytest.raises(InputError, match="face box"):
        picture_settings({**FIELDS, "places_faces": False}, [PERSON, PERSON], [SentPhotos(), SentPhotos()])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_the_sliders(name):
    assert preset_of(preset_weights(name)) == name


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"steps": "4"},
        {"seed": -1},
        {"height": 100_000},
        {"width": 130},
        {"prompt": "  "},
        {"prompt": "x" * 3000},
        {"identity_scale": float("nan")},
        {"mode": "video"},
        {"people": []},
        {"people": [{"pose": [200.0, 0.0, 0.0]}]},
        {"people": [{"expression": {"grin": 1.0}}]},
        {"people": [{}, {}, {}]},
        {"callback": "os.system"},
    ],
)
def test_wrong_values_are_one_line(change):
    with pytest.raises(InputError) as caught:
        read_settings({"prompt": "a person", **change})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seed": None}, "seed is empty"),
        ({"steps": ""}, "steps is empty"),
        ({"steps": 2.5}, "steps is 2.5; enter a whole number"),
        ({"width": None}, "width is empty"),
        ({"width": float("inf")}, "width is not a number"),
        ({"height": float("nan")}, "height is not a number"),
        ({"seed": 10**400}, "seed is not a number"),
        ({"guidance_scale": None}, "guidance scale is empty"),
        ({"strength": True}, "strength is not a number"),
        ({"mode": "video"}, "mode is not known"),
        ({"mode": ["inpainting"]}, "mode is not known"),
        ({"schedule": None}, "schedule"),
        ({"prompt": 5}, "prompt"),
        ({"boxes": "left"}, "face boxes"),
        ({"boxes": ["left"]}, "face box is not left"),
        ({"boxes": [[0.1, 0.2, 0.4]]}, "face box is not left"),
        ({"boxes": [[0.1, 0.2, 0.4, "0.6"]]}, "a side of the face box is not a number"),
        ({"boxes": [[0.1, 0.2, 0.4, float("inf")]]}, "a side of the face box is not a number"),
    ],
)
def test_a_wrong_field_of_the_picture_is_named(change, expected):
    with pytest.raises(InputError, match=expected) as caught:
        picture_settings({**FIELDS, **change}, [PERSON], [SentPhotos()])
    assert "\n" not in str(caught.value)
    assert f"{caught.value.key}.".startswith(f"{next(iter(change))}.")  # where the page shows it


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"yaw": None}, "yaw of the second person is empty"),
        ({"roll": "5"}, "roll of the second person is not a number"),
        ({"expression": None}, "expression of the second person is not known"),
        ({"expression": "smile", "weights": "wide"}, "expression"),
        ({"expression": "own sliders", "weights": {"jawOpen": None}}, "jawOpen"),
    ],
)
def test_a_wrong_field_of_a_person_is_named(change, expected):
    with pytest.raises(InputError, match=expected) as caught:
        picture_settings(FIELDS, [PERSON, {**PERSON, **change}], [SentPhotos(), SentPhotos()])
    assert "\n" not in str(caught.value)
    assert f"{caught.value.key}.".startswith(f"people.1.{next(iter(change))}.")


@pytest.mark.parametrize(
    ("change", "box", "key"),
    [
        ({"yaw": 200}, FIELDS["boxes"][0], "people.0.pose"),
        ({"expression": "own sliders", "weights": {"jawOpen": 5}}, FIELDS["boxes"][0], "people.0.expression"),
        ({}, [0.6, 0.2, 0.4, 0.8], "people.0.face_box"),
    ],
)
def test_a_value_out_of_range_has_its_key(change, box, key):
    with pytest.raises(InputError) as caught:
        picture_settings({**FIELDS, "boxes": [box]}, [{**PERSON, **change}], [SentPhotos()])
    assert caught.value.key == key


def test_boxes_that_overlap():
    boxes = [[0.1, 0.1, 0.5, 0.6], [0.4, 0.2, 0.9, 0.8]]
    with pytest.raises(InputError, match="overlap") as caught:
        picture_settings({**FIELDS, "boxes": boxes}, [PERSON, PERSON], [SentPhotos(), SentPhotos()])
    assert caught.value.key == "boxes"
