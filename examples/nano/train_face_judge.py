"""A second judge of likeness: a recognizer of rendered faces to which no loss of any adapter listens.

    python train_face_judge.py --steps 3000               # run again to go on
    python check_likeness.py ...                          # what it is for

It learns to tell the people of the training split apart (CosFace, Wang et al. 2018, arXiv 1801.09414, equation 4), by aligned
faces, half of them as the autoencoder draws them again, and shares nothing with dlib's network or with the image encoder.
Prints how often it finds a person of the validation split first, among the hundred there, by one other picture.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from checkpoints import Average, load_checkpoint, save_checkpoint
from dataset import TO_PACKAGE, Shard, shard_paths
from descend import descend
from lr_scheduler import learning_rate
from torch import nn
from train_autoencoder import to_tensor
from train_judge import RECONSTRUCTED, Levels, drawn_again
from workspace import add_work_dir

from facesnap_diffusers.data.recognition_crop import align_faces
from facesnap_diffusers.nano.autoencoder import AutoencoderPatch


SIDE = 64  # of an aligned face, in pixels
CHANNELS = (32, 64, 96, 128)  # at 32, 16, 8 and 4 pixels
EMBED_DIM = 128
BATCH, LEARNING_RATE = 64, 2e-3
SCALE, MARGIN = 24.0, 0.2  # of CosFace


class FaceJudge(Levels):
    """Embeddings of aligned faces."""

    def __init__(self):
        super().__init__(CHANNELS)
        self.embedding = nn.Linear(CHANNELS[-1] * (SIDE // 2 ** len(CHANNELS)) ** 2, EMBED_DIM)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        """Of faces (N, 3, 64, 64) in -1 to 1: (N, 128), of unit length."""
        return F.normalize(self.embedding(F.relu(self.levels(faces)[-1]).flatten(1)))


class Faces:
    """Rendered pictures of a split with landmarks, and what the autoencoder makes of them."""

    def __init__(self, work_dir: Path, split: str, vae: AutoencoderPatch):
        shards = [Shard.load(path) for path in shard_paths(work_dir, split)]
        self.images = np.concatenate([shard.images.reshape(-1, *shard.images.shape[2:]) for shard in shards])
        self.landmarks = np.concatenate([shard.landmarks.reshape(-1, *shard.landmarks.shape[2:]) for shard in shards])
        views = shards[0].images.shape[1]
        self.people = np.arange(len(self.images)) // views
        self.again = drawn_again(self.images, vae)

    def batch(self, size: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Faces in -1 to 1, a little moved, blurred, noisy, and in other light; and whose they are."""
        chosen = rng.integers(len(self.images), size=size)
        again = rng.random(size) < RECONSTRUCTED
        pictures = np.where(again[:, None, None, None], self.again[chosen], self.images[chosen])
        # what a detector finds is a pixel or so beside the true points
        landmarks = self.landmarks[chosen] + rng.normal(0, 0.8, (size, len(self.landmarks[0]), 2))
        faces = aligned(pictures, landmarks)
        light = np.exp(rng.normal(0, 0.1, (size, 1, 1, 1)) + rng.normal(0, 0.03, (size, 3, 1, 1)))
        faces = (faces + 1) * torch.from_numpy(light).float() - 1
        noise = torch.from_numpy(rng.standard_normal(faces.shape, dtype=np.float32))
        faces = faces + noise * torch.from_numpy(rng.uniform(0, 0.04, (size, 1, 1, 1))).float()
        blurred = F.avg_pool2d(faces, 3, 1, 1)
        share = torch.from_numpy(rng.uniform(0, 0.8, (size, 1, 1, 1))).float()
        return (faces + share * (blurred - faces)).clamp(-1, 1), torch.from_numpy(self.people[chosen])


def aligned(pictures: np.ndarray, landmarks: np.ndarray) -> torch.Tensor:
    """Faces (N, 3, 64, 64) in -1 to 1, of pictures (N, H, W, 3) and the renderer's landmarks (N, 72, 2)."""
    points = torch.from_numpy(landmarks + TO_PACKAGE).float()
    return align_faces(to_tensor(pictures), points, "arcface", SIDE)


@torch.no_grad()
def embed(judge: FaceJudge, faces: torch.Tensor) -> torch.Tensor:
    """Of a face and its mirror image together: (N, 128), of unit length."""
    parts = [judge(part) + judge(part.flip(3)) for part in faces.split(200)]
    return F.normalize(torch.cat(parts))


def face_judge_folder(work_dir: Path) -> Path:
    return Path(work_dir) / "face-judge"


def load_face_judge(work_dir: Path) -> FaceJudge:
    judge = FaceJudge().eval()
    judge.load_state_dict(torch.load(face_judge_folder(work_dir) / "judge.pt", weights_only=True))
    return judge


def found_first(judge: FaceJudge, faces: Faces) -> float:
    """The share of pictures of a split that are nearest to the first picture of their own person."""
    people = torch.from_numpy(faces.people)
    embeds = embed(judge, aligned(faces.images, faces.landmarks))
    first = torch.from_numpy(np.unique(faces.people, return_index=True)[1])
    others = torch.ones(len(people), dtype=torch.bool)
    others[first] = False
    nearest = (embeds[others] @ embeds[first].T).argmax(1)
    return (nearest == people[others]).float().mean().item()


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
    folder = face_judge_folder(args.work_dir)
    vae = AutoencoderPatch.from_pretrained(Path(args.work_dir) / "export/vae", dtype=torch.float32).eval()
    train, held_out = Faces(args.work_dir, "train", vae), Faces(args.work_dir, "validation", vae)
    people = train.people.max() + 1
    # beside the judge: a direction for each person of the training split
    judge = nn.ModuleDict({"faces": FaceJudge(), "people": nn.Linear(EMBED_DIM, people, bias=False)})
    judge.to(memory_format=torch.channels_last)
    average = Average(judge, 0.998)
    optimizer = torch.optim.AdamW(judge.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    step = load_checkpoint(folder / "training.pt", judge, average, optimizer, rng)
    print(f"{len(train.images)} pictures of {people} people, step {step}", flush=True)
    started, first = time.time(), step
    while step < args.steps:
        faces, own = train.batch(BATCH, rng)
        cosines = F.linear(judge["faces"](faces), F.normalize(judge["people"].weight))
        loss = F.cross_entropy(SCALE * (cosines - MARGIN * F.one_hot(own, people)), own)
        descend(loss, judge, average, optimizer, learning_rate(LEARNING_RATE, step, args.steps), step)
        step += 1
        if step % 250 == 0 or step == args.steps:
            with average:
                share = found_first(judge["faces"], held_out)
                folder.mkdir(parents=True, exist_ok=True)
                torch.save(judge["faces"].state_dict(), folder / "judge.pt")
            pace = (time.time() - started) / (step - first)
            print(f"step {step}: found first {share:.1%}; loss {loss.item():.2f}; {pace:.2f} s a step", flush=True)
        if step % 50 == 0 or step == args.steps:
            save_checkpoint(folder / "training.pt", step, judge, average, optimizer, rng)


if __name__ == "__main__":
    main()
