"""Whether somebody is in training and in validation photos, where these are in different folders."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from .people import SURE, distances, is_unit, medoid, read_embedding, same_person_distance, unit_vector
from .shards import PreparedFaces, read_people
from .sources import is_address


MOST_PEOPLE = 20_000  # of each side: three photos of so many are read in seconds from a local disk
MOST_PHOTOS = 3
_BLOCK = 2048


@dataclass
class _Person:
    """`name` says where a person is found, `label` what the folder calls them; photos by number."""

    folder: str
    name: str
    label: str
    photos: list[int]


def people_on_both_sides(train: PreparedFaces, validation: PreparedFaces) -> list[tuple[str, str]]:
    r"""
    The validation people who are in training photos too. People of two folders are one person where the medoids of up to
    three photos of each are as near as photos that [`divide_people`] puts together; where no distance is known for the face
    encoder, or the folders have different ones, where their labels are the same. Within a folder whose people are divided
    nobody is on both sides. Of more than 20,000 people, those with a label of the other side are compared first.

    Returns:
        `list[tuple[str, str]]`: Folder and label of a person in validation, and in training.

    Raises:
        InputError: A photo cannot be read; names it.
    """
    folders = {_resolved(folder): folder for folder in (*train.folders, *validation.folders)}
    divided = {path for path, folder in folders.items() if next(read_people(folder), None) is not None}
    if len(folders) == 1 and divided:
        return []
    here, there = _people(validation, _labels(train)), _people(train, _labels(validation))
    encoders = {settings.face_encoder_id for settings in (*train.settings, *validation.settings)}
    encoder = encoders.pop()
    limit = None if encoders else same_person_distance(encoder)
    if limit is None:
        pairs = _pairs_with_a_label(here, there)
    else:
        unit = is_unit(encoder)
        pairs = _near_pairs(_centers(validation, here, unit), _centers(train, there, unit), SURE * limit)
    found: dict[str, str] = {}
    for a, b in pairs:
        if here[a].folder != there[b].folder or here[a].folder not in divided:
            found.setdefault(here[a].name, there[b].name)
    return list(found.items())


def _resolved(folder: str) -> str:
    return folder.rstrip("/") if is_address(folder) else os.path.realpath(folder)


def _labels(faces: PreparedFaces) -> set[str]:
    return {person.partition("/")[2] for person in faces.people}


def _people(faces: PreparedFaces, wanted: Collection[str]) -> list[_Person]:
    """Those with a label of `wanted`, and of the others as many as there is room for, spread over the photos."""
    labeled = {photos[0]: person.partition("/")[2] for person, photos in faces.people.items()}
    first = [number for number, label in labeled.items() if label in wanted][:MOST_PEOPLE]
    others = [
        number
        for number, person in enumerate(faces.person)
        if person is None or (labeled.get(number, "") not in wanted and number in labeled)
    ]
    step = -(-len(others) // max(1, MOST_PEOPLE - len(first)))
    people = []
    for number in (*first, *others[:: max(1, step)]):
        person, (address, start, _) = faces.person[number], faces.places[number]
        folder, _, shard = address.rpartition("/")
        label = f"{shard} at byte {start}" if person is None else labeled[number]
        photos = [number] if person is None else faces.people[person][:MOST_PHOTOS]
        people.append(_Person(_resolved(folder), f"{folder}: {label}", label, photos))
    return people


def _pairs_with_a_label(here: list[_Person], there: list[_Person]) -> Iterator[tuple[int, int]]:
    places = {person.label: place for place, person in enumerate(there)}
    return ((place, places[person.label]) for place, person in enumerate(here) if person.label in places)


def _centers(faces: PreparedFaces, people: list[_Person], unit: bool) -> np.ndarray:
    """The medoid of each person's photos, `(people, dim)`."""
    import fsspec

    embeddings: dict[int, np.ndarray] = {}
    numbers = sorted(number for person in people for number in person.photos)
    for address, photos in groupby(numbers, key=lambda number: faces.places[number][0]):
        with fsspec.open(address, "rb") as file:
            for number in photos:
                try:
                    embedding = read_embedding(file, *faces.places[number][1:])
                except Exception as error:  # of the file system, and many kinds for damaged bytes
                    raise faces.damaged(number, error) from error
                embeddings[number] = unit_vector(embedding) if unit else embedding
    vectors = (np.stack([embeddings[number] for number in person.photos]) for person in people)
    return np.stack([of_person[medoid(of_person)] for of_person in vectors])


def _near_pairs(a: np.ndarray, b: np.ndarray, limit: float) -> Iterator[tuple[int, int]]:
    for first in range(0, len(a), _BLOCK):
        for second in range(0, len(b), _BLOCK):
            near = distances(a[first : first + _BLOCK], b[second : second + _BLOCK]) <= limit
            yield from ((first + int(x), second + int(y)) for x, y in np.argwhere(near))
