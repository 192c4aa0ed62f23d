"""What a base leaves of a person when it draws a true picture again, from some noise on.

Prints dlib's distances.

python check_drawing.py ~/.cache/facesnap-nano/export ../../src/facesnap_diffusers/assets/nano/base
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from dataset import TO_PACKAGE, Shard, shard_paths
from diffusers import StableDiffusionPipeline
from people.captions import caption
from train_autoencoder import to_tensor
from workspace import add_work_dir

import facesnap_diffusers.nano.autoencoder  # noqa: F401  (diffusers looks its class up there)
from facesnap_diffusers.data.recognition_crop import align_faces
from facesnap_diffusers.training.dlib_network import load_dlib_network


NOISE = (0.3, 0.5, 0.7, 1.0)
STEPS = 20


class Faces:
    """One view of each person of the test split, with all that a caption can say of it, and embeddings of another."""

    def __init__(self, work_dir: Path, count: int):
        shards = [Shard.load(path) for path in shard_paths(work_dir, "test")]
        pictures = [np.concatenate([shard.images[:, view] for shard in shards])[:count] for view in (0, 1)]
        points = [np.concatenate([shard.landmarks[:, view] for shard in shards])[:count] for view in (0, 1)]
        self.network = load_dlib_network()
        self.pictures, self.landmarks = to_tensor(pictures[1]), torch.from_numpy(points[1]).float() + TO_PACKAGE
        self.captions = [caption(person[1]) for shard in shards for person in shard.attributes][:count]
        self.other_views = self._embed(to_tensor(pictures[0]), torch.from_numpy(points[0]).float() + TO_PACKAGE)

    def distance(self, pictures: torch.Tensor) -> float:
        """Median distance of pictures of what `pictures` show from the other view of the same people."""
        return float((self._embed(pictures, self.landmarks) - self.other_views).norm(dim=1).median())

    def _embed(self, pictures: torch.Tensor, landmarks: torch.Tensor) -> torch.Tensor:
        parts = zip(pictures.split(50), landmarks.split(50))
        return torch.cat([self.network(align_faces(*part, "dlib")) for part in parts])


def drawn_again(pipe: StableDiffusionPipeline, faces: Faces) -> list[torch.Tensor]:
    """Through the autoencoder alone, and from each amount of noise on, without guidance."""
    vae, scheduler = pipe.vae, pipe.scheduler
    latents = vae.encode(faces.pictures).latent_dist.mean * vae.config.scaling_factor
    text = pipe.encode_prompt(faces.captions, torch.device("cpu"), 1, False)[0]
    scheduler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(0)
    drawn = [latents]
    for share in NOISE:
        timesteps = [t for t in scheduler.timesteps if t <= share * scheduler.config.num_train_timesteps]
        noise = torch.randn(latents.shape, generator=generator)
        sample = scheduler.add_noise(latents, noise, timesteps[0].expand(len(latents)))
        for timestep in timesteps:
            sample = scheduler.step(pipe.unet(sample, timestep, text).sample, timestep, sample).prev_sample
        drawn.append(sample)
    return [vae.decode(sample / vae.config.scaling_factor).sample.clamp(-1, 1) for sample in drawn]


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("bases", type=Path, nargs="+", help="folders that export.py wrote")
    parser.add_argument("--people", type=int, default=100)
    args = parser.parse_args()
    faces = Faces(args.work_dir, args.people)
    print(f"true pictures: {faces.distance(faces.pictures):.3f}")
    for base in args.bases:
        pipe = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
        distances = [faces.distance(pictures) for pictures in drawn_again(pipe, faces)]
        names = ["autoencoder alone", *(f"noise up to {share}" for share in NOISE)]
        print(f"{base}: " + ", ".join(f"{name} {value:.3f}" for name, value in zip(names, distances)), flush=True)


if __name__ == "__main__":
    main()
