"""The judge of drawn pictures: attributes and silhouette of a person, read by a small convolutional network.

    python train_judge.py --steps 3000                    # run again to go on
    python check_pictures.py ...                          # what it is for

It is trained on rendered pictures of the training split and on what the autoencoder leaves of them, with labels and masks
that the renderer knows. No loss of any adapter listens to it, and it shares nothing with the image encoder. Prints the share
of right answers on people of the validation split; `check_pictures.py` prints it for the true pictures of the evaluation.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from attributes import CLASSES, class_numbers
from checkpoints import Average, load_checkpoint, save_checkpoint
from dataset import Shard, shard_paths
from descend import descend
from lr_scheduler import learning_rate
from people.face_model import FaceModel
from teach_image_encoder import CLOSED, EYES, UNKNOWN, person_masks
from torch import nn
from train_autoencoder import to_tensor
from workspace import add_work_dir

from facesnap_diffusers.nano.autoencoder import AutoencoderPatch


CHANNELS = (32, 48, 80, 128)  # at 64, 32, 16 and 8 pixels
BATCH, LEARNING_RATE = 32, 2e-3
MASK_WEIGHT = 2.0
RECONSTRUCTED = 0.5  # share of training pictures that the autoencoder drew again


class Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(8, channels) for _ in range(2)])

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        inner = self.first(F.relu(self.norms[0](states)))
        return states + self.second(F.relu(self.norms[1](inner)))


class Levels(nn.Module):
    """What a picture becomes at half its side, a quarter, and so on, with so many channels."""

    def __init__(self, channels: tuple[int, ...]):
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(a, b, 4, 2, 1) for a, b in zip([3, *channels], channels)])
        self.blocks = nn.ModuleList([nn.Identity(), *(Block(width) for width in channels[1:])])

    def levels(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        states, levels = pictures, []
        for down, block in zip(self.down, self.blocks):
            states = block(down(F.relu(states) if levels else states))
            levels.append(states)
        return levels


class Judge(Levels):
    """Logits of every class of `CLASSES`, and of each pixel's being the person."""

    def __init__(self):
        super().__init__(CHANNELS)
        # each class looks where it finds most: eyes are small, hair is not
        self.look = nn.ModuleList([nn.Conv2d(width, len(CLASSES), 1) for width in CHANNELS[1:]])
        self.heads = nn.ModuleList([nn.Linear(sum(CHANNELS[1:]), len(values)) for values in CLASSES.values()])
        self.up = nn.ModuleList([nn.Conv2d(b, a, 3, padding=1) for a, b in itertools.pairwise(CHANNELS)])
        self.mask = nn.Conv2d(CHANNELS[0], 4, 3, padding=1)

    def forward(self, pictures: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Of pictures (N, 3, 128, 128) in -1 to 1: a list of (N, values), and (N, 128, 128)."""
        levels = self.levels(pictures)
        states, seen = levels[-1], []
        for look, level in zip(self.look, levels[1:]):
            weights = look(level).flatten(2).softmax(2)
            seen.append(weights @ F.relu(level).flatten(2).transpose(1, 2))  # (N, classes, width)
        seen = torch.cat(seen, 2)
        named = [head(seen[:, number]) for number, head in enumerate(self.heads)]
        for up, level in zip(reversed(self.up), reversed(levels[:-1])):
            states = level + F.interpolate(up(F.relu(states)), scale_factor=2, mode="nearest")
        return named, F.pixel_shuffle(self.mask(F.relu(states)), 2)[:, 0]


class Pictures:
    """Rendered pictures of a split with masks and labels, and what the autoencoder makes of them."""

    def __init__(self, work_dir: Path, split: str, vae: AutoencoderPatch | None = None, views: int = 5):
        images, masks, numbers = [], [], []
        index = FaceModel().expression_index
        for path in shard_paths(work_dir, split):
            shard = Shard.load(path)
            images.append(shard.images[:, :views].reshape(-1, *shard.images.shape[2:]))
            masks += [
                person_masks(of_person[:views], who, index) for of_person, who in zip(shard.images, shard.people)
            ]
            for of_person in shard.attributes:
                for attributes in of_person[:views]:
                    numbers.append(class_numbers(attributes))
                    if attributes["expression"] == CLOSED:
                        numbers[-1][EYES] = UNKNOWN
        self.images = np.concatenate(images)
        self.masks = np.concatenate(masks)
        self.classes = np.stack(numbers)
        self.again = None if vae is None else drawn_again(self.images, vae)

    def batch(self, size: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        chosen = rng.integers(len(self.images), size=size)
        pictures, masks = [], []
        for index in chosen:
            source = self.images if self.again is None or rng.random() > RECONSTRUCTED else self.again
            picture, mask = _another(source[index], self.masks[index], rng)
            pictures.append(picture)
            masks.append(mask)
        return to_tensor(np.stack(pictures)), torch.from_numpy(np.stack(masks)), torch.from_numpy(self.classes[chosen])


@torch.no_grad()
def drawn_again(images: np.ndarray, vae: AutoencoderPatch) -> np.ndarray:
    again = []
    for start in range(0, len(images), 100):
        pictures = vae.decode(vae.encode(to_tensor(images[start : start + 100])).latent_dist.sample()).sample
        again.append(((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(again)


def _another(picture: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Moved, mirrored, a little blurred or noisy, in a little other light."""
    size = picture.shape[0]
    matrix = cv2.getRotationMatrix2D((size / 2, size / 2), rng.normal(0, 3), 1 + rng.normal(0, 0.05))
    matrix[:, 2] += rng.normal(0, 3, 2)
    picture = cv2.warpAffine(picture, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    mask = cv2.warpAffine(mask.astype(np.uint8), matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
    if rng.random() < 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 0.9))
    if rng.random() < 0.5:
        picture *= np.exp(rng.normal(0, 0.05)) * np.exp(rng.normal(0, 0.015, 3)).astype(np.float32)
    if rng.random() < 0.3:
        picture += rng.uniform(1, 5) * rng.standard_normal(picture.shape, dtype=np.float32)
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    return (picture[:, ::-1], mask[:, ::-1]) if rng.random() < 0.5 else (picture, mask)


def judge_folder(work_dir: Path) -> Path:
    return Path(work_dir) / "judge"


def load_judge(work_dir: Path) -> Judge:
    judge = Judge().eval()
    judge.load_state_dict(torch.load(judge_folder(work_dir) / "judge.pt", weights_only=True))
    return judge


@torch.no_grad()
def examine(judge: Judge, pictures: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Classes (N, 8) and masks (N, 128, 128) of pictures in -1 to 1; of a picture and its mirror image on average."""
    classes, masks = [], []
    for part in pictures.split(100):
        (named, mask), (mirrored, other) = judge(part), judge(part.flip(3))
        classes.append(torch.stack([(a + b).argmax(1) for a, b in zip(named, mirrored)], 1))
        masks.append(mask + other.flip(2) > 0)
    return torch.cat(classes).numpy(), torch.cat(masks).numpy()


def overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of masks (N, H, W)."""
    axes = (1, 2)
    return (one & other).sum(axes) / np.maximum((one | other).sum(axes), 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    folder = judge_folder(args.work_dir)
    vae = AutoencoderPatch.from_pretrained(Path(args.work_dir) / "export/vae", dtype=torch.float32).eval()
    train, held_out = Pictures(args.work_dir, "train", vae), Pictures(args.work_dir, "validation", vae, views=3)
    judge = Judge().to(memory_format=torch.channels_last)
    average = Average(judge, 0.998)
    optimizer = torch.optim.AdamW(judge.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    step = load_checkpoint(folder / "training.pt", judge, average, optimizer, rng)
    print(f"{len(train.images)} pictures, step {step}", flush=True)
    started, first = time.time(), step
    while step < args.steps:
        pictures, masks, classes = train.batch(BATCH, rng)
        named, mask = judge(pictures)
        errors = [F.cross_entropy(logits, classes[:, k]) for k, logits in enumerate(named)]
        loss = torch.stack(errors).nan_to_num().sum()
        loss = loss + MASK_WEIGHT * F.binary_cross_entropy_with_logits(mask, masks.float())
        descend(loss, judge, average, optimizer, learning_rate(LEARNING_RATE, step, args.steps), step)
        step += 1
        if step % 250 == 0 or step == args.steps:
            scores = []
            with average:
                for images in (held_out.images, held_out.again):
                    found, silhouettes = examine(judge, to_tensor(images))
                    known = held_out.classes != UNKNOWN
                    right = [(found == held_out.classes)[known[:, k], k].mean() for k in range(len(CLASSES))]
                    scores.append([*right, overlap(silhouettes, held_out.masks).mean()])
                folder.mkdir(parents=True, exist_ok=True)
                torch.save(judge.state_dict(), folder / "judge.pt")
            names = [*CLASSES, "silhouette"]
            values = ", ".join(f"{name} {a:.3f}/{b:.3f}" for name, a, b in zip(names, *scores))
            pace = (time.time() - started) / (step - first)
            print(
                f"step {step}: {values} (rendered/drawn again); loss {loss.item():.2f}; {pace:.2f} s a step",
                flush=True,
            )
        if step % 50 == 0 or step == args.steps:
            save_checkpoint(folder / "training.pt", step, judge, average, optimizer, rng)


if __name__ == "__main__":
    main()
