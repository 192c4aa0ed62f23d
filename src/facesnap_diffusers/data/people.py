"""Who the prepared photos show, by their embeddings, and who of them is set aside for validation."""

from __future__ import annotations

import hashlib
import json
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from ..files import atomic_file
from .prepared_face import TAR_BLOCK
from .shards import PEOPLE, Membership, read_records, read_settings


MOST_CLUSTERED = 100_000  # comparing all pairs of so many takes minutes; it grows with the square
MOST_FOR_MEDOID = 1_000
MOST_VALIDATION_PEOPLE = 500
FEWEST_PEOPLE_TO_DIVIDE = 10
#: Two photos without a label are put together at this share of the distance at which a label is doubted.
SURE = 0.8
ANOTHER_PERSON = "another person"
_BLOCK = 2048


def same_person_distance(face_encoder_id: str) -> float | None:
    """
    The largest distance of two embeddings of one person, `None` where it is not known: dlib's own 0.6; for InsightFace's,
    of unit length, 1.14, which is a cosine of 0.35.
    """
    if face_encoder_id.startswith("dlib/"):
        return 0.6
    return 1.14 if face_encoder_id.startswith("insightface/") else None


def divide_people(folder: str | Path, same_person: float | None = None, validation: float = 0.02) -> None:
    r"""
    Writes `people.jsonl`, a line for each kept photo of a local folder:

    1. Of the photos with one label, those far from the person's medoid (the photo nearest to all others) are left out.
    2. Photos without a label that are near one another become a person called `unlabeled-N`; this is left out where there
       are more than 100,000 of them ([`can_be_clustered`]).
    3. A share of the people is set aside for validation, the same ones every time, with everybody who is near one of them:
       nobody is on both sides.

    Args:
        folder (`str` or `Path`): That [`ShardWriter`] wrote.
        same_person (`float`, *optional*): Largest distance of two embeddings of one person; by default
            [`same_person_distance`]. 0, or a face encoder for which it is not known: labels are believed, and nothing but
            they tells people apart.
        validation (`float`): Share of the people; at least one of ten, at most 500.
    """
    folder = Path(folder)
    encoder = read_settings(folder).face_encoder_id
    limit = same_person_distance(encoder) if same_person is None else same_person
    photos = _Photos.read(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".embeddings-") as temporary:
        embeddings = None
        if limit and len(photos.person):
            embeddings = _embeddings(folder, Path(temporary), len(photos.person), is_unit(encoder))
            _doubt_labels(photos, embeddings, limit)
            _cluster_unlabeled(photos, embeddings, limit)
        _set_aside(photos, embeddings, limit or 0.0, validation)
    names = list(photos.names)
    with atomic_file(folder / PEOPLE) as path, open(path, "w") as file:
        kept = (record for record in read_records(folder) if record.kept)
        for number, record in enumerate(kept):
            member = Membership(
                record.key or "",
                names[photos.person[number]] if photos.person[number] >= 0 else None,
                "validation" if photos.validation[number] else "train",
                ANOTHER_PERSON if photos.left_out[number] else None,
            )
            values = {name: value for name, value in vars(member).items() if value is not None}
            file.write(json.dumps(values) + "\n")


def can_be_clustered(unlabeled: int) -> bool:
    """Whether so many photos without a label are compared with one another."""
    return unlabeled <= MOST_CLUSTERED


def is_unit(face_encoder_id: str) -> bool:
    """Whether embeddings are compared as vectors of unit length: all but dlib's."""
    return not face_encoder_id.startswith("dlib/")


@dataclass
class _Photos:
    """
    The kept photos of a folder by number, as arrays: there may be ten million. `names`: people, with their codes; of each
    photo `person`, a code or -1, `key_hash` (see [`_hash`]) where it has no label, and what is found out.
    """

    names: dict[str, int]
    person: np.ndarray
    key_hash: np.ndarray
    left_out: np.ndarray
    validation: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> _Photos:
        names: dict[str, int] = {}
        person, key_hash = array("i"), array("Q")
        for record in read_records(folder):
            if record.kept:
                label = record.identity
                person.append(-1 if label is None else names.setdefault(label, len(names)))
                key_hash.append(0 if label is not None else _hash(f"\0{record.key or ''}"))
        nothing = np.zeros((2, len(person)), bool)
        return cls(names, np.array(person), np.array(key_hash), *nothing)


class _Groups:
    """The photos of each of `count` codes, by number; a negative code is no group."""

    def __init__(self, codes: np.ndarray, count: int):
        self._order = np.argsort(codes, kind="stable")
        self._edges = np.searchsorted(codes[self._order], np.arange(count + 1))

    def __len__(self) -> int:
        return len(self._edges) - 1

    def __getitem__(self, code: int) -> np.ndarray:
        return self._order[self._edges[code] : self._edges[code + 1]]


