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
from .epochs import Epochs


class AspectBuckets:
    r"""
    Puts each photo into the bucket whose sides are most like the photo's, and orders the photos by their positions in the run.
    All samples of an optimizer step are from one bucket, however many processes and forward passes they are divided among.

    A bucket's photos of an epoch come in random order, after those of the epoch before. In every epoch a bucket has the steps
    that its photos fill; those left over are the first ones of its first step in the next epoch. The steps of an epoch come
    in random order.

    Args:
        photo_sizes (list of `tuple[int, int]`): Width and height of each photo, in pixels; see [`read_photo_sizes`].
        sizes (list of `tuple[int, int]`): Height and width of each bucket's pictures, in pixels.
        step_size (`int`): Samples of a step, of all processes and forward passes together.
        seed (`int`): Of the order.
        epochs ([`Epochs`], *optional*): Which photos come in which epoch; by default each in every one.
    """

    def __init__(
        self,
        photo_sizes: Sequence[tuple[int, int]],
        sizes: Sequence[tuple[int, int]],
        step_size: int,
        seed: int = 0,
        epochs: Epochs | None = None,
    ):
        self.sizes = list(sizes)
        self.step_size = step_size
        self.seed = seed
        bucket_of = [find_nearest_bucket(height, width, self.sizes) for width, height in photo_sizes]
        self.epochs = epochs or Epochs(len(bucket_of))
        self._bucket_of = np.array(bucket_of, dtype=np.int64)  # (photos,)
        self.counts = np.bincount(self._bucket_of, minlength=len(self.sizes)).tolist()
        self._epoch, self._epoch_of_steps, self._steps = 0, range(0), list[tuple[int, int]]()
        self._orders: dict[int, tuple[range, np.ndarray]] = {}

    def size(self, photo: int) -> tuple[int, int]:
        """Height and width of the picture that a photo becomes."""
        return self.sizes[self._bucket_of[photo]]

    def photo(self, position: int) -> int:
        """The number of the photo at a position."""
        step, place = divmod(position, self.step_size)
        if step not in self._epoch_of_steps:
            self._find_epoch(step)
        bucket, number = self._steps[step - self._epoch_of_steps.start]
        place += number * self.step_size
        if bucket not in self._orders or place not in self._orders[bucket][0]:
            self._orders[bucket] = self._find_order(bucket, place)
        places, order = self._orders[bucket]
        return int(order[place - places.start])

    def _find_order(self, bucket: int, place: int) -> tuple[range, np.ndarray]:
        """The photos of a bucket in the epoch to which one of its places belongs, in order, and the places of that epoch."""
        until_now = range(self._epoch + 1)
        epoch = bisect_right(until_now, place, key=lambda epoch: self._photos_before(epoch)[bucket]) - 1
        photos = self.epochs.photos(epoch)
        photos = photos[self._bucket_of[photos] == bucket]
        start = self._photos_before(epoch)[bucket]
        order = np.random.default_rng([self.seed, bucket, epoch, 2]).permutation(photos)
        return range(start, start + len(photos)), order

    def _find_epoch(self, step: int) -> None:
        """Finds the epoch of a step, and for each step of it the bucket and the step's number in that bucket."""
        # buckets keep back less than a step each, so that by this epoch the step has come
        last = (step + len(self.counts)) * self.step_size // self.epochs.size + 2
        epoch = bisect_right(range(last), step, key=lambda epoch: sum(self._steps_before(epoch))) - 1
        first, end = self._steps_before(epoch), self._steps_before(epoch + 1)
        buckets = np.repeat(range(len(first)), np.subtract(end, first))
        buckets = np.random.default_rng([self.seed, epoch, 2]).permutation(buckets)
        numbers = [count(start) for start in first]
        self._epoch, self._epoch_of_steps = epoch, range(sum(first), sum(end))
        self._steps = [(bucket, next(numbers[bucket])) for bucket in buckets.tolist()]

    def _steps_before(self, epoch: int) -> list[int]:
        """Steps of each bucket before an epoch."""
        return [photos // self.step_size for photos in self._photos_before(epoch)]

    def _photos_before(self, epoch: int) -> list[int]:
        """Photos of each bucket before an epoch."""
        photos = np.bincount(self._bucket_of, self.epochs.turns(epoch), len(self.sizes))
        return [int(count) for count in photos]


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
