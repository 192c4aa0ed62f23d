"""Photos and a face analyzer that take no time: what tests of data preparation need."""

import io
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import openpeople
import PIL.Image

from facesnap_diffusers import Face, load_landmark_predictor
from facesnap_diffusers.data.preparation import prepare
from facesnap_diffusers.data.shard_settings import PrepareConfig
from facesnap_diffusers.data.shards import read_records


#: Portraits of people who do not exist, each several times.
PEOPLE = Path(openpeople.__file__).parent / "data/curated"
SIZE = (120, 100)
#: Thresholds that small made-up photos pass.
LENIENT = {
    "face_encoder_id": "test/marked", "normalized_embeds": False, "min_face": 20, "min_side": 0.5, "resolution": 100,
}  # fmt: skip


def portrait(person: int, kind: str = "studio_portrait", side: int = 640) -> PIL.Image.Image:
    """One of ten people, as `"studio_portrait"` or `"amateur_selfie"`, at most `side` pixels wide and high."""
    image = PIL.Image.open(PEOPLE / f"P{person:03d}/assets/{kind}.jpg").convert("RGB")
    image.thumbnail((side, side))
    return image


class MarkedFaces:
    """Finds one face in each photo, where a fixed pattern of points would be, and names it by its mean color."""

    encoder = "test/marked"
    embedding_dim = 3

    def __init__(self, normalize=False):
        self.normalize = normalize

    def analyze(self, image):
        if image.mean() < 5:
            return []
        if image[0, 0].tolist() == [1, 2, 3]:
            os._exit(9)  # as a library that crashes does
        height, width = image.shape[:2]
        landmarks = frontal_points() * min(height, width) / 100
        box = np.array([*landmarks.min(axis=0), *landmarks.max(axis=0)])
        embedding = image.mean(axis=(0, 1)) + 1
        if self.normalize:
            embedding = embedding / np.linalg.norm(embedding)
        return [Face(image, box, landmarks, embedding, 1.0, self.encoder)]


def frontal_points():
    mean = load_landmark_predictor().mean[:68, :2].numpy()
    return mean * [3, -3] + [50, 50]


CONFIG = PrepareConfig(**LENIENT, min_sharpness=0)


def photo(seed, size=SIZE):
    """Noise of large cells: every seed is another photo to the perceptual hash."""
    cells = np.random.default_rng(seed).integers(40, 255, (9, 9, 3), dtype=np.uint8)
    return PIL.Image.fromarray(cells).resize(size, PIL.Image.Resampling.NEAREST)


def write_photos(folder, number, people=0):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        path = folder / (f"person{index % people}" if people else ".") / f"{index:03d}.png"
        path.parent.mkdir(exist_ok=True)
        photo(index).save(path)


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def write_damaged(folder, number=200, good=lambda index: photo(index + 1000), mixed=48):
    """Files of eight kinds, of which Pillow reads three all the same: these, of the first `mixed`, show `good` photos."""
    folder.mkdir(parents=True)
    expected = {}
    dark = PIL.Image.new("RGB", SIZE)
    for index in range(number):
        kinds = ("truncated", "zero bytes", "huge", "one pixel", "text", "wrong suffix", "cmyk", "animated")
        kind = kinds[index % 8 if index < mixed else index % 5]
        name = f"{index:03d}-{kind.replace(' ', '-')}"
        path, reason = folder / f"{name}.jpg", "unreadable"
        if kind == "truncated":
            data = jpeg(good(index))
            path.write_bytes(data[: len(data) * (index % 5 + 1) // 10])
        elif kind == "zero bytes":
            path.write_bytes(b"")
        elif kind == "wrong suffix":  # a PNG called .jpg is no harm
            buffer = io.BytesIO()
            good(index).save(buffer, "PNG")
            path.write_bytes(buffer.getvalue())
            reason = "kept"
        elif kind == "huge":  # a header of 60,000 × 60,000 pixels over a few bytes
            buffer = io.BytesIO()
            dark.save(buffer, "PNG")
            data = bytearray(buffer.getvalue())
            data[16:24] = (60000).to_bytes(4, "big") * 2
            data[29:33] = __import__("zlib").crc32(bytes(data[12:29])).to_bytes(4, "big")
            path = path.with_suffix(".png")
            path.write_bytes(bytes(data))
        elif kind == "one pixel":
            path.write_bytes(jpeg(PIL.Image.new("RGB", (1, 1))))
        elif kind == "cmyk":
            path.write_bytes(jpeg(good(index).convert("CMYK")))
            reason = "kept"
        elif kind == "animated":
            path = path.with_suffix(".gif")
            frames = [good(index), dark]
            frames[0].save(path, save_all=True, append_images=frames[1:])
            reason = "kept"
        else:
            path.write_text("not an image")
        expected[path.name] = reason
    return expected


def run_silently(*arguments, **keywords):
    """Prepares photos; returns what became of each."""
    prepare(*arguments, progress=False, **{"analyzer": MarkedFaces, **keywords})
    return list(read_records(arguments[1]))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def killed(command: list[str], manifest: Path, lines: int) -> bytes:
    """Kills a command when the manifest has so many lines; returns the complete ones."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (manifest.exists() and manifest.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    content = manifest.read_bytes()
    return content[: content.rfind(b"\n") + 1]
