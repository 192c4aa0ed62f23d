"""An adapter with another image encoder: the mixer's projection of image features is fitted anew, all else is kept.

    python start_taught_adapter.py ../../src/facesnap_diffusers/assets/nano/adapter \\
        ~/.cache/facesnap-nano/taught/image_encoder --output adapters/start-taught

A linear map from the new encoder's states to the old one's, place by place, goes into the projection. Then the mixer learns in
minutes to say with the new encoder what it said with the old one. What more the new encoder sees is left to `facesnap train`.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
from dataset import TO_PACKAGE, Shard, shard_paths
from embed_faces import embedding_path
from lr_scheduler import learning_rate
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
from workspace import add_work_dir

import facesnap_diffusers.nano.autoencoder  # noqa: F401  (diffusers looks its class up there)
from facesnap_diffusers import FaceSnapPipeline
from facesnap_diffusers.faces.alignment import align_for_clip
from facesnap_diffusers.models.image_encoder import image_hidden_states
from facesnap_diffusers.models.mixer import FacialAttributeMixer


RIDGE = 1e-3  # of the states' mean variance
BATCH, LEARNING_RATE = 64, 3e-4


class Views:
    """dlib's embeddings and two encoders' states of the embedded views."""

    def __init__(self, work_dir: Path, split: str, encoders: list):
        embeddings: list[np.ndarray] = []
        states: list[list[torch.Tensor]] = [[] for _ in encoders]
        for path in shard_paths(work_dir, split):
            if not embedding_path(work_dir, path).exists():
                continue
            shard, found = Shard.load(path), np.load(embedding_path(work_dir, path))
            embeddings.append(found.reshape(-1, found.shape[-1]))
            count = found.shape[1]
            images = shard.images[:, :count].reshape(-1, *shard.images.shape[2:])
            points = shard.landmarks[:, :count].reshape(-1, *shard.landmarks.shape[2:]) + TO_PACKAGE
            for kept, (encoder, processor) in zip(states, encoders):
                heads = [align_for_clip(i, p, encoder.config.image_size) for i, p in zip(images, points)]
                pixels = processor(heads, return_tensors="pt").pixel_values
                with torch.no_grad():
                    kept.append(image_hidden_states(encoder, pixels).half())
        self.embeddings = torch.from_numpy(np.concatenate(embeddings))
        self.states = [torch.cat(kept) for kept in states]


@torch.no_grad()
def fit_projection(mixer: FacialAttributeMixer, old: torch.Tensor, new: torch.Tensor) -> float:
    """Makes `image_proj` take the new states; returns the share of the old ones' variance that is left unexplained."""
    source, target = new.flatten(0, 1).float(), old.flatten(0, 1).float()
    source_mean, target_mean = source.mean(0), target.mean(0)
    source, target = source - source_mean, target - target_mean
    covariance = source.T @ source
    ridge = RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance))
    fit = torch.linalg.solve(covariance + ridge, source.T @ target)  # (new width, old width)
    weight = mixer.image_proj.weight
    bias = mixer.image_proj.bias + weight @ (target_mean - fit.T @ source_mean)
    mixer.image_proj = torch.nn.Linear(source.shape[1], weight.shape[0])
    mixer.image_proj.weight.copy_(weight @ fit.T)
    mixer.image_proj.bias.copy_(bias)
    mixer.register_to_config(image_embed_dim=source.shape[1])
    return float((target - source @ fit).square().sum() / target.square().sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("image_encoder", type=Path)
    parser.add_argument("--output", type=Path, default=Path("adapters/start-taught"), help="under the work directory")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    folders = (args.adapter / "image_encoder", args.image_encoder)
    encoders = [
        (
            CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float32).eval(),
            CLIPImageProcessor.from_pretrained(folder),
        )
        for folder in folders
    ]
    train, held_out = (Views(args.work_dir, split, encoders) for split in ("train", "validation"))
    pipe = FaceSnapPipeline.from_pretrained(Path(args.work_dir) / "export", dtype=torch.float32)
    pipe.load_facesnap_adapter(args.adapter)
    pipe.mixer.float()
    teacher = copy.deepcopy(pipe.mixer).eval()
    print(
        f"projection: {fit_projection(pipe.mixer, *train.states):.3f} of the states' variance unexplained", flush=True
    )

    def error(views: Views, chosen: np.ndarray | slice) -> torch.Tensor:
        embeddings, old, new = views.embeddings[chosen], *(states[chosen].float() for states in views.states)
        with torch.no_grad():
            wanted = teacher(embeddings, old)
        return (pipe.mixer(embeddings, new) - wanted).square().mean()

    mixer = pipe.mixer.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(mixer.parameters(), LEARNING_RATE, weight_decay=1e-2)
    started = time.time()
    for step in range(args.steps + 1):
        if step % 100 == 0:
            with torch.no_grad():
                others = error(held_out, slice(None)).item()
            print(f"step {step}: tokens of others {others:.4f}, {time.time() - started:.0f} s", flush=True)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(LEARNING_RATE, step, args.steps, warmup=20)
        loss = error(train, rng.integers(len(train.embeddings), size=BATCH))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mixer.eval()
    pipe.face_image_encoder, pipe.face_image_processor = encoders[1]
    pipe.save_facesnap_adapter(Path(args.work_dir) / args.output)


if __name__ == "__main__":
    main()
