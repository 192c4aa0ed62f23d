"""Photos as data URLs, within limits."""

import base64
import io

import numpy as np
import PIL.Image
import pytest

from facesnap_diffusers.app.photos import APP_POLICY, MAX_PHOTOS, SentPhotos, as_data_url, cover, read_picture
from facesnap_diffusers.errors import InputError, PhotoError
from facesnap_diffusers.faces.photo import set_photo_policy


@pytest.fixture(autouse=True)
def policy():
    before = set_photo_policy(APP_POLICY)
    yield
    set_photo_policy(before)


def test_there_and_back():
    levels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(levels)
    assert np.array_equal(read_picture(as_data_url(picture), "photo"), levels)


def test_only_data_urls_are_read(tmp_path):
    """Of what is a picture, and could be read."""
    path = tmp_path / "photo.png"
    PIL.Image.new("RGB", (8, 8)).save(path)
    content = path.read_bytes()
    values = [str(path), path, path.as_uri(), content, base64.b64encode(content).decode(), PIL.Image.open(path)]
    for value in (*values, "http://127.0.0.1/photo.png", None, 3):
        with pytest.raises(PhotoError, match="did not arrive as an image"):
            read_picture(value, "photo")
    assert APP_POLICY.allow_local_files is APP_POLICY.allow_urls is False


def test_large_photos_are_refused_before_they_are_decoded():
    content = io.BytesIO()
    PIL.Image.new("1", (10_000, 6_000)).save(content, "PNG")  # 60 megapixels in a few kilobytes
    with pytest.raises(PhotoError, match="too many pixels"):
        read_picture(as_data_url(PIL.Image.open(content)), "photo")


@pytest.mark.parametrize(
    "value",
    [
        ["data:image/png;base64,"],
        {"photos": "data:image/png;base64,"},
        {"photos": ["/etc/passwd"]},
        {"photos": [{"path": "/etc/passwd"}]},
        {"photos": ["data:image/png;base64,"] * (MAX_PHOTOS + 1)},
    ],
)
def test_other_values_of_a_photo_field_are_refused(value):
    with pytest.raises(InputError):
        SentPhotos.of(value)


def test_nothing_chosen_is_nobody():
    assert SentPhotos.of(None).is_empty
    assert SentPhotos.of({"photos": [], "sample": None}).is_empty


def test_cover_fills_and_keeps_the_middle():
    picture = PIL.Image.new("RGB", (300, 100), "black")
    picture.paste("white", (100, 0, 200, 100))
    assert min(low for low, _ in cover(picture, 50, 50).getextrema()) > 230  # white but for resampled edges
