"""Near duplicates by perceptual hash, without comparing every pair."""

from __future__ import annotations

from itertools import pairwise


class DuplicateFinder:
    r"""
    Finds hashes that differ in at most `bits` of 64 bits: of `bits + 1` pieces of such a pair at least one is the same, so
    only hashes that share a piece are compared.

    Args:
        bits (`int`): From 0 to 15; -1 finds none.
    """

    def __init__(self, bits: int):
        self.bits = bits
        edges = [round(64 * piece / (bits + 1)) for piece in range(bits + 2)] if bits >= 0 else []
        self._pieces = [(low, (1 << (high - low)) - 1) for low, high in pairwise(edges)]
        self._seen: list[dict[int, list[tuple[int, str]]]] = [{} for _ in self._pieces]

    def find(self, phash: int) -> str | None:
        """The name of an added photo with nearly this hash."""
        for seen, (shift, mask) in zip(self._seen, self._pieces, strict=True):
            for other, name in seen.get(phash >> shift & mask, ()):
                if (other ^ phash).bit_count() <= self.bits:
                    return name
        return None

    def add(self, phash: int, name: str) -> None:
        for seen, (shift, mask) in zip(self._seen, self._pieces, strict=True):
            seen.setdefault(phash >> shift & mask, []).append((phash, name))
