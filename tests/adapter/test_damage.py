"""Damaged adapters and identities: each loads whole and finite, or raises one typed line and changes nothing."""

import random
import shutil

import tiny
import torch
from damage import assert_one_line, damage_bytes, damage_json
from input_counts import counts, report

from facesnap_diffusers import FaceIdentity, FaceSnapError


@counts(few=30, many=1100)
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
            assert_one_line(error)
            outcomes["typed"] += 1
            assert pipe.mixer is before
        else:
            outcomes["loaded"] += 1
            for name in ("mixer", "identity_attention", "ffrnet", "face_image_encoder"):
                for parameter in getattr(pipe, name).parameters() if getattr(pipe, name) is not None else ():
                    assert torch.isfinite(parameter).all()
        file.write_bytes(content)
    report("damaged adapters", outcomes["typed"], outcomes["loaded"])
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
            assert_one_line(error)
            outcomes["typed"] += 1
        else:
            outcomes["loaded"] += 1
            assert torch.isfinite(person.face_embeds).all() and repr(person)
    report("damaged identities", outcomes["typed"], outcomes["loaded"])
    assert outcomes["typed"] > count // 4
