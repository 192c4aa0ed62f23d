"""`facesnap demo`: the whole command on an untrained nano model with few channels."""

import shutil
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from skimage.data import astronaut
from typer.testing import CliRunner

from facesnap_diffusers import AdapterError, DlibFaceAnalyzer, InputError, load_nano_pipeline, nano_people
from facesnap_diffusers.cli import app, main
from facesnap_diffusers.nano import model as nano_model


pytestmark = pytest.mark.slow


PICTURES = [*(f"prompt-{n}" for n in range(1, 5)), *(f"yaw{yaw:+d}" for yaw in (-35, 0, 35))]
PICTURES += ["laugh", "surprise", "sad"]


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """An untrained model and two people."""
    folder = tmp_path_factory.mktemp("nano")
    tiny.write_nano(folder)
    (folder / "people").mkdir()
    for seed, name in enumerate(("ann", "bob")):
        pixels = np.random.default_rng(seed).integers(0, 256, (100, 120, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"people/{name}.png")
        tiny.identity(seed).save(folder / f"people/{name}.safetensors")
    return folder


def run(*arguments, steps: int = 2) -> None:
    result = CliRunner().invoke(app, ["demo", "--steps", str(steps), *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    assert "sheet.png" in result.output


def pixels(path: Path) -> np.ndarray:
    return np.array(PIL.Image.open(path))


@pytest.fixture(scope="module")
def shown(nano, tmp_path_factory):
    output = tmp_path_factory.mktemp("output") / "demo"
    run("--model", nano, "-o", output)
    return output


def test_every_picture_is_on_the_sheet(shown):
    sheet = pixels(shown / "sheet.png")
    for person in ("ann", "bob"):
        names = [*PICTURES, *(f"{name}-landmarks" for name in PICTURES), *(f"prompt-{n}-base" for n in range(1, 5))]
        assert {path.stem for path in (shown / person).iterdir()} == {*names, "reference"}
        for name in names:
            tile = pixels(shown / person / f"{name}.png")
            assert tile.shape == (128, 128, 3)
            middle = tile[64].tobytes()
            assert any(row.tobytes().find(middle) >= 0 for row in sheet), name


def test_sheet_has_thirteen_columns_and_two_rows_a_person(shown, nano, tmp_path):
    two = PIL.Image.open(shown / "sheet.png").size
    run("--model", nano, "-o", tmp_path, "--people", 1)
    one = PIL.Image.open(tmp_path / "sheet.png").size
    assert two[0] == one[0]
    assert 13 * 128 < two[0] < 15 * 128
    assert 2 * 128 < two[1] - one[1] < 2 * 128 + 40
    assert not (tmp_path / "bob").exists()
    for path in (tmp_path / "ann").iterdir():
        assert path.read_bytes() == (shown / "ann" / path.name).read_bytes(), "the same seed, the same picture"


def test_seed_changes_pictures_and_no_landmarks(shown, nano, tmp_path):
    run("--model", nano, "-o", tmp_path, "--people", 1, "--seed", 5)
    for name in PICTURES:
        assert (pixels(tmp_path / f"ann/{name}.png") != pixels(shown / f"ann/{name}.png")).any()
        landmarks = f"ann/{name}-landmarks.png"
        np.testing.assert_array_equal(pixels(tmp_path / landmarks), pixels(shown / landmarks))


def test_base_pictures_are_those_of_the_stock_pipeline(shown, nano):
    stock = StableDiffusionPipeline.from_pretrained(nano / "base", safety_checker=None)
    image = stock(
        "a photo of a person, smiling, facing forward, white shirt, blue background",
        num_inference_steps=20,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    difference = np.abs(np.array(image).astype(int) - pixels(shown / "ann/prompt-1-base.png"))
    assert difference.max() <= 1  # batches round otherwise
    assert np.abs(np.array(image).astype(int) - pixels(shown / "ann/prompt-1.png")).max() > 1


def test_landmarks_turn_the_way_the_labels_say(shown):
    """The nose (green) moves against the jaw (white); the head turns about the neck, so both move."""

    def centre(name, color):
        image = pixels(shown / f"ann/{name}-landmarks.png").astype(int)
        return np.argwhere(np.abs(image - color).sum(axis=2) < 60).mean(axis=0)[1]

    nose = [centre(name, (0, 255, 0)) for name in PICTURES[4:7]]
    jaw = [centre(name, (255, 255, 255)) for name in PICTURES[4:7]]
    assert np.all(np.diff(nose) > 8)
    assert np.all(np.diff(jaw) > 0)
    assert nose[0] < jaw[0] - 5
    assert nose[-1] > jaw[-1] + 5


def test_a_photo_gets_an_avatar(nano, tmp_path):
    """Alone, beside a picture of the head, on a sheet of its own: that of the demo stays as it is."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sheet.png").write_bytes(b"the sheet of the demo")
    PIL.Image.fromarray(astronaut()).save(tmp_path / "me.png")
    run("--model", nano, "-o", tmp_path / "out", "--face", tmp_path / "me.png")
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["photo", "photo-sheet.png", "sheet.png"]
    assert (tmp_path / "out/sheet.png").read_bytes() == b"the sheet of the demo"
    folder = tmp_path / "out/photo"
    (face,) = DlibFaceAnalyzer().analyze(pixels(folder / "reference.png"))
    assert 0.15 < np.linalg.norm(face.landmarks[36] - face.landmarks[45]) / 128 < 0.5
    assert (pixels(folder / "laugh.png") != pixels(folder / "sad.png")).any()


def test_a_photo_without_dlib(nano, tmp_path, monkeypatch, capsys):
    # an analyzer that another test has made would need no library
    monkeypatch.setattr("facesnap_diffusers.faces.analyzers._shared", {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    PIL.Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    monkeypatch.setattr(sys, "argv", ["facesnap", "demo", "--model", str(nano), "--face", str(tmp_path / "photo.png")])
    with pytest.raises(SystemExit) as raised:
        main()
    assert "\n" not in str(raised.value)
    assert 'pip install "facesnap-diffusers[dlib]"' in str(raised.value)


def test_an_installation_without_the_model(nano, tmp_path, monkeypatch):
    monkeypatch.setattr(nano_model, "SHIPPED_NANO", tmp_path)
    with pytest.raises(
        AdapterError, match="does not contain a nano model .no base/model_index.json.; install a release"
    ):
        run("-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    shutil.copytree(nano / "base", tmp_path / "base")
    with pytest.raises(AdapterError, match="no adapter/facesnap_config.json"):
        load_nano_pipeline()


def test_the_shipped_model_keeps_people_apart(tmp_path):
    """To dlib, pictures are nearer to their own person's reference than to those of the others, by and large."""
    run("-o", tmp_path, "--people", 2, steps=4)
    people, analyzer = nano_people()[:2], DlibFaceAnalyzer()
    references = np.stack([person.identity.face_embeds.numpy() for person in people])
    distances = []
    for person in people:
        found = [
            face for name in PICTURES for face in analyzer.analyze(pixels(tmp_path / person.name / f"{name}.png"))
        ]
        assert len(found) >= len(PICTURES) - 1
        embeds = np.stack([face.embedding for face in found])
        distances.append(np.median(np.linalg.norm(embeds[:, None] - references, axis=2), axis=0))
    same = np.eye(2, dtype=bool)
    assert np.mean(np.array(distances)[same]) < np.mean(np.array(distances)[~same]) - 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--people", 3], "choose 1 to 2"), (["--people", 0], "1 to 2"), (["--steps", 0], "steps")],
)
def test_impossible_wishes(nano, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        run("--model", nano, "-o", tmp_path, *arguments)


def test_output_must_be_a_folder(nano, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file; name a folder"):
        run("--model", nano, "-o", tmp_path / "file")
