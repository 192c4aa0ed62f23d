"""`facesnap generate`: on the model in this package, again from an image, and tables that are killed."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import third_party
import tiny
import torch
from command_line import command
from safetensors.torch import save_file
from tiny_preparation import portrait

import facesnap_diffusers
from facesnap_diffusers import AdapterError, InputError, load_nano_pipeline
from facesnap_diffusers.nano.model import SHIPPED_NANO
from facesnap_diffusers.portraits import (
    ModelSettings,
    PortraitMaker,
    PortraitRequest,
    load_pipeline,
    make_table,
    read_record,
    read_table,
)


PEOPLE = sorted((SHIPPED_NANO / "people").glob("*.safetensors"))
PROMPT = "a photo of a person, smiling, red shirt, blue background"


def pixels(path):
    return np.asarray(PIL.Image.open(path))


@pytest.mark.slow
def test_one_photo_and_a_prompt(tmp_path, monkeypatch):
    """The whole way offline, with dlib; then the same bytes from the image alone, also where the photo was moved."""
    pytest.importorskip("dlib")
    photo = tmp_path / "me.png"
    portrait(1).save(photo)
    command("generate", photo, PROMPT, "--output", tmp_path / "out", "--number", 2, "--yaw", 15, "--device", "cpu")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["me-0.png", "me-1.png"]
    assert (pixels(tmp_path / "out/me-0.png") != pixels(tmp_path / "out/me-1.png")).any()
    record = read_record(tmp_path / "out/me-1.png")
    assert record["request"]["prompt"] == PROMPT and record["request"]["seed"] == 1
    assert record["scales"] == {"identity_scale": 1.0, "landmark_scale": 1.0}
    assert {"facesnap-diffusers", "diffusers", "torch"} <= set(record["versions"])

    command("generate", "--from", tmp_path / "out/me-1.png", "--output", tmp_path / "again")
    assert (tmp_path / "again/me-1.png").read_bytes() == (tmp_path / "out/me-1.png").read_bytes()
    photo.rename(tmp_path / "moved.png")
    with pytest.raises(InputError, match="me.png is not there any more"):
        command("generate", "--from", tmp_path / "out/me-1.png", "--output", tmp_path / "moved")
    command("generate", "--from", tmp_path / "out/me-1.png", tmp_path / "moved.png", "--output", tmp_path / "moved")
    assert (tmp_path / "moved/me-1.png").read_bytes() == (tmp_path / "out/me-1.png").read_bytes()
    PIL.Image.new("RGB", (64, 64)).save(tmp_path / "other.png")
    with pytest.raises(InputError, match="other.png is not the file that the image was made of"):
        command("generate", "--from", tmp_path / "out/me-1.png", tmp_path / "other.png")


def test_equals_the_pipeline(tmp_path):
    """Every option reaches the call."""
    from facesnap_diffusers import FaceIdentity, HeadPose

    options = ["--identity", PEOPLE[0], "--seed", 7, "--steps", 3, "--guidance", 1.5, "--negative", "blurry"]
    options += ["--pitch", 10, "--expression", "jawOpen=0.6", "--face-box", 0.25, 0.2, 0.75, 0.8]
    options += ["--identity-scale", 0.7, "--landmark-scale", 0.9, "--device", "cpu"]
    command("generate", PROMPT, *options, "--output", tmp_path)
    pipe = load_nano_pipeline()
    pipe.set_facesnap_scale(0.7, 0.9)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        PROMPT,
        identity=FaceIdentity.load(PEOPLE[0]),
        pose=HeadPose(pitch=10),
        expression={"jawOpen": 0.6},
        face_box=(0.25, 0.2, 0.75, 0.8),
        negative_prompt="blurry",
        num_inference_steps=3,
        guidance_scale=1.5,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    (path,) = tmp_path.iterdir()
    assert np.array_equal(pixels(path), np.asarray(expected))


def test_no_image_is_overwritten_unless_asked(tmp_path):
    """The new one gets a number; an image that is made again does not land on itself."""
    arguments = ["generate", PROMPT, "--identity", PEOPLE[0], "--steps", 1, "--device", "cpu", "--output", tmp_path]
    stem = f"{PEOPLE[0].stem}-0"
    (tmp_path / f"{stem}.png").write_bytes(b"mine")
    (tmp_path / ".photo.png").write_bytes(b"mine too")
    command(*arguments)
    command(*arguments)
    assert (tmp_path / f"{stem}.png").read_bytes() == b"mine"
    first = (tmp_path / f"{stem}-2.png").read_bytes()
    assert first == (tmp_path / f"{stem}-3.png").read_bytes()
    command("generate", "--from", tmp_path / f"{stem}-3.png", "--output", tmp_path)
    assert (tmp_path / f"{stem}-3-2.png").read_bytes() == first
    command(*arguments, "--overwrite")
    assert (tmp_path / f"{stem}.png").read_bytes() == first
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("yaw", [None, 15])
def test_photos_get_the_frame_and_the_look_of_the_nano_model(yaw, tmp_path):
    """The head fills the picture as the model's portraits do, however small the face is in the photo."""
    pytest.importorskip("dlib")
    from facesnap_diffusers import DlibFaceAnalyzer, HeadPose
    from facesnap_diffusers.faces.detection import find_face
    from facesnap_diffusers.nano.photos import as_rendered
    from facesnap_diffusers.nano.portrait_box import portrait_box

    canvas = PIL.Image.new("RGB", (900, 700), "gray")
    canvas.paste(portrait(1).resize((300, 300)), (550, 350))
    canvas.save(tmp_path / "me.png")
    maker = PortraitMaker(ModelSettings())
    png = maker(PortraitRequest(prompt=PROMPT, photos=[str(tmp_path / "me.png")], yaw=yaw))
    image = PIL.Image.open(io.BytesIO(png))
    pipe = maker.load()
    face = find_face(tmp_path / "me.png", DlibFaceAnalyzer())
    own = pipe.landmark_predictor.encode(torch.from_numpy(face.landmarks)[None]).rotation[0].tolist()
    pose = HeadPose(*own) if yaw is None else HeadPose(yaw=yaw)
    expected = pipe(
        PROMPT,
        identity=as_rendered(pipe.encode_face(tmp_path / "me.png")),
        pose=None if yaw is None else pose,
        face_box=portrait_box(pose),
        num_inference_steps=4,
        guidance_scale=1.0,
        generator=tiny.seeded(),
    ).images[0]
    assert np.array_equal(np.asarray(image), np.asarray(expected))
    found = find_face(image, DlibFaceAnalyzer())
    assert found.box[2] - found.box[0] > 30 and abs(found.center[0] - 64) < 16


