"""The prepared data on disk: WebDataset shards with a manifest that says what became of every photo."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError, one_line
from ..files import atomic_file
from ..settings import dump_settings, parse_settings
from .folder_lock import FolderLock
from .prepared_face import TAR_BLOCK, PreparedFace
from .shard_settings import ShardSettings
from .sources import is_address


MANIFEST = "manifest.jsonl"
SETTINGS = "prepare.json"
PEOPLE = "people.jsonl"
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
        phash (`int`, *optional*): Perceptual hash of the photo, 64 bits.
        face_hash (`int`, *optional*): The same of the aligned face.
        key_points (`bool`): The photo in the shard has the key points that the detector itself found.
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
    face_hash: int | None = None
    key_points: bool = False

    def place(self) -> tuple[str, int, int]:
        """Shard, first byte and end of a kept photo."""
        assert self.shard is not None and self.start is not None and self.end is not None
        return self.shard, self.start, self.end

    @classmethod
    def from_line(cls, line: str | bytes, manifest: str | Path) -> PhotoRecord:
        """Raises [`InputError`] where a line of `manifest` is no record, or names a shard outside of its folder."""
        try:
            values = json.loads(line)
            record = cls(**values)
        except (ValueError, TypeError) as error:
            raise InputError(f"{manifest} has a damaged line ({one_line(error)}); prepare the folder again") from None
        if record.kept:
            whole = isinstance(record.shard, str) and isinstance(record.start, int) and isinstance(record.end, int)
            if not whole or not 0 <= record.start < record.end:  # type: ignore[operator]
                raise InputError(f"{manifest} does not say where {record.source!r} is; prepare the folder again")
            if record.shard in ("", ".", "..") or any(sign in record.shard for sign in "/\\:"):  # type: ignore[operator]
                raise InputError(
                    f"{manifest} has {record.source!r} in {record.shard!r}, outside of its folder; prepare it again"
                )
        return record

    def to_line(self) -> str:
        values = {name: value for name, value in asdict(self).items() if value not in (None, "")}
        if not self.key_points:
            del values["key_points"]
        return json.dumps(values) + "\n"


class ShardWriter:
    r"""
    Appends photos and their records to a folder of shards. The manifest's line follows the shard's bytes; on opening, what
    has no complete line yet is cut off, so that a killed run continues where it was. `source in writer` says whether a photo
    has a record; it takes some 70 bytes a photo.

    Args:
        folder (`str` or `Path`): Created if it does not exist.
        settings ([`ShardSettings`]): What the photos give. A folder with other settings is refused.
        shard_bytes (`int`): A shard that has reached this size is closed.

    Attributes:
        total (`int`), count (`int`): Photos that have a record, and those of them that are kept, those that were in the
            folder before included.

    Raises:
        InputError: The folder was prepared with other settings, or another process writes into it.

    Example:

    ```python
    settings = ShardSettings("insightface/w600k_r50", recognition_crop="arcface")
    with ShardWriter("data/train", settings) as writer:
        for name, image, landmarks, embedding, person in pictures():
            if name not in writer:
                face = make_face(image, landmarks, embedding, predictor, settings, info={"identity": person})
                writer.add(face, name)
    ```
    """

    def __init__(self, folder: str | Path, settings: ShardSettings, shard_bytes: int = 500_000_000):
        self.folder = Path(folder)
        self.settings = settings
        self.shard_bytes = shard_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self._is_closed = False
        self._lock = FolderLock(self.folder)
        self._lock.acquire()
        try:
            self._write_settings()
            self._continue()
        except BaseException:
            self._lock.release()
            raise

    def _continue(self) -> None:
        """Opens manifest and shard at their last complete line."""
        path = self.folder / MANIFEST
        self._sources: set[int] = set()
        self.total = self.count = complete = 0
        ends: dict[str, int] = {}
        with open(path, "ab+") as file:
            file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                complete += len(line)
                record = PhotoRecord.from_line(line, path)
                self._note(record)
                if record.kept:
                    shard, _, end = record.place()
                    ends[shard] = end
        self.number = max(0, len(ends) - 1)
        self._manifest = open(path, "ab")  # noqa: SIM115  (closed by `close`)
        self._manifest.truncate(complete)
        self._manifest.seek(complete)
        self._open_shard(ends.get(self._name(), 0))

    def _note(self, record: PhotoRecord) -> None:
        self._sources.add(_short(record.source))
        self.total += 1
        self.count += record.kept

    def __contains__(self, source: str) -> bool:
        return _short(source) in self._sources

    def add(self, face: PreparedFace, source: str) -> None:
        """Appends a photo. `source` is its name, which no other photo of the folder has."""
        self.write(PhotoRecord(source, True, "kept", identity=face.info.get("identity")), face)

    def write(self, record: PhotoRecord, face: PreparedFace | None = None) -> int:
        """
        Appends a record and, if the photo is kept, the photo; notes in the record where it is. Returns where the record
        begins in the manifest, in bytes; see [`read_record`]. Raises [`InputError`] where the disk is full or takes no more,
        and is closed then: a new writer continues after the last record.
        """
        if face is not None and (face.recognition_crop is None) != (self.settings.recognition_crop is None):
            raise InputError(
                f"{record.source} has {'no' if face.recognition_crop is None else 'a'} recognition crop, unlike the"
                " settings of its shards; make it with the same settings"
            )
        try:
            return self._append(record, face)
        except OSError as error:
            self._abandon()
            raise InputError(
                f"{record.source} could not be written to {self.folder} ({one_line(error)}); make room, or use another folder"
            ) from error

    def _append(self, record: PhotoRecord, face: PreparedFace | None) -> int:
        if face is not None:
            record.key, record.key_points = f"{self.count:09d}", face.key_points is not None
            sample = face.to_tar(record.key)
            if self._shard.tell() > 0 and self._shard.tell() + len(sample) > self.shard_bytes:
                self._close_shard()
                self.number += 1
                self._open_shard(0)
            record.shard, record.start = self._name(), self._shard.tell()
            self._shard.write(sample)
            self._shard.flush()
            record.end = self._shard.tell()
        start = self._manifest.tell()
        self._manifest.write(record.to_line().encode())
        self._manifest.flush()
        self._note(record)
        return start

    def _abandon(self) -> None:
        """Closes the files as they are; what has no complete record is cut off by the next writer."""
        self._is_closed = True
        for file in (self._shard, self._manifest):
            with contextlib.suppress(OSError):
                file.close()
        self._lock.release()

    def close(self) -> None:
        """Ends the last shard. Raises [`InputError`] where the disk is full."""
        if self._is_closed:
            return
        try:
            self._close_shard()
            self._manifest.close()
        except OSError as error:
            self._abandon()
            raise InputError(
                f"{self.folder} could not be completed ({one_line(error)}); make room and continue"
            ) from error
        self._is_closed = True
        self._lock.release()

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
        size = path.stat().st_size if path.exists() else 0
        if size < end:
            raise InputError(
                f"{path} has {size} bytes, of which {MANIFEST} names {end}; restore it, or prepare into another folder"
            )
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
        with fsspec.open(f"{folder}/{MANIFEST}", "rt", encoding="utf-8", errors="backslashreplace") as file:
            for line in file:
                if line.endswith("\n"):
                    yield PhotoRecord.from_line(line, f"{folder}/{MANIFEST}")
    except FileNotFoundError:
        raise InputError(f"{folder} has no {MANIFEST}; make it with facesnap prepare") from None


def records_with_starts(folder: str | Path) -> Iterator[tuple[PhotoRecord, int]]:
    """The complete lines of the manifest in a local folder, each with the byte at which it begins; see [`read_record`]."""
    path, start = Path(folder) / MANIFEST, 0
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield PhotoRecord.from_line(line, path), start
            start += len(line)


def read_record(folder: str | Path, start: int) -> PhotoRecord:
    """The record that begins at byte `start` of the manifest in a local folder."""
    path = Path(folder) / MANIFEST
    with open(path, "rb") as file:
        file.seek(start)
        return PhotoRecord.from_line(file.readline(), path)


def forget(folder: str | Path, reasons: Collection[str]) -> int:
    r"""
    Removes the records of photos that were left out for one of these reasons from the manifest of a local folder, so that
    they are prepared again; records that go with bytes of a shard stay.

    Returns:
        The number of records removed.
    """
    folder, removed = Path(folder), 0
    if not (folder / MANIFEST).is_file():
        return 0
    with FolderLock(folder), atomic_file(folder / MANIFEST) as temporary, open(temporary, "wb") as file:
        for record in read_records(folder):
            if record.kept or record.reason not in reasons:
                file.write(record.to_line().encode())
            else:
                removed += 1
    return removed


def _short(name: str) -> int:
    """64 bits of a hash: two of ten million names share it with a probability of 3 in a million."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


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
        split (`str`, *optional*): `"train"` or `"validation"`: only the photos on that side, in folders whose people are
            divided ([`divide_people`]); folders without a division are taken whole. `None`: both sides.

    Attributes:
        places (`list[tuple[str, int, int]]`): The shard of each photo, its first byte there and its end.
        person (`list[str or None]`): Who each photo shows: the number of its folder and the label in it.
        people (`dict[str, list[int]]`): The photos of each person.
        folders (`list[str]`), settings (`list[ShardSettings]`): The folders, and what the photos of each give.

    Raises:
        InputError: A folder is not a prepared one, or none of them holds a photo.
    """

    def __init__(self, folders: list[str], split: Literal["train", "validation"] | None = None):
        self.places: list[tuple[str, int, int]] = []
        self.people: dict[str, list[int]] = {}
        self.person: list[str | None] = []
        self.folders = list(folders)
        self.settings = [read_settings(folder) for folder in folders]
        for number, folder in enumerate(folders):
            for record, side in _with_people(folder):
                if side is not None and split is not None and side != split:
                    continue
                person = None
                if record.identity is not None:
                    # the same label in two folders need not be the same person
                    person = f"{number}/{record.identity}"
                    self.people.setdefault(person, []).append(len(self.places))
                self.person.append(person)
                shard, start, end = record.place()
                self.places.append((f"{folder}/{shard}", start, end))
        if not self.places:
            if split == "validation":
                raise InputError(
                    f"{', '.join(folders)} holds no photos for validation (fewer than ten people leave nobody to set aside);"
                    " set data.validation to [], or prepare it with a larger --validation"
                )
            side = f" for {split}" if split else ""
            raise InputError(f"{', '.join(folders)} holds no photos{side}; see facesnap prepare --stats for why")

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> PreparedFace:
        """Raises [`InputError`], which names the photo's place, where it cannot be read."""
        address, start, end = self.places[index]
        try:
            return PreparedFace.from_tar(_read(address, start, end))
        except Exception as error:  # of the file system, and many kinds for damaged bytes
            raise self.damaged(index, error) from error

    def damaged(self, index: int, error: Exception) -> InputError:
        """An error that names photo `index`, for what went wrong in reading it."""
        address, start, end = self.places[index]
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        return InputError(
            f"{address}: the photo in bytes {start} to {end} cannot be read ({kind}{one_line(error)});"
            " restore the shard, or prepare the folder again"
        )

    def person_number(self, index: int) -> int:
        """The number of the person in photo `index`: that of the person's first photo, which no other person has."""
        person = self.person[index]
        return index if person is None else self.people[person][0]

    def same_person(self, index: int) -> list[int]:
        """Further photos of the person in photo `index`."""
        person = self.person[index]
        return [] if person is None else [photo for photo in self.people[person] if photo != index]


