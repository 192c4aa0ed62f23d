"""Damaged image files: each gives a finite identity, or raises one typed line."""

import io
import random
import warnings

import numpy as np
import PIL.Image
import pytest
import tiny
import torch
from damage import assert_one_line, damage_bytes
from input_counts import counts, report

from facesnap_diffusers import Face, FaceSnapError


class OneFace:
    """Finds a face in the middle of every photo."""

    encoder = tiny.FACE_ENCODER
    embedding_dim = tiny.FACE_EMBED_DIM

    def analyze(self, image):
        height, width = image.shape[:2]
        landmarks = tiny.face_points().numpy() * [width / 120, height / 100]
        box = np.array([*landmarks.min(axis=0), *landmarks.max(axis=0)])
        embedding = np.resize(image.mean(axis=(0, 1)) + 1, self.embedding_dim)
        return [Face(image, box, landmarks, embedding, 1.0, self.encoder)]


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    pipe.face_analyzer = OneFace()
    return pipe


def image_files() -> list[bytes]:
    y, x = np.mgrid[:40, :56]
    image = PIL.Image.fromarray(np.stack([4 * x, 6 * y, x + y], axis=-1).astype(np.uint8))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "PNG": [{}, {"exif": exif}],
        "JPEG": [{}, {"progressive": True, "exif": exif}],
        "WEBP": [{}, {"lossless": True}],
        "GIF": [{}, {"save_all": True, "append_images": [image.rotate(90)]}],
        "TIFF": [{}, {"compression": "tiff_lzw"}],
        "BMP": [{}],
    }
    files = []
    for kind, variants in kinds.items():
        for options in variants:
            buffer = io.BytesIO()
            image.save(buffer, kind, **options)
            files.append(buffer.getvalue())
    return files


def other_header(content: bytes, files: list[bytes], rng: random.Random) -> bytes:
    """The first bytes are those of another file."""
    length = rng.choice([4, 8, 12, 30, 60])
    return rng.choice(files)[:length] + content[length:]


@counts(few=60, many=2500)
def test_photos(pipe, count):
    files, outcomes = image_files(), {"typed": 0, "loaded": 0}
    for i in range(count):
        rng = random.Random(i)
        content = rng.choice(files)
        content = other_header(content, files, rng) if rng.random() < 0.15 else damage_bytes(content, rng)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, of damage that it reads over
                person = pipe.encode_face(content)
        except FaceSnapError as error:
            assert_one_line(error)
            outcomes["typed"] += 1
        else:
            outcomes["loaded"] += 1
            for name in ("face_embeds", "landmarks", "image_hidden_states"):
                assert torch.isfinite(getattr(person, name)).all()
    report("damaged photos", outcomes["typed"], outcomes["loaded"])
    assert outcomes["typed"] > count // 4
    assert outcomes["loaded"] > count // 10
