"""Where photos come from: folders, lists, Hugging Face data sets, WebDataset shards."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingDependencyError


@dataclass
class Item:
    r"""
    One photo of the input.

    Attributes:
        source (`str`): Its name, which no other photo of the input has.
        photo (`str` or `bytes`, *optional*): Path, or the encoded image; `None` where the input has neither.
        identity (`str`, *optional*): Who it shows.
        caption (`str`, *optional*): What it shows.
    """

    source: str
    photo: str | bytes | None
    identity: str | None = None
    caption: str | None = None


@dataclass
class Columns:
    """What the columns of a table, or the files of a WebDataset sample, are called."""

    image: str = "image"
    identity: str = "identity"
    caption: str = "caption"


def open_source(name: str, columns: Columns | None = None, split: str = "train") -> Iterator[Item]:
    r"""
    The photos of an input, in an order that is the same every time.

    Args:
        name (`str`): One of

            - a folder: every photo in it and below, but for folders of thumbnails. A file in a subfolder shows the person
              that the topmost subfolder is called after; `photo.txt` beside `photo.jpg` holds its caption;
            - a list: `.txt` with a path a line, `.csv` with a header or `.jsonl`, with the columns of `columns`;
              paths are relative to the list;
            - WebDataset shards: `.tar`, also with braces (`data-{000..009}.tar`). The image is the first file of a sample
              that ends like one; `json` and `txt` hold identity and caption;
            - a Hugging Face data set: `hf:owner/name`, or a folder that `save_to_disk` wrote.
        columns ([`Columns`], *optional*): Names in tables and data sets.
        split (`str`): Of a Hugging Face data set.

    Raises:
        InputError: There is no such input, or it has no such columns.
        MissingDependencyError: A Hugging Face data set without `datasets`.
    """
    columns = columns or Columns()
    path = Path(name).expanduser()
    if name.startswith("hf:") or (path / "dataset_info.json").is_file() or (path / "state.json").is_file():
        return _data_set(name, columns, split)
    if path.suffix == ".tar":
        return _web_data_set(name, columns)
    if path.is_dir():
        return _folder(path)
    if path.suffix in (".txt", ".csv", ".jsonl") and path.is_file():
        return _list(path, columns)
    raise InputError(f"input {name!r} is not a folder, list (.txt, .csv, .jsonl), .tar or hf:owner/name; correct it")


def count(name: str) -> int | None:
    """The number of photos where it is known without reading the input, for the remaining time."""
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
    memory. Files whose name says that they are something else are no photos; those with a name that says nothing may be.
    """
    paths = sorted(folder.iterdir())
    captions = {path.stem: path for path in paths if path.suffix.lower() == ".txt"}
    for path in paths:
        name = path.name.lower()
        if name.startswith("."):
            continue
        if path.is_dir():
            if name not in _THUMBNAIL_FOLDERS:
                yield from _files(path)
        elif path.suffix.lower() not in _OTHER_SUFFIXES and path.stem.lower() not in _OTHER_NAMES:
            yield path, captions.get(path.stem)


def _folder(folder: Path) -> Iterator[Item]:
    for path, caption in _files(folder):
        source = path.relative_to(folder)
        yield Item(
            source=str(source),
            photo=str(path),
            identity=source.parts[0] if len(source.parts) > 1 else None,
            caption=None if caption is None else caption.read_text(errors="replace").strip(),
        )


def _list(path: Path, columns: Columns) -> Iterator[Item]:
    with open(path, newline="") as file:
        rows: Any
        if path.suffix == ".csv":
            rows = csv.DictReader(file)
        elif path.suffix == ".jsonl":
            rows = (json.loads(line) for line in file if line.strip())
        else:
            rows = ({columns.image: line.strip()} for line in file if line.strip())
        for number, row in enumerate(rows):
            photo = row.get(columns.image)
            if photo is None and number == 0:
                raise InputError(f"{path} has no column {columns.image!r}; name the image column with --image-column")
            yield Item(
                # a list may name a photo twice
                source=f"{number}:{photo}",
                photo=str(path.parent / photo) if photo else None,
                identity=_text(row.get(columns.identity)),
                caption=_text(row.get(columns.caption)),
            )


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
    if columns.image not in (rows.features or {}):
        raise InputError(f"{name} has no column {columns.image!r}; it has {list(rows.features or {})}")
    label = rows.features.get(columns.identity)
    # undecoded: a damaged image must not end the run
    rows = rows.cast_column(columns.image, datasets.Image(decode=False))
    for number, row in enumerate(rows):
        image, identity = row[columns.image] or {}, row.get(columns.identity)
        if isinstance(label, datasets.ClassLabel) and identity is not None:
            identity = label.int2str(identity)
        yield Item(
            source=f"{number}:{image.get('path') or ''}",
            photo=image.get("bytes") or image.get("path"),
            identity=_text(identity),
            caption=_text(row.get(columns.caption)),
        )


def _web_data_set(name: str, columns: Columns) -> Iterator[Item]:
    import webdataset
    from webdataset.shardlists import expand_urls

    for shard in expand_urls(name):
        if not Path(shard).is_file():
            raise InputError(f"input {shard!r} is not a file; correct the name of the shards")
    samples = webdataset.WebDataset(name, shardshuffle=False, nodesplitter=None, empty_check=False)
    for sample in samples:
        image = next((sample[key] for key in sample if f".{key.rpartition('.')[2].lower()}" in _IMAGE_SUFFIXES), None)
        values: dict[str, Any] = {}
        if "json" in sample:
            try:
                values = json.loads(sample["json"])
            except ValueError:
                values = {}
        caption = values.get(columns.caption) if isinstance(values, dict) else None
        if caption is None and "txt" in sample:
            caption = sample["txt"].decode(errors="replace").strip()
        yield Item(
            source=f"{Path(sample['__url__']).name}:{sample['__key__']}",
            photo=image,
            identity=_text(values.get(columns.identity) if isinstance(values, dict) else None),
            caption=_text(caption),
        )


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
