"""`facesnap generate` with what it cannot use: said at once, before a model is loaded, and by the names of its options."""

import json
import re
from pathlib import Path

import PIL.Image
import pytest
from command_line import command

from facesnap_diffusers import AdapterError, InputError
from facesnap_diffusers.adapter.hub import why_not_from_hub
from facesnap_diffusers.nano.model import SHIPPED_NANO
from facesnap_diffusers.portraits import ModelSettings, PortraitMaker, PortraitRequest, read_table
from facesnap_diffusers.preflight import base_folder, best_device, best_dtype, check_device


PERSON = sorted((SHIPPED_NANO / "people").glob("*.safetensors"))[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with files that are no photos and no models."""
    monkeypatch.chdir(tmp_path)
    PIL.Image.new("RGB", (64, 64)).save("plain.png")
    PIL.Image.new("RGB", (8, 8)).save("tiny.png")
    Path("text.jpg").write_text("not a photo")
    Path("empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--face-box", 0.9, 0.1, 0.2, 0.3], r"--face-box \(0.9, 0.1, 0.2, 0.3\) must have left < right"),
        (["--face-box", 30, 10, 70, 60], "--face-box .* divide pixels by its width and height"),
        (["--width", 100], "--width is 100; it should be a multiple of 8"),
        (["--height", 4], "--height is 4; it should be"),
        (["--yaw", 400], "--yaw must be a finite number of degrees from -90 to 90, got 400"),
        (["--guidance", -1], "--guidance is -1.0; it should be"),
        (["--landmark-scale", -1], "--landmark-scale is -1.0; it should be"),
        (["--expression", "smiel"], "--expression preset 'smiel' is not known; did you mean 'smile'"),
        (["--identity", "absent.safetensors"], "--identity absent.safetensors is not a file; save"),
        (["--identity", "plain.png"], "--identity plain.png is not a readable safetensors file"),
        (["--identity", ""], "--identity is empty; name a file"),
        (["--pose-image", "absent.png"], "--pose-image: 'absent.png' does not exist"),
        (["--pose-image", "text.jpg"], "--pose-image: the file 'text.jpg' holds no image"),
        (["text.jpg"], "the file 'text.jpg' holds no image"),
        (["tiny.png"], "tiny.png is 8×8 pixels"),
        ([""], "the name of a photo is empty"),
        (["--adapter", "no/such/folder"], "--adapter 'no/such/folder' is neither a folder nor the name of a Hub repo"),
        (["--landmarks-from", "./absent"], "--landmarks-from './absent' is neither a folder nor"),
        (["--device", "gpu"], r"--device 'gpu' cannot be used here .*; choose another, e\.g\. cpu, cuda or mps"),
    ],
)
def test_before_the_model_is_loaded(arguments, message, folder):
    """The base model is an empty folder: where it is loaded first, that is the message. No file is named twice."""
    photos = [] if str(arguments[0]).startswith("--") else arguments
    options = [] if photos else arguments
    if not photos and "--identity" not in options:
        options = [*options, "--identity", PERSON]
    with pytest.raises((InputError, AdapterError)) as caught:
        command("generate", *photos, "a person", "--base", "empty", "--device", "cpu", *options)
    said = str(caught.value)
    assert re.match(message, said), said
    assert max(said.count(name) for name in ("text.jpg", "absent", "plain.png", "gpu")) <= 1 and len(said) < 180


def test_an_empty_prompt(folder):
    with pytest.raises(InputError, match="prompt is empty"):
        command("generate", " ", "--identity", PERSON, "--base", "empty")


@pytest.mark.parametrize(("width", "height"), [(512, None), (None, 152), (64, 64)])
def test_sizes_that_the_nano_model_cannot_draw(width, height):
    maker = PortraitMaker(ModelSettings(device="warp"))  # would fail when it is loaded
    with pytest.raises(InputError, match=r"(width|height) is \d+; the small model in this package draws 96 to 144"):
        maker(PortraitRequest(prompt="a person", identity=str(PERSON), width=width, height=height))
    with pytest.raises(InputError, match="device 'warp'"):
        maker(PortraitRequest(prompt="a person", identity=str(PERSON), width=96, height=144))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('photo,prompt\na.jpg,"portrait\nb.jpg,two\n', "is not CSV .* close each quote"),
        ("photo,prompt,prompt\na.jpg,first,second\n", "has two columns 'prompt'"),
    ],
)
def test_rows_and_cells_are_not_lost(text, message, folder):
    Path("a.csv").write_text(text)
    with pytest.raises(InputError, match=f"table a.csv {message}"):
        command("generate", "--table", "a.csv", "--base", "empty", "--output", "out")


def test_files_of_a_table_lie_beside_it_or_where_they_say(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("a.csv").write_text("photo,prompt\na.jpg,x\n~/a.jpg,x\n/b/a.jpg,x\nhttps://b/a.jpg,x\n")
    found = [row.request.photos for row in read_table(Path("a.csv"), {})]
    assert found == [["a.jpg"], [str(tmp_path / "a.jpg")], ["/b/a.jpg"], ["https://b/a.jpg"]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "photo,promt\n", "unknown column 'promt'; did you mean 'prompt'"),
        ("a.csv", "photos,prompt,widht\na.jpg,x,\n", "unknown column 'widht'; did you mean 'width'"),
        (
            "a.csv",
            "identity,prompt,mood\na,x,glad\n",
            "unknown column 'mood'; known are prompt, photos, .*photo, name",
        ),
        ("a.jsonl", "5\n" + json.dumps({"photo": "a.jpg", "promt": "x"}), "unknown column 'promt'; did you mean"),
    ],
)
def test_a_column_of_another_name_ends_a_table_at_once(name, text, message, folder):
    Path(name).write_text(text)
    with pytest.raises(InputError, match=f"table {name} has an {message}"):
        command("generate", "--table", name, "--base", "empty", "--output", "out")
    assert not list(Path("out").iterdir())


def test_a_key_of_another_name_in_a_later_row_is_a_failure_of_that_row(folder):
    good = {"identity": str(PERSON), "prompt": "x"}
    Path("a.jsonl").write_text("\n".join(json.dumps(row) for row in (good, {**good, "promt": "y"}, good)))
    assert [row.error is None for row in read_table("a.jsonl", {})] == [True, False, True]


def test_a_mistyped_folder_is_told_from_a_repo_that_is_out_of_reach(folder):
    for base in ("./models/absent", "absent", "models/absent.safetensors", "/absent"):
        with pytest.raises(InputError, match="there is no such folder or file; correct the path, or name a Hub repo"):
            base_folder(base)
    with pytest.raises(InputError, match=r"base 'some/repo': .*, and the Hub gives no repo of this name \(") as caught:
        command("generate", "a person", "--identity", PERSON, "--base", "some/repo", "--device", "cpu")
    assert str(caught.value).startswith("--base 'some/repo': there is no such folder or file")
    assert base_folder("empty") == Path("empty")


def test_why_the_hub_gives_nothing():
    """In a few words, whatever the Hub's client wraps the reason in."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    for cause, message in [
        (OfflineModeIsEnabled("offline mode"), "HF_HUB_OFFLINE is set, and it was not downloaded before"),
        (ConnectionRefusedError(111, "Connection refused"), "no connection: [Errno 111] Connection refused"),
    ]:
        error = LocalEntryNotFoundError("An error happened while trying to locate the files on the Hub " * 5)
        error.__cause__ = cause
        wrapped = OSError("not there")
        wrapped.__context__ = error
        assert why_not_from_hub(wrapped) == message
    assert why_not_from_hub(OSError("a damaged file")) == "a damaged file"


def test_the_device_where_none_is_named():
    device = best_device()
    check_device(device)
    assert (device == "cpu") == (best_dtype(device) == "float32")
    assert best_dtype("cuda:1") == best_dtype("mps") == "float16"


@pytest.mark.slow
def test_one_bar_at_most(tmp_path, capfd):
    """That of the sampling: none for the weights of the nano model."""
    command("generate", "a person", "--identity", PERSON, "--steps", 1, "--device", "cpu", "--output", tmp_path)
    shown = capfd.readouterr().err
    assert "Loading" not in shown


@pytest.mark.slow
def test_no_advice_that_the_command_line_cannot_follow(folder):
    pytest.importorskip("dlib")
    PIL.Image.new("RGB", (64, 64), "gray").save("gray.png")
    with pytest.raises(
        InputError, match=r"no face found in gray.png \(64×64\); crop .* or use a sharper one"
    ) as caught:
        command("generate", "gray.png", "a person", "--device", "cpu")
    assert "landmarks" not in str(caught.value)
    with pytest.raises(InputError, match="no face found in photo .* or use a sharper one") as caught:
        command("landmarks", "gray.png", "--analyzer", "dlib")
    assert "own landmarks" not in str(caught.value)
