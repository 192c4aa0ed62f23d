"""
What the identity loss brings, and at what price: the same tiny model without it, with it on single predictions, and on
samples of a few steps. A model of random weights that learns eight made-up people by heart: it says whether the losses do
what they should, not how much they are worth on photos.

    python benchmarks/identity_loss.py --steps 300
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import tiny_training

from facesnap_diffusers.training.recognizer import FaceRecognizer
from facesnap_diffusers.training.samples import collate
from facesnap_diffusers.training.trainer import Trainer


LOSSES = {
    "none": {"weight": 0.0},
    "prediction": {"weight": 0.5, "mode": "prediction", "min_snr": 0.3},
    "few_step": {"weight": 0.5, "mode": "few_step", "every": 4, "steps": 4, "gradient_steps": 1},
}
SAMPLING_STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    print("| L_id | face similarity | diffusion loss | ms a step |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tiny_training.write_base(root / "base", "v_prediction")
        tiny_training.write_faces(root / "faces", people=8, photos=2)
        for name, loss in LOSSES.items():
            rows = [run(root, root / f"{name}-{seed}", loss, arguments.steps, seed) for seed in range(arguments.seeds)]
            similarity, diffusion, seconds = (torch.tensor(column) for column in zip(*rows))
            print(
                f"| {name} | {similarity.mean():.3f} ± {similarity.std():.3f} | {diffusion.mean():.4f} |"
                f" {1000 * seconds.min():.0f} |",
                flush=True,
            )


def run(root: Path, output: Path, identity_loss: dict, steps: int, seed: int) -> tuple[float, float, float]:
    """Similarity of samples to the reference, diffusion loss on fixed noise, processor seconds a step."""
    tiny_training.reset_accelerate()
    nothing = {"flip": 0, "zoom": [1, 1], "reference_flip": 0, "reference_jitter": 0}
    config = tiny_training.config(
        root / "base",
        root / "faces",
        output,
        steps=steps,
        seed=seed,
        data={"validation": [str(root / "faces")], **nothing},
        dropout={"text": 0, "identity": 0, "both": 0, "landmarks": 0},
        identity_loss=identity_loss,
        optimizer={"learning_rate": 2e-3},
        validation={"batches": 8, "images": 0},
        log_every=steps,
    )
    trainer = Trainer(config)
    start = time.process_time()
    results = trainer.train()
    seconds = (time.process_time() - start) / steps
    return similarity(trainer), results["validation/diffusion"], seconds


@torch.no_grad()
def similarity(trainer: Trainer) -> float:
    """Mean cosine of the face embeddings of samples from pure noise and of the reference, one sample for each photo."""
    objective, samples = trainer.objective, trainer.validation_samples
    recognizer = FaceRecognizer(tiny_training.TinyRecognizer(), size=tiny_training.CROP_SIZE)
    samples.extras = frozenset({"start_noise", "recognition_crop"})
    batch = collate([samples[position] for position in range(len(samples.faces))])
    objective.identity_loss = dataclasses.replace(objective.identity_loss, steps=SAMPLING_STEPS)
    with trainer._averaged():
        latents = objective.sample(batch["start_noise"], objective.encode_conditions(batch))
        images = objective.decode_latents(latents).clamp(0, 1)
    embeds = recognizer(images, batch["detected"])
    return F.cosine_similarity(embeds, batch["face_embeds"]).mean().item()


if __name__ == "__main__":
    main()
