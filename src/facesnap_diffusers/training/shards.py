"""The prepared data on disk: WebDataset shards with a manifest that says what became of every photo."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from ..errors import InputError


MANIFEST = "manifest.jsonl"
SETTINGS = "prepare.json"
TAR_BLOCK = 512
END_OF_TAR = b"\0" * (2 * TAR_BLOCK)
MOST_KEY_LENGTH = 80  # with the ending it fits a tar header's 100 bytes


@dataclass
class PreparedFace:
    r"""
    A photo of one person with all that training asks of it. `key.ext` in a shard:

    - `image.<format>`: `image`, encoded;
    - `head.jpg`: `head`, what the image encoder sees ([`align_for_clip`]);
    - `face.png`: `face`, what the recogniser sees ([`align_faces`]);
    - `safetensors`: the arrays, in float32; `json`: `info`.

    [`~preparation.face.make_face`] makes one from a picture, its landmarks and its embedding.

    Attributes:
        image (`bytes`): The photo, an encoded RGB image.
        head (`bytes`): Encoded, `(size, size)`.
        face (`bytes`): Encoded, the recogniser's size.
        embedding (`np.ndarray`): `(dim,)`, of the face encoder.
        landmarks (`np.ndarray`): `(72, 2)`, in pixels of `image`.
        shape, expression, rotation, scale, translation (`np.ndarray`): [`FaceCoefficients`] in pixels of `image`,
            without the batch dimension.
        info (`dict`): `identity` (`str` or `None`), `caption` (`str` or `None`), `image_format` (`"jpg"` by default),
            and whatever else JSON can hold.
    """

    image: bytes
    head: bytes
    face: bytes
    embedding: np.ndarray
    landmarks: np.ndarray
    shape: np.ndarray
    expression: np.ndarray
    rotation: np.ndarray
    scale: np.ndarray
    translation: np.ndarray
    info: dict[str, Any]

    def to_tar(self, key: str) -> bytes:
        """The sample as a piece of a tar file, without its end. `key`: up to 80 ASCII characters without a dot."""
        from webdataset import TarWriter

        if not key or "." in key or not key.isascii() or len(key) > MOST_KEY_LENGTH:
            raise InputError(f"key {key!r} must be 1 to {MOST_KEY_LENGTH} ASCII characters without a dot; change it")
        arrays = {name: np.array(getattr(self, name), np.float32, order="C") for name in _ARRAYS}
        buffer = io.BytesIO()
        writer = TarWriter(buffer, encoder=False, mtime=0)
        writer.write(
            {
                "__key__": key,
                f"image.{self.info.get('image_format', 'jpg')}": self.image,
                "head.jpg": self.head,
                "face.png": self.face,
                "safetensors": safetensors.numpy.save(arrays),
                "json": json.dumps(self.info).encode(),
            }
        )
        end = writer.tarstream.offset
        writer.close()
        return buffer.getvalue()[:end]

    @classmethod
    def from_tar(cls, data: bytes) -> PreparedFace:
        """Reads what [`to_tar`] wrote."""
        files = {name.split(".")[1]: content for name, content in _tar_files(data)}
        # copied, as arrays on foreign bytes cannot become tensors
        arrays = {name: array.copy() for name, array in safetensors.numpy.load(files["safetensors"]).items()}
        return cls(files["image"], files["head"], files["face"], info=json.loads(files["json"]), **arrays)


def _tar_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """
    Names and contents of the plain files in a piece of a tar file, as [`to_tar`] writes them: a header block with the
    name in its first 100 bytes and the size in octal at 124, then the content, filled up to whole blocks. `tarfile`, which
    copes with all that tar files may hold, takes forty times as long, at each step of a training run.
    """
    start = 0
    while start < len(data):
        name, size = data[start : start + 100].rstrip(b"\0").decode(), int(data[start + 124 : start + 135], 8)
        start += TAR_BLOCK
        yield name, data[start : start + size]
        start += -(-size // TAR_BLOCK) * TAR_BLOCK


_ARRAYS = ("embedding", "landmarks", "shape", "expression", "rotation", "scale", "translation")


@dataclass
class Fate:
    r"""
    A line of the manifest: what became of one photo.

    Attributes:
        source (`str`): The photo's name in the input.
        kept (`bool`): It is in a shard.
        reason (`str`): `"kept"`, or why not, in one or two words.
        detail (`str`): The same in a sentence.
        key (`str`, *optional*), shard (`str`, *optional*), start (`int`, *optional*), end (`int`, *optional*): Where
            it is: its key, the shard's file name, and its bytes there.
        identity (`str`, *optional*): Who it shows.
        phash (`int`, *optional*): Perceptual hash, 64 bits.
    """

    source: str
    kept: bool
    reason: str
    detail: str = ""
    key: str | None = None
    shard: str | None = None
    start: int | None = None
    end: int | None = None
    identity: str | None = None
    phash: int | None = None

    def place(self) -> tuple[str, int, int]:
        """Shard, first byte and end of a kept photo."""
        assert self.shard is not None and self.start is not None and self.end is not None
        return self.shard, self.start, self.end

    def to_line(self) -> str:
        return json.dumps({name: value for name, value in asdict(self).items() if value not in (None, "")}) + "\n"


class ShardWriter:
    r"""
    Appends photos and fates to a folder of shards. The manifest's line follows the shard's bytes; on opening, what has
    no complete line yet is cut off, so that a killed run goes on where it was.

    Args:
        folder (`str` or `Path`): Made if need be.
        settings (`dict`): How the photos were prepared. A folder with other settings is refused. Training asks for
            `face_encoder` (`str`), whose embeddings they are, and, where the identity loss compares with photos, for
            `face_crop` (`[str, int]`), the template and the side of the faces' crops.
        shard_bytes (`int`): A shard that has reached this size is closed.

    Attributes:
        fates (`list[Fate]`): What became of the photos so far, those that were in the folder before included.

    Example:

    ```python
    with ShardWriter("data/train", {"face_encoder": "insightface/w600k_r50", "face_crop": ["arcface", 112]}) as writer:
        done = {fate.source for fate in writer.fates}
        for name, image, landmarks, embedding, person in pictures():
            if name not in done:
                writer.add(make_face(image, landmarks, embedding, predictor, info={"identity": person}), name)
    ```
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], shard_bytes: int = 500_000_000):
        self.folder = Path(folder)
        self.shard_bytes = shard_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(settings))
        path = self.folder / SETTINGS
        if path.exists() and json.loads(path.read_text()) != settings:
            old = json.loads(path.read_text())
            changed = sorted(key for key in {*old, *settings} if old.get(key) != settings.get(key))
            raise InputError(f"{folder} was prepared with other settings ({', '.join(changed)}); use another folder")
        path.write_text(json.dumps(settings, indent=2) + "\n")

        manifest = self.folder / MANIFEST
        content = manifest.read_bytes() if manifest.exists() else b""
        complete = content.rfind(b"\n") + 1
        self.fates = [Fate(**json.loads(line)) for line in content[:complete].splitlines()]
        ends: dict[str, int] = {}
        for fate in self.fates:
            if fate.kept:
                shard, _, end = fate.place()
                ends[shard] = end
        self.number = max(0, len(ends) - 1)
        self.count = sum(fate.kept for fate in self.fates)
        self._manifest = open(manifest, "ab")
        self._manifest.truncate(complete)
        self._open_shard(ends.get(self._name(), 0))

    def add(self, face: PreparedFace, source: str) -> None:
        """Appends a photo. `source` is its name, which no other photo of the folder has."""
        self.write(Fate(source, True, "kept", identity=face.info.get("identity")), face)

    def write(self, fate: Fate, face: PreparedFace | None = None) -> None:
        """Takes in a fate and, if the photo is kept, the photo; says in the fate where it is."""
        if face is not None:
            fate.key = f"{self.count:09d}"
            sample = face.to_tar(fate.key)
            if self._shard.tell() > 0 and self._shard.tell() + len(sample) > self.shard_bytes:
                self._close_shard()
                self.number += 1
                self._open_shard(0)
            fate.shard, fate.start = self._name(), self._shard.tell()
            self._shard.write(sample)
            self._shard.flush()
            fate.end = self._shard.tell()
            self.count += 1
        self._manifest.write(fate.to_line().encode())
        self._manifest.flush()
        self.fates.append(fate)

    def close(self) -> None:
        self._close_shard()
        self._manifest.close()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _name(self) -> str:
        return f"shard-{self.number:06d}.tar"

    def _open_shard(self, end: int) -> None:
        self._shard = open(self.folder / self._name(), "r+b" if (self.folder / self._name()).exists() else "w+b")
        self._shard.truncate(end)
        self._shard.seek(end)

    def _close_shard(self) -> None:
        self._shard.write(END_OF_TAR)
        self._shard.close()


