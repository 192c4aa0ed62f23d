"""From prepared photos to training samples, each a function of the seed and its position in the run."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, Sampler
from transformers import CLIPImageProcessor

from ..data.prepared_face import PreparedFace, resize_points
from ..data.shards import PreparedFaces
from ..errors import FaceSnapError
from ..faces.key_points import MIRRORED, five_points
from ..models.landmark_predictor import LandmarkPredictor
from ..steering import repose_key_points
from .aspect_buckets import AspectBuckets, read_photo_sizes
from .epochs import Epochs
from .latents import CropLatents
from .training_config import DataConfig, DropoutConfig


@dataclass(frozen=True)
class Crop:
    """
    The part of a photo that becomes a training picture: its corner, width and height in whole pixels of the photo (of `size`,
    width and height), the picture's `target_size`, height and width, and whether it is mirrored. The photo's file may have been
    larger (`file_size`).
    """

    size: tuple[int, int]
    file_size: tuple[int, int]
    left: int
    top: int
    width: int
    height: int
    target_size: tuple[int, int]
    mirrored: bool

    @property
    def scale(self) -> np.ndarray:
        """Pixels of the picture for each pixel of the photo, along x and y: the same but for rounding."""
        return np.array([self.target_size[1] / self.width, self.target_size[0] / self.height])

    def pixels(self, image: PIL.Image.Image) -> torch.Tensor:
        """The picture, `(3, height, width)` in `[-1, 1]`."""
        part = image.crop((self.left, self.top, self.left + self.width, self.top + self.height))
        pixels = _resize(_to_bytes(part), self.target_size)
        if self.mirrored:
            pixels = pixels.flip(-1)
        return pixels.contiguous().float().div_(255).mul_(2).sub_(1)

    def points(self, points: np.ndarray, mirror: list[int]) -> torch.Tensor:
        """
        Points of the photo `(points, 2)` in the picture's pixels, in which the center of the top left one is at (0, 0). `mirror`:
        which of them each becomes in a mirrored picture.
        """
        points = resize_points(points, self.scale, (self.left, self.top))
        if self.mirrored:
            points = points[mirror]
            points[:, 0] = self.target_size[1] - 1 - points[:, 0]
        return torch.from_numpy(points.astype(np.float32))

    def sizes(self) -> torch.Tensor:
        r"""
        SDXL's size conditions (Podell et al. 2023, arXiv 2307.01952, section 2.2), height first: the size of the file, from
        which the model knows how sharp a picture is; the crop's corner in the photo as it is scaled for it; its size.
        """
        left = self.size[0] - self.left - self.width if self.mirrored else self.left
        width, height = self.file_size
        corner = (round(self.top * self.scale[1]), round(left * self.scale[0]))
        return torch.tensor([height, width, *corner, *self.target_size])


class TrainingSamples(Dataset):
    r"""
    Training samples by their position in the run. The photo, its crop, its noise, its timestep and what is left out all
    follow from the seed and the position: batches are the same however many processes share them, and a run that is
    resumed continues with the samples that it would have seen.

    Args:
        faces ([`PreparedFaces`]): The photos.
        config ([`DataConfig`]), dropout ([`DropoutConfig`]): How they become samples.
        predictor ([`LandmarkPredictor`]): Re-targets the landmarks.
        image_processor (`CLIPImageProcessor`, *optional*): Of the image encoder; without one there are no clip crops.
        image_size (`int`): Side of the image encoder's images, in pixels.
        num_timesteps (`int`): Of the noise schedule.
        latent_shape (`tuple[int, int, int]`): Of a sample of `config.resolution`.
        seed (`int`): Of everything.
        extras (collection of `str`): Further keys of a sample, of `recognition_crop`, `target_recognition_crop`,
            `person` and `start_noise`; see [`Objective.extras`].
        latents ([`CropLatents`], *optional*): In place of the images and of the noise that the VAE's encoder takes. Only
            with `config.crops`.
        step_size (`int`): Samples of an optimizer step, of all processes together. With `config.aspect_ratio_buckets` their
            pictures have one size.
    """

    def __init__(
        self,
        faces: PreparedFaces,
        config: DataConfig,
        dropout: DropoutConfig,
        predictor: LandmarkPredictor,
        image_processor: CLIPImageProcessor | None,
        image_size: int,
        num_timesteps: int,
        latent_shape: tuple[int, int, int],
        seed: int = 0,
        extras: Collection[str] = ("recognition_crop", "start_noise"),
        latents: CropLatents | None = None,
        step_size: int = 1,
    ):
        self.faces = faces
        self.config = config
        self.dropout = dropout
        self.predictor = predictor
        self.image_processor = image_processor
        self.image_size = image_size
        self.num_timesteps = num_timesteps
        self.latent_shape = latent_shape
        self.seed = seed
        self.extras = frozenset(extras)
        self.latents = latents
        people = [faces.person_number(index) for index in range(len(faces))] if config.balanced else None
        self.epochs = Epochs(len(faces), people, seed)
        self.buckets = None
        if config.aspect_ratio_buckets is not None:
            sizes = read_photo_sizes(faces)
            self.buckets = AspectBuckets(sizes, config.aspect_ratio_buckets, step_size, seed, self.epochs)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Raises [`InputError`], which names the photo, where its bytes are damaged."""
        try:
            return self._sample(position)
        except FaceSnapError:
            raise
        except Exception as error:  # of Pillow, many kinds for damaged bytes; of arrays that do not fit
            raise self.faces.damaged(self.photo(position), error) from error

    def _sample(self, position: int) -> dict[str, Any]:
        config = self.config
        random = np.random.default_rng([self.seed, position])
        index = self.photo(position)
        target = self.faces[index]
        photos = self.faces.same_person(index)
        reference = self.faces[photos[random.integers(len(photos))]] if photos else target

        sample: dict[str, Any] = {}
        if config.crops is None:
            crop = _random_crop(target, config, self._target_size(index), random)
        else:
            number = self._crop_number(position, index)
            crop = self.fixed_crop(number, target)
        if self.latents is None:
            sample["pixel_values"] = crop.pixels(_decode(target.image))  # (3, height, width)
        else:
            sample["latents"] = self.latents[number]  # (channels, height, width)
        if config.landmarks == "detected":
            landmarks, key_points = target.landmarks, target.key_points
        else:
            landmarks, key_points = self._retarget(target, reference)
        key_points = five_points(landmarks) if key_points is None else key_points
        mirror = self.predictor.config.mirror
        sample |= {
            "landmarks": crop.points(landmarks, mirror),  # (72, 2)
            "key_points": crop.points(key_points, MIRRORED),  # (5, 2)
            "detected": crop.points(target.landmarks, mirror),  # (72, 2)
            "sizes": crop.sizes(),  # (6,)
            "face_embeds": torch.from_numpy(reference.embedding),  # (dim,)
            "caption": target.info.get("caption") or config.caption,
            **self._left_out(random),
            "timestep": torch.tensor(int(random.integers(self.num_timesteps))),
            "noise": self._noise(crop, random),  # as latents
        }
        if self.latents is None:
            sample["encoder_noise"] = self._noise(crop, random)
        if "start_noise" in self.extras:
            sample["start_noise"] = self._noise(crop, random)
        if "recognition_crop" in self.extras:
            assert reference.recognition_crop is not None, "check_shards refuses shards without it"
            sample["recognition_crop"] = _to_tensor(_decode(reference.recognition_crop))  # (3, size, size) in [0, 1]
        if "target_recognition_crop" in self.extras:
            assert target.recognition_crop is not None, "check_shards refuses shards without it"
            pixels = _to_tensor(_decode(target.recognition_crop))
            # as the picture is: a face and its mirror image do not have quite the same embedding
            sample["target_recognition_crop"] = pixels.flip(-1) if crop.mirrored else pixels
        if "person" in self.extras:
            sample["person"] = torch.tensor(self.faces.person_number(index))
        if self.image_processor is not None:
            clip_crop = self._clip_crop(reference, random)
            sample["clip_crop"] = self.image_processor(clip_crop, return_tensors="pt").pixel_values[
                0
            ]  # (3, size, size)
        return sample

    def negatives(self, count: int, crops: bool) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """One photo of each of up to `count` people: recognition crops if asked for, embeddings, numbers; see [`Objective`]."""
        first = list(dict.fromkeys(self.faces.person_number(index) for index in range(len(self.faces))))
        chosen = np.random.default_rng([self.seed, 2]).permutation(len(first))[:count]
        people = [first[place] for place in sorted(chosen)]
        faces = [self.faces[index] for index in people]
        pictures = [_to_tensor(_decode(face.recognition_crop)) for face in faces if crops and face.recognition_crop]
        embeds = torch.from_numpy(np.stack([face.embedding for face in faces]))
        return torch.stack(pictures) if crops else None, embeds, torch.tensor(people)

    @property
    def crops(self) -> int:
        """Fixed crops of each photo."""
        assert self.config.crops is not None
        return self.config.crops

    def _crop_number(self, position: int, index: int) -> int:
        """The crops of a photo come in turn."""
        turn = self.epochs.turn(position // self.epochs.size, index)
        return index * self.crops + (turn + index) % self.crops

    def fixed_crop(self, number: int, target: PreparedFace | None = None) -> Crop:
        """Crop `number % crops` of photo `number // crops` (`target`); a share of `flip` of them is mirrored."""
        index, variant = divmod(number, self.crops)
        random = np.random.default_rng([self.seed, index, variant, 1])
        mirrored = variant + 0.5 < self.config.flip * self.crops
        return _random_crop(target or self.faces[index], self.config, self._target_size(index), random, mirrored)

    def fixed_pixels(self, numbers: Collection[int]) -> torch.Tensor:
        """Crops by their numbers, `(numbers, 3, resolution, resolution)` in `[-1, 1]`."""
        images = []
        for number in numbers:
            target = self.faces[number // self.crops]
            images.append(self.fixed_crop(number, target).pixels(_decode(target.image)))
        return torch.stack(images)

    def photo(self, position: int) -> int:
        """
        The number of the photo at a position. Every photo comes once in each epoch or, where `config.balanced`, every person;
        with `config.aspect_ratio_buckets` see [`AspectBuckets`].
        """
        if self.buckets is not None:
            return self.buckets.photo(position)
        epoch, place = divmod(position, self.epochs.size)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch, 1]).permutation(self.epochs.photos(epoch))
            self._epoch = epoch
        return int(self._order[place])

    def _target_size(self, index: int) -> tuple[int, int]:
        """Height and width of the picture that a photo becomes."""
        if self.buckets is not None:
            return self.buckets.size(index)
        return self.config.resolution, self.config.resolution

    @torch.no_grad()
    def _retarget(self, target: PreparedFace, reference: PreparedFace) -> tuple[np.ndarray, np.ndarray | None]:
        """
        The reference's face in the target's expression and pose as pipelines make it, in pixels of the target: landmarks
        `(72, 2)` and, where the detector has its own, key points `(5, 2)`.
        """
        own = reference.coefficients
        coefficients = dataclasses.replace(target.coefficients, shape=own.shape)
        landmarks = self.predictor.repose(torch.from_numpy(reference.landmarks)[None], own, coefficients)[0].numpy()
        if reference.key_points is None:
            return landmarks, None
        seen = torch.from_numpy(reference.key_points)[None]
        return landmarks, repose_key_points(self.predictor, seen, own, coefficients)[0].numpy()

    def _clip_crop(self, reference: PreparedFace, random: np.random.Generator) -> PIL.Image.Image:
        crop = _decode(reference.clip_crop)
        if crop.size != (self.image_size, self.image_size):
            pixels = _resize(_to_bytes(crop), (self.image_size, self.image_size))
            crop = PIL.Image.fromarray(pixels.permute(1, 2, 0).numpy())
        if random.random() < self.config.reference_flip:
            crop = crop.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        jitter = self.config.reference_jitter
        for enhance in (PIL.ImageEnhance.Brightness, PIL.ImageEnhance.Contrast, PIL.ImageEnhance.Color):
            crop = enhance(crop).enhance(random.uniform(1 - jitter, 1 + jitter))
        return crop

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

    def _noise(self, crop: Crop, random: np.random.Generator) -> torch.Tensor:
        """`(channels, height, width)` of the latents of a picture."""
        channels, *sides = self.latent_shape
        height, width = (
            target * side // self.config.resolution for target, side in zip(crop.target_size, sides, strict=True)
        )
        return torch.from_numpy(random.standard_normal((channels, height, width), dtype=np.float32))