def table_of(tmp_path, count):
    """Rows of which two fail, and the names of the images that the others make."""
    rows = [
        {"identity": str(PEOPLE[i % len(PEOPLE)]), "prompt": PROMPT, "yaw": float(i % 40 - 20), "steps": 1}
        for i in range(count)
    ]
    rows[3] = {**rows[3], "identity": str(tmp_path / "absent.safetensors")}
    rows[5] = {**rows[5], "yaw": "left"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"{i:06d}.png" for i in range(count) if i not in (3, 5)]


@pytest.mark.slow
def test_a_table_that_is_killed_goes_on(tmp_path):
    """Every image once, whole, and those of an undisturbed run; failures are recorded and not the end."""
    expected = table_of(tmp_path, 30)
    arguments = ["generate", "--table", "rows.jsonl", "--output", "out", "--device", "cpu"]
    rng = random.Random(0)
    for _ in range(3):
        before = len(list((tmp_path / "out").glob("0*.png")))
        process = subprocess.Popen(
            [sys.executable, "-m", "facesnap_diffusers", *arguments],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(Path(facesnap_diffusers.__file__).parents[1]),
            },
        )
        wanted = before + rng.randint(1, 6)
        while process.poll() is None and len(list((tmp_path / "out").glob("0*.png"))) < wanted:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("0*.png")}
    assert 3 <= len(made) < len(expected)

    rows = read_table(tmp_path / "rows.jsonl", {})
    list(make_table(rows, tmp_path / "out", PortraitMaker(ModelSettings())))
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == expected
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == then for name, then in made.items())  # none twice
    failures = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert {failure["name"] for failure in failures} == {"000003", "000005"}
    assert "absent.safetensors" in failures[1]["error"] and "yaw is 'left'" in failures[0]["error"]

    (tmp_path / "undisturbed").mkdir()
    list(make_table(rows[:8], tmp_path / "undisturbed", PortraitMaker(ModelSettings())))
    for path in (tmp_path / "undisturbed").glob("*.png"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_a_csv_table(tmp_path):
    (tmp_path / "who.safetensors").write_bytes(PEOPLE[0].read_bytes())
    (tmp_path / "rows.csv").write_text(
        "name,identity,prompt,seed,face_box,expression,steps\n"
        f"first,who.safetensors,{PROMPT.replace(',', '')},5,0.2 0.2 0.8 0.8,smile,1\n"
        'second,who.safetensors,"a person, laughing",,,"{""jawOpen"": 0.5}",1\n'
        "third,who.safetensors,,,,,\n"
    )
    rows = read_table(tmp_path / "rows.csv", {"seed": 100})
    assert [row.name for row in rows] == ["first", "second", "third"]
    assert rows[0].request.face_box == [0.2, 0.2, 0.8, 0.8] and rows[0].request.seed == 5
    assert rows[1].request.seed == 101 and rows[1].request.expression == {"jawOpen": 0.5}
    assert rows[1].request.identity == str(tmp_path / "who.safetensors")
    assert rows[2].request is None and "lacks prompt" in rows[2].error
    result = command("generate", "--table", tmp_path / "rows.csv", "--output", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 1 and "2 images in" in result.output
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["first.png", "second.png"]


def test_another_request_under_the_same_name_is_made_anew_if_so_asked(tmp_path):
    maker = PortraitMaker(ModelSettings())
    for prompt in ("a person, red shirt", "a person, green shirt"):
        row = {"identity": str(PEOPLE[0]), "prompt": prompt, "steps": 1, "name": "a"}
        (tmp_path / "rows.jsonl").write_text(json.dumps(row))
        rows = read_table(tmp_path / "rows.jsonl", {})
        ((_, error),) = make_table(rows, tmp_path, maker)
        assert (error is None) == (prompt == "a person, red shirt")
        if error is not None:
            assert "a.png is there and is another image; pass --overwrite" in error
            assert read_record(tmp_path / "a.png")["request"]["prompt"] == "a person, red shirt"
            assert list(make_table(rows, tmp_path, maker, overwrite=True)) == [(rows[0], None)]
        assert read_record(tmp_path / "a.png")["request"]["prompt"] == prompt


def test_a_worker_of_a_cluster_makes_the_same(tmp_path):
    """Ray Data's function, as its workers call it, without a cluster."""
    import pickle

    from facesnap_diffusers.portraits import _RayWorker
    from facesnap_diffusers.settings import dump_settings

    maker = PortraitMaker(ModelSettings())
    request = PortraitRequest(prompt=PROMPT, identity=str(PEOPLE[1]), steps=1)
    png = maker(request)
    worker = pickle.loads(pickle.dumps(_RayWorker(maker)))
    assert worker({"name": "a", "request": json.dumps(dump_settings(request))}) == {
        "name": "a",
        "png": png,
        "error": "",
    }
    absent = dump_settings(PortraitRequest(prompt=PROMPT, identity="absent"))
    assert "absent is not a file" in worker({"name": "b", "request": json.dumps(absent)})["error"]


@pytest.mark.slow
def test_on_a_ray_cluster(tmp_path):
    ray = pytest.importorskip("ray", reason="needs ray")
    table_of(tmp_path, 8)
    rows = read_table(tmp_path / "rows.jsonl", {})
    maker = PortraitMaker(ModelSettings())
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        (tmp_path / "cluster").mkdir()
        list(make_table(rows, tmp_path / "cluster", maker, ray=True, workers=2))
    finally:
        ray.shutdown()
    (tmp_path / "here").mkdir()
    list(make_table(rows, tmp_path / "here", maker))
    for path in (tmp_path / "here").glob("*.png"):
        assert path.read_bytes() == (tmp_path / "cluster" / path.name).read_bytes()


@pytest.mark.parametrize("form", ["folder", "folder XL"])
def test_any_base_model_and_adapter(form, tmp_path):
    base = tiny.xl_pipeline() if "XL" in form else tiny.sd_pipeline()
    base.save_pretrained(tmp_path / "base")
    save_file(third_party.flat(third_party.faceid(base.unet)), tmp_path / "ip-adapter-faceid.safetensors")
    third_party.faceid_person().save(tmp_path / "who.safetensors")
    options = ["--base", tmp_path / "base", "--adapter", tmp_path / "ip-adapter-faceid.safetensors", "--steps", 2]
    options += ["--identity", tmp_path / "who.safetensors", "--width", 64, "--height", 64, "--device", "cpu"]
    command("generate", "a cat", *options, "--output", tmp_path / "out")
    pipe = tiny.facesnap(base)
    pipe.load_facesnap_adapter(tmp_path / "ip-adapter-faceid.safetensors")
    expected = pipe(
        "a cat",
        identity=third_party.faceid_person(),
        num_inference_steps=2,
        width=64,
        height=64,
        generator=tiny.seeded(),
    ).images[0]
    assert np.array_equal(pixels(tmp_path / "out/who-0.png"), np.asarray(expected))


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloading(offload, tmp_path):
    pipe = load_pipeline(ModelSettings(offload=offload))
    assert pipe.facesnap_config is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a prompt"], "give a photo and a prompt"),
        (["absent.jpg", "a prompt"], "there is no photo absent.jpg"),
        (["--from", "absent.png"], "there is no file absent.png"),
        (["--from", "plain.png"], "has no record of how it was made"),
        (["--table", "rows.txt"], "must end in .csv or .jsonl|cannot be read"),
        (["a.jpg", "--table", "rows.csv"], "has no meaning"),
        (["--from", "a.png", "--table", "rows.csv"], "both given"),
        (["plain.png", "a prompt", "--yaw", "400"], "yaw is 400"),
        (["plain.png", "a prompt", "--device", "warp"], "device 'warp' cannot be used"),
        (
            ["plain.png", "a prompt", "--base", "plain.png", "--device", "cpu"],
            "base 'plain.png' could not be loaded",
        ),
        (["plain.png", "a prompt", "--expression", "smiel"], "did you mean 'smile'"),
        (["plain.png", "a prompt", "--expression", "jawOpen=wide"], "must be name=strength"),
        (["--from", "plain.png", "--seed", "5"], "--seed has no effect: --from makes the same image again"),
        (["plain.png", "a prompt", "--ray"], "--ray has no effect: without --table"),
        (["--table", "rows.csv", "--number", "2"], "--number has no effect: --table makes an image a row"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PIL.Image.new("RGB", (64, 64)).save("plain.png")
    with pytest.raises((InputError, AdapterError), match=message) as caught:
        command("generate", *arguments)
    assert "\n" not in str(caught.value)
    assert not Path("outputs/generate").exists() or not list(Path("outputs/generate").iterdir())
