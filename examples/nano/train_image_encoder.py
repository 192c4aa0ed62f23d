"""A tiny CLIP of rendered people: the adapter's image encoder, and the judge of prompts.

Run again to continue.

    python train_image_encoder.py --steps 2000

Its vision model sees what any adapter's image encoder sees, the aligned head, here at 64 px. Captions alone would teach it
no more than what words say, so a second loss, on a head that is dropped afterwards, asks which two pictures show one
person.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from base_model import TEXT_LENGTH, create_tokenizer
from checkpoints import Average, load_checkpoint, save_checkpoint
from dataset import TO_PACKAGE, Shard, shard_paths
from descend import descend
from lr_scheduler import learning_rate
from people.captions import caption
from precision import mixed_precision
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPVisionModelWithProjection
from workspace import add_work_dir

from facesnap_diffusers.faces.alignment import align_for_clip


SIZE, PATCH, WIDTH = 64, 8, 128
PEOPLE = 64  # in a batch, two views each
LEARNING_RATE = 1e-3


def create_model(tokenizer) -> CLIPModel:
    shape = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4, "projection_dim": WIDTH}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": TEXT_LENGTH, "num_hidden_layers": 2, **shape}
    text |= {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    vision = {"image_size": SIZE, "patch_size": PATCH, "num_hidden_layers": 4, **shape}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def create_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})


class Heads:
    """Aligned heads (N, V, 64, 64, 3) of a split, and what the captions say of them."""

    def __init__(self, work_dir, split: str):
        heads, self.attributes = [], []
        for path in shard_paths(work_dir, split):
            shard = Shard.load(path)
            for images, landmarks in zip(shard.images, shard.landmarks):
                heads.append(np.stack([align_for_clip(i, p + TO_PACKAGE, SIZE) for i, p in zip(images, landmarks)]))
            self.attributes += shard.attributes
        self.heads = np.stack(heads)

    def batch(self, people: int, rng: np.random.Generator) -> tuple[torch.Tensor, list[str]]:
        """Pixels (2, people, 3, 64, 64) in 0 to 1 of two views each, and captions of the first."""
        chosen = rng.choice(len(self.heads), people, replace=False)
        views = np.stack([rng.choice(self.heads.shape[1], 2, replace=False) for _ in chosen])
        pixels = self.heads[chosen[:, None], views].swapaxes(0, 1).copy()
        captions = []
        for k, (person, view) in enumerate(zip(chosen, views[:, 0])):
            mirrored = rng.random(2) < 0.5
            for side in range(2):
                pixels[side, k] = pixels[side, k][:, ::-1] if mirrored[side] else pixels[side, k]
            captions.append(caption(self.attributes[person][view], bool(mirrored[0]), rng))
        return torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).float() / 255, captions


class Training(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokenizer = create_tokenizer()
        self.clip = create_model(self.tokenizer)
        self.identity = nn.Linear(WIDTH, WIDTH)
        self.processor = create_processor()

    def losses(self, pixels: torch.Tensor, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Contrastive losses of pictures and captions (Radford et al. 2021), and of the two views of everybody."""
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.processor.image_mean, self.processor.image_std))
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with mixed_precision():
            pooled = self.clip.vision_model((pixels.flatten(0, 1) - mean) / std).pooler_output
            first, second = self.identity(pooled).float().unflatten(0, (2, -1))
            image = self.clip.visual_projection(pooled[: len(captions)]).float()
            text = self.clip.text_projection(self.clip.text_model(tokens).pooler_output).float()
        scale = self.clip.logit_scale.exp().clamp(max=100)
        return contrast(image, text, scale), contrast(first, second, scale)


def contrast(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    logits = scale * F.normalize(a) @ F.normalize(b).T
    targets = torch.arange(len(a))
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    folder = args.work_dir / "clip"
    train, held_out = Heads(args.work_dir, "train"), Heads(args.work_dir, "validation")
    model = Training()
    average = Average(model, 0.995)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    step = load_checkpoint(folder / "training.pt", model, average, optimizer, rng)
    print(f"{len(train.heads)} people, step {step}", flush=True)
    started, first = time.time(), step
    while step < args.steps:
        captions_loss, views_loss = model.losses(*train.batch(PEOPLE, rng))
        descend(
            captions_loss + views_loss, model, average, optimizer, learning_rate(LEARNING_RATE, step, args.steps), step
        )
        step += 1
        if step % 200 == 0 or step == args.steps:
            with average, torch.no_grad():
                fixed = np.random.default_rng(1)
                held_out_losses = [model.losses(*held_out.batch(PEOPLE, fixed)) for _ in range(4)]
            c, v = (float(np.mean([f[k].item() for f in held_out_losses])) for k in (0, 1))
            print(f"step {step}: captions {c:.3f}, views {v:.3f} (chance {np.log(PEOPLE):.2f}), "
                  f"{(time.time() - started) / (step - first):.2f} s a step", flush=True)  # fmt: skip
            save_checkpoint(folder / "training.pt", step, model, average, optimizer, rng)
    average.swap()
    model.clip.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    model.processor.save_pretrained(folder / "model")
    vision = CLIPVisionModelWithProjection.from_pretrained(folder / "model")
    vision.save_pretrained(folder / "image_encoder")
    model.processor.save_pretrained(folder / "image_encoder")


if __name__ == "__main__":
    main()
