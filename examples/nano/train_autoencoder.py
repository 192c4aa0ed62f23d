"""Trains the autoencoder: 128 px pictures to 16x16 latents of 16 channels and back.

Run again to continue.

    python train_autoencoder.py --steps 4000                  # encoder and decoder
    python train_autoencoder.py --decoder-only --steps 20000  # later: a better decoder for the same latents
    python train_autoencoder.py --faces --steps 1500          # last: one that draws what tells faces apart

The base model learns the latents of the first run, so its encoder must not change after that.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from autoencoder_start import start_from_components
from checkpoints import Average, load_checkpoint, save_checkpoint
from dataset import TO_PACKAGE, Shard, shard_paths
from descend import descend
from face_loss import FaceLoss
from lr_scheduler import learning_rate
from precision import mixed_precision
from workspace import add_work_dir

from facesnap_diffusers.nano.autoencoder import PATCH, AutoencoderPatch


LATENT_STD = 0.4
WHITENING = 0.65
CROP = 64
FEATURE_WEIGHT = 5.0
BATCH = 20
FACES_BATCH = 8  # whole pictures
FACE_WEIGHT = 0.02


@dataclass
class Phase:
    """One of the runs; it starts from the first of its folders that there is, else from the data's components."""

    output: str
    learning_rate: float
    starts: tuple[str, ...] = ()

    @property
    def keeps_encoder(self) -> bool:
        return bool(self.starts)


# by the names of their checkpoints
PHASES = {
    "joint": Phase("joint", 1.5e-3),
    "decoder": Phase("final", 1.5e-3, starts=("joint",)),
    "faces": Phase("final", 4e-4, starts=("final", "joint")),
}


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """(N, 3, H, W) in -1 to 1 of (N, H, W, 3) uint8."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_images(tensor: torch.Tensor) -> np.ndarray:
    return tensor.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()


def feature_weights(landmarks: np.ndarray, size: int, strength: float, x: int = 0, y: int = 0) -> np.ndarray:
    """(size, size) of one picture from pixel (x, y) on: 1, and up to 1 + `strength` on the eyes and the mouth.

    Args:
        landmarks: (72, 2) in pixels of a 128 px picture.
    """
    weight = np.zeros((size, size), np.float32)
    for part, radius_x, radius_y in ((slice(36, 42), 9, 6), (slice(42, 48), 9, 6), (slice(48, 68), 12, 8)):
        center_x, center_y = landmarks[part].mean(0)
        along_x = (np.arange(x, x + size, dtype=np.float32) + 0.5 - center_x) / radius_x
        along_y = (np.arange(y, y + size, dtype=np.float32) + 0.5 - center_y) / radius_y
        np.maximum(weight, np.exp(-0.5 * along_y**2)[:, None] * np.exp(-0.5 * along_x**2), out=weight)
    return 1 + strength * weight


class Pictures:
    """All finished shards of a split, in memory; `refresh` takes in those that were rendered meanwhile."""

    def __init__(self, work_dir: Path, split: str):
        self.work_dir, self.split = work_dir, split
        self.loaded, self.images, self.landmarks = set(), [], []
        self.refresh()

    def refresh(self):
        for path in shard_paths(self.work_dir, self.split):
            if path not in self.loaded:
                shard = Shard.load(path)
                self.loaded.add(path)
                self.images.append(shard.images.reshape(-1, *shard.images.shape[2:]))
                self.landmarks.append(shard.landmarks.reshape(-1, 72, 2))

    def __len__(self) -> int:
        return sum(map(len, self.images))

    def whole(self, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pictures (N, 3, 128, 128), their loss weights and their landmarks (N, 72, 2)."""
        shards = rng.integers(len(self.images), size=count)
        chosen = [(int(shard), int(rng.integers(len(self.images[shard])))) for shard in shards]
        images = to_tensor(np.stack([self.images[shard][k] for shard, k in chosen]))
        landmarks = np.stack([self.landmarks[shard][k] for shard, k in chosen])
        weights = np.stack([feature_weights(points, images.shape[-1], FEATURE_WEIGHT) for points in landmarks])
        return images, torch.from_numpy(weights)[:, None], torch.from_numpy(landmarks)

    def crops(self, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Random crops (N, 3, CROP, CROP), two in three of them about an eye or the mouth, and their loss weights."""
        images, weights = [], []
        for _ in range(count):
            shard = int(rng.integers(len(self.images)))
            k = int(rng.integers(len(self.images[shard])))
            image, points = self.images[shard][k], self.landmarks[shard][k]
            corner = rng.integers(0, 128 - CROP + 1, 2)
            if rng.random() < 0.67:
                feature = points[[slice(36, 42), slice(42, 48), slice(48, 68)][int(rng.integers(3))]].mean(0)
                corner = np.clip(feature + rng.uniform(-CROP, 0, 2) * 0.8 - 0.1 * CROP, 0, 128 - CROP).astype(int)
            x, y = corner // PATCH * PATCH
            image = image[y : y + CROP, x : x + CROP]
            weight = feature_weights(points, CROP, FEATURE_WEIGHT, x, y)
            if rng.random() < 0.5:
                image, weight = image[:, ::-1], weight[:, ::-1]
            images.append(image)
            weights.append(weight)
        return to_tensor(np.stack(images)), torch.from_numpy(np.stack(weights))[:, None]


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted L1 of the pictures and of their differences along x and y."""
    error = output - target
    loss = (weight * error.abs()).mean()
    loss = loss + 0.5 * (weight[..., 1:] * (error[..., 1:] - error[..., :-1]).abs()).mean()
    return loss + 0.5 * (weight[..., 1:, :] * (error[..., 1:, :] - error[..., :-1, :]).abs()).mean()


@torch.no_grad()
def peak_signal_to_noise(vae: AutoencoderPatch, images: torch.Tensor, weights: torch.Tensor) -> tuple[float, float]:
    """PSNR (dB, range 0 to 1) of whole pictures, and of the eyes and mouth."""
    output = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in images.split(32)])
    error = (output.clamp(-1, 1) - images).square().mean(1) / 4
    mask = (weights > 1 + FEATURE_WEIGHT / 3).float()
    features = (error * mask).sum() / mask.sum()
    return float(-10 * torch.log10(error.mean())), float(-10 * torch.log10(features))


