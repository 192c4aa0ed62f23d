"""Who prepared photos show by their embeddings: labels that are wrong or missing, and nobody on both sides."""

import json
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from command_line import command
from tiny_preparation import frontal_points, photo

from facesnap_diffusers import load_landmark_predictor
from facesnap_diffusers.data import people
from facesnap_diffusers.data.people import ANOTHER_PERSON, divide_people, same_person_distance
from facesnap_diffusers.data.preparation import statistics
from facesnap_diffusers.data.prepared_face import make_face
from facesnap_diffusers.data.shard_settings import ShardSettings
from facesnap_diffusers.data.shards import MANIFEST, PEOPLE, PhotoRecord, PreparedFaces, ShardWriter, read_people
from facesnap_diffusers.data.shards import SETTINGS as SETTINGS_FILE
from facesnap_diffusers.errors import InputError
from facesnap_diffusers.settings import dump_settings


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
    groups = {}
    for person, who in shown(tmp_path):
        groups.setdefault(person, []).append(who)
    assert sorted(map(sorted, groups.values())) == [[1] * 4, [2] * 4, [3] * 4, [5], [9]]
    assert groups[None] == [9] and groups["0/zoe"] == [5]
    counts = statistics(tmp_path)
    assert counts["clustered"] == 3 and counts["people"] == 4


def test_too_many_photos_without_a_label_are_said_not_to_be_clustered(tmp_path, monkeypatch):
    write(tmp_path, [(None, who, number) for number in range(3) for who in (1, 2)] + [("zoe", 5, 0)])
    divide_people(tmp_path, validation=0)
    assert statistics(tmp_path)["not_clustered"] == 0
    assert "too many" not in command("prepare", "--stats", tmp_path).output
    monkeypatch.setattr(people, "MOST_CLUSTERED", 5)
    divide_people(tmp_path, validation=0)
    counts = statistics(tmp_path)
    assert counts["not_clustered"] == 6 and counts["clustered"] == 0 and counts["people"] == 1
    shown = " ".join(command("prepare", "--stats", tmp_path).output.split())
    assert "6 photos have no label and were too many to compare with one another" in shown


@pytest.mark.slow
def test_embeddings_stay_on_the_disk(tmp_path, monkeypatch):
    """Twice the photos take at most 150 bytes of memory more for each of them, beside the embeddings of a block."""
    monkeypatch.setattr(people, "_BLOCK", 256)
    peaks = []
    for count in (50, 1000, 2000):  # the first for what is imported only then
        write_embeddings(tmp_path / str(count), count)
        tracemalloc.start()
        divide_people(tmp_path / str(count), validation=0.001)  # one person
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        counts = statistics(tmp_path / str(count))
        assert counts["people"] == count / 5 and counts["reasons"] == {ANOTHER_PERSON: count / 50}
    assert (peaks[2] - peaks[1]) / 1000 < 150


def write_embeddings(folder, count):
    """
    Photos of which a shard holds nothing but the embedding, five to a person; one in fifty has another's label.
    """
    folder.mkdir()
    (folder / SETTINGS_FILE).write_text(json.dumps(dump_settings(SETTINGS)))
    with open(folder / "shard-000000.tar", "wb") as shard, open(folder / MANIFEST, "w") as manifest:
        for number in range(count):
            who = number // 5 if number % 50 != 10 else count
            center, own = (np.random.default_rng([who, seed]).standard_normal(DIM) for seed in (0, number + 1))
            data = safetensors.numpy.save({"embedding": (center + 0.3 * own).astype(np.float32)})
            header = f"{number:09d}.safetensors".encode().ljust(124, b"\0") + f"{len(data):011o}".encode()
            start = shard.tell()
            shard.write(header.ljust(512, b"\0") + data.ljust(-(-len(data) // 512) * 512, b"\0"))
            place = (f"{number:09d}", "shard-000000.tar", start, shard.tell(), f"person-{number // 5}")
            manifest.write(PhotoRecord(str(number), True, "kept", "", *place).to_line())


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
