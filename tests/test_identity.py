"""Identities: what they may hold, their files, what a notebook shows."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tiny
import torch
from safetensors.torch import save_file

from facesnap_diffusers import FaceEncoderMismatchError, FaceIdentity, InputError


METADATA = {
    "format": "facesnap_identity",
    "version": "1",
    "face_encoder": "a/b",
    "image_encoder": "null",
    "photo_size": "null",
}


def test_one_line_without_the_numbers():
    person = FaceIdentity.fuse([tiny.identity(), tiny.identity(4)])
    text = repr(person)
    assert text == (
        "FaceIdentity(128 numbers of dlib/face_recognition_resnet_model_v1, 10×24 of image_encoder, 68 landmarks,"
        " photo of 120×100 px, 2 photos)"
    )
    assert repr([person])[1:-1] == text
    assert repr(FaceIdentity(torch.ones(4), "a/b")) == "FaceIdentity(4 numbers of a/b)"


def test_a_picture_in_notebooks():
    picture = np.asarray(PIL.Image.open(io.BytesIO(tiny.identity()._repr_png_())))
    assert picture.shape == (192, 192, 3)
    rows, columns = np.nonzero(picture.any(-1))
    # it fills the middle seven tenths, give or take the discs
    extent = max(np.ptp(rows), np.ptp(columns)) / 192
    assert (
        0.68 < extent < 0.8 and abs(rows.min() + rows.max() - 191) < 6 and abs(columns.min() + columns.max() - 191) < 6
    )
    assert tiny.identity(landmarks=False)._repr_png_() is None


def test_comparing_is_by_object():
    person = tiny.identity()
    assert person == person and person != tiny.identity() and person in [person]


@pytest.mark.parametrize(
    "values",
    [
        {"face_embeds": torch.full((4,), 1e20)},
        {"face_embeds": None},
        {"face_embeds": torch.ones(4).to(torch.float8_e4m3fn)},
        {"face_embeds": torch.ones(4, device="meta")},
        {"face_embeds": torch.zeros(0)},
        {"landmarks": tiny.face_points() * 1e20},
        {"shape": torch.full((5,), 1e9)},
        {"image_hidden_states": torch.full((5, 24), 1e20)},
        {"photo_embeds": torch.full((2, 4), 1e20)},
        {"photo_size": (True, True)},
        {"photo_size": (10**30, 1)},
    ],
)
def test_values_out_of_range(values):
    with pytest.raises(InputError, match=next(iter(values))):
        FaceIdentity(**{"face_embeds": torch.ones(4), "face_encoder_id": "a/b", **values})


@pytest.mark.parametrize(
    "metadata",
    [
        {"photo_size": "[1"},
        {"photo_size": "7"},
        {"photo_size": "[1, 2, 3]"},
        {"photo_size": '{"a": 1}'},
        {"image_encoder": "nonsense"},
        {"image_encoder": "7"},
        {"photo_size": None},
        {"face_encoder": None},
        {"version": "2"},
        {"photo_size": "[" * 100_000},
    ],
)
def test_damaged_metadata(metadata, tmp_path):
    values = {name: value for name, value in {**METADATA, **metadata}.items() if value is not None}
    save_file({"face_embeds": torch.ones(4)}, tmp_path / "me.safetensors", values)
    with pytest.raises(InputError, match="me.safetensors") as error:
        FaceIdentity.load(tmp_path / "me.safetensors")
    assert "\n" not in str(error.value)


def test_wrong_tensors(tmp_path):
    for tensors in (
        {"face_embeds": torch.ones(4, dtype=torch.int64)},
        {"face_embeds": torch.ones(4), "surprise": torch.ones(1)},
        {"shape": torch.ones(4)},
        {"face_embeds": torch.ones(4), "landmarks": torch.ones(3, 2)},
    ):
        save_file(tensors, tmp_path / "me.safetensors", METADATA)
        with pytest.raises(InputError):
            FaceIdentity.load(tmp_path / "me.safetensors")


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "me.safetensors"
    tiny.identity().save(path)
    before = path.read_bytes()

    def full(tensors, name, metadata):
        Path(name).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("facesnap_diffusers.identity.save_file", full)
    with pytest.raises(InputError, match="No space left on device"):
        tiny.identity(4).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_photos_of_before_and_after_saving_the_adapter_are_fused():
    """An image encoder in an adapter's folder has a fingerprint from then on."""
    names = ["image_encoder", "image_encoder@0123456789ab", "image_encoder@ba9876543210"]
    people = [dataclasses.replace(tiny.identity(), image_encoder_id=name) for name in names]
    assert FaceIdentity.fuse(people[:2]).image_encoder_id == names[1]
    with pytest.raises(FaceEncoderMismatchError, match="features of image_encoder@0.* and image_encoder@b.*"):
        FaceIdentity.fuse(people[1:])


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "~nobody-here/me"])
def test_impossible_paths(path):
    for call in (lambda: FaceIdentity.load(path), lambda: tiny.identity().save(path)):
        with pytest.raises(InputError):
            call()


def test_round_trip_keeps_everything(tmp_path):
    person = FaceIdentity.fuse([tiny.identity(), tiny.identity(4)])
    person.save(tmp_path / "me.safetensors")
    loaded = FaceIdentity.load(tmp_path / "me.safetensors")
    for name in ("face_embeds", "landmarks", "image_hidden_states", "photo_embeds"):
        assert torch.equal(getattr(person, name), getattr(loaded, name))
    assert loaded.photo_size == person.photo_size and json.loads(json.dumps(loaded.photo_size)) == [100, 120]


def test_an_identity_is_its_own_when_the_caller_s_arrays_change():
    """A server that reads each embedding into the same buffer changes nobody whom it has kept."""
    arrays = {"face_embeds": torch.ones(4), "landmarks": tiny.face_points(), "image_hidden_states": torch.ones(5, 24)}
    person = FaceIdentity(face_encoder_id="a/b", **arrays)
    expected = {name: array.clone() for name, array in arrays.items()}
    for name, array in arrays.items():
        array.mul_(2)
        assert torch.equal(getattr(person, name), expected[name])
    pipe = tiny.new_pipeline()
    tiny.add_adapter(pipe, image_encoder_id=None)
    buffer = np.ones(tiny.FACE_EMBED_DIM, np.float32)
    person = pipe.encode_face(embedding=buffer)
    buffer[:] = 0
    assert person.face_embeds.all()
