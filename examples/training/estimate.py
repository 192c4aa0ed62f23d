"""What training costs: memory and arithmetic of each config here, counted on the full-size models without weights or a GPU.

    python examples/training/estimate.py [CONFIG ...]

Arithmetic is counted by `torch.utils.flop_counter`, activations as what autograd saves in a forward pass in bfloat16.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

from facesnap_diffusers.base_models import empty_unet, is_sdxl
from facesnap_diffusers.models.attention import IdentityAttention
from facesnap_diffusers.models.ffrnet import FFRNet
from facesnap_diffusers.models.mixer import FacialAttributeMixer
from facesnap_diffusers.training.training_config import TrainingConfig, load_config
from facesnap_diffusers.training.weight_storage import stored_layers


TERA, GIGA = 1e12, 1e9
SNR_SHARE = 0.35  # of timesteps of Stable Diffusion's schedule have a signal-to-noise ratio over 1
THROUGHPUT = 0.35 * 312 * TERA  # of an A100 in bfloat16, at 35 % of its peak, which such networks reach
ENCODERS = {"sd": 0.12e9 + 0.3e9, "sdxl": 0.82e9 + 0.3e9}  # parameters of the text and image encoders
OPTIMIZER_BYTES = {"adamw": 8, "adamw_fused": 8, "adamw_8bit": 2, "adafactor": 4}
GPUS = {"sdxl-1": 8, "sdxl-2": 8}  # of the configs that are for several


def create_vae() -> AutoencoderKL:
    with torch.device("meta"):
        return AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
            latent_channels=4,
        ).requires_grad_(False)


def flops(function: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


def saved_bytes(function: Callable[[], Any], bytes_per_number: int = 2) -> tuple[int, int]:
    """What a forward pass keeps for the backward pass, each tensor once: intermediate results, and frozen weights."""
    results: dict[int, int] = {}
    weights: dict[int, int] = {}
    kept = []  # so that no identity is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        whole = tensor if tensor._base is None else tensor._base  # linear layers keep their weight transposed
        is_weight = isinstance(whole, torch.nn.Parameter)
        if not (is_weight and whole.requires_grad):
            sizes = weights if is_weight else results
            sizes[id(tensor.untyped_storage())] = tensor.numel() * bytes_per_number
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(results.values()), sum(weights.values())


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass
class Costs:
    """
    For one sample: floating-point operations of UNet, forward pass and backward pass of UNet and FFRNet, and the VAE; bytes of
    the activations kept in UNet and FFRNet, of the frozen weights among them, and of those kept in the VAE's decoder.
    """

    unet: float
    forward: float
    backward: float
    encode: float
    decode: float
    saved: float
    saved_weights: float
    decoded: float


def costs(unet: Any, ffrnet: Any, vae: Any, vae_bytes: int, checkpointing: bool, latent: int) -> Costs:
    """What a sample of `latent`² latents costs."""
    width = unet.config.cross_attention_dim
    with torch.device("meta"):
        sample, timestep = torch.zeros(1, 4, latent, latent), torch.zeros(1, dtype=torch.long)
        context = torch.zeros(1, 93, width, requires_grad=True)
        pixels = torch.zeros(1, 3, 8 * latent, 8 * latent)
        latents = torch.zeros(1, 4, latent, latent, requires_grad=True)
        added = {}
        if is_sdxl(unet):
            added = {"added_cond_kwargs": {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}}
    for module in (ffrnet, unet, vae):
        module.train()
        module.disable_gradient_checkpointing()

    def forward() -> None:
        down, mid = ffrnet(sample, timestep, context[:, 77:], pixels, return_dict=False, **added)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        unet(sample, timestep, context, **residuals, **added)

    tokens = context.detach()
    unet_flops = flops(lambda: unet(sample, timestep, tokens, **added))
    ffrnet_flops = flops(lambda: ffrnet(sample, timestep, tokens[:, 77:], pixels, return_dict=False, **added))
    encode_flops, decode_flops = flops(lambda: vae.encode(pixels)), flops(lambda: vae.decode(sample))
    if checkpointing:
        for module in (unet, ffrnet, vae):
            module.enable_gradient_checkpointing()
    saved, saved_weights = saved_bytes(forward)
    decoded, _ = saved_bytes(lambda: vae.decode(latents), vae_bytes)
    return Costs(
        unet=unet_flops,
        forward=unet_flops + ffrnet_flops,
        # a frozen network's backward pass costs as much as its forward pass, a trained one's twice as much;
        # recomputing costs a forward pass more; float32 (TF32) costs twice as much as bfloat16
        backward=2 * unet_flops + 3 * ffrnet_flops,
        encode=encode_flops,
        decode=decode_flops,
        saved=saved,
        saved_weights=saved_weights,
        decoded=decoded,
    )


def estimate(config: TrainingConfig, gpus: int = 1) -> dict[str, float]:
    """Bytes, floating-point operations a sample, and what follows from them for one GPU, with all samples of so many."""
    family, latent = config.base.family, config.data.resolution // 8
    unet, vae = empty_unet({"sd": "sd1"}.get(family, family)).requires_grad_(False), create_vae()
    width, rank = unet.config.cross_attention_dim, config.adapter.ffrnet_rank
    with torch.device("meta"):
        ffrnet = FFRNet.from_unet(unet, rank)
        parts = [FacialAttributeMixer(width), IdentityAttention.from_unet(unet), ffrnet]
    vae_bytes = 4 if family == "sdxl" and config.base.vae is None else 2
    nets = (unet, ffrnet, vae, vae_bytes, config.gradient_checkpointing)
    whole = costs(*nets, latent)

    vae_factor, loss = vae_bytes / 2, config.identity_loss
    total = whole.forward + whole.backward + vae_factor * whole.encode
    saved = whole.saved
    if loss.weight > 0 and loss.mode == "prediction":
        total += vae_factor * SNR_SHARE * 3 * whole.decode
        saved += whole.decoded  # at the worst, all samples of a batch are clean enough
    if config.loss.extra_samples or (loss.weight > 0 and loss.mode == "few_step"):
        small = whole if loss.resolution is None else costs(*nets, loss.resolution // 8)
        sampled = loss.steps * small.forward + loss.gradient_steps * small.backward + vae_factor * 3 * small.decode
        total += sampled / loss.every
        saved += loss.gradient_steps * small.saved + small.decoded
    activations = config.batch_size * saved

    if config.loss.align_semantic > 0 or config.loss.align_layout > 0:
        total += whole.unet / config.loss.align_every

    # layers that a small FFRNet shares with the UNet are not its own
    frozen_parameters = {id(parameter) for parameter in unet.parameters()}
    trained = sum(p.numel() for part in parts for p in part.parameters() if id(p) not in frozen_parameters)
    frozen = 2 * (count(unet) + ENCODERS[family]) + vae_bytes * count(vae)
    if config.base.storage_dtype is not None:  # what is kept for the backward pass are casts of them
        frozen += whole.saved_weights - sum(layer.weight.numel() for _, layer in stored_layers(unet))
    averaged = 4 if config.ema_decay > 0 else 0
    # weights, gradients, averaged weights, optimizer, copies in bfloat16
    state = trained * (4 + 4 + averaged + OPTIMIZER_BYTES[config.optimizer.name] + 2)
    samples = config.steps * config.batch_size * config.gradient_accumulation * gpus
    return {
        "trained": trained,
        "frozen": frozen,
        "state": state,
        "activations": activations,
        "memory": frozen + state + activations,
        "flops": total,
        "samples_per_second": THROUGHPUT / total,
        "days": samples * total / THROUGHPUT / 86400,
    }


def main() -> None:
    paths = [Path(name) for name in sys.argv[1:]] or sorted(Path(__file__).parent.glob("*.yaml"))
    print("| | trained | frozen + trained + activations | TFLOP a sample | samples a second | A100-days |")
    print("|---|---:|---:|---:|---:|---:|")
    for path in paths:
        found = estimate(load_config(path), GPUS.get(path.stem, 1))
        memory = " + ".join(f"{found[name] / GIGA:.1f}" for name in ("frozen", "state", "activations"))
        print(
            f"| `{path.name}` | {found['trained'] / 1e6:,.0f} M | {memory} = {found['memory'] / GIGA:.0f} GB |"
            f" {found['flops'] / TERA:.1f} | {found['samples_per_second']:.1f} | {found['days']:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
