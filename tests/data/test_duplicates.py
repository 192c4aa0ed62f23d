"""Near duplicates by perceptual hash."""

import numpy as np
import pytest

from facesnap_diffusers.data.duplicates import DuplicateFinder


class TestDuplicates:
    @pytest.mark.parametrize("bits", [0, 3, 10])
    def test_finds_what_comparing_all_pairs_finds(self, bits):
        random = np.random.default_rng(bits)
        hashes = [int(value) for value in random.integers(0, 2**63, 40)]
        for value in hashes[:40]:
            flips = random.choice(64, random.integers(0, 14), replace=False)
            hashes.append(value ^ sum(1 << int(flip) for flip in flips))
        finder, found = DuplicateFinder(bits), []
        for number, value in enumerate(hashes):
            found.append(finder.find(value) is not None)
            finder.add(value, number)
        expected = [
            any((value ^ other).bit_count() <= bits for other in hashes[:number])
            for number, value in enumerate(hashes)
        ]
        assert found == expected and sum(expected) > 0 and not all(expected[40:])
