"""Features of photos, moved to where those of rendered people are."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from facesnap_diffusers import load_nano_pipeline, nano_people
from facesnap_diffusers.errors import AdapterError, FaceEncoderMismatchError
from facesnap_diffusers.identity import FaceIdentity
from facesnap_diffusers.nano.model import SHIPPED_NANO
from facesnap_diffusers.nano.photos import SHIFT_FILE, as_rendered


@pytest.fixture
def folder(tmp_path):
    """A nano model as far as `nano_folder` looks at it."""
    for name in ("base/model_index.json", "adapter/facesnap_config.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    return tmp_path


def identity_of(photos: int = 1) -> FaceIdentity:
    torch.manual_seed(0)
    return FaceIdentity(torch.randn(128), "dlib/face", image_hidden_states=torch.randn(65 * photos, 16))


@pytest.mark.parametrize("photos", [1, 3])
def test_the_difference_of_the_means_is_added_to_every_photo(folder, photos):
    shift = {"face_embeds": torch.randn(128), "image_hidden_states": torch.randn(65, 16)}
    save_file(shift, folder / SHIFT_FILE)
    identity = identity_of(photos)
    moved = as_rendered(identity, folder)
    torch.testing.assert_close(moved.face_embeds - identity.face_embeds, shift["face_embeds"])
    difference = (moved.image_hidden_states - identity.image_hidden_states).unflatten(0, (photos, 65))
    torch.testing.assert_close(difference, shift["image_hidden_states"].expand_as(difference))


def test_a_model_without_statistics_leaves_the_identity_as_it_is(folder):
    identity = identity_of()
    assert as_rendered(identity, folder) is identity


def test_statistics_of_other_encoders_are_refused(folder):
    save_file({"face_embeds": torch.zeros(512), "image_hidden_states": torch.zeros(65, 16)}, folder / SHIFT_FILE)
    with pytest.raises(FaceEncoderMismatchError, match="other encoders"):
        as_rendered(identity_of(), folder)
    save_file({"face_embeds": torch.zeros(128), "image_hidden_states": torch.zeros(64, 16)}, folder / SHIFT_FILE)
    with pytest.raises(FaceEncoderMismatchError, match="other encoders"):
        as_rendered(identity_of(), folder)


@pytest.mark.parametrize("content", [b"", b"not a tensor file at all"])
def test_damaged_statistics_are_told(folder, content):
    (folder / SHIFT_FILE).write_bytes(content)
    with pytest.raises(AdapterError, match="could not be loaded"):
        as_rendered(identity_of(), folder)


def test_the_shipped_statistics_are_of_the_shipped_encoders():
    shift = load_file(SHIPPED_NANO / SHIFT_FILE)
    person, pipe = nano_people()[0], load_nano_pipeline()
    moved = as_rendered(person.identity)
    torch.testing.assert_close(moved.face_embeds - person.identity.face_embeds, shift["face_embeds"].float())
    states = shift["image_hidden_states"]
    encoder = pipe.face_image_encoder.config
    assert states.shape == ((encoder.image_size // encoder.patch_size) ** 2 + 1, encoder.hidden_size)
    # dlib takes two faces for one person's below 0.6: the move is well beyond noise and leaves people apart
    assert 0.2 < shift["face_embeds"].float().norm() < 0.6
