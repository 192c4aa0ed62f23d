"""The prepared data on disk: WebDataset shards with a manifest that says what became of every photo."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError


MANIFEST = "manifest.jsonl"
SETTINGS = "prepare.json"
END_OF_TAR = b"\0" * 1024


@dataclass
class PreparedFace:
    r"""
    A photo of one person with all that training asks of it. `key.ext` in a shard:

    - `image.<format>`: `image`, encoded;
    - `head.jpg`: `head`, what the image encoder sees ([`align_for_clip`]);
    - `face.png`: `face`, what the recogniser sees ([`align_faces`]);
    - `npz`: the arrays; `json`: `identity`, `caption`, `source` and more.

    Attributes:
        image (`bytes`): The photo, an encoded RGB image.
        head (`bytes`): Encoded, `(size, size)`.
        face (`bytes`): Encoded, the recogniser's size.
        embedding (`np.ndarray`): `(dim,)`, of the face encoder.
        landmarks (`np.ndarray`): `(72, 2)`, in pixels of `image`.
        shape, expression, rotation, scale, translation (`np.ndarray`): [`FaceCoefficients`] in pixels of `image`.
        info (`dict`): `identity` (`str` or `None`), `caption` (`str` or `None`), `image_format`, and more.
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
        """The sample as a piece of a tar file, without its end."""
        from webdataset import TarWriter

        arrays = io.BytesIO()
        np.savez(arrays, **{name: np.asarray(getattr(self, name), np.float32) for name in _ARRAYS})
        buffer = io.BytesIO()
        writer = TarWriter(buffer, encoder=False, mtime=0)
        writer.write(
            {
                "__key__": key,
                f"image.{self.info.get('image_format', 'jpg')}": self.image,
                "head.jpg": self.head,
                "face.png": self.face,
                "npz": arrays.getvalue(),
                "json": json.dumps(self.info).encode(),
            }
        )
        end = writer.tarstream.offset
        writer.close()
        return buffer.getvalue()[:end]

    @classmethod
    def from_tar(cls, data: bytes) -> PreparedFace:
        """Reads what [`to_tar`] wrote."""
        files = {}
        with tarfile.open(fileobj=io.BytesIO(data + END_OF_TAR)) as tar:
            for member in tar:
                files[member.name.split(".", 1)[1].split(".")[0]] = tar.extractfile(member).read()
        with np.load(io.BytesIO(files["npz"]), allow_pickle=False) as arrays:
            values = {name: arrays[name] for name in _ARRAYS}
        return cls(files["image"], files["head"], files["face"], info=json.loads(files["json"]), **values)


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

    def to_line(self) -> str:
        return json.dumps({name: value for name, value in asdict(self).items() if value not in (None, "")}) + "\n"


class ShardWriter:
    r"""
    Appends photos and fates to a folder of shards. The manifest's line follows the shard's bytes; on opening, what has
    no complete line yet is cut off, so that a killed run goes on where it was.

    Args:
        folder (`str` or `Path`): Made if need be.
        settings (`dict`): How the photos were prepared. A folder with other settings is refused.
        shard_bytes (`int`): A shard that has reached this size is closed.
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
                ends[fate.shard] = fate.end
        self.number = max(0, len(ends) - 1)
        self.count = sum(fate.kept for fate in self.fates)
        self._manifest = open(manifest, "ab")
        self._manifest.truncate(complete)
        self._open_shard(ends.get(self._name(), 0))

    def write(self, fate: Fate, sample: bytes | None = None) -> None:
        """Takes in a fate and, of a kept photo, the bytes of [`PreparedFace.to_tar`]."""
        if fate.kept:
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
                self.places.append((f"{folder}/{fate.shard}", fate.start, fate.end))
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
