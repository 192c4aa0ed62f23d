"""Which photos come in which epoch: every photo once, or every person once."""

import numpy as np
import pytest

from facesnap_diffusers.training.epochs import Epochs


#: The person in each photo: one with 50, one with 5 and one with a single photo.
PEOPLE = np.random.default_rng(0).permutation([7] * 50 + [20] * 5 + [3])


def test_without_people_every_photo_comes_in_each():
    epochs = Epochs(5)
    assert epochs.size == 5
    for epoch in (0, 3):
        assert epochs.photos(epoch).tolist() == list(range(5))
        assert epochs.turns(epoch).tolist() == [epoch] * 5 and epochs.turn(epoch, 2) == epoch


def test_people_count_the_same_and_so_do_the_photos_of_each():
    epochs, counts = Epochs(len(PEOPLE), PEOPLE), np.zeros(len(PEOPLE), int)
    assert epochs.size == 3
    streams = {person: [] for person in PEOPLE.tolist()}
    for epoch in range(100):
        assert np.array_equal(epochs.turns(epoch), counts)
        photos = epochs.photos(epoch)
        assert sorted(PEOPLE[photos]) == [3, 7, 20] and (np.diff(photos) > 0).all()
        for photo in photos:
            assert epochs.turn(epoch, photo) == counts[photo]
            streams[PEOPLE[photo]].append(photo)
        counts[photos] += 1
    for person, times in {7: 2, 20: 20, 3: 100}.items():
        assert set(counts[person == PEOPLE]) == {times}
    # in an order of their own, in which each comes once before one comes again
    assert sorted(streams[7][:50]) == np.flatnonzero(PEOPLE == 7).tolist() != streams[7][:50]


@pytest.mark.parametrize("seed", [0, 1])
def test_is_a_function_of_seed_and_epoch(seed):
    epochs, again = Epochs(len(PEOPLE), PEOPLE, seed), Epochs(len(PEOPLE), list(PEOPLE), seed)
    late = [again.photos(epoch).tolist() for epoch in (60, 7)]
    assert [epochs.photos(epoch).tolist() for epoch in (7, 60)] == late[::-1]
    other = Epochs(len(PEOPLE), PEOPLE, seed + 1)
    assert [other.photos(epoch).tolist() for epoch in (7, 60)] != late[::-1]
