"""`facesnap generate`: on the model in this package, again from an image, and tables that are killed."""

import io
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import third_party
import tiny
import torch
from command_line import command
from safetensors.torch import save_file
from tiny_preparation import portrait

import facesnap_diffusers
from facesnap_diffusers import AdapterError, InputError, load_nano_pipeline
from facesnap_diffusers._upstream import is_model_offloaded
from facesnap_diffusers.commands.generate import _note_versions
from facesnap_diffusers.nano.model import SHIPPED_NANO
from facesnap_diffusers.portraits import (
    RECORD_KEY,
    ModelSettings,
    PortraitMaker,
    PortraitRequest,
    Row,
    as_png,
    file_digest,
    from_record,
    load_pipeline,
    make_table,
    read_record,
    read_table,
)
from facesnap_diffusers.settings import dump_settings


pytestmark = pytest.mark.slow


PEOPLE = sorted((SHIPPED_NANO / "people").glob("*.safetensors"))
PROMPT = "a photo of a person, smiling, red shirt, blue background"


def pixels(path):
    return np.asarray(PIL.Image.open(path))


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


def test_a_table_that_is_killed_goes_on(tmp_path):
    """Every image once, whole, and those of an undisturbed run; failures are recorded and not the end."""
    expected = table_of(tmp_path, 30)
    arguments = ["generate", "--table", "rows.jsonl", "--output", "out", "--device", "cpu"]
    rng = random.Random(0)
    for _ in range(2):
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
    assert 2 <= len(made) < len(expected)

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
    assert pipe.unet.conv_in.weight.is_meta == (offload == "sequential")
    assert is_model_offloaded(pipe) == (offload == "model")


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
        (["plain.png", "a prompt", "--yaw", "400"], "yaw must be .* got 400"),
        (["plain.png", "a prompt", "--device", "warp"], "device 'warp' cannot be used"),
        (
            ["plain.png", "a prompt", "--base", "plain.png", "--device", "cpu"],
            "base 'plain.png' could not be loaded",
        ),
        (["plain.png", "a prompt", "--expression", "smiel"], "did you mean 'smile'"),
        (["plain.png", "a prompt", "--expression", "jawOpen=wide"], "must be name=strength"),
        (["--from", "plain.png", "--seed", "5"], "--seed has no effect: --from makes the same image again"),
        (["plain.png", "a prompt", "--ray"], "--ray has no effect: without --table"),
        (["plain.png", "plain.png"], "the prompt is missing: plain.png is a photo"),
        (["plain.png", "--identity", "who.safetensors"], "the prompt is missing: plain.png is a photo"),
        (["plain.png", "a prompt", "--weight-name", "x.bin"], "--weight-name has no effect: the nano model"),
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


def test_a_wrong_row_does_not_end_a_table(tmp_path):
    """Each is a failure of its own, with a message; the rows beside it are read."""
    good = {"identity": str(PEOPLE[0]), "prompt": "line\u2028separator"}
    wrong = [
        ('{"prompt": "p", "photos": null}', "give photos or an identity"),
        ('{"prompt": "p", "photos": 5}', "photos is 5"),
        ('{"prompt": "p", "photo": "a.jpg", "photos": 5}', "photos is 5"),
        ("[" * 100_000, "not JSON"),
        (
            '{"prompt": "p", "face_box": ' + "[" * 900 + "]" * 900 + ', "photo": "a.jpg"}',
            "face_box|plain value|not JSON",
        ),
        (json.dumps({**good, "name": "n" * 300}), "is longer than 200 bytes"),
        (json.dumps({**good, "name": "n" * 230}), "is longer than 200 bytes"),
        (json.dumps({**good, "name": "a\0b"}), "cannot be a file's name"),
        (json.dumps({**good, "name": "a\ud800"}), "cannot be a file's name"),
        (json.dumps({**good, "name": "../up"}), "cannot be a file's name"),
        (json.dumps({**good, "name": "000000"}), "that of an earlier row"),
        (json.dumps({**good, "prompt": "a\ud800"}), "holds what is not a plain value"),
        ("5", "not a JSON object"),
    ]
    lines = [json.dumps(good, ensure_ascii=False)]
    for line, _ in wrong:
        lines += [line, json.dumps({**good, "name": "ü" * 100 if line == wrong[0][0] else None}, ensure_ascii=False)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows = read_table(tmp_path / "rows.jsonl", {})
    assert len(rows) == 2 * len(wrong) + 1
    assert all(row.request.prompt == good["prompt"] for row in rows[::2])
    for row, (_, message) in zip(rows[1::2], wrong, strict=True):
        assert row.request is None and re.search(message, row.error), row.error
    (tmp_path / "out").mkdir()
    assert [error for _, error in make_table(rows[1::2], tmp_path / "out", PortraitMaker(ModelSettings()))] == [
        row.error for row in rows[1::2]
    ]
    failures = (tmp_path / "out/failures.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["error"] for line in failures] == [row.error for row in rows[1::2]]


def test_a_wrong_row_does_not_end_a_csv_table(tmp_path):
    (tmp_path / "rows.csv").write_text(
        "name,photos,prompt,expression\n"
        "one,ab.jpg,a person,smile\n"
        "two,ab.jpg,a person, smiling,\n"
        f"three,ab.jpg,{'a' * 200_000},\n"
        f"four,ab.jpg,a person,{'[' * 100_000}\n"
        'five,"[""a.jpg"", ""b.jpg""]",a person\n'
    )
    rows = read_table(tmp_path / "rows.csv", {})
    assert [row.name for row in rows] == ["one", "two", "three", "four", "five"]
    assert rows[0].request.photos == [str(tmp_path / "ab.jpg")]
    assert rows[4].request.photos == [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    for row, message in zip(
        rows[1:4], ["5 cells, but the head has 4", "longer than 131,072", "expression"], strict=True
    ):
        assert row.request is None and message in row.error and len(row.error) < 900


def image_with(record, path):
    path.write_bytes(as_png(PIL.Image.new("RGB", (8, 8)), record))
    return path


def made_of(tmp_path, **values):
    """An image of a request, with its record."""
    request = PortraitRequest(prompt="a person", **values)
    names = filter(None, [*request.photos, request.identity, request.pose_image])
    record = {
        "request": dump_settings(request),
        "model": dump_settings(ModelSettings()),
        "files": {name: file_digest(name) for name in names},
        "versions": {"torch": torch.__version__},
    }
    return request, record, image_with(record, tmp_path / "a.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": [1]}, r"damaged record: files is \[1\]"),
        ({"files": None}, "damaged record: files is None"),
        ({"versions": ["a"]}, r"damaged record: versions is \['a'\]"),
        ({"versions": {"torch": 2}}, "damaged record: versions"),
        ({"request": None}, "the record of the image holds NoneType"),
    ],
)
def test_a_damaged_record_is_one_line(change, message, tmp_path):
    _, record, _ = made_of(tmp_path, identity=str(PEOPLE[0]))
    image_with({**record, **change}, tmp_path / "b.png")
    with pytest.raises(InputError, match=message):
        command("generate", "--from", tmp_path / "b.png", "--output", tmp_path / "out")


