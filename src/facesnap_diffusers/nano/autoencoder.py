"""The autoencoder of the nano model: the encoder of a stock `AutoencoderTiny`, and a decoder with a linear shortcut."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, EncoderTiny

# `DiffusionPipeline.from_pretrained` looks in the component's module for the base class that says how to load it
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401
from torch import nn


PATCH = 8
_NO_VARIANCE = -30.0  # the smallest log-variance that diffusers keeps


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), the identity at the start."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class PatchDecoder(nn.Module):
    """(N, C, h, w) latents to (N, 3, 8 h, 8 w) pictures: a linear map of each latent to its patch, plus a tower."""

    def __init__(self, latent_channels: int, channels: tuple[int, ...], blocks: tuple[int, ...]):
        super().__init__()
        self.linear = nn.Conv2d(latent_channels, 3 * PATCH**2, 1)
        self.conv_in = nn.Conv2d(latent_channels, channels[0], 3, padding=1)
        stages: list[nn.Module] = []
        for k, (width, count) in enumerate(zip(channels, blocks, strict=True)):
            stages += [ResidualBlock(width) for _ in range(count)]
            if k + 1 < len(channels):
                stages += [nn.Conv2d(width, 4 * channels[k + 1], 1), nn.PixelShuffle(2)]
        self.stages = nn.Sequential(*stages)
        self.conv_out = nn.Conv2d(channels[-1], 12, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        residual = self.conv_out(F.silu(self.stages(self.conv_in(latents))))
        return F.pixel_shuffle(self.linear(latents), PATCH) + F.pixel_shuffle(residual, 2)


class AutoencoderPatch(AutoencoderKL):
    """Pictures to latents an eighth as wide and back: an `AutoencoderKL` to whoever uses it, with other insides.

    The encoder is that of `AutoencoderTiny`, which has no normalisation and can begin as a linear map; its latents are
    certain (the variance is 0 to rounding). The decoder is a `PatchDecoder`. Both start at the principal components of
    8x8 patches (`examples/nano/autoencoder_start.py`) and so need a fraction of the training of the stock classes.

    Args:
        block_out_channels: widths of the encoder at full, half, quarter and eighth size; equal, as `EncoderTiny` wants.
        encoder_blocks: residual blocks at each size.
        decoder_channels: widths of the decoder's tower at an eighth, a quarter and half the size.
        decoder_blocks: residual blocks at each of these.
        scaling_factor: what pipelines multiply latents by; the inverse of their root mean square.
    """

    @register_to_config
    def __init__(
        self,
        block_out_channels: tuple[int, ...] = (56, 56, 56, 56),
        encoder_blocks: tuple[int, ...] = (0, 0, 1, 2),
        decoder_channels: tuple[int, ...] = (96, 64, 32),
        decoder_blocks: tuple[int, ...] = (2, 2, 2),
        latent_channels: int = 16,
        scaling_factor: float = 2.5,
        force_upcast: bool = False,
    ):
        # not AutoencoderKL's own __init__, which would build its encoder and decoder
        super(AutoencoderKL, self).__init__()
        self.encoder = EncoderTiny(3, latent_channels, encoder_blocks, block_out_channels, "relu")
        self.decoder = PatchDecoder(latent_channels, decoder_channels, decoder_blocks)
        self.use_slicing = False
        self.use_tiling = False

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.encoder(x)
        return torch.cat([mean, torch.full_like(mean, _NO_VARIANCE)], dim=1)

    def _decode(self, z: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        sample = self.decoder(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)
