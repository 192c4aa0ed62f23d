"""Where photos come from: folders, lists, Hugging Face data sets, WebDataset shards; on disk or at an address."""

from __future__ import annotations

import csv
import itertools
import json
import os
import posixpath
from bisect import bisect_left
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import FaceSnapError, InputError, MissingDependencyError, one_line


@dataclass
class Item:
    r"""
    One photo of the input.

    Attributes:
        source (`str`): Its name, which no other photo of the input has.
        photo (`str` or `bytes`, *optional*): Path, address (see [`is_address`]), or the encoded image; `None` where the input
            has none of them.
        identity (`str`, *optional*): Who it shows.
        caption (`str`, *optional*): What it shows.
    """

    source: str
    photo: str | bytes | None
    identity: str | None = None
    caption: str | None = None


@dataclass
class Columns:
    """
    What the columns of a table, or the files of a WebDataset sample, are called. `identity` and `caption` that are named must
    be there; by default they are columns of these names, where a table has them.
    """

    image: str = "image"
    identity: str | None = None
    caption: str | None = None

    def of_table(self, table: str, there: Collection[str]) -> tuple[str, str]:
        """The columns of identity and caption. Raises [`InputError`] where a named one is not among those that are there."""
        for option, name in (("image", self.image), ("identity", self.identity), ("caption", self.caption)):
            if name is not None and name not in there:
                raise InputError(
                    f"{table} has no column {name!r}, it has {', '.join(there) or 'none'}; name one of them with"
                    f" --{option}-column"
                )
        return self.identity or "identity", self.caption or "caption"


def open_source(name: str, columns: Columns | None = None, split: str = "train") -> Iterator[Item]:
    r"""
    The photos of an input, in an order that is the same every time.

    Args:
        name (`str`): One of

            - a folder: every photo in it and below, but for folders of thumbnails. A file in a subfolder shows the person
              that the topmost subfolder is called after; `photo.txt` beside `photo.jpg` holds its caption;
            - a list: `.txt` with a path a line, `.csv` with a header or `.jsonl`, with the columns of `columns`;
              paths are relative to the list, or addresses;
            - WebDataset shards: `.tar`, also with braces (`data-{000..009}.tar`). The image is the first file of a sample
              that ends like one; `json` and `txt` hold identity and caption;
            - a Hugging Face data set: `hf:owner/name`, or a folder that `save_to_disk` wrote.

            Folder, list and shards may be at any address that fsspec reads, such as `s3://bucket/photos` or
            `hf://datasets/owner/name/photos.csv`.
        columns ([`Columns`], *optional*): Names in tables and data sets.
        split (`str`): Of a Hugging Face data set.

    Raises:
        InputError: There is no such input, it cannot be read, or it has no such columns.
        MissingDependencyError: A Hugging Face data set without `datasets`, or an address without the library that reads it.
    """
    columns = columns or Columns()
    if is_address(name):
        return _at_address(name, columns)
    path = Path(name).expanduser()
    if name.startswith("hf:") or (path / "dataset_info.json").is_file() or (path / "state.json").is_file():
        return _data_set(name, columns, split)
    if path.suffix == ".tar":
        return _read_from(name, _web_data_set(name, columns))
    if path.is_dir():
        return _folder(path)
    if path.suffix in (".txt", ".csv", ".jsonl") and path.is_file():
        return _read_from(name, _list(path, columns))
    raise InputError(f"input {name!r} is not a folder, list (.txt, .csv, .jsonl), .tar or hf:owner/name; correct it")


def is_address(name: str) -> bool:
    """Whether a name is an address that fsspec reads, such as `s3://bucket/photo.jpg`, and not a path."""
    return "://" in name


def read_photo(address: str) -> bytes:
    """The encoded image at an address. Raises what its file system raises: `FileNotFoundError` where there is none."""
    import fsspec

    with fsspec.open(address, "rb") as file:
        data: bytes = file.read()
    return data


def count(name: str) -> int | None:
    """The number of photos where it is known without reading the input, for the remaining time."""
    if is_address(name):
        return None
    path = Path(name).expanduser()
    if path.is_dir() and not any((path / file).is_file() for file in ("dataset_info.json", "state.json")):
        return sum(1 for _ in _files(path))
    if path.suffix in (".txt", ".csv", ".jsonl") and path.is_file():
        with open(path, "rb") as file:
            return sum(1 for _ in file) - (path.suffix == ".csv")
    return None


def _files(folder: Path) -> Iterator[tuple[Path, Path | None]]:
    """
    Photos below a folder in order, each with the file of its caption, a directory at a time: millions of them need not be in
    memory.
    """
    # names alone take less memory than paths
    names = sorted(entry.name for entry in os.scandir(folder))
    for name in names:
        path = folder / name
        if path.is_dir():
            if _is_folder_of_photos(name):
                yield from _files(path)
        elif _may_be_photo(name):
            caption = _caption(names, path.stem)
            yield path, None if caption is None else folder / caption


