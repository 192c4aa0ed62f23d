"""Trains the text-to-image base on the latents of a trained autoencoder.

Run again to continue.

    python train_base.py --images 1500000
    python train_base.py --images 50000 --faces --learning-rate 3e-4     # a finished one, see restore.py

Latents of both mirror images are cached in the work directory, a file a shard; shards that were rendered meanwhile are
taken in while it trains. Every ten minutes it saves its whole state and logs the loss on people it never saw; every
half hour it writes a sheet of samples. With `--faces` it is taught besides what tells faces apart (`face_loss.py`).
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from base_model import IMAGE_SIZE, LATENT_SIZE, create_scheduler, create_text_encoder, create_tokenizer, create_unet
from checkpoints import Average, load_checkpoint, save_checkpoint
from dataset import TO_PACKAGE, Shard, shard_paths
from descend import descend
from diffusers import StableDiffusionPipeline
from face_loss import drawn_faces_loss
from lr_scheduler import learning_rate
from people.captions import caption
from precision import avoid_slow_kernels, mixed_precision
from torch import nn
from train_autoencoder import feature_weights, to_tensor
from workspace import add_work_dir, save_array

from facesnap_diffusers.faces.layout import MIRROR
from facesnap_diffusers.nano.autoencoder import AutoencoderPatch


BATCH = 32
WARMUP = 400
COOLDOWN = 0.3  # share of the run in which the learning rate falls to nothing
AVERAGE_DECAY = 0.9995
TEXT_DROPOUT = 0.1
SNR_LIMIT, LEAST_WEIGHT = 5.0, 0.15
FEATURE_WEIGHT = 3.0
FACE_WEIGHT = 0.12
SAVE_SECONDS, SHEET_SECONDS = 600, 1800
PROMPTS = [
    "a photo of a person with short brown hair, smiling, facing forward, white shirt, blue background",
    "a photo of a person with long black hair, brown skin, surprised, looking left, red shirt, green background",
    "a photo of a person with blond bob hair with bangs, wearing glasses, sad, facing forward, black shirt, yellow background",
    "a photo of a person with bald head, dark skin, full beard, laughing, looking right, gray shirt, purple background",
    "a photo of a person with curly red hair, pale skin, green eyes, neutral, facing forward, blue shirt, pink background",
    "a photo of a person, closed eyes, looking down, white shirt, red background",
]


def load_autoencoder(work_dir: Path) -> AutoencoderPatch:
    """The trained autoencoder, with the later decoder where there is one."""
    final = work_dir / "autoencoder/final"
    return AutoencoderPatch.from_pretrained(final if final.exists() else work_dir / "autoencoder/joint").eval()


@torch.no_grad()
def encode_shard(vae: AutoencoderPatch, shard: Shard) -> np.ndarray:
    """(N, V, 2, 16, 16, 16) half-precision latents, scaled for the UNet, of the pictures and of their mirror images."""
    _people, views = shard.images.shape[:2]
    latents = []
    for images in shard.images:
        both = to_tensor(np.concatenate([images, images[:, :, ::-1]]))
        encoded = vae.encode(both).latent_dist.mean * vae.config.scaling_factor
        latents.append(encoded.view(2, views, *encoded.shape[1:]).transpose(0, 1))
    return torch.stack(latents).half().numpy()


class LatentData:
    """Latents, loss weights, landmarks and attributes of every finished shard of a split, in memory."""

    def __init__(self, work_dir: Path, split: str, vae: AutoencoderPatch):
        self.work_dir, self.split, self.vae = work_dir, split, vae
        self.loaded = set()
        self.latents, self.weights, self.landmarks, self.attributes = [], [], [], []

    def refresh(self, limit: int | None = None):
        """Takes in up to `limit` shards that are not in memory yet."""
        new = [path for path in shard_paths(self.work_dir, self.split) if path not in self.loaded]
        for path in new[:limit]:
            shard = Shard.load(path)
            cache = self.work_dir / "latents" / self.split / f"{path.stem}.npy"
            if not cache.exists():
                save_array(cache, encode_shard(self.vae, shard))
            latents = np.load(cache)
            self.latents.append(latents.reshape(-1, *latents.shape[2:]))
            self.weights.append(self._latent_weights(shard))
            self.landmarks.append(shard.landmarks.reshape(-1, 72, 2))
            self.attributes.append([view for views in shard.attributes for view in views])
            self.loaded.add(path)

    @staticmethod
    def _latent_weights(shard: Shard) -> np.ndarray:
        """(N * V, 16, 16) loss weights of the unmirrored pictures, 1 on average."""
        points = shard.landmarks.reshape(-1, 72, 2)
        full = torch.from_numpy(np.stack([feature_weights(p, IMAGE_SIZE, FEATURE_WEIGHT) for p in points]))
        weights = F.avg_pool2d(full[:, None], IMAGE_SIZE // LATENT_SIZE)[:, 0]
        return (weights / weights.mean((1, 2), keepdim=True)).half().numpy()

    def __len__(self) -> int:
        return sum(map(len, self.latents))

    def batch(self, size: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
        """Latents (N, 16, 16, 16), loss weights (N, 1, 16, 16), landmarks (N, 72, 2) and captions."""
        latents, weights, landmarks, captions = [], [], [], []
        for _ in range(size):
            shard = int(rng.integers(len(self.latents)))
            k, mirrored = int(rng.integers(len(self.latents[shard]))), int(rng.integers(2))
            latents.append(self.latents[shard][k, mirrored])
            weight, points = self.weights[shard][k], self.landmarks[shard][k]
            weights.append(weight[:, ::-1] if mirrored else weight)
            landmarks.append(points[list(MIRROR)] * [-1, 1] + [IMAGE_SIZE, 0] if mirrored else points)
            text = caption(self.attributes[shard][k], bool(mirrored), rng)
            captions.append("" if rng.random() < TEXT_DROPOUT else text)
        return (
            torch.from_numpy(np.stack(latents)).float(),
            torch.from_numpy(np.stack(weights)).float()[:, None],
            torch.from_numpy(np.stack(landmarks)).float(),
            captions,
        )


class BaseModel(nn.Module):
    """The trained parts and their loss."""

    def __init__(self):
        super().__init__()
        self.tokenizer = create_tokenizer()
        self.text_encoder = create_text_encoder(self.tokenizer)
        self.unet = create_unet()
        self.scheduler = create_scheduler()

    def encode_text(self, captions: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return self.text_encoder(tokens.input_ids)[0]

    def losses(self, latents, weights, captions, timesteps, noise) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The training loss, the plain error of the predicted velocity, and the clean latents implied by it.

        Min-SNR weighting (Hang et al. 2023, arXiv 2303.09556) for a velocity: min(SNR, limit) / (SNR + 1).
        """
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        velocity = self.scheduler.get_velocity(latents, noise, timesteps)
        with mixed_precision():
            predicted = self.unet(noisy, timesteps, self.encode_text(captions)).sample.float()
        alpha = self.scheduler.alphas_cumprod[timesteps]
        snr = alpha / (1 - alpha)
        balance = (snr.clamp(max=SNR_LIMIT) / (snr + 1)).clamp(min=LEAST_WEIGHT)
        error = (predicted - velocity).square()
        alpha = alpha[:, None, None, None]
        clean = alpha.sqrt() * noisy - (1 - alpha).sqrt() * predicted
        return (balance * (weights * error).mean((1, 2, 3))).mean(), error.mean().detach(), clean


