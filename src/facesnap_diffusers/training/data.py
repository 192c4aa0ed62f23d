"""From prepared photos to training samples, each a function of the seed and its position in the run."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import torch
from torch.utils.data import Dataset, Sampler
from transformers import CLIPImageProcessor

from ..models.landmark_predictor import FaceCoefficients, LandmarkPredictor
from .config import DataConfig, DropoutConfig
from .shards import PreparedFace, PreparedFaces


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
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> dict[str, Any]:
        random = np.random.default_rng([self.seed, position])
        index = self._index(position)
        target = self.faces[index]
        others = self.faces.others(index)
        reference = self.faces[others[random.integers(len(others))]] if others else target

        pixels, points, detected, sizes = self._target(target, reference, random)
        sample = {
            "pixel_values": pixels,
            "landmarks": points,
            "detected": detected,
            "sizes": sizes,
            "face_embeds": torch.from_numpy(reference.embedding),
            "reference_face": _to_tensor(_decode(reference.face)),
            **self._left_out(random),
            "timestep": torch.tensor(int(random.integers(self.num_timesteps))),
            "noise": self._noise(random),
            "encoder_noise": self._noise(random),
            "start_noise": self._noise(random),
        }
        sample["caption"] = target.info.get("caption") or self.config.caption
        if self.image_processor is not None:
            head = self._reference_head(reference, random)
            sample["head"] = self.image_processor(head, return_tensors="pt").pixel_values[0]
        return sample

    def identity_of(self, position: int) -> str | None:
        return self.faces.person[self._index(position)]

    def _index(self, position: int) -> int:
        """Every photo comes once in each epoch."""
        epoch, place = divmod(position, len(self.faces))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch, 1]).permutation(len(self.faces))
            self._epoch = epoch
        return int(self._order[place])

    def _target(
        self, target: PreparedFace, reference: PreparedFace, random: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """A square crop of the photo that shows the face, with the landmarks to draw and those of the photo, in it."""
        image = _decode(target.image)
        width, height = image.size
        side = min(width, height) / random.uniform(*self.config.zoom)
        corner = np.array(
            [
                _crop_start(target.landmarks[:, axis], side, length, random)
                for axis, length in enumerate((width, height))
            ]
        )
        resolution = self.config.resolution
        box = (*corner, *(corner + side))
        image = image.resize((resolution, resolution), PIL.Image.Resampling.LANCZOS, box=box)

        scale = resolution / side
        drawn = target.landmarks if self.config.landmarks == "detected" else self._retarget(target, reference)
        points = np.stack([drawn, target.landmarks])
        points = (points + 0.5 - corner) * scale - 0.5  # Pixel centres are at whole numbers.
        pixels = _to_tensor(image) * 2 - 1
        if random.random() < self.config.flip:
            pixels = pixels.flip(-1)
            points = points[:, self.predictor.config.mirror]
            points[..., 0] = resolution - 1 - points[..., 0]
        points = torch.from_numpy(points.astype(np.float32))
        # what SDXL is told of an image: its size before scaling, the corner and the size of the crop
        original = [round(height * scale), round(width * scale)]
        top_left = [round(corner[1] * scale), round(corner[0] * scale)]
        return pixels, points[0], points[1], torch.tensor([*original, *top_left, resolution, resolution])

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
