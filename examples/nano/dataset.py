"""The rendered data set: shards of people, a file each, with everything that is known about every picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facesnap_diffusers.files import atomic_file


SEED = 2026
VIEWS = 10
SHARD_PEOPLE = 20
SPLITS = {"test": range(0, 100), "validation": range(100, 200), "train": range(1000, 5000)}
"""Indices of the people of each split; no person is in two."""
TURNED = range(3000, 5000)
"""People of the training split who turn their heads further in every other view."""
TO_PACKAGE = -0.5
"""Added to points of the renderer, whose pictures span 0 to `size`: for the package the first pixel's centre is at 0."""


@dataclass
class Shard:
    """N people, V views each.

    Attributes:
        people: (N,) indices.
        images: (N, V, 128, 128, 3) uint8 RGB.
        landmarks: (N, V, 72, 2) pixels.
        landmarks_3d: (N, V, 72, 3) cm, the camera's axes.
        shape: (N, 100); expression: (N, V, 53); coefficients of the ICT model.
        pose: (N, V, 3) yaw, pitch, roll in degrees, see `people.face_model.rotation_matrix`.
        camera: (N, V, 3) centre and half height of the frame in cm.
        attributes: N lists of V dictionaries.
    """

    people: np.ndarray
    images: np.ndarray
    landmarks: np.ndarray
    landmarks_3d: np.ndarray
    shape: np.ndarray
    expression: np.ndarray
    pose: np.ndarray
    camera: np.ndarray
    attributes: list

    def save(self, path: Path):
        arrays = {name: value for name, value in vars(self).items() if name != "attributes"}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            np.savez(temporary, attributes=json.dumps(self.attributes), **arrays)

    @classmethod
    def load(cls, path: Path) -> Shard:
        with np.load(path) as data:
            arrays = {name: data[name] for name in data.files if name != "attributes"}
            return cls(attributes=json.loads(str(data["attributes"])), **arrays)


def shard_paths(work_dir: Path, split: str) -> list[Path]:
    """Finished shards of a split, in order."""
    return sorted((Path(work_dir) / "data" / split).glob("shard-*.npz"))


def planned_shards(work_dir: Path, split: str) -> list[tuple[Path, range]]:
    """All shards of a split: where each goes and whom it holds."""
    people = SPLITS[split]
    starts = range(people.start, people.stop, SHARD_PEOPLE)
    folder = Path(work_dir) / "data" / split
    return [(folder / f"shard-{s:06d}.npz", range(s, min(s + SHARD_PEOPLE, people.stop))) for s in starts]
