"""Where the autoencoder's training starts: at the best linear autoencoder of 8x8 patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from facesnap_diffusers.nano.autoencoder import PATCH, AutoencoderPatch


@torch.no_grad()
def principal_components(images: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean (192,), components (192, count) and standard deviations (count,) of the 8x8 patches of pictures."""
    patches = F.pixel_unshuffle(images, PATCH).permute(0, 2, 3, 1).reshape(-1, 3 * PATCH**2).double()
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
    order = slice(-count, None)
    return mean.float(), vectors[:, order].flip(1).float(), values[order].flip(0).sqrt().float()


@torch.no_grad()
def start_from_components(vae: AutoencoderPatch, images: torch.Tensor, latent_std: float, whitening: float):
    """Makes encoder and decoder the projection on principal components of patches and its inverse.

    The stride-2 convolutions of a ReLU network can pass pixels on untouched (they are not negative), gather 8x8 patches,
    and project them, with two channels for the two signs of a component. Whatever else the network has starts at zero.

    Args:
        images: (N, 3, H, W) in -1 to 1.
        latent_std: root mean square of the latents.
        whitening: 0 keeps the components' standard deviations, 1 makes them equal.
    """
    count = vae.config.latent_channels
    mean, vectors, deviation = principal_components(images.add(1).div(2), count)
    scale = deviation**-whitening
    scale = scale * latent_std / (deviation * scale).square().mean().sqrt()
    convolutions = [layer for layer in vae.encoder.layers if isinstance(layer, nn.Conv2d)]
    first, gather_1, gather_2, projector, last = convolutions
    first.weight[:3] = 0
    first.bias[:3] = 0
    for c in range(3):
        first.weight[c, c, 1, 1] = 1
    for convolution, width in ((gather_1, 3), (gather_2, 12)):
        convolution.weight[: 4 * width] = 0
        for c in range(width):
            for k in range(4):  # as pixel_unshuffle orders them
                convolution.weight[4 * c + k, c, 1 + k // 2, 1 + k % 2] = 1
    # unshuffling three times by 2 orders the pixels of a patch otherwise than unshuffling by 8 at once
    place = torch.arange(PATCH**2).view(1, 1, PATCH, PATCH).float()
    for _ in range(3):
        place = F.pixel_unshuffle(place, 2)
    order = torch.cat([place.flatten().long() + c * PATCH**2 for c in range(3)])
    projection = (vectors * scale).T[:, order].view(count, 3 * PATCH**2 // 4, 2, 2)
    projector.weight[: 2 * count] = 0
    projector.weight[:count, : projection.shape[1], 1:, 1:] = projection
    projector.weight[count : 2 * count, : projection.shape[1], 1:, 1:] = -projection
    last.weight.zero_()
    for c in range(count):
        last.weight[c, c, 1, 1], last.weight[c, c + count, 1, 1] = 1, -1
    last.bias.copy_(-(mean @ vectors) * scale)
    for layer in vae.encoder.layers:
        if hasattr(layer, "fuse"):
            nn.init.zeros_(layer.conv[-1].weight)
            nn.init.zeros_(layer.conv[-1].bias)
    vae.decoder.linear.weight.copy_(2 * (vectors / scale)[:, :, None, None])
    vae.decoder.linear.bias.copy_(2 * mean - 1)