def _read(address: str, start: int, end: int) -> bytes:
    """These bytes of a file; of one on the disk without fsspec, which takes longer than the disk."""
    if not is_address(address):
        with open(address, "rb") as file:
            file.seek(start)
            return file.read(end - start)
    import fsspec

    file_system, path = fsspec.core.url_to_fs(address)
    data: bytes = file_system.cat_file(path, start=start, end=end)
    return data


@dataclass
class Membership:
    r"""
    A line of `people.jsonl`: who a kept photo shows by its embedding, after all photos of a folder are known.

    Attributes:
        key (`str`): Of the photo.
        person (`str`, *optional*): Who it shows.
        split (`str`): `"train"` or `"validation"`.
        left_out (`str`, *optional*): Why the photo is not used.
    """

    key: str
    person: str | None = None
    split: str = "train"
    left_out: str | None = None


def read_people(folder: str | Path) -> Iterator[Membership]:
    """Who the kept photos of a folder show, in the order of the manifest; nothing where they are not divided."""
    import fsspec

    names = {item.name for item in fields(Membership)}
    try:
        with fsspec.open(f"{folder}/{PEOPLE}", "rt", encoding="utf-8", errors="backslashreplace") as file:
            for line in file:
                try:
                    yield Membership(**{name: value for name, value in json.loads(line).items() if name in names})
                except (ValueError, TypeError, AttributeError) as error:
                    raise InputError(
                        f"{folder}/{PEOPLE} has a damaged line ({one_line(error)}); prepare the folder again"
                    ) from None
    except FileNotFoundError:
        return


def _with_people(folder: str) -> Iterator[tuple[PhotoRecord, str | None]]:
    """The kept photos that are used, each with its side; `None` where the folder's people are not divided."""
    members = read_people(folder)
    member = next(members, None)
    divided = member is not None
    for record in read_records(folder):
        if not record.kept:
            continue
        if not divided:
            yield record, None
            continue
        if member is None or member.key != record.key:
            raise InputError(
                f"{folder}/{PEOPLE} does not go with its {MANIFEST} at photo {record.key}; run facesnap prepare again"
            )
        record.identity = member.person
        if member.left_out is None:
            yield record, member.split
        member = next(members, None)
