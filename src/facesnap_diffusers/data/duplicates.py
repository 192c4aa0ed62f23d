"""Near duplicates by perceptual hash, without comparing every pair."""

from __future__ import annotations

import itertools
from array import array

import numpy as np


class DuplicateFinder:
    r"""
    Finds hashes that differ in at most `bits` of 64 bits: of `bits + 1` pieces of such a pair at least one is the same, so
    only hashes that share a piece are compared. Takes `16 + 4 · (bits + 1)` bytes a hash.

    Args:
        bits (`int`): From 0 to 15; -1 finds none.
    """

    def __init__(self, bits: int):
        self.bits = bits
        edges = [round(64 * piece / (bits + 1)) for piece in range(bits + 2)] if bits >= 0 else []
        self._pieces = [(low, (1 << (high - low)) - 1) for low, high in itertools.pairwise(edges)]
        self._hashes, self._numbers = array("Q"), array("Q")
        self._seen: list[dict[int, array[int]]] = [{} for _ in self._pieces]

    def find(self, phash: int) -> int | None:
        """The number of an added photo with nearly this hash, the first one's."""
        near = [place for seen, key in self._buckets(phash) for place in self._near(seen.get(key), phash)]
        return self._numbers[min(near)] if near else None

    def add(self, phash: int, number: int) -> None:
        for seen, key in self._buckets(phash):
            seen.setdefault(key, array("I")).append(len(self._hashes))
        if self._pieces:
            self._hashes.append(phash)
            self._numbers.append(number)

    def _buckets(self, phash: int) -> list[tuple[dict[int, array[int]], int]]:
        return [(seen, phash >> shift & mask) for seen, (shift, mask) in zip(self._seen, self._pieces, strict=True)]

    def _near(self, places: array[int] | None, phash: int) -> list[int]:
        if places is None:
            return []
        chosen = np.frombuffer(places, np.uint32)
        differing = np.bitwise_count(np.frombuffer(self._hashes, np.uint64)[chosen] ^ np.uint64(phash))
        return chosen[differing <= self.bits].tolist()