def read_fates(folder: str | Path) -> Iterator[Fate]:
    """The manifest of a prepared folder, which may be at any address that fsspec reads."""
    import fsspec

    try:
        with fsspec.open(f"{folder}/{MANIFEST}", "rt") as file:
            for line in file:
                if line.endswith("\n"):
                    yield Fate(**json.loads(line))
    except FileNotFoundError:
        raise InputError(f"{folder} has no {MANIFEST}; make it with facesnap prepare") from None


def read_settings(folder: str | Path) -> dict[str, Any]:
    """How a folder was prepared."""
    import fsspec

    try:
        with fsspec.open(f"{folder}/{SETTINGS}", "rt") as file:
            return json.load(file)
    except FileNotFoundError:
        raise InputError(f"{folder} has no {SETTINGS}; make it with facesnap prepare") from None


class PreparedFaces:
    r"""
    The kept photos of prepared folders, by number. Reads a photo's bytes from where they are, one read each.

    Args:
        folders (`list[str]`): Folders that [`ShardWriter`] wrote, local or at any address that fsspec reads.
    """

    def __init__(self, folders: list[str]):
        self.places: list[tuple[str, int, int]] = []
        self.people: dict[str, list[int]] = {}
        self.person: list[str | None] = []
        self.settings = [read_settings(folder) for folder in folders]
        for number, folder in enumerate(folders):
            for fate in read_fates(folder):
                if not fate.kept:
                    continue
                if fate.identity is not None:
                    # the same label in two folders need not be the same person
                    person = f"{number}/{fate.identity}"
                    self.people.setdefault(person, []).append(len(self.places))
                else:
                    person = None
                self.person.append(person)
                shard, start, end = fate.place()
                self.places.append((f"{folder}/{shard}", start, end))
        if not self.places:
            raise InputError(f"{', '.join(folders)} holds no photos; see facesnap prepare --stats for why")

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> PreparedFace:
        import fsspec

        address, start, end = self.places[index]
        filesystem, path = fsspec.core.url_to_fs(address)
        return PreparedFace.from_tar(filesystem.cat_file(path, start=start, end=end))

    def others(self, index: int) -> list[int]:
        """Further photos of the person in photo `index`."""
        person = self.person[index]
        return [] if person is None else [other for other in self.people[person] if other != index]