def create_optimizer(model: BaseModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=1e-2, fused=True)


@torch.no_grad()
def validation_loss(model: BaseModel, data: LatentData) -> float:
    """Velocity error on people outside the training set, at fixed timesteps and noise."""
    rng, generator = np.random.default_rng(5), torch.Generator().manual_seed(5)
    errors = []
    for _ in range(4):
        latents, weights, _, captions = data.batch(32, rng)
        timesteps = torch.arange(32) * 1000 // 32 + 15
        noise = torch.randn(latents.shape, generator=generator)
        errors.append(model.losses(latents, weights, captions, timesteps, noise)[1].item())
    return float(np.mean(errors))


def create_pipeline(model: BaseModel, vae: AutoencoderPatch) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=model.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample_sheet(pipeline: StableDiffusionPipeline, columns: int = 6, seed: int = 0) -> np.ndarray:
    """A row of samples for every prompt, the same noise down a column."""
    rows = []
    for prompt in PROMPTS:
        generators = [torch.Generator().manual_seed(seed + k) for k in range(columns)]
        output = pipeline(
            [prompt] * columns,
            num_inference_steps=20,
            guidance_scale=3.0,
            guidance_rescale=0.7,
            generator=generators,
            output_type="np",
        )
        rows.append(np.concatenate(list(output.images), 1))
    return (np.concatenate(rows, 0) * 255).round().astype(np.uint8)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("--images", type=int, default=1_500_000, help="pictures to see in all (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="its highest (default: %(default)s)")
    parser.add_argument("--faces", action="store_true", help="with the face loss")
    parser.add_argument("--keep-text-encoder", action="store_true", help="do not train the text encoder")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    folder = args.work_dir / "base"
    folder.mkdir(parents=True, exist_ok=True)
    vae = load_autoencoder(args.work_dir).requires_grad_(False).to(memory_format=torch.channels_last)
    train, held_out = (LatentData(args.work_dir, split, vae) for split in ("train", "validation"))
    train.refresh()
    held_out.refresh(3)

    model = BaseModel()
    model.unet.to(memory_format=torch.channels_last)
    avoid_slow_kernels(model.unet, model.text_encoder)
    model.text_encoder.requires_grad_(not args.keep_text_encoder)
    average = Average(model, AVERAGE_DECAY)
    optimizer = create_optimizer(model)
    checkpoint = folder / "training.pt"
    step = load_checkpoint(checkpoint, model, average, optimizer, rng)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{millions:.2f} M parameters, {step * BATCH} pictures seen, {len(train)} in the data set", flush=True)

    def decode(latents: torch.Tensor) -> torch.Tensor:
        with mixed_precision():
            return vae.decode(latents / vae.config.scaling_factor).sample.float()

    saved = logged = drawn = time.time()
    errors, since, steps = [], step, math.ceil(args.images / BATCH)
    while step < steps:
        latents, weights, landmarks, captions = train.batch(BATCH, rng)
        timesteps = torch.randint(0, 1000, (BATCH,))
        loss, error, clean = model.losses(latents, weights, captions, timesteps, torch.randn_like(latents))
        if args.faces:
            signal = model.scheduler.alphas_cumprod[timesteps]
            loss = loss + FACE_WEIGHT * drawn_faces_loss(decode, clean, latents, landmarks + TO_PACKAGE, signal)
        rate = learning_rate(args.learning_rate, step, steps, WARMUP, COOLDOWN)
        descend(loss, model, average, optimizer, rate, step)
        errors.append(error.item())
        step += 1
        now, done = time.time(), step == steps
        if now - logged > 120 or done:
            speed = (step - since) * BATCH / (now - logged)
            print(f"{step * BATCH} pictures, error {np.mean(errors):.4f}, {speed:.1f}/s", flush=True)
            errors, since, logged = [], step, now
        if now - saved > SAVE_SECONDS or done:
            save_checkpoint(checkpoint, step, model, average, optimizer, rng)
            with average:
                print(f"  saved; validation error {validation_loss(model, held_out):.4f}", flush=True)
            train.refresh(limit=20)
            saved = time.time()
        if now - drawn > SHEET_SECONDS or done:
            with average:
                sheet = sample_sheet(create_pipeline(model.eval(), vae))
            model.train()
            cv2.imwrite(str(folder / f"samples-{step * BATCH:08d}.png"), sheet[..., ::-1])
            drawn = time.time()


if __name__ == "__main__":
    main()
