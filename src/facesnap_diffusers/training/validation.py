"""What a run looks at while it trains: losses on fixed noise, and images of fixed people."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import torch

from ..identity import FaceIdentity
from .objective import Objective
from .samples import TrainingSamples, collate
from .training_config import ValidationConfig


@torch.no_grad()
def validation_losses(
    objective: Objective, samples: TrainingSamples, batches: int, batch_size: int, device: torch.device
) -> dict[str, float]:
    """Losses of the same samples with the same noise every time, the timesteps spread over the schedule."""
    sums: dict[str, float] = {}
    total = batches * batch_size
    for number in range(batches):
        positions = range(number * batch_size, (number + 1) * batch_size)
        batch = to_device(collate([samples[position] for position in positions]), device)
        # a stride that has no divisor in common with the count visits all timesteps, and every batch has all sorts
        spread = [(position * _stride(total)) % total for position in positions]
        batch["timestep"] = torch.tensor([(2 * i + 1) * samples.num_timesteps // (2 * total) for i in spread]).to(
            device
        )
        losses = objective(batch, step=objective.first_identity_step)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.item() / batches
    return sums


@torch.no_grad()
def validation_sheet(
    objective: Objective, samples: TrainingSamples, config: ValidationConfig, seed: int, device: torch.device
) -> PIL.Image.Image:
    """A row for each sample: reference, landmarks, generated image, target."""
    pipeline = objective.pipeline
    rows = []
    for position in range(config.images):
        batch = collate([samples[position]])
        pixels = batch["pixel_values"][0]
        height, width = pixels.shape[-2:]
        output = pipeline(
            config.prompt or batch["caption"][0],
            identity=_identity(objective, batch),
            landmarks=batch["landmarks"],
            height=height,
            width=width,
            num_inference_steps=config.inference_steps,
            guidance_scale=config.guidance_scale,
            generator=torch.Generator().manual_seed(seed + position),
            output_type="np",
        )
        reference = PIL.Image.fromarray(_to_uint8(batch["recognition_crop"][0])).resize((width, height))
        drawn = objective.conditioner.landmark_picture(batch["landmarks"], height, width)[0]
        generated = (output.images[0] * 255).round().astype(np.uint8)
        row = [np.array(reference), _to_uint8(drawn), generated, _to_uint8(pixels / 2 + 0.5)]
        rows.append(np.concatenate(row, axis=1))
    return PIL.Image.fromarray(np.concatenate(rows))


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def _identity(objective: Objective, batch: dict[str, Any]) -> FaceIdentity:
    conditioner = objective.conditioner
    states = conditioner.image_states(batch["clip_crop"]) if "clip_crop" in batch else None
    return FaceIdentity(
        face_embeds=batch["face_embeds"][0],
        face_encoder_id=conditioner.config.face_encoder_id,
        image_hidden_states=None if states is None else states[0].float().cpu(),
        image_encoder_id=conditioner.config.image_encoder_id,
    )


def _to_uint8(image: torch.Tensor) -> np.ndarray:
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def _stride(total: int) -> int:
    return next(prime for prime in (7, 11, 13, 17, 19, 23, 29, 31) if total % prime)
