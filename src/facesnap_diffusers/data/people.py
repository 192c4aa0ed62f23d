"""Who the prepared photos show, by their embeddings, and who of them is set aside for validation."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import safetensors.numpy

from ..files import atomic_file
from .prepared_face import TAR_BLOCK
from .shards import PEOPLE, Membership, PhotoRecord, read_records, read_settings


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
       are more than 100,000 of them.
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
    keys, labels = [], []
    for record in read_records(folder):
        if record.kept:
            keys.append(record.key or "")
            labels.append(record.identity)
    members = [Membership(key, person) for key, person in zip(keys, labels, strict=True)]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".embeddings-") as temporary:
        embeddings = None
        if limit and members:
            embeddings = _embeddings(folder, Path(temporary), len(members), unit=not encoder.startswith("dlib/"))
            _doubt_labels(members, embeddings, limit)
            _cluster_unlabeled(members, embeddings, limit)
        _set_aside(members, embeddings, limit or 0.0, validation)
    with atomic_file(folder / PEOPLE) as path, open(path, "w") as file:
        for member in members:
            values = {name: value for name, value in asdict(member).items() if value is not None}
            file.write(json.dumps(values) + "\n")


def _embeddings(folder: Path, temporary: Path, count: int, unit: bool) -> np.ndarray:
    """`(count, dim)`, float32, on the disk: ten million do not fit into memory."""
    embeddings: np.ndarray | None = None
    for number, embedding in enumerate(_read_embeddings(folder)):
        if embeddings is None:
            shape = (count, len(embedding))
            embeddings = np.lib.format.open_memmap(temporary / "embeddings.npy", "w+", np.float32, shape)
        embeddings[number] = embedding / max(float(np.linalg.norm(embedding)), 1e-12) if unit else embedding
    assert embeddings is not None
    return embeddings


def _read_embeddings(folder: Path) -> Iterator[np.ndarray]:
    shard, file = "", None
    try:
        for record in read_records(folder):
            if not record.kept:
                continue
            if record.shard != shard:
                if file is not None:
                    file.close()
                shard = record.shard or ""
                file = open(folder / shard, "rb")  # noqa: SIM115  (closed below)
            yield safetensors.numpy.load(_member(file, record, ".safetensors"))["embedding"]
    finally:
        if file is not None:
            file.close()


def _member(file, record: PhotoRecord, ending: str) -> bytes:  # type: ignore[no-untyped-def]
    """One file of a photo in a shard, without reading the pictures before it; see [`PreparedFace.to_tar`]."""
    _, start, end = record.place()
    while start < end:
        file.seek(start)
        header = file.read(TAR_BLOCK)
        size = int(header[124:135], 8)
        if header[:100].rstrip(b"\0").endswith(ending.encode()):
            return file.read(size)
        start += TAR_BLOCK + -(-size // TAR_BLOCK) * TAR_BLOCK
    raise ValueError(f"{record.key} has no {ending}")


def _groups(members: list[Membership]) -> dict[str, list[int]]:
    """The photos of each person, by number."""
    groups: dict[str, list[int]] = {}
    for number, member in enumerate(members):
        if member.person is not None and member.left_out is None:
            groups.setdefault(member.person, []).append(number)
    return groups


def _medoid(embeddings: np.ndarray, photos: list[int]) -> int:
    """The photo with the smallest median distance to the others, of the first thousand."""
    chosen = photos[:MOST_FOR_MEDOID]
    vectors = np.asarray(embeddings[chosen])
    return chosen[int(np.median(_distances(vectors, vectors), axis=1).argmin())]


def _doubt_labels(members: list[Membership], embeddings: np.ndarray, limit: float) -> None:
    for photos in _groups(members).values():
        if len(photos) < 2:
            continue
        medoid = embeddings[_medoid(embeddings, photos)][None]
        for photo, distance in zip(photos, _distances(np.asarray(embeddings[photos]), medoid)[:, 0], strict=True):
            if distance > limit:
                members[photo].left_out = ANOTHER_PERSON


def _cluster_unlabeled(members: list[Membership], embeddings: np.ndarray, limit: float) -> None:
    """Single linkage among those surely of one person; who is far from the medoid of a chain stays without a person."""
    photos = [number for number, member in enumerate(members) if member.person is None]
    if not 1 < len(photos) <= MOST_CLUSTERED:
        return
    root = list(range(len(photos)))

    def find(place: int) -> int:
        while root[place] != place:
            root[place] = root[root[place]]
            place = root[place]
        return place

    vectors = np.asarray(embeddings[photos])
    for first in range(0, len(photos), _BLOCK):
        for second in range(0, first + 1, _BLOCK):
            near = _distances(vectors[first : first + _BLOCK], vectors[second : second + _BLOCK]) <= SURE * limit
            for a, b in np.argwhere(near):
                a, b = find(first + int(a)), find(second + int(b))
                root[max(a, b)] = min(a, b)
    clusters: dict[int, list[int]] = {}
    for place, photo in enumerate(photos):
        clusters.setdefault(find(place), []).append(photo)
    number = 0
    for cluster in clusters.values():
        if len(cluster) < 2:
            continue
        medoid = embeddings[_medoid(embeddings, cluster)][None]
        near = _distances(np.asarray(embeddings[cluster]), medoid)[:, 0] <= limit
        for photo, belongs in zip(cluster, near, strict=True):
            members[photo].person = f"unlabeled-{number:06d}" if belongs else None
        number += 1


def _set_aside(members: list[Membership], embeddings: np.ndarray | None, limit: float, share: float) -> None:
    """A photo without a person counts as one of its own."""
    people: dict[str, list[int]] = {}
    for number, member in enumerate(members):
        if member.left_out is None:
            people.setdefault(member.person or f"\0{member.key}", []).append(number)
    count = min(round(share * len(people)), MOST_VALIDATION_PEOPLE)
    if share > 0 and len(people) >= FEWEST_PEOPLE_TO_DIVIDE:
        count = max(count, 1)
    # by a hash of the name: photos that are added later leave who is set aside where they are
    names = sorted(people, key=lambda name: hashlib.blake2b(name.encode("utf-8", "surrogatepass")).digest())
    chosen = set(names[:count])
    if embeddings is not None and chosen:
        person = {photo: name for name, photos in people.items() for photo in photos}
        newest = set(chosen)
        while newest:
            centers = np.stack([embeddings[_medoid(embeddings, people[name])] for name in sorted(newest)])
            near: set[str] = set()
            for first in range(0, len(members), _BLOCK):
                block = np.asarray(embeddings[first : first + _BLOCK])
                close = (_distances(block, centers) <= SURE * limit).any(axis=1)
                near |= {person[first + int(place)] for place in np.flatnonzero(close) if first + int(place) in person}
            newest = near - chosen
            chosen |= newest
    for name in chosen:
        for photo in people[name]:
            members[photo].split = "validation"


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances of `(n, dim)` and `(m, dim)`, of shape `(n, m)`."""
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))
