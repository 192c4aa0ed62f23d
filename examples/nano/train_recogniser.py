"""A small torch network that imitates dlib's recogniser on rendered people, for the identity loss. Run again to go on.

    python train_recogniser.py --steps 3000

It takes dlib's chip at 64 px and gives dlib's embedding relative to the mean of all people, so that the cosine, which the
identity loss is made of, tells people apart. Half of what it sees has been blurred, or through the autoencoder with noise, as
predicted pictures are.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from checkpoints import Average, load_checkpoint, save_checkpoint
from dataset import TO_PACKAGE, Shard, shard_paths
from embed_faces import EMBEDDED_VIEWS, embedding_path
from precision import mixed_precision
from schedule import learning_rate
from torch import nn
from train_autoencoder import LATENT_STD, to_tensor
from train_base import load_autoencoder
from workspace import add_work_dir

from facesnap_diffusers.training.alignment import align_faces


SIZE = 64
BATCH = 64
LEARNING_RATE = 2e-3


class Block(nn.Module):
    """A residual block, half as high and wide where the channels change."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        stride = 1 if channels == channels_in else 2
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(channels_in, channels, 2, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # silu, not relu: its gradient goes into the pictures, and should be smooth
        return F.silu(self.shortcut(x) + self.norm2(self.conv2(F.silu(self.norm1(self.conv1(x))))))


def create_network() -> nn.Module:
    """Chips (N, 3, 64, 64) in -1 to 1 to embeddings (N, 128) relative to their mean."""
    widths = [32, 32, 64, 64, 128, 128, 192]
    blocks = [Block(a, b) for a, b in zip(widths, widths[1:])]
    stem = [nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.SiLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 128))


class Faces:
    """Pictures, landmarks and embeddings of the embedded views of a split, the people in order."""

    def __init__(self, work_dir, split: str):
        self.paths = [path for path in shard_paths(work_dir, split) if embedding_path(work_dir, path).exists()]
        images, landmarks, embeddings = [], [], []
        for path in self.paths:
            shard = Shard.load(path)
            images.append(shard.images[:, :EMBEDDED_VIEWS].reshape(-1, *shard.images.shape[2:]))
            landmarks.append(shard.landmarks[:, :EMBEDDED_VIEWS].reshape(-1, 72, 2))
            embeddings.append(np.load(embedding_path(work_dir, path)).reshape(-1, 128))
        self.images, self.landmarks = np.concatenate(images), torch.from_numpy(np.concatenate(landmarks))
        self.embeddings = torch.from_numpy(np.concatenate(embeddings))


@torch.no_grad()
def spoiled(images: torch.Tensor, vae) -> torch.Tensor:
    """A quarter through the autoencoder, with up to much noise, a quarter blurred, the others as they are."""
    out, quarter = images.clone(), len(images) // 4
    latents = vae.encode(images[:quarter]).latent_dist.mean
    noise = 0.3 * LATENT_STD * torch.rand(quarter, 1, 1, 1) * torch.randn_like(latents)
    out[:quarter] = vae.decode(latents + noise).sample
    small = F.interpolate(images[quarter : 2 * quarter], scale_factor=0.4, mode="area")
    out[quarter : 2 * quarter] = F.interpolate(small, images.shape[-2:], mode="bilinear")
    return out


def crops(images: torch.Tensor, landmarks: torch.Tensor) -> torch.Tensor:
    return align_faces(images, landmarks + TO_PACKAGE, "dlib", SIZE)


@torch.no_grad()
def agreement(network: nn.Module, faces: Faces, mean: torch.Tensor) -> tuple[float, float]:
    """Mean cosine with dlib's embeddings on people outside the training set, and that of shuffled pairs of people."""
    network.eval()
    images = to_tensor(faces.images[:500])
    found = F.normalize(
        torch.cat([network(crops(*part)) for part in zip(images.split(50), faces.landmarks[:500].split(50))])
    )
    truth = F.normalize(faces.embeddings[:500] - mean)
    network.train()
    return float((found * truth).sum(1).mean()), float((found * truth.roll(EMBEDDED_VIEWS, 0)).sum(1).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    folder = args.work_dir / "recogniser"
    train, held_out = Faces(args.work_dir, "train"), Faces(args.work_dir, "validation")
    mean = train.embeddings.mean(0)
    vae = load_autoencoder(args.work_dir).to(memory_format=torch.channels_last)
    network = create_network().to(memory_format=torch.channels_last)
    average = Average(network, 0.998)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=1e-2)
    step = load_checkpoint(folder / "training.pt", network, average, optimizer, rng)
    print(f"{len(train.images)} faces, step {step}", flush=True)
    started, first = time.time(), step
    while step < args.steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(LEARNING_RATE, step, args.steps)
        k = rng.integers(len(train.images), size=BATCH)
        with mixed_precision():
            pictures = spoiled(to_tensor(train.images[k]), vae).float()
        points = train.landmarks[k] + 0.7 * torch.randn(BATCH, 72, 2) + 0.7 * torch.randn(BATCH, 1, 2)
        target = train.embeddings[k] - mean
        with mixed_precision():
            found = network(crops(pictures, points).contiguous(memory_format=torch.channels_last)).float()
        loss = (found - target).square().sum(1).mean() + 0.1 * (1 - F.cosine_similarity(found, target)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(step)
        step += 1
        if step % 250 == 0 or step == args.steps:
            with average:
                same, other = agreement(network, held_out, mean)
            speed = (step - first) * BATCH / (time.time() - started)
            print(f"step {step} loss {loss:.4f}, cosine {same:.3f}, strangers {other:.3f}, {speed:.0f}/s", flush=True)
            save_checkpoint(folder / "training.pt", step, network, average, optimizer, rng)
    average.swap()
    batch = torch.export.Dim("batch")
    example = torch.zeros(2, 3, SIZE, SIZE)
    program = torch.export.export(network.eval(), (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "recogniser.pt2")


if __name__ == "__main__":
    main()
