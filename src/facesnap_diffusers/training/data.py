"""From prepared photos to training samples, each a function of the seed and its position in the run."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import torch
from torch.utils.data import Dataset, Sampler
from transformers import CLIPImageProcessor

from ..models.landmark_predictor import FaceCoefficients, LandmarkPredictor
from .config import DataConfig, DropoutConfig
from .latents import CropLatents
from .shards import PreparedFace, PreparedFaces


@dataclass(frozen=True)
class Crop:
    """A square of a photo: its corner and side in pixels (of `size`, width and height), and whether it is mirrored."""

    size: tuple[int, int]
    left: float
    top: float
    side: float
    mirrored: bool

    def pixels(self, image: PIL.Image.Image, resolution: int) -> torch.Tensor:
        """The crop, `(3, resolution, resolution)` in `[-1, 1]`."""
        box = (self.left, self.top, self.left + self.side, self.top + self.side)
        if image.size != (resolution, resolution) or box != (0, 0, resolution, resolution):
            image = image.resize((resolution, resolution), PIL.Image.Resampling.LANCZOS, box=box)
        pixels = _to_tensor(image) * 2 - 1
        return pixels.flip(-1) if self.mirrored else pixels

    def points(self, points: np.ndarray, resolution: int, mirror: list[int]) -> torch.Tensor:
        """Landmarks of the photo `(72, 2)` in the crop's pixels."""
        points = (points + 0.5 - (self.left, self.top)) * (resolution / self.side) - 0.5  # Centres are whole numbers.
        if self.mirrored:
            points = points[mirror]
            points[:, 0] = resolution - 1 - points[:, 0]
        return torch.from_numpy(points.astype(np.float32))

    def sizes(self, resolution: int) -> torch.Tensor:
        """What SDXL is told of an image: its size before cropping, the crop's corner and its size, height first."""
        scale = resolution / self.side
        (width, height), top, left = self.size, self.top, self.left
        return torch.tensor([round(value * scale) for value in (height, width, top, left)] + [resolution, resolution])


class TrainingSamples(Dataset):
    r"""
    Training samples by their position in the run. The photo, its crop, its noise, its timestep and what is left out all
    follow from the seed and the position: batches are the same however many processes share them, and a run that is
    resumed goes on with the samples that it would have seen.

    Args:
        faces ([`PreparedFaces`]): The photos.
        config ([`DataConfig`]), dropout ([`DropoutConfig`]): How they become samples.
        predictor ([`LandmarkPredictor`]): Re-targets the landmarks.
        image_processor (`CLIPImageProcessor`, *optional*): Of the image encoder; without one there are no head crops.
        head_size (`int`): Side of the image encoder's images.
        num_timesteps (`int`): Of the noise schedule.
        latent_shape (`tuple[int, int, int]`): Of one sample.
        seed (`int`): Of everything.
        extras (collection of `str`): What is made besides, of `reference_face` and `start_noise`; see [`Objective.extras`].
        latents ([`CropLatents`], *optional*): In place of the images and of the noise that the VAE's encoder takes. Only
            with `config.crops`.
    """

    def __init__(
        self,
        faces: PreparedFaces,
        config: DataConfig,
        dropout: DropoutConfig,
        predictor: LandmarkPredictor,
        image_processor: CLIPImageProcessor | None,
        head_size: int,
        num_timesteps: int,
        latent_shape: tuple[int, int, int],
        seed: int = 0,
        extras: Collection[str] = ("reference_face", "start_noise"),
        latents: CropLatents | None = None,
    ):
        self.faces = faces
        self.config = config
        self.dropout = dropout
        self.predictor = predictor
        self.image_processor = image_processor
        self.head_size = head_size
        self.num_timesteps = num_timesteps
        self.latent_shape = latent_shape
        self.seed = seed
        self.extras = frozenset(extras)
        self.latents = latents
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> dict[str, Any]:
        config = self.config
        random = np.random.default_rng([self.seed, position])
        index = self._index(position)
        target = self.faces[index]
        others = self.faces.others(index)
        reference = self.faces[others[random.integers(len(others))]] if others else target

        sample: dict[str, Any] = {}
        if config.crops is None:
            crop = _random_crop(target, config, random)
        else:
            number = index * self.crops + (position // len(self.faces) + index) % self.crops
            crop = self.fixed_crop(number, target)
        if self.latents is None:
            sample["pixel_values"] = crop.pixels(_decode(target.image), config.resolution)
        else:
            sample["latents"] = self.latents[number]
        drawn = target.landmarks if config.landmarks == "detected" else self._retarget(target, reference)
        mirror = self.predictor.config.mirror
        sample |= {
            "landmarks": crop.points(drawn, config.resolution, mirror),
            "detected": crop.points(target.landmarks, config.resolution, mirror),
            "sizes": crop.sizes(config.resolution),
            "face_embeds": torch.from_numpy(reference.embedding),
            "caption": target.info.get("caption") or config.caption,
            **self._left_out(random),
            "timestep": torch.tensor(int(random.integers(self.num_timesteps))),
            "noise": self._noise(random),
        }
        if self.latents is None:
            sample["encoder_noise"] = self._noise(random)
        if "start_noise" in self.extras:
            sample["start_noise"] = self._noise(random)
        if "reference_face" in self.extras:
            sample["reference_face"] = _to_tensor(_decode(reference.face))
        if self.image_processor is not None:
            head = self._reference_head(reference, random)
            sample["head"] = self.image_processor(head, return_tensors="pt").pixel_values[0]
        return sample

    @property
    def crops(self) -> int:
        """Fixed crops of each photo."""
        assert self.config.crops is not None
        return self.config.crops

    def fixed_crop(self, number: int, target: PreparedFace | None = None) -> Crop:
        """Crop `number % crops` of photo `number // crops` (`target`); a share of `flip` of them is mirrored."""
        index, variant = divmod(number, self.crops)
        random = np.random.default_rng([self.seed, index, variant, 1])
        mirrored = variant + 0.5 < self.config.flip * self.crops
        return _random_crop(target or self.faces[index], self.config, random, mirrored)

    def fixed_pixels(self, numbers: Collection[int]) -> torch.Tensor:
        """Crops by their numbers, `(numbers, 3, resolution, resolution)` in `[-1, 1]`."""
        images = []
        for number in numbers:
            target = self.faces[number // self.crops]
            images.append(self.fixed_crop(number, target).pixels(_decode(target.image), self.config.resolution))
        return torch.stack(images)

    def identity_of(self, position: int) -> str | None:
        return self.faces.person[self._index(position)]

    def _index(self, position: int) -> int:
        """Every photo comes once in each epoch."""
        epoch, place = divmod(position, len(self.faces))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch, 1]).permutation(len(self.faces))
            self._epoch = epoch
        return int(self._order[place])

    @torch.no_grad()
    def _retarget(self, target: PreparedFace, reference: PreparedFace) -> np.ndarray:
        values = [reference.shape, target.expression, target.rotation, target.scale, target.translation]
        return self.predictor.decode(FaceCoefficients(*(torch.from_numpy(value)[None] for value in values)))[0].numpy()

    def _reference_head(self, reference: PreparedFace, random: np.random.Generator) -> PIL.Image.Image:
        head = _decode(reference.head)
        if head.size != (self.head_size, self.head_size):
            head = head.resize((self.head_size, self.head_size), PIL.Image.Resampling.LANCZOS)
        if random.random() < self.config.reference_flip:
            head = head.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        jitter = self.config.reference_jitter
        for enhance in (PIL.ImageEnhance.Brightness, PIL.ImageEnhance.Contrast, PIL.ImageEnhance.Color):
            head = enhance(head).enhance(random.uniform(1 - jitter, 1 + jitter))
        return head

    def _left_out(self, random: np.random.Generator) -> dict[str, torch.Tensor]:
        choice, dropout = random.random(), self.dropout
        both = choice < dropout.both
        text = dropout.both <= choice < dropout.both + dropout.text
        identity = dropout.both + dropout.text <= choice < dropout.both + dropout.text + dropout.identity
        return {
            "without_text": torch.tensor(both or text),
            "without_identity": torch.tensor(both or identity),
            "without_landmarks": torch.tensor(bool(random.random() < dropout.landmarks)),
        }

    def _noise(self, random: np.random.Generator) -> torch.Tensor:
        return torch.from_numpy(random.standard_normal(self.latent_shape, dtype=np.float32))


