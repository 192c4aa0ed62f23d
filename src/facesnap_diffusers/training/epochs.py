"""Which photos come in which epoch of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Epochs:
    r"""
    Gives every epoch its photos: all of them, or one of each person, whose photos take turns in a random order.

    Args:
        photos (`int`): How many there are.
        people (sequence of `int`, *optional*): The number of the person in each photo. Then an epoch has one photo of each.
        seed (`int`): Of the order of a person's photos.

    Attributes:
        size (`int`): Photos of an epoch.
    """

    def __init__(self, photos: int, people: Sequence[int] | np.ndarray | None = None, seed: int = 0):
        # each photo is the one at `place` of the `count` that take turns
        self.size = photos
        self._place, self._count = (np.broadcast_to(np.int64(number), photos) for number in (0, 1))
        if people is None:
            return
        people = np.asarray(people)
        order = np.random.default_rng([seed, 3]).permutation(photos)
        order = order[np.argsort(people[order], kind="stable")]
        _, starts, counts = np.unique(people[order], return_index=True, return_counts=True)
        self.size = len(starts)
        self._place, self._count = np.empty((2, photos), np.int64)
        self._place[order] = np.arange(photos) - np.repeat(starts, counts)
        self._count[order] = np.repeat(counts, counts)

    def photos(self, epoch: int) -> np.ndarray:
        """The numbers of the photos of an epoch, `(size,)`, from small to large."""
        return np.flatnonzero(epoch % self._count == self._place)

    def turns(self, epoch: int) -> np.ndarray:
        """How often each photo has come before an epoch, `(photos,)`."""
        return (epoch - self._place - 1) // self._count + 1

    def turn(self, epoch: int, photo: int) -> int:
        """How often a photo has come before an epoch."""
        return int((epoch - self._place[photo] - 1) // self._count[photo]) + 1
