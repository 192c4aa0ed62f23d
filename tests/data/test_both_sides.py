"""Nobody is in training and in validation photos unnoticed, where these are in different folders."""

import dataclasses

import numpy as np
import pytest
from test_people import SETTINGS, write

from facesnap_diffusers.data import both_sides
from facesnap_diffusers.data.both_sides import people_on_both_sides
from facesnap_diffusers.data.people import divide_people
from facesnap_diffusers.data.shards import PreparedFaces
from facesnap_diffusers.errors import InputError


def found(train, validation):
    """Names without the folders they are in, which end like those of the arguments."""
    train, validation = ([str(folder) for folder in folders] for folders in (train, validation))
    pairs = people_on_both_sides(PreparedFaces(train, "train"), PreparedFaces(validation, "validation"))
    return [tuple(name.rpartition("/")[2] for name in pair) for pair in pairs]


def test_the_same_person_is_found_under_another_label(tmp_path):
    write(tmp_path / "a", [("anna", 1, 0), ("anna", 1, 1), ("ben", 2, 0), ("ben", 2, 1), (None, 3, 0)])
    write(tmp_path / "b", [("ben", 9, 0), ("ben", 9, 1)])
    write(tmp_path / "v", [("x", 1, 5), ("x", 1, 6), ("y", 3, 5), ("ben", 4, 0), ("z", 5, 0)])
    train, validation = [tmp_path / "a", tmp_path / "b"], [tmp_path / "v"]
    pairs = found(train, validation)
    # two who are called ben are not one person
    assert pairs[0] == ("v: x", "a: anna") and pairs[1][0] == "v: y" and len(pairs) == 2
    shard, start = pairs[1][1].split(" at byte ")
    assert shard.endswith("shard-000000.tar") and int(start) == PreparedFaces([str(tmp_path / "a")]).places[4][1]


def test_of_another_face_encoder_by_their_labels(tmp_path, monkeypatch):
    monkeypatch.setattr("test_people.SETTINGS", dataclasses.replace(SETTINGS, face_encoder_id="mine"))
    write(tmp_path / "a", [("anna", 1, 0), ("ben", 2, 0)])
    write(tmp_path / "v", [("ben", 7, 0), ("carl", 1, 0)])
    assert found([tmp_path / "a"], [tmp_path / "v"]) == [("v: ben", "a: ben")]


def test_of_one_folder_only_those_that_are_not_divided(tmp_path):
    photos = [(f"p{who}", who, number) for who in range(12) for number in range(2)]
    write(tmp_path / "a", photos)
    assert len(found([tmp_path / "a"], [tmp_path / "a"])) == 12
    divide_people(tmp_path / "a", validation=0.2)
    assert found([tmp_path / "a"], [tmp_path / "a"]) == []
    # whom one folder sets aside the other one trains on
    aside = PreparedFaces([str(tmp_path / "a")], "validation")[0].info["who"]
    write(tmp_path / "b", [("someone", aside, 7), ("else", 50, 0)])
    both = found([tmp_path / "a", tmp_path / "b"], [tmp_path / "a"])
    assert both == [(f"a: p{aside}", "b: someone")]


def test_of_many_people_those_with_a_label_of_the_other_side_are_compared_first(tmp_path, monkeypatch):
    monkeypatch.setattr(both_sides, "MOST_PEOPLE", 3)
    write(tmp_path / "a", [(f"p{who}", who, number) for who in range(20) for number in range(2)])
    write(tmp_path / "v", [("p17", 17, 5), ("p18", 30, 0)])
    assert found([tmp_path / "a"], [tmp_path / "v"]) == [("v: p17", "a: p17")]
    people = both_sides._people(PreparedFaces([str(tmp_path / "a")]), {"p17", "p18"})
    assert [person.label for person in people] == ["p17", "p18", "p0"]


def test_a_damaged_photo_is_named(tmp_path):
    write(tmp_path / "a", [("anna", 1, 0), ("ben", 2, 0)])
    write(tmp_path / "v", [("carl", 3, 0)])
    _, start, end = PreparedFaces([str(tmp_path / "a")]).places[1]
    shard = tmp_path / "a/shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[start:end] = np.random.default_rng(0).bytes(end - start)
    shard.write_bytes(data)
    with pytest.raises(InputError, match=rf"a/shard-000000.tar: the photo in bytes {start} to {end} cannot be read"):
        found([tmp_path / "a"], [tmp_path / "v"])
