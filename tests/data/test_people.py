"""Who prepared photos show by their embeddings: labels that are wrong or missing, and nobody on both sides."""

import json

import numpy as np
import pytest
from tiny_preparation import frontal_points, photo

from facesnap_diffusers import load_landmark_predictor
from facesnap_diffusers.data.people import ANOTHER_PERSON, divide_people, same_person_distance
from facesnap_diffusers.data.preparation import statistics
from facesnap_diffusers.data.prepared_face import make_face
from facesnap_diffusers.data.shard_settings import ShardSettings
from facesnap_diffusers.data.shards import PEOPLE, PreparedFaces, ShardWriter, read_people
from facesnap_diffusers.errors import InputError


SETTINGS = ShardSettings("insightface/w600k_r50", clip_crop_size=16)
DIM = 64


def write(folder, photos):
    """Photos of `(label, who, number)`: embeddings of one person have a cosine of about 0.8, of two about 0."""
    predictor, image = load_landmark_predictor(), np.array(photo(3, (64, 64)))
    with ShardWriter(folder, SETTINGS) as writer:
        for place, (label, who, number) in enumerate(photos):
            center = np.random.default_rng([who, 1000]).standard_normal(DIM)
            vector = center + 0.5 * np.random.default_rng([who, number]).standard_normal(DIM)
            embedding = vector / np.linalg.norm(vector)
            face = make_face(
                image, frontal_points() * 0.6, embedding, predictor, SETTINGS, info={"identity": label, "who": who}
            )
            writer.add(face, f"photo-{place}")


def shown(folder, split=None):
    """Who is in the photos that are used, as pairs of label and person."""
    faces = PreparedFaces([str(folder)], split)
    return [(person, faces[index].info["who"]) for index, person in enumerate(faces.person)]


def test_another_person_in_a_folder_is_left_out(tmp_path):
    mixed = [("anna", 1, number) for number in range(5)] + [("anna", 2, 0), ("anna", 3, 0), ("anna", 3, 1)]
    write(tmp_path, [*mixed, ("ben", 4, 0), ("ben", 4, 1)])
    assert len(shown(tmp_path)) == 10  # believed, as long as nobody looks
    divide_people(tmp_path, validation=0)
    assert shown(tmp_path) == [("0/anna", 1)] * 5 + [("0/ben", 4)] * 2
    assert [member.left_out for member in read_people(tmp_path)][5:8] == [ANOTHER_PERSON] * 3
    counts = statistics(tmp_path)
    assert counts["reasons"] == {ANOTHER_PERSON: 3} and counts["kept"] == 7 and counts["people"] == 2
    divide_people(tmp_path, same_person=0, validation=0)
    assert len(shown(tmp_path)) == 10


def test_photos_without_a_label_are_clustered(tmp_path):
    write(tmp_path, [(None, who, number) for number in range(4) for who in (1, 2, 3)] + [(None, 9, 0), ("zoe", 5, 0)])
    divide_people(tmp_path, validation=0)
    people = {}
    for person, who in shown(tmp_path):
        people.setdefault(person, []).append(who)
    assert sorted(map(sorted, people.values())) == [[1] * 4, [2] * 4, [3] * 4, [5], [9]]
    assert people[None] == [9] and people["0/zoe"] == [5]
    counts = statistics(tmp_path)
    assert counts["clustered"] == 3 and counts["people"] == 4


def test_nobody_is_on_both_sides(tmp_path):
    """Every person under three labels and without one."""
    photos = [
        (label, who, place) for who in range(20) for place, label in enumerate((f"a{who}", f"b{who}", None, None))
    ]
    write(tmp_path, photos)
    divide_people(tmp_path, validation=0.1)
    train, validation = ({who for _, who in shown(tmp_path, split)} for split in ("train", "validation"))
    assert not train & validation and train | validation == set(range(20)) and 2 <= len(validation) <= 12
    assert len(shown(tmp_path, "train")) + len(shown(tmp_path, "validation")) == 80
    assert statistics(tmp_path)["validation"] == len(shown(tmp_path, "validation"))
    before = (tmp_path / PEOPLE).read_bytes()
    divide_people(tmp_path, validation=0.1)
    assert (tmp_path / PEOPLE).read_bytes() == before


def test_one_of_ten_people_is_set_aside_but_of_fewer_nobody(tmp_path):
    for count, expected in ((9, 0), (10, 1)):
        write(tmp_path / str(count), [(f"p{who}", who, number) for who in range(count) for number in range(2)])
        divide_people(tmp_path / str(count))
        assert statistics(tmp_path / str(count))["validation"] == 2 * expected


def test_folders_that_are_not_divided_are_taken_whole(tmp_path):
    write(tmp_path, [("a", 1, 0), ("b", 2, 0)])
    assert len(PreparedFaces([str(tmp_path)], "train")) == len(PreparedFaces([str(tmp_path)], "validation")) == 2
    divide_people(tmp_path)
    with pytest.raises(InputError, match="holds no photos for validation"):
        PreparedFaces([str(tmp_path)], "validation")


def test_a_people_file_of_other_shards_is_refused(tmp_path):
    write(tmp_path, [("a", 1, 0), ("b", 2, 0)])
    divide_people(tmp_path)
    lines = (tmp_path / PEOPLE).read_text().splitlines(keepends=True)
    (tmp_path / PEOPLE).write_text(lines[0])
    with pytest.raises(InputError, match="does not go with its manifest.jsonl at photo 000000001"):
        PreparedFaces([str(tmp_path)])
    (tmp_path / PEOPLE).write_text(lines[0] + json.dumps([1]) + "\n")
    with pytest.raises(InputError, match="damaged line"):
        PreparedFaces([str(tmp_path)])


def test_distances():
    assert same_person_distance("dlib/face_recognition_resnet_model_v1") == 0.6
    assert 1 - same_person_distance("insightface/glintr100") ** 2 / 2 == pytest.approx(0.35, abs=0.001)
    assert same_person_distance("mine") is None
