"""Damaged folders of shards: each photo loads finite, or raises one typed line."""

import dataclasses
import io
import json
import random
import shutil

import numpy as np
import tiny_training
import torch
from damage import VALUES, assert_one_line, damage_bytes, damage_json
from input_counts import counts, report
from transformers import CLIPImageProcessor

from facesnap_diffusers import load_landmark_predictor
from facesnap_diffusers.data.shards import MANIFEST, SETTINGS, PreparedFaces
from facesnap_diffusers.errors import FaceSnapError
from facesnap_diffusers.training.samples import TrainingSamples
from facesnap_diffusers.training.training_config import DataConfig, DropoutConfig


SHARD = "shard-000000.tar"
ARRAYS = ("embedding", "landmarks", "shape", "expression", "rotation", "scale", "translation")


def damage_line(content: bytes, rng: random.Random) -> bytes:
    """One line of the manifest has another value, is doubled or missing."""
    lines = content.splitlines(keepends=True)
    number = rng.randrange(len(lines))
    lines[number] = rng.choice([damage_json(lines[number], rng) + b"\n", b"", lines[number] * 2, b"[]\n", b"7\n"])
    return b"".join(lines)


def damage_sample(folder, rng: random.Random) -> bytes:
    """A shard whose first photo is whole and has a wrong value: as another program might write it."""
    faces = PreparedFaces([str(folder)])
    face, (_, start, end) = faces[0], faces.places[0]
    name = rng.choice([*ARRAYS, "info", "info", "image", "clip_crop", "recognition_crop"])
    value = getattr(face, name)
    if name == "info":
        value = {**value, rng.choice([*value, "file_size", "surprise"]): rng.choice(VALUES)}
        value = rng.choice([value, value, [], None, 7])
    elif isinstance(value, bytes):
        value = damage_bytes(value, rng)
    else:
        number = rng.choice([np.nan, np.inf, -np.inf, 1e38])
        value = rng.choice([np.full_like(value, number), np.resize(value, (3, 5)), np.float32(0), np.zeros(0)])
    changed = dataclasses.replace(face, **{name: value})
    if name == "info":  # the writer reads it
        buffer = io.BytesIO(face.to_tar("000000000"))
        sample = _replaced(buffer.getvalue(), b"json", json.dumps(value).encode())
    else:
        sample = changed.to_tar("000000000")
    content = (folder / SHARD).read_bytes()
    # the places of the manifest must stay true
    if len(sample) != end - start:
        lines = (folder / MANIFEST).read_text().splitlines(keepends=True)
        moved = len(sample) - (end - start)
        records = [json.loads(line) for line in lines]
        for number, record in enumerate(records):
            record["start"], record["end"] = record["start"] + (moved if number else 0), record["end"] + moved
        (folder / MANIFEST).write_text("".join(json.dumps(record) + "\n" for record in records))
    return content[:start] + sample + content[end:]


def _replaced(sample: bytes, ending: bytes, content: bytes) -> bytes:
    """A piece of a tar file, in which the file of this ending has other contents."""
    pieces, start = [], 0
    while start < len(sample):
        header = sample[start : start + 512]
        size = int(header[124:135], 8)
        data = sample[start + 512 : start + 512 + size]
        start += 512 + -(-size // 512) * 512
        if header[:100].rstrip(b"\0").endswith(b"." + ending):
            data = content
            header = header[:124] + b"%011o\0" % len(data) + header[136:]
        pieces += [header, data, bytes(-len(data) % 512)]
    return b"".join(pieces)


def assert_finite(values):
    for value in values:
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if isinstance(value, torch.Tensor):
            assert torch.isfinite(value).all()


@counts(few=30, many=2500)
def test_shards(count, tmp_path):
    tiny_training.write_faces(tmp_path / "good", people=2, photos=2)
    folder = tmp_path / "bad"
    predictor = load_landmark_predictor()
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    outcomes = {"typed": 0, "loaded": 0}
    for i in range(count):
        rng = random.Random(i)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "good", folder)
        name = rng.choice([SHARD, SHARD, SHARD, SHARD, MANIFEST, SETTINGS])
        content = (folder / name).read_bytes()
        if rng.random() < 0.03:
            (folder / name).unlink()
        elif name == SHARD and rng.random() < 0.6:
            (folder / name).write_bytes(damage_sample(folder, rng))
        elif name == MANIFEST and rng.random() < 0.7:
            (folder / name).write_bytes(damage_line(content, rng))
        elif name == SETTINGS and rng.random() < 0.7:
            (folder / name).write_bytes(damage_json(content, rng))
        else:
            (folder / name).write_bytes(damage_bytes(content, rng))
        refused = False
        try:
            faces = PreparedFaces([str(folder)])
        except FaceSnapError as error:
            assert_one_line(error)
            outcomes["typed"] += 1
            continue
        config = DataConfig(shards=[str(folder)], resolution=32)
        samples = TrainingSamples(faces, config, DropoutConfig(), predictor, processor, 32, 1000, (4, 16, 16))
        for source in (faces, samples):
            for position in range(len(faces)):
                try:
                    read = source[position]
                    assert_finite(read.values() if isinstance(read, dict) else vars(read).values())
                except FaceSnapError as error:
                    assert_one_line(error)
                    refused = True
        outcomes["typed" if refused else "loaded"] += 1
    report("damaged shards", outcomes["typed"], outcomes["loaded"])
    assert outcomes["typed"] > count // 3