def _caption(names: list[str], stem: str) -> str | None:
    """Of sorted names, the last one of a text file that is called `stem`."""
    caption = None
    for ending in (".TXT", ".Txt", ".txt"):
        place = bisect_left(names, stem + ending)
        if place < len(names) and names[place] == stem + ending:
            caption = names[place]
    return caption


def _folder(folder: Path) -> Iterator[Item]:
    for path, caption in _files(folder):
        source = path.relative_to(folder)
        yield Item(
            source=str(source),
            photo=str(path),
            identity=source.parts[0] if len(source.parts) > 1 else None,
            caption=None if caption is None else caption.read_text(errors="replace").strip(),
        )


def _at_address(name: str, columns: Columns) -> Iterator[Item]:
    """As [`open_source`], through fsspec."""
    with _reaching(name):
        from fsspec.core import url_to_fs

        file_system, path = url_to_fs(name)
        suffix = PurePosixPath(path).suffix
        if suffix == ".tar":
            return _read_from(name, _web_data_set(name, columns))
        if suffix in (".txt", ".csv", ".jsonl") and file_system.isfile(path):
            return _read_from(name, _list(name, columns))
        if file_system.isdir(path):
            return _read_from(name, _folder_at_address(file_system, path))
    raise InputError(f"input {name!r} is not a folder, list (.txt, .csv, .jsonl) or .tar; correct it")


def _read_from(address: str, items: Iterator[Item]) -> Iterator[Item]:
    with _reaching(address):
        yield from items


@contextmanager
def _reaching(address: str) -> Iterator[None]:
    """Within this context, what a file system raises becomes an error that names the address."""
    try:
        yield
    except FaceSnapError:
        raise
    except ImportError as error:
        raise MissingDependencyError(
            f"input {address!r} needs another library ({one_line(error)}); install it"
        ) from error
    except Exception as error:  # each file system has its own kinds
        advice = "correct the address, or log in" if is_address(address) else "mend the file"
        raise InputError(
            f"input {address!r} cannot be read ({type(error).__name__}: {one_line(error)}); {advice}"
        ) from error


def _folder_at_address(file_system: Any, top: str, below: str = "") -> Iterator[Item]:
    """As [`_folder`], with the names of photos that [`_files`] takes."""
    folder = posixpath.join(top, below) if below else top
    # object stores may list the folder itself
    entries = [one for one in file_system.ls(folder, detail=True) if one["name"].rstrip("/") != folder.rstrip("/")]
    paths = {PurePosixPath(entry["name"]).name: entry for entry in entries}
    captions = {PurePosixPath(name).stem: name for name in sorted(paths) if name.lower().endswith(".txt")}
    for name in sorted(paths):
        source, entry = posixpath.join(below, name), paths[name]
        if entry["type"] == "directory":
            if _is_folder_of_photos(name):
                yield from _folder_at_address(file_system, top, source)
        elif _may_be_photo(name):
            caption = captions.get(PurePosixPath(name).stem)
            yield Item(
                source=source,
                photo=file_system.unstrip_protocol(entry["name"]),
                identity=PurePosixPath(source).parts[0] if below else None,
                caption=None
                if caption is None
                else file_system.cat_file(paths[caption]["name"]).decode(errors="replace").strip(),
            )


def _is_folder_of_photos(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _THUMBNAIL_FOLDERS


def _may_be_photo(name: str) -> bool:
    """Files whose name says that they are something else are no photos; those with a name that says nothing may be."""
    path = PurePosixPath(name.lower())
    return not name.startswith(".") and path.suffix not in _OTHER_SUFFIXES and path.stem not in _OTHER_NAMES


def _list(path: Path | str, columns: Columns) -> Iterator[Item]:
    """`path`: an address as a `str`."""
    import fsspec

    mark = "utf-8-sig"  # Excel puts one before its UTF-8
    with (
        open(path, newline="", encoding=mark)
        if isinstance(path, Path)
        else fsspec.open(path, "rt", newline="", encoding=mark)
    ) as file:
        rows: Any
        suffix = PurePosixPath(str(path)).suffix
        if suffix == ".csv":
            rows = csv.DictReader(file, strict=True)
        elif suffix == ".jsonl":
            rows = (json.loads(line) for line in file if line.strip())
        else:
            rows = ({columns.image: line.strip()} for line in file if line.strip())
        identity, caption = "identity", "caption"
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                raise InputError(f"{path}: row {number + 1} is no object with columns; correct it")
            if suffix in (".csv", ".jsonl") and number == 0:
                identity, caption = columns.of_table(str(path), [str(name) for name in row])
            photo = row.get(columns.image)
            yield Item(
                # a list may name a photo twice
                source=f"{number}:{photo}",
                photo=_beside(path, photo) if photo else None,
                identity=_text(row.get(identity)),
                caption=_text(row.get(caption)),
            )


def _beside(path: Path | str, photo: str) -> str:
    """What a list at `path` names `photo`."""
    if is_address(photo):
        return photo
    return str(path.parent / photo) if isinstance(path, Path) else f"{path.rpartition('/')[0]}/{photo}"


def _data_set(name: str, columns: Columns, split: str) -> Iterator[Item]:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f'input {name!r} needs datasets: pip install "facesnap-diffusers[train]"'
        ) from error
    if name.startswith("hf:"):
        rows = datasets.load_dataset(name.removeprefix("hf:"), split=split, streaming=True)
    else:
        rows = datasets.load_from_disk(name)
        rows = rows[split] if isinstance(rows, datasets.DatasetDict) else rows
    features = rows.features
    if features is None:  # streamed tables, such as CSV, have their columns in their rows, and in them names of photos
        features = dict.fromkeys(next(iter(rows), {}))
    identity_column, caption_column = columns.of_table(name, features)
    label = features.get(identity_column)
    if rows.features is not None:
        # undecoded: a damaged image must not end the run
        rows = rows.cast_column(columns.image, datasets.Image(decode=False))
    for number, row in enumerate(rows):
        image, identity = row[columns.image] or {}, row.get(identity_column)
        if not isinstance(image, dict):
            image = {"bytes": image} if isinstance(image, bytes) else {"path": str(image)}
        if isinstance(label, datasets.ClassLabel) and identity is not None:
            identity = label.int2str(identity)
        yield Item(
            source=f"{number}:{image.get('path') or ''}",
            photo=image.get("bytes") or image.get("path"),
            identity=_text(identity),
            caption=_text(row.get(caption_column)),
        )


