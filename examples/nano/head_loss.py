"""How far drawn heads are from the true ones to a network that was taught hair, beard, glasses and colors."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from face_loss import (
    PATCH,
    SAMPLE_COLOR_WEIGHT,
    SAMPLE_EDGE_WEIGHT,
    SAMPLE_FACE_WEIGHT,
    edge_strength,
    shared_face_loss,
)
from teach_image_encoder import load_reader
from torch import nn

from facesnap_diffusers.faces.alignment import head_axes
from facesnap_diffusers.models.image_encoder import image_hidden_states


READER = Path("taught")  # in the work directory, where `facesnap train` runs
CLASSES_WEIGHT, MEASURES_WEIGHT, STATES_WEIGHT = 0.05, 0.2, 0.2
FINE_PATCH, FINE_COLOR_WEIGHT = 8, 0.25
EYES = (slice(36, 42), slice(42, 48))  # their landmarks, the corners first and fourth
IRIS = 0.18  # of an eye's width: the standard deviation of where its color is looked for
EYE_COLOR_WEIGHT = 0.5


class HeadLoss(nn.Module):
    """
    The difference of what `teach_image_encoder.py` taught to read of two heads: classes (Kullback-Leibler divergence), measures
    (squared, standardized), and states of unit length at each place, as in LPIPS (Zhang et al. 2018, arXiv 1801.03924).
    """

    def __init__(self):
        super().__init__()
        self.reader = load_reader(READER).requires_grad_(False)
        processor = self.reader.processor
        self.register_buffer("image_mean", torch.tensor(processor.image_mean).view(3, 1, 1))
        self.register_buffer("image_std", torch.tensor(processor.image_std).view(3, 1, 1))

    def forward(self, output: torch.Tensor, target: torch.Tensor, landmarks: torch.Tensor) -> torch.Tensor:
        """
        Args:
            output, target: pictures (N, 3, 128, 128) in -1 to 1.
            landmarks: (N, 72, 2) of both, in the package's pixels.

        Returns:
            (N,), 0 where both look the same.
        """
        (found, measured), states = self._read(output, landmarks)
        with torch.no_grad():
            (wanted, true_measures), true_states = self._read(target, landmarks)
        loss = MEASURES_WEIGHT * (measured - true_measures).square().mean(1)
        for logits, true_logits in zip(found, wanted):
            own, true = logits.log_softmax(1), true_logits.log_softmax(1)
            loss = loss + CLASSES_WEIGHT * (true.exp() * (true - own)).sum(1)
        difference = F.normalize(states, dim=2) - F.normalize(true_states, dim=2)
        return loss + STATES_WEIGHT * difference.square().sum(2).mean(1)

    def _read(self, pictures: torch.Tensor, landmarks: torch.Tensor):
        """Logits of each class and measures by the class token's head, and the states that the mixer reads."""
        reader = self.reader
        normalized = (pictures / 2 + 0.5 - self.image_mean) / self.image_std
        heads = align_heads(normalized, landmarks, reader.encoder.config.image_size)
        states = image_hidden_states(reader.encoder, heads)
        parts = reader.heads[0](states[:, 0]).split([*reader.counts, len(reader.mean)], 1)
        return (parts[:-1], parts[-1]), states


def align_heads(pictures: torch.Tensor, landmarks: torch.Tensor, size: int) -> torch.Tensor:
    """As `align_for_clip`, of a batch, differentiable by the pictures, 0 outside of them."""
    height, width = pictures.shape[-2:]
    middle = (np.arange(size) + 0.5) / size - 0.5
    grids = []
    for points in landmarks.detach().cpu().numpy():
        center, right, side = head_axes(points)
        down = np.array([-right[1], right[0]])
        places = center + side * (middle[None, :, None] * right + middle[:, None, None] * down)
        grids.append((2 * places + 1) / (width, height) - 1)
    grid = torch.from_numpy(np.stack(grids)).to(pictures)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def eye_colors(pictures: torch.Tensor, landmarks: torch.Tensor) -> torch.Tensor:
    """(N, 2, 3), the mean colors about the middle of both eyes."""
    height, width = pictures.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([x, y], -1).to(pictures)
    colors = []
    for eye in EYES:
        points = landmarks[:, eye].to(pictures)
        spread = IRIS * (points[:, 3] - points[:, 0]).norm(dim=1)
        distances = (places - points.mean(1)[:, None, None]).norm(dim=3)  # (N, height, width)
        weights = torch.exp(-(distances / spread[:, None, None]).square() / 2)
        weights = weights / weights.sum((1, 2), keepdim=True)
        colors.append((pictures * weights[:, None]).sum((2, 3)))
    return torch.stack(colors, 1)


@cache
def shared_head_loss(device: torch.device) -> HeadLoss:
    return HeadLoss().to(device)


def sample_loss(
    objective, batch: dict, latents: torch.Tensor, sampled_latents: torch.Tensor | None, **_
) -> torch.Tensor:
    """For `loss.extra` of `facesnap train`: as `face_loss.sample_loss`, and the heads, and colors of finer patches and eyes."""
    conditioned = ~(batch["without_text"] | batch["without_identity"] | batch["without_landmarks"])
    if sampled_latents is None or not conditioned.any():
        return latents.new_zeros(())
    points = batch["detected"][conditioned]
    with torch.autocast(latents.device.type, enabled=False):
        with torch.no_grad():
            ground_truth = objective.decode_latents(latents[conditioned]) * 2 - 1
        drawn = objective.decode_latents(sampled_latents[conditioned]) * 2 - 1
        loss = SAMPLE_FACE_WEIGHT * shared_face_loss(drawn.device)(drawn, ground_truth, points).mean()
        loss = loss + shared_head_loss(drawn.device)(drawn, ground_truth, points).mean()
        for patch, weight in ((PATCH, SAMPLE_COLOR_WEIGHT), (FINE_PATCH, FINE_COLOR_WEIGHT)):
            loss = loss + weight * F.avg_pool2d(drawn - ground_truth, patch).abs().mean()
        eyes = eye_colors(drawn, points) - eye_colors(ground_truth, points)
        loss = loss + EYE_COLOR_WEIGHT * eyes.abs().mean()
        loss = loss + SAMPLE_EDGE_WEIGHT * (edge_strength(drawn) - edge_strength(ground_truth)).abs().mean()
    return objective.identity_loss.every * loss
