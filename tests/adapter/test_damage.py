"""Damaged adapters and identities: each loads whole and finite, or raises one typed line and changes nothing."""

import json
import random
import shutil

import tiny
import torch
from input_counts import counts

from facesnap_diffusers import FaceIdentity, FaceSnapError


VALUES = [None, True, -1, 0, 1, 10**9, 10**400, 1e308, "", "x", "../../x", [], [[]], {}, {"a": 1}, "a\0b", "é" * 300]


def damage_bytes(content, rng):
    data = bytearray(content)
    kind = rng.choice(["cut", "flip", "insert", "zero", "head", "empty", "double"])
    if kind == "cut":
        return bytes(data[: rng.randrange(len(data) + 1)])
    if kind == "flip":
        for _ in range(rng.choice([1, 3, 30])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "insert":
        place = rng.randrange(len(data))
        data[place:place] = rng.randbytes(rng.choice([1, 8, 100]))
    elif kind == "zero":
        place = rng.randrange(len(data))
        data[place : place + 64] = bytes(len(data[place : place + 64]))
    elif kind == "head":  # of safetensors: lengths, names, dtypes and shapes
        for _ in range(rng.choice([1, 2, 5])):
            data[rng.randrange(min(len(data), 400))] = rng.randrange(256)
    elif kind == "empty":
        return b""
    else:
        return content + content
    return bytes(data)


def damage_json(content, rng):
    values = json.loads(content)
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice([*values, "surprise"])
        if rng.random() < 0.2:
            values.pop(name, None)
        elif isinstance(values.get(name), dict) and values[name] and rng.random() < 0.6:
            values[name][rng.choice([*values[name]])] = rng.choice(VALUES)
        else:
            values[name] = rng.choice(VALUES)
    return json.dumps(values).encode()


def say(error):
    text = str(error)
    assert "\n" not in text and len(text) < 1500, text


@counts(few=12, many=150, all_of_them=1100)
def test_adapters(count, tmp_path):
    source = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(source)
    source.save_facesnap_adapter(tmp_path / "good")
    pipe = tiny.facesnap(tiny.sd_pipeline())
    folder = tmp_path / "bad"
    shutil.copytree(tmp_path / "good", folder)
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors"))
    outcomes = {"typed": 0, "loaded": 0}
    for i in range(count):
        rng = random.Random(i)
        file = rng.choice(files)
        content = file.read_bytes()
        if rng.random() < 0.05:
            file.unlink()
        elif file.suffix == ".json" and rng.random() < 0.8:
            file.write_bytes(damage_json(content, rng))
        else:
            file.write_bytes(damage_bytes(content, rng))
        before = pipe.mixer
        try:
            pipe.load_facesnap_adapter(folder)
        except FaceSnapError as error:
            say(error)
            outcomes["typed"] += 1
            assert pipe.mixer is before
        else:
            outcomes["loaded"] += 1
            for name in ("mixer", "identity_attention", "ffrnet", "face_image_encoder"):
                for parameter in getattr(pipe, name).parameters() if getattr(pipe, name) is not None else ():
                    assert torch.isfinite(parameter).all()
        file.write_bytes(content)
    print(outcomes)
    assert outcomes["typed"] > count // 3


@counts(few=60, many=1100)
def test_identities(count, tmp_path):
    path = tmp_path / "me.safetensors"
    FaceIdentity.fuse([tiny.identity(), tiny.identity(4)]).save(path)
    content = path.read_bytes()
    outcomes = {"typed": 0, "loaded": 0}
    for i in range(count):
        path.write_bytes(damage_bytes(content, random.Random(i)))
        try:
            person = FaceIdentity.load(path)
        except FaceSnapError as error:
            say(error)
            outcomes["typed"] += 1
        else:
            outcomes["loaded"] += 1
            assert torch.isfinite(person.face_embeds).all() and repr(person)
    print(outcomes)
    assert outcomes["typed"] > count // 4