def test_an_image_that_cannot_be_one_of_ours(tmp_path):
    """A header that promises 3.6 billion pixels, and a record that is nested too deep to be read."""
    buffer = io.BytesIO()
    PIL.Image.new("1", (8, 8)).save(buffer, "PNG")
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + buffer.getvalue()[24:29]
    (tmp_path / "bomb.png").write_bytes(
        buffer.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + buffer.getvalue()[33:]
    )
    with pytest.raises(InputError, match="bomb.png is too large"):
        read_record(tmp_path / "bomb.png")
    text = PIL.PngImagePlugin.PngInfo()
    text.add_itxt(RECORD_KEY, "[" * 100_000)
    PIL.Image.new("1", (8, 8)).save(tmp_path / "deep.png", pnginfo=text)
    with pytest.raises(InputError, match="deep.png has no record"):
        read_record(tmp_path / "deep.png")
    row = Row("bomb", PortraitRequest(prompt="p", identity=str(PEOPLE[0])))
    ((_, error),) = make_table([row], tmp_path, PortraitMaker(ModelSettings()))
    assert "bomb.png is there and is another image" in error


def test_a_package_that_is_gone_is_noted(capsys):
    _note_versions({"versions": {"not-a-package": "1", "": "2", "torch": torch.__version__}})
    message = capsys.readouterr().err
    assert "not-a-package 1 (now not installed)" in message and "torch" not in message


def test_from_a_moved_pose_image(tmp_path):
    (tmp_path / "pose.jpg").write_bytes(b"pose")
    _, record, path = made_of(tmp_path, identity=str(PEOPLE[0]), pose_image=str(tmp_path / "pose.jpg"))
    (tmp_path / "pose.jpg").rename(tmp_path / "moved.jpg")
    with pytest.raises(InputError, match="pose.jpg is not there any more; say where .* with --pose-image"):
        command("generate", "--from", path, "--output", tmp_path / "out")
    _, request, files = from_record(read_record(path), pose_image=str(tmp_path / "moved.jpg"))
    assert files == {str(tmp_path / "pose.jpg"): str(tmp_path / "moved.jpg")}
    assert dump_settings(request) == record["request"]
    (tmp_path / "moved.jpg").write_bytes(b"another")
    with pytest.raises(InputError, match="moved.jpg is not the file that the image was made of"):
        command("generate", "--from", path, "--pose-image", tmp_path / "moved.jpg", "--output", tmp_path / "out")
    _, record, _ = made_of(tmp_path, identity=str(PEOPLE[0]))
    with pytest.raises(InputError, match="made without a pose image"):
        from_record(record, pose_image=str(tmp_path / "moved.jpg"))


def test_a_replaced_photo_is_another_image(tmp_path):
    photo = tmp_path / "who.jpg"
    photo.write_bytes(b"one person")
    request, _, path = made_of(tmp_path, photos=[str(photo)])
    before, maker = path.read_bytes(), PortraitMaker(ModelSettings())
    assert list(make_table([Row("a", request)], tmp_path, maker)) == [(Row("a", request), None)]
    photo.write_bytes(b"another person")
    ((_, error),) = make_table([Row("a", request)], tmp_path, maker)
    assert "a.png is there and was made of another file than" in error and "--overwrite" in error
    photo.unlink()
    assert list(make_table([Row("a", request)], tmp_path, maker)) == [(Row("a", request), None)]
    assert path.read_bytes() == before
