"""`facesnap landmarks`, with dlib's face finder."""

import re

import numpy as np
import PIL.Image
import pytest
from command_line import command
from skimage.data import astronaut
from typer.testing import CliRunner

from facesnap_diffusers import DlibFaceAnalyzer, Expression, InputError
from facesnap_diffusers.cli import app
from facesnap_diffusers.commands.landmarks import PANEL, _crop, draw_panels
from facesnap_diffusers.faces.detection import find_face


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    PIL.Image.fromarray(astronaut()).crop((60, 0, 380, 320)).save(path)
    return str(path)


def test_unchanged(photo, tmp_path):
    """Without options the third panel has the points of the second, which lie where the photo's do."""
    output = tmp_path / "out.png"
    result = CliRunner().invoke(app, ["landmarks", photo, "--analyzer", "dlib", "-o", str(output)])
    assert result.exit_code == 0
    assert "in the photo" in result.output
    panels = np.asarray(PIL.Image.open(output)).astype(int)
    assert panels.shape == (512, 3 * 512, 3)
    detected, fitted, reposed = np.split(panels[40:], 3, axis=1)  # without the labels
    drawn = reposed.max(axis=-1) == 255
    assert 300 < drawn.sum() < 15_000
    np.testing.assert_allclose(fitted[drawn], reposed[drawn], atol=1)
    mouths = [np.argwhere((panel == [255, 0, 0]).all(-1)).mean(0) for panel in (detected, fitted)]
    assert np.linalg.norm(mouths[0] - mouths[1]) < 8


def test_photo_and_landmarks_lie_over_each_other():
    picture = np.zeros((80, 80, 3), dtype=np.uint8)
    picture[40, 40] = 255
    levels = np.asarray(_crop(picture, [10.0, 10.0], 60.0)).astype(float)[..., 0]
    rows, columns = np.mgrid[:PANEL, :PANEL]
    middle = [(levels * axis).sum() / levels.sum() for axis in (columns, rows)]
    assert middle == pytest.approx([(40 - 10) * PANEL / 60] * 2, abs=0.1)  # where `draw_panels` puts a landmark


def test_another_pose_and_expression(photo):
    face = find_face(photo, DlibFaceAnalyzer(), name="photo")

    def spread(color, yaw, expression):
        picture, _ = draw_panels(face, yaw, 0, 0, Expression.of(expression))
        panel = np.asarray(picture)[40:, 1024:]
        points = np.argwhere((panel == color).all(-1))
        return points.mean(0), np.ptp(points, axis=0)

    green, red, yellow = [0, 255, 0], [255, 0, 0], [255, 255, 0]
    assert spread(green, 35, "neutral")[0][1] > spread(green, 0, "neutral")[0][1] + 15
    opened = "jawOpen=0.8, eyeBlinkLeft=1"
    assert spread(red, 0, opened)[1][0] > 1.3 * spread(red, 0, "neutral")[1][0]
    assert spread(yellow, 0, opened)[1][0] < spread(yellow, 0, "neutral")[1][0]


def test_wrong_options(photo):
    with pytest.raises(InputError, match="did you mean 'smile'"):
        Expression.of("smiel")
    with pytest.raises(InputError, match="'jawOpen=wide' must be name=strength"):
        Expression.of("jawOpen=wide")


def test_without_a_model_pack_it_names_the_option(photo, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    def no_network(*args, **kwargs):
        raise ConnectionError

    monkeypatch.setattr("insightface.utils.storage.ensure_available", no_network)
    with pytest.raises(InputError, match="or pass --analyzer dlib") as caught:
        command("landmarks", photo, "--output", tmp_path / "out.png")
    assert "DlibFaceAnalyzer" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.abc", "no known picture format; end its name with .png or .jpg"),
        ("out", "no known picture format"),
        (".", "is a folder|no known picture format"),
        ("file/out.png", "is a file; name a folder"),
        ("file/folder/out.png", "cannot be written to"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_photo_is_read(tmp_path, name, message):
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["landmarks", "no-such-photo.png", "-o", str(tmp_path / name)])
    assert isinstance(result.exception, InputError)
    assert re.search(message, str(result.exception))
    assert "\n" not in str(result.exception)