def _web_data_set(name: str, columns: Columns) -> Iterator[Item]:
    import webdataset
    from webdataset.shardlists import expand_urls
    from webdataset.tariterators import group_by_keys, tar_file_expander

    shards = expand_urls(name)
    for shard in shards:
        with _reaching(shard):
            if not _is_file(shard):
                raise InputError(f"input {shard!r} is not a file; correct the name of the shards")
    names = _shard_names(shards)
    samples: Any
    if is_address(name):
        samples = group_by_keys(tar_file_expander(_streams(shards)))
    else:
        samples = webdataset.WebDataset(name, shardshuffle=False, nodesplitter=None, empty_check=False)
    for sample in samples:
        image = next((sample[key] for key in sample if f".{key.rpartition('.')[2].lower()}" in _IMAGE_SUFFIXES), None)
        values: dict[str, Any] = {}
        if "json" in sample:
            try:
                values = json.loads(sample["json"])
            except ValueError:
                values = {}
        caption = values.get(columns.caption or "caption") if isinstance(values, dict) else None
        if caption is None and "txt" in sample:
            caption = sample["txt"].decode(errors="replace").strip()
        yield Item(
            source=f"{names[sample['__url__']]}:{sample['__key__']}",
            photo=image,
            identity=_text(values.get(columns.identity or "identity") if isinstance(values, dict) else None),
            caption=_text(caption),
        )


def _shard_names(shards: list[str]) -> dict[str, str]:
    """What each shard is called: its file's name, or below the folder that all have in common where two files have one name."""
    parts = {shard: PurePosixPath(shard).parts for shard in shards}
    if len({names[-1] for names in parts.values()}) == len(shards):
        return {shard: names[-1] for shard, names in parts.items()}
    levels = zip(*(names[:-1] for names in parts.values()), strict=False)
    common = len(list(itertools.takewhile(lambda level: len(set(level)) == 1, levels)))
    return {shard: "/".join(names[common:]) for shard, names in parts.items()}


def _is_file(name: str) -> bool:
    from fsspec.core import url_to_fs

    if not is_address(name):
        return Path(name).is_file()
    file_system, path = url_to_fs(name)
    return bool(file_system.isfile(path))


def _streams(shards: list[str]) -> Iterator[dict[str, Any]]:
    """As `webdataset.tariterators.url_opener`, which does not know fsspec's addresses."""
    import fsspec

    for shard in shards:
        with fsspec.open(shard, "rb") as stream:
            yield {"url": shard, "stream": stream}


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
_OTHER_SUFFIXES = (
    *(
        ".txt",
        ".md",
        ".rst",
        ".pdf",
        ".html",
        ".xml",
        ".json",
        ".jsonl",
        ".csv",
        ".tsv",
        ".yaml",
        ".yml",
        ".ini",
        ".cfg",
    ),
    *(
        ".db",
        ".log",
        ".zip",
        ".tar",
        ".gz",
        ".py",
        ".ipynb",
        ".npy",
        ".npz",
        ".pt",
        ".safetensors",
        ".parquet",
        ".arrow",
    ),
    *(".mp4", ".mov", ".avi", ".webm", ".mkv", ".mp3", ".wav", ".xmp", ".aae"),
)
_OTHER_NAMES = ("readme", "license", "licence", "notice", "copying", "checksums", "md5sums", "sha256sums", "thumbs")
_THUMBNAIL_FOLDERS = ("thumbnails", "thumbnail", "thumbs", "@eadir", "__macosx")
