"""The prepared data on disk: WebDataset shards with a manifest that says what became of every photo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, one_line
from ..files import atomic_file
from ..settings import dump_settings, parse_settings
from .prepared_face import TAR_BLOCK, PreparedFace
from .shard_settings import ShardSettings


MANIFEST = "manifest.jsonl"
SETTINGS = "prepare.json"
END_OF_TAR = b"\0" * (2 * TAR_BLOCK)


@dataclass
class PhotoRecord:
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
    Appends photos and their records to a folder of shards. The manifest's line follows the shard's bytes; on opening, what
    has no complete line yet is cut off, so that a killed run continues where it was.

    Args:
        folder (`str` or `Path`): Created if it does not exist.
        settings ([`ShardSettings`]): What the photos give. A folder with other settings is refused.
        shard_bytes (`int`): A shard that has reached this size is closed.

    Attributes:
        records (`list[PhotoRecord]`): What became of the photos so far, those that were in the folder before included.

    Raises:
        InputError: The folder was prepared with other settings.

    Example:

    ```python
    settings = ShardSettings("insightface/w600k_r50", recognition_crop="arcface")
    with ShardWriter("data/train", settings) as writer:
        done = {record.source for record in writer.records}
        for name, image, landmarks, embedding, person in pictures():
            if name not in done:
                face = make_face(image, landmarks, embedding, predictor, settings, info={"identity": person})
                writer.add(face, name)
    ```
    """

    def __init__(self, folder: str | Path, settings: ShardSettings, shard_bytes: int = 500_000_000):
        self.folder = Path(folder)
        self.settings = settings
        self.shard_bytes = shard_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_settings()

        manifest = self.folder / MANIFEST
        content = manifest.read_bytes() if manifest.exists() else b""
        complete = content.rfind(b"\n") + 1
        self.records = [PhotoRecord(**json.loads(line)) for line in content[:complete].splitlines()]
        ends: dict[str, int] = {}
        for record in self.records:
            if record.kept:
                shard, _, end = record.place()
                ends[shard] = end
        self.number = max(0, len(ends) - 1)
        self.count = sum(record.kept for record in self.records)
        self._manifest = open(manifest, "ab")  # noqa: SIM115  (closed by `close`)
        self._manifest.truncate(complete)
        self._open_shard(ends.get(self._name(), 0))

    def add(self, face: PreparedFace, source: str) -> None:
        """Appends a photo. `source` is its name, which no other photo of the folder has."""
        self.write(PhotoRecord(source, True, "kept", identity=face.info.get("identity")), face)

    def write(self, record: PhotoRecord, face: PreparedFace | None = None) -> None:
        """Appends a record and, if the photo is kept, the photo; notes in the record where it is."""
        if face is not None:
            if (face.recognition_crop is None) != (self.settings.recognition_crop is None):
                raise InputError(
                    f"{record.source} has {'no' if face.recognition_crop is None else 'a'} recognition crop, unlike the"
                    " settings of its shards; make it with the same settings"
                )
            record.key = f"{self.count:09d}"
            sample = face.to_tar(record.key)
            if self._shard.tell() > 0 and self._shard.tell() + len(sample) > self.shard_bytes:
                self._close_shard()
                self.number += 1
                self._open_shard(0)
            record.shard, record.start = self._name(), self._shard.tell()
            self._shard.write(sample)
            self._shard.flush()
            record.end = self._shard.tell()
            self.count += 1
        self._manifest.write(record.to_line().encode())
        self._manifest.flush()
        self.records.append(record)

    def close(self) -> None:
        self._close_shard()
        self._manifest.close()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write_settings(self) -> None:
        path = self.folder / SETTINGS
        if not path.exists():
            with atomic_file(path) as temporary:
                temporary.write_text(json.dumps(dump_settings(self.settings), indent=2) + "\n")
            return
        before, now = (_flat(dump_settings(settings)) for settings in (read_settings(self.folder), self.settings))
        changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        if changed:
            raise InputError(
                f"{self.folder} was prepared with other settings ({', '.join(changed)}); use another folder"
            )

    def _name(self) -> str:
        return f"shard-{self.number:06d}.tar"

    def _open_shard(self, end: int) -> None:
        path = self.folder / self._name()
        self._shard = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        self._shard.truncate(end)
        self._shard.seek(end)

    def _close_shard(self) -> None:
        self._shard.write(END_OF_TAR)
        self._shard.close()


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in settings.items() if name != "preparation"}, **settings["preparation"]}


def read_records(folder: str | Path) -> Iterator[PhotoRecord]:
    """The manifest of a prepared folder, which may be at any address that fsspec reads."""
    import fsspec

    try:
        with fsspec.open(f"{folder}/{MANIFEST}", "rt") as file:
            for line in file:
                if line.endswith("\n"):
                    yield PhotoRecord(**json.loads(line))
    except FileNotFoundError:
        raise InputError(f"{folder} has no {MANIFEST}; make it with facesnap prepare") from None


def read_settings(folder: str | Path) -> ShardSettings:
    """What the photos of a prepared folder give. Raises [`InputError`] where it does not say so."""
    import fsspec

    try:
        with fsspec.open(f"{folder}/{SETTINGS}", "rt") as file:
            values = json.load(file)
    except FileNotFoundError:
        raise InputError(f"{folder} has no {SETTINGS}; make it with facesnap prepare") from None
    except ValueError as error:
        raise InputError(f"{folder}/{SETTINGS} is not JSON ({one_line(error)}); prepare the folder again") from None
    return parse_settings(ShardSettings, values, f"{folder}/{SETTINGS}")


class PreparedFaces:
    r"""
    The kept photos of prepared folders, by number. Reads a photo's bytes from where they are, one read each.

    Args:
        folders (`list[str]`): Folders that [`ShardWriter`] wrote, local or at any address that fsspec reads.

    Attributes:
        places (`list[tuple[str, int, int]]`): The shard of each photo, its first byte there and its end.
        person (`list[str or None]`): Who each photo shows: the number of its folder and the label in it.
        people (`dict[str, list[int]]`): The photos of each person.
        settings (`list[ShardSettings]`): What the photos of each folder give.

    Raises:
        InputError: A folder is not a prepared one, or none of them holds a photo.
    """

    def __init__(self, folders: list[str]):
        self.places: list[tuple[str, int, int]] = []
        self.people: dict[str, list[int]] = {}
        self.person: list[str | None] = []
        self.settings = [read_settings(folder) for folder in folders]
        for number, folder in enumerate(folders):
            for record in read_records(folder):
                if not record.kept:
                    continue
                if record.identity is not None:
                    # the same label in two folders need not be the same person
                    person = f"{number}/{record.identity}"
                    self.people.setdefault(person, []).append(len(self.places))
                else:
                    person = None
                self.person.append(person)
                shard, start, end = record.place()
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

    def same_person(self, index: int) -> list[int]:
        """Further photos of the person in photo `index`."""
        person = self.person[index]
        return [] if person is None else [photo for photo in self.people[person] if photo != index]