def _hash(name: str) -> int:
    """64 bits, the same every time."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _embeddings(folder: Path, temporary: Path, count: int, unit: bool) -> np.ndarray:
    """`(count, dim)`, float32, on the disk: ten million do not fit into memory."""
    embeddings: np.ndarray | None = None
    for number, embedding in enumerate(_read_embeddings(folder)):
        if embeddings is None:
            shape = (count, len(embedding))
            embeddings = np.lib.format.open_memmap(temporary / "embeddings.npy", "w+", np.float32, shape)
        embeddings[number] = unit_vector(embedding) if unit else embedding
    assert embeddings is not None
    return embeddings


def unit_vector(embedding: np.ndarray) -> np.ndarray:
    return np.asarray(embedding / max(float(np.linalg.norm(embedding)), 1e-12))


def _read_embeddings(folder: Path) -> Iterator[np.ndarray]:
    shard, file = "", None
    try:
        for record in read_records(folder):
            if not record.kept:
                continue
            name, start, end = record.place()
            if name != shard:
                if file is not None:
                    file.close()
                shard = name
                file = open(folder / shard, "rb")  # noqa: SIM115  (closed below)
            yield read_embedding(file, start, end)
    finally:
        if file is not None:
            file.close()


def read_embedding(shard: Any, start: int, end: int) -> np.ndarray:
    """The embedding `(dim,)` of the photo in these bytes of an open shard, without reading the pictures before it."""
    return safetensors.numpy.load(_member(shard, start, end, ".safetensors"))["embedding"]


def _member(file: Any, start: int, end: int, ending: str) -> bytes:
    """One file of a photo in a shard; see [`PreparedFace.to_tar`]."""
    while start < end:
        file.seek(start)
        header = file.read(TAR_BLOCK)
        size = int(header[124:135], 8)
        if header[:100].rstrip(b"\0").endswith(ending.encode()):
            data: bytes = file.read(size)
            return data
        start += TAR_BLOCK + -(-size // TAR_BLOCK) * TAR_BLOCK
    raise ValueError(f"the photo has no {ending}")


def _medoid(embeddings: np.ndarray, photos: np.ndarray) -> int:
    """The photo with the smallest median distance to the others, of the first thousand."""
    chosen = photos[:MOST_FOR_MEDOID]
    return int(chosen[medoid(np.asarray(embeddings[chosen]))])


def medoid(vectors: np.ndarray) -> int:
    """The place of the vector, of `(n, dim)`, with the smallest median distance to the others."""
    return int(np.median(distances(vectors, vectors), axis=1).argmin())


def _distances_to_medoid(embeddings: np.ndarray, photos: np.ndarray) -> np.ndarray:
    """`(photos,)`"""
    center = embeddings[_medoid(embeddings, photos)][None]
    blocks = (photos[first : first + _BLOCK] for first in range(0, len(photos), _BLOCK))
    return np.concatenate([distances(np.asarray(embeddings[block]), center)[:, 0] for block in blocks])


def _doubt_labels(photos: _Photos, embeddings: np.ndarray, limit: float) -> None:
    groups = _Groups(photos.person, len(photos.names))
    for numbers in map(groups.__getitem__, range(len(groups))):
        if len(numbers) > 1:
            photos.left_out[numbers] = _distances_to_medoid(embeddings, numbers) > limit


def _cluster_unlabeled(photos: _Photos, embeddings: np.ndarray, limit: float) -> None:
    """Single linkage among those surely of one person; who is far from the medoid of a chain stays without a person."""
    unlabeled = np.flatnonzero(photos.person < 0)
    if len(unlabeled) < 2 or not can_be_clustered(len(unlabeled)):
        return
    root = list(range(len(unlabeled)))

    def find(place: int) -> int:
        while root[place] != place:
            root[place] = root[root[place]]
            place = root[place]
        return place

    vectors = np.asarray(embeddings[unlabeled])
    for first in range(0, len(unlabeled), _BLOCK):
        for second in range(0, first + 1, _BLOCK):
            near = distances(vectors[first : first + _BLOCK], vectors[second : second + _BLOCK]) <= SURE * limit
            for a, b in np.argwhere(near):
                a, b = find(first + int(a)), find(second + int(b))
                root[max(a, b)] = min(a, b)
    clusters: dict[int, list[int]] = {}
    for place, photo in enumerate(unlabeled.tolist()):
        clusters.setdefault(find(place), []).append(photo)
    number = 0
    for cluster in clusters.values():
        if len(cluster) < 2:
            continue
        numbers = np.array(cluster)
        near = _distances_to_medoid(embeddings, numbers) <= limit
        photos.person[numbers[near]] = photos.names.setdefault(f"unlabeled-{number:06d}", len(photos.names))
        number += 1


def _set_aside(photos: _Photos, embeddings: np.ndarray | None, limit: float, share: float) -> None:
    """A photo without a person counts as one of its own."""
    alone = np.flatnonzero((photos.person < 0) & ~photos.left_out)
    code = photos.person.copy()
    code[alone] = len(photos.names) + np.arange(len(alone))
    code[photos.left_out] = -1
    groups = _Groups(code, len(photos.names) + len(alone))
    people = np.unique(code[code >= 0])
    count = min(round(share * len(people)), MOST_VALIDATION_PEOPLE)
    if share > 0 and len(people) >= FEWEST_PEOPLE_TO_DIVIDE:
        count = max(count, 1)
    # by a hash of the name: photos that are added later leave who is set aside where they are
    of_names = np.fromiter(map(_hash, photos.names), np.uint64, len(photos.names))
    hashes = np.concatenate([of_names, photos.key_hash[alone]])
    newest = people[np.argsort(hashes[people], kind="stable")[:count]]
    chosen = np.zeros(len(groups), bool)
    chosen[newest] = True
    while embeddings is not None and len(newest):
        centers = np.stack([embeddings[_medoid(embeddings, groups[person])] for person in newest])
        near = np.zeros(len(groups), bool)
        for first in range(0, len(code), _BLOCK):
            block = np.asarray(embeddings[first : first + _BLOCK])
            close = code[first : first + _BLOCK][(distances(block, centers) <= SURE * limit).any(axis=1)]
            near[close[close >= 0]] = True
        newest = np.flatnonzero(near & ~chosen)
        chosen |= near
    photos.validation[code >= 0] = chosen[code[code >= 0]]


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances of `(n, dim)` and `(m, dim)`, of shape `(n, m)`."""
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))