class RunOrder(Sampler[list[int]]):
    r"""
    The positions of one process's batches, from a step of the run to its end.

    Args:
        first (`int`), last (`int`): Forward passes of the whole run, half open.
        batch_size (`int`): Of one process.
        rank (`int`), world_size (`int`): This process, and how many there are.
    """

    def __init__(self, first: int, last: int, batch_size: int, rank: int = 0, world_size: int = 1):
        self.first, self.last = first, last
        self.batch_size = batch_size
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self.first, self.last):
            start = (number * self.world_size + self.rank) * self.batch_size
            yield list(range(start, start + self.batch_size))

    def __len__(self) -> int:
        return self.last - self.first


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch: tensors stacked, captions as a list."""
    batch: dict[str, Any] = {
        name: torch.stack([sample[name] for sample in samples]) for name in samples[0] if name != "caption"
    }
    batch["caption"] = [sample["caption"] for sample in samples]
    return batch


def _random_crop(
    target: PreparedFace, config: DataConfig, random: np.random.Generator, mirrored: bool | None = None
) -> Crop:
    """A square that shows the face; mirrored as asked for, or in a share of `config.flip`."""
    width, height = PIL.Image.open(io.BytesIO(target.image)).size
    side = min(width, height) / random.uniform(*config.zoom)
    left, top = (
        _crop_start(target.landmarks[:, axis], side, length, random) for axis, length in enumerate((width, height))
    )
    if mirrored is None:
        mirrored = bool(random.random() < config.flip)
    return Crop((width, height), left, top, side, mirrored)


def _crop_start(points: np.ndarray, side: float, length: int, random: np.random.Generator) -> float:
    """A random start of a crop along one axis, from those that keep the face inside."""
    low, high = max(0.0, points.max() - side), min(length - side, points.min())
    if low > high:  # The face is larger than the crop or cut off: around its middle.
        return float(np.clip((points.min() + points.max() - side) / 2, 0, length - side))
    return float(random.uniform(low, high))


def _decode(data: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(data)).convert("RGB")


def _to_tensor(image: PIL.Image.Image) -> torch.Tensor:
    """`(3, height, width)` in `[0, 1]`."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