class ResumableBatchSampler(Sampler[list[int]]):
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


class DeliveredErrors(Dataset):
    """Samples, or what they raise: an error from another process would lose its type and most of what it says."""

    def __init__(self, samples: TrainingSamples):
        self.samples = samples

    def __getitem__(self, position: int) -> dict[str, Any] | FaceSnapError:
        try:
            return self.samples[position]
        except FaceSnapError as error:
            return error


def delivered(batch: dict[str, Any] | FaceSnapError) -> dict[str, Any]:
    """A batch of [`DeliveredErrors`]; raises what came in its place."""
    if isinstance(batch, FaceSnapError):
        raise batch
    return batch


def collate(samples: list[Any]) -> Any:
    """A batch: tensors stacked, captions as a list; or the first error among the samples."""
    errors = [sample for sample in samples if isinstance(sample, FaceSnapError)]
    if errors:
        return errors[0]
    batch: dict[str, Any] = {
        name: torch.stack([sample[name] for sample in samples]) for name in samples[0] if name != "caption"
    }
    batch["caption"] = [sample["caption"] for sample in samples]
    return batch


def _random_crop(
    target: PreparedFace,
    config: DataConfig,
    target_size: tuple[int, int],
    random: np.random.Generator,
    mirrored: bool | None = None,
) -> Crop:
    """A part that shows the face, of the proportions of `target_size`; `mirrored`, or by default in a share of `config.flip`."""
    size = PIL.Image.open(io.BytesIO(target.image)).size
    file_size = target.info.get("file_size") or size
    # the largest part of these proportions, divided by a zoom that leaves it the pixels of the picture
    width = min(size[0], size[1] * target_size[1] / target_size[0])
    height = min(size[1], size[0] * target_size[0] / target_size[1])
    most = max(1.0, width / target_size[1])
    low, high = config.zoom
    zoom = random.uniform(min(low, most), min(high, most))
    width, height = round(width / zoom), round(height / zoom)
    left, top = (
        _crop_start(target.landmarks[:, axis], side, size[axis], random) for axis, side in enumerate((width, height))
    )
    if mirrored is None:
        mirrored = bool(random.random() < config.flip)
    return Crop(size, (int(file_size[0]), int(file_size[1])), left, top, width, height, target_size, mirrored)


def _crop_start(points: np.ndarray, side: int, length: int, random: np.random.Generator) -> int:
    """A random start of a crop along one axis, from those that keep the face inside."""
    low, high = max(0.0, points.max() - side), min(length - side, points.min())
    if low > high:  # the face is larger than the crop or cut off: around its middle
        return round(np.clip((points.min() + points.max() - side) / 2, 0, length - side))
    return round(random.uniform(low, high))


def _decode(data: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(data)).convert("RGB")


def _to_bytes(image: PIL.Image.Image) -> torch.Tensor:
    """`(3, height, width)`, `uint8`, stored pixel by pixel."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _to_tensor(image: PIL.Image.Image) -> torch.Tensor:
    """`(3, height, width)` in `[0, 1]`."""
    return _to_bytes(image).float() / 255


def _resize(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`(3, height, width)`, `uint8`; on bytes that are stored pixel by pixel in a quarter of the time that Pillow takes."""
    if pixels.shape[1:] == size:
        return pixels
    return F.interpolate(pixels[None], size, mode="bicubic", antialias=True)[0]
