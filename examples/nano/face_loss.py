"""How far drawn pictures are from the true ones, to a network for faces above all: what velocities do not tell."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from precision import mixed_precision
from torch import nn

from facesnap_diffusers.data.recognition_crop import align_faces
from facesnap_diffusers.training.dlib_network import load_dlib_network


# the last states of each resolution, from 35x35 of edges to 4x4 of what makes a face
LAYERS = (0, 3, 7, 10, 13)
EMBEDDING_WEIGHT = 4.0
FACES = 16  # of how many pictures of a batch it is taken at most
LEAST_SIGNAL = 0.1  # with less, a predicted picture is a blur
SAMPLE_FACE_WEIGHT = 0.1
SAMPLE_COLOR_WEIGHT = 0.5
SAMPLE_EDGE_WEIGHT = 6.0
PATCH = 16  # pixels; where things are within it is the noise's to say
LEAST_EDGE = 0.01  # where there is none, the root has no slope


class FaceLoss(nn.Module):
    """
    The difference of what dlib's network makes of two faces: of its states, of unit length at each place (as in LPIPS,
    Zhang et al. 2018, arXiv 1801.03924), and of its embeddings.
    """

    def __init__(self):
        super().__init__()
        self.network = load_dlib_network().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, output: torch.Tensor, target: torch.Tensor, landmarks: torch.Tensor) -> torch.Tensor:
        """
        Args:
            output, target: pictures (N, 3, 128, 128) in -1 to 1.
            landmarks: (N, 72, 2) of both, in the package's pixels.

        Returns:
            (N,), 0 where both look the same.
        """
        states = self._states(output, landmarks)
        with torch.no_grad():
            target_states = self._states(target, landmarks)
        loss = EMBEDDING_WEIGHT * (states[-1] - target_states[-1]).square().sum(1)
        for layer in LAYERS:
            difference = F.normalize(states[layer], dim=1) - F.normalize(target_states[layer], dim=1)
            loss = loss + difference.square().sum(1).mean((1, 2))
        return loss

    def _states(self, pictures: torch.Tensor, landmarks: torch.Tensor) -> list[torch.Tensor]:
        crops = align_faces(pictures, landmarks, "dlib").contiguous(memory_format=torch.channels_last)
        with mixed_precision(crops.device.type):
            return [states.float() for states in self.network.hidden_states(crops)]


@cache
def shared_face_loss(device: torch.device) -> FaceLoss:
    return FaceLoss().to(device)


def drawn_faces_loss(
    decode: Callable[[torch.Tensor], torch.Tensor],
    predicted: torch.Tensor,
    latents: torch.Tensor,
    landmarks: torch.Tensor,
    signal: torch.Tensor,
) -> torch.Tensor:
    """
    The face loss of the pictures that predicted latents amount to, where there is enough signal to see a face.

    Args:
        decode: latents to pictures in -1 to 1.
        predicted, latents: (N, 16, 16, 16), predicted and true.
        landmarks: (N, 72, 2) in the package's pixels.
        signal: (N,), which share of the noisy latents' variance was signal; it scales the pictures' losses.
    """
    chosen = (signal > LEAST_SIGNAL).nonzero()[:FACES, 0]
    if not len(chosen):
        return predicted.sum() * 0.0
    with torch.no_grad():
        ground_truth = decode(latents[chosen])
    loss = shared_face_loss(predicted.device)(decode(predicted[chosen]), ground_truth, landmarks[chosen])
    return (signal[chosen] * loss).mean()


def sample_loss(
    objective, batch: dict, latents: torch.Tensor, sampled_latents: torch.Tensor | None, **_
) -> torch.Tensor:
    """
    For `loss.extra` of `facesnap train`: how far samples of a few steps are from the true pictures of the same people
    and scenes. Their faces to dlib's network; and of patches, what dlib does not mind, hair above all: the
    colours, and how sharp the edges are, without which a blur would be the safest choice.
    """
    complete = ~(batch["without_text"] | batch["without_identity"] | batch["without_landmarks"])
    if sampled_latents is None or not complete.any():
        return latents.new_zeros(())
    with torch.autocast(latents.device.type, enabled=False):
        with torch.no_grad():
            ground_truth = objective.decode_latents(latents[complete]) * 2 - 1
        drawn = objective.decode_latents(sampled_latents[complete]) * 2 - 1
        faces = shared_face_loss(drawn.device)(drawn, ground_truth, batch["detected"][complete]).mean()
        colors = F.avg_pool2d(drawn - ground_truth, PATCH).abs().mean()
        edges = (edge_strength(drawn) - edge_strength(ground_truth)).abs().mean()
    loss = SAMPLE_FACE_WEIGHT * faces + SAMPLE_COLOR_WEIGHT * colors + SAMPLE_EDGE_WEIGHT * edges
    return objective.identity_loss.every * loss


def edge_strength(pictures: torch.Tensor) -> torch.Tensor:
    """Root mean square of the differences of neighbouring pixels in each patch: less, where the same edge is blurred."""
    along_x = F.pad(pictures.diff(dim=3).square(), (0, 1))
    along_y = F.pad(pictures.diff(dim=2).square(), (0, 0, 0, 1))
    return (F.avg_pool2d(along_x + along_y, PATCH) + LEAST_EDGE**2).sqrt()
