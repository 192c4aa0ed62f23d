"""Training pictures of several sizes: which photo becomes which, and an order in which all pictures of a step have one size."""

from __future__ import annotations

import tarfile
from bisect import bisect_right
from collections.abc import Sequence
from itertools import count, groupby
from typing import IO

import numpy as np
import PIL.Image
from diffusers.training_utils import find_nearest_bucket

from ..data.shards import PreparedFaces


class AspectBuckets:
    r"""
    Puts each photo into the bucket whose sides are most like the photo's, and orders the photos by their positions in the run.
    All samples of an optimizer step are from one bucket, however many processes and forward passes they are divided among.

    A bucket's photos come in random order, each once before one of them comes again. In every epoch a bucket has the steps
    that its photos fill; those left over are the first ones of its first step in the next epoch. The steps of an epoch come
    in random order.

    Args:
        photo_sizes (list of `tuple[int, int]`): Width and height of each photo, in pixels; see [`read_photo_sizes`].
        sizes (list of `tuple[int, int]`): Height and width of each bucket's pictures, in pixels.
        step_size (`int`): Samples of a step, of all processes and forward passes together.
        seed (`int`): Of the order.
    """

    def __init__(
        self,
        photo_sizes: Sequence[tuple[int, int]],
        sizes: Sequence[tuple[int, int]],
        step_size: int,
        seed: int = 0,
    ):
        self.sizes = list(sizes)
        self.step_size = step_size
        self.seed = seed
        bucket_of = [find_nearest_bucket(height, width, self.sizes) for width, height in photo_sizes]
        self._bucket_of = np.array(bucket_of, dtype=np.int64)  # (photos,)
        self._photos = [np.flatnonzero(self._bucket_of == bucket) for bucket in range(len(self.sizes))]
        self.counts = [len(photos) for photos in self._photos]
        self._epoch_of_steps, self._steps = range(0), list[tuple[int, int]]()
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def size(self, photo: int) -> tuple[int, int]:
        """Height and width of the picture that a photo becomes."""
        return self.sizes[self._bucket_of[photo]]

    def photo(self, position: int) -> int:
        """The number of the photo at a position."""
        step, place = divmod(position, self.step_size)
        if step not in self._epoch_of_steps:
            self._find_epoch(step)
        bucket, number = self._steps[step - self._epoch_of_steps.start]
        turn, place = divmod(number * self.step_size + place, self.counts[bucket])
        if self._orders.get(bucket, (-1,))[0] != turn:
            order = np.random.default_rng([self.seed, bucket, turn, 2]).permutation(self._photos[bucket])
            self._orders[bucket] = turn, order
        return int(self._orders[bucket][1][place])

    def _find_epoch(self, step: int) -> None:
        """Finds the epoch of a step, and for each step of it the bucket and the step's number in that bucket."""
        # buckets keep back less than a step each, so that by this epoch the step has come
        last = (step + len(self.counts)) * self.step_size // sum(self.counts) + 2
        epoch = bisect_right(range(last), step, key=lambda epoch: sum(self._steps_before(epoch))) - 1
        first, end = self._steps_before(epoch), self._steps_before(epoch + 1)
        buckets = np.repeat(range(len(first)), np.subtract(end, first))
        buckets = np.random.default_rng([self.seed, epoch, 2]).permutation(buckets)
        numbers = [count(start) for start in first]
        self._epoch_of_steps = range(sum(first), sum(end))
        self._steps = [(bucket, next(numbers[bucket])) for bucket in buckets.tolist()]

    def _steps_before(self, epoch: int) -> list[int]:
        """Steps of each bucket before an epoch."""
        return [epoch * photos // self.step_size for photos in self.counts]


def read_photo_sizes(faces: PreparedFaces) -> list[tuple[int, int]]:
    """
    Width and height of each photo, in pixels, of which only the first bytes are read. Raises [`InputError`], which names the
    photo, where they are damaged.
    """
    import fsspec

    sizes: list[tuple[int, int]] = []
    try:
        for address, places in groupby(faces.places, key=lambda place: place[0]):
            with fsspec.open(address, "rb") as file:
                for _, start, _ in places:
                    file.seek(start)
                    sizes.append(_photo_size(file))
    except Exception as error:  # of the file system, and many kinds for damaged bytes
        raise faces.damaged(len(sizes), error) from error
    return sizes


def _photo_size(file: IO[bytes]) -> tuple[int, int]:
    """Of the first photo from here on; neither its pixels nor the other parts of it are read."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        member = next(member for member in tar if member.name.split(".")[1] == "image")
        image = tar.extractfile(member)
        assert image is not None  # a plain file
        return PIL.Image.open(image).size