@torch.no_grad()
def reconstruction_sheet(vae: AutoencoderPatch, images: torch.Tensor) -> np.ndarray:
    """Rows of eight: originals above their reconstructions."""
    output = to_images(vae.decode(vae.encode(images).latent_dist.mean).sample)
    originals = to_images(images)
    rows = [np.concatenate(list(x[k : k + 8]), 1) for k in range(0, len(images), 8) for x in (originals, output)]
    return np.concatenate(rows, 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("--steps", type=int, default=3000)
    parser.set_defaults(phase="joint")
    phases = parser.add_mutually_exclusive_group()
    choice = {"dest": "phase", "action": "store_const"}
    phases.add_argument(
        "--decoder-only", const="decoder", help="keep the trained encoder, train its decoder on", **choice
    )
    phases.add_argument(
        "--faces", const="faces", help="the same on whole pictures, with the face loss besides", **choice
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    folder = args.work_dir / "autoencoder"
    train, held_out = Pictures(args.work_dir, "train"), Pictures(args.work_dir, "validation")
    validation = to_tensor(held_out.images[0][:96])
    weights = [feature_weights(points, 128, FEATURE_WEIGHT) for points in held_out.landmarks[0][:96]]
    validation_weights = torch.from_numpy(np.stack(weights))

    phase = PHASES[args.phase]
    if phase.keeps_encoder:
        start = next((name for name in phase.starts if (folder / name).exists()), phase.starts[-1])
        vae = AutoencoderPatch.from_pretrained(folder / start)
        vae.encoder.requires_grad_(False)
        trained = vae.decoder
    else:
        trained = vae = AutoencoderPatch(scaling_factor=1 / LATENT_STD)
        start_from_components(
            vae, to_tensor(np.concatenate([x[::5] for x in train.images[:15]])), LATENT_STD, WHITENING
        )
    vae.to(memory_format=torch.channels_last)
    face_loss = FaceLoss() if args.phase == "faces" else None
    average = Average(trained, 0.998)
    optimizer = torch.optim.AdamW(trained.parameters(), phase.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint = folder / f"{args.phase}.pt"
    step = load_checkpoint(checkpoint, trained, average, optimizer, rng)
    print(
        f"{sum(p.numel() for p in vae.parameters()) / 1e6:.2f} M parameters, step {step}, {len(train)} pictures",
        flush=True,
    )
    if step == 0:
        print(
            "start: PSNR {:.2f} dB, eyes and mouth {:.2f} dB".format(
                *peak_signal_to_noise(vae, validation, validation_weights)
            ),
            flush=True,
        )

    started, saved, first = time.time(), time.time(), step
    while step < args.steps:
        if face_loss is None:
            target, weight = train.crops(BATCH, rng)
        else:
            target, weight, landmarks = train.whole(FACES_BATCH, rng)
        target = target.contiguous(memory_format=torch.channels_last)
        with mixed_precision():
            with torch.set_grad_enabled(not phase.keeps_encoder):
                latents = vae.encode(target).latent_dist.mean.float()
            noisy = latents + 0.04 * LATENT_STD * torch.randn_like(latents)
            output = vae.decode(noisy).sample.float()
        loss = reconstruction_loss(output, target, weight)
        if face_loss is not None:
            loss = loss + FACE_WEIGHT * face_loss(output, target, landmarks + TO_PACKAGE).mean()
        # the pipelines scale latents but do not shift them
        balance = latents.mean((0, 2, 3)).square().mean() + (latents.square().mean().sqrt() - LATENT_STD).square()
        whole_loss = loss if phase.keeps_encoder else loss + 0.1 * balance
        rate = learning_rate(phase.learning_rate, step, args.steps)
        descend(whole_loss, trained, average, optimizer, rate, step, norm=0.5)
        step += 1
        if step % 250 == 0 or step == args.steps:
            with average:
                whole, features = peak_signal_to_noise(vae, validation, validation_weights)
                cv2.imwrite(str(folder / "reconstructions.png"), reconstruction_sheet(vae, validation[::6])[..., ::-1])
            speed = len(target) * (step - first) / (time.time() - started)
            print(
                f"step {step} loss {loss:.4f} PSNR {whole:.2f} dB, eyes and mouth {features:.2f} dB, {speed:.0f}/s",
                flush=True,
            )
        if time.time() - saved > 300 or step == args.steps:
            save_checkpoint(checkpoint, step, trained, average, optimizer, rng)
            saved = time.time()
            train.refresh()
    # only when done: the base model must not meet latents that still change
    with average:
        vae.save_pretrained(folder / phase.output)


if __name__ == "__main__":
    main()
